"""
How long an edit takes to be found, against embedding what changed alone, and against LlamaIndex.

One document of a store is edited: two of its ten sections. Measured is `put_document` and a search in the same process
that finds the new text; the question's vector is ready before, since embedding questions is no part of an edit. In the
same round: the embedder alone on the two changed passages, and LlamaIndex's IngestionPipeline on the same edit, with
document store upserts, the same embedder and the same sections, found by the same question.

LlamaIndex's own FAISS store cannot stand here: its FaissVectorStore has no delete, which upserts need, and its
FaissMapVectorStore.add() fails on faiss 1.15. `MapStore` below does what the latter's source does, an IndexIDMap2 over
IndexFlatL2 and a table of ids, written whole by persist(). The peer is timed in memory, and with its persist().

The unedited bulk of the stores has made-up vectors that are as hard to search as those of real sentences: of 24
dimensions, with noise in all (of random ones no codes tell the nearest). Each store has its files, as after any
command that adds documents. Real embedder, SQLite, one process, one thread.

    python bench/freshness.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from common import report, written_bytes
from sqlalchemy import insert

from ryorin.catalog import Catalog, open_catalog
from ryorin.catalog.tables import Document, Passage, VectorStore
from ryorin.catalog.tenants import create_tenant
from ryorin.digests import sha256_bytes
from ryorin.models.registry import DEFAULT_EMBEDDER, get_embedder, pull
from ryorin.settings import Settings
from ryorin_index.embed import Embed, Vectors, open_embedder
from ryorin_index.ingest import Incoming, put_document
from ryorin_index.maintenance import merge
from ryorin_index.search import Searcher
from ryorin_index.store import create_store
from ryorin_index.vectors import keep_vectors

TARGET_RATIO, TARGET_SLOPE, TARGET_BYTES = 1.2, 0.05, 3.0
SECTIONS, EDITED, PER_DOCUMENT = 10, 2, 20
INNER_DIMENSIONS, NOISE = 24, 0.3
QUESTION = "Within how many days can parcels of the spring sale be sent back?"
FILLER = " ".join(
    f"Parcels of shelf {shelf} are weighed, labelled and handed to the carrier before noon." for shelf in range(9)
)


def section(at: int, edition: int) -> str:
    return f"Rule {at}, edition {edition}: parcels of the spring sale can be sent back within {edition} days. {FILLER}"


def document(editions: list[int]) -> str:
    return "# Parcels\n\n" + "\n\n".join(f"## Rule {at}\n\n{section(at, each)}" for at, each in enumerate(editions))


class Ready:
    """The real embedder with the question's vector at hand."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._question = embed.query(QUESTION)

    def query(self, text: str) -> Vectors:
        """The question's, whatever is asked."""
        return self._question

    def passages(self, texts: Any) -> Vectors:
        """As the real one."""
        return self._embed.passages(texts)


def random_vectors(count: int, dimensions: int) -> Vectors:
    draw = np.random.default_rng(7)
    inner = draw.standard_normal((count, INNER_DIMENSIONS), dtype=np.float32)
    vectors = inner @ draw.standard_normal((INNER_DIMENSIONS, dimensions), dtype=np.float32)
    vectors /= math.sqrt(INNER_DIMENSIONS)
    vectors += NOISE * draw.standard_normal((count, dimensions), dtype=np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def filler(number: int) -> str:
    return f"Shelf {number} holds goods of kind {number}. {FILLER[:300]}"


def fill(catalog: Catalog, store: VectorStore, vectors: Vectors) -> None:
    """The bulk, in the rows that `put_document` would have written."""
    own = {"tenant_id": store.tenant_id, "store_id": store.id, "generation": 1}
    with catalog.session() as session:
        for at in range(0, len(vectors), PER_DOCUMENT):
            numbers = range(at, min(at + PER_DOCUMENT, len(vectors)))
            texts = [filler(number) for number in numbers]
            key = {
                "id": f"{store.id}-{at}",
                "source": f"/bulk/{at}.md",
                "filename": f"{at}.md",
                "title": f"Shelves {at}",
            }
            more = {"media_type": "text/markdown", "sha256": sha256_bytes(key["id"].encode())}
            session.execute(insert(Document).values(**own, **key, **more, attributes={}))
            digests = [sha256_bytes(text.encode()) for text in texts]
            session.execute(
                insert(Passage),
                [
                    own
                    | {"document_id": key["id"], "ordinal": ordinal, "text": text, "sha256": digest}
                    | {"start": 0, "end": len(text)}
                    for ordinal, (text, digest) in enumerate(zip(texts, digests, strict=True))
                ],
            )
            kept = {digest: vectors[number].tobytes() for number, digest in zip(numbers, digests, strict=True)}
            keep_vectors(session, store, kept)
        session.get_one(VectorStore, store.id).generation = 1


class Ours:
    """A store of `size` passages and the document that is edited."""

    def __init__(self, catalog: Catalog, tenant: Any, size: int, embed: Ready, vectors: Vectors) -> None:
        self._catalog, self._embed, self._tenant_id = catalog, embed, tenant.id
        with catalog.session() as session:
            chosen = get_embedder(catalog.settings, DEFAULT_EMBEDDER)
            self._store = create_store(session, tenant, f"bulk-{size}", chosen)
        fill(catalog, self._store, vectors)
        merge(catalog, self._store)
        self._searcher = Searcher(catalog, lambda _: embed)
        self.edit([1] * SECTIONS)

    def edit(self, editions: list[int]) -> tuple[float, float, int]:
        """(seconds until it is found, seconds of them in put_document, bytes written by put_document)."""
        incoming = Incoming("/edited.md", "edited.md", document(editions).encode())
        written = written_bytes()
        began = time.perf_counter()
        put_document(self._catalog, self._store, incoming, lambda: self._embed)
        put = time.perf_counter() - began
        hits = self._searcher.search(self._tenant_id, [self._store.id], QUESTION, SECTIONS)
        seconds = time.perf_counter() - began
        wanted = f"edition {max(editions)}:"
        assert sum(wanted in hit.text for hit in hits) >= 1, "the edit was not found"
        return seconds, put, written_bytes() - written


class Peer:
    """LlamaIndex's pipeline over a store of `size` passages."""

    def __init__(self, folder: Path, size: int, embed: Ready, vectors: Vectors) -> None:
        from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
        from llama_index.core.node_parser import MarkdownNodeParser
        from llama_index.core.schema import Document as Source
        from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
        from llama_index.core.storage.docstore import SimpleDocumentStore

        self._source, self._folder = Source, folder
        self.vectors = map_store()(vectors.shape[1])
        self.documents = SimpleDocumentStore()
        nodes = []
        for number, vector in enumerate(vectors):
            related = RelatedNodeInfo(node_id=f"bulk{number // PER_DOCUMENT}")
            node = TextNode(id_=f"n{number}", text=filler(number), relationships={NodeRelationship.SOURCE: related})
            node.embedding = vector
            nodes.append(node)
        self.vectors.add(nodes)
        for node in nodes:
            node.embedding = None
        self.documents.add_documents(nodes)
        self._pipeline = IngestionPipeline(
            transformations=[MarkdownNodeParser(), embedding(embed)],
            docstore=self.documents,
            vector_store=self.vectors,
            docstore_strategy=DocstoreStrategy.UPSERTS,
            disable_cache=True,
        )
        self._question = embed.query(QUESTION)
        self.edit([1] * SECTIONS)

    def edit(self, editions: list[int]) -> tuple[float, float]:
        """(seconds until it is found in memory, seconds until it is on disk too)."""
        began = time.perf_counter()
        self._pipeline.run(documents=[self._source(text=document(editions), id_="edited.md")])
        texts = self.vectors.search(self._question, SECTIONS)
        seconds = time.perf_counter() - began
        assert any(f"edition {max(editions)}:" in text for text in texts), "the peer did not find the edit"
        self.vectors.persist(str(self._folder / "faiss"))
        self.documents.persist(str(self._folder / "documents.json"))
        return seconds, time.perf_counter() - began


def embedding(embed: Ready) -> Any:
    from llama_index.core.base.embeddings.base import BaseEmbedding

    class Wrapped(BaseEmbedding):
        def _get_query_embedding(self, query: str) -> list[float]:
            return list(map(float, embed.query(query)))

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_query_embedding(query)

        def _get_text_embedding(self, text: str) -> list[float]:
            return self._get_text_embeddings([text])[0]

        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return [list(map(float, row)) for row in embed.passages(texts)]

    return Wrapped(embed_batch_size=16)


def map_store() -> Any:
    import faiss
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQueryResult

    class MapStore(BasePydanticVectorStore):
        """See the module's docstring."""

        stores_text: bool = False
        _index: Any = PrivateAttr()
        _nodes: dict[int, tuple[str, str]] = PrivateAttr(default_factory=dict)  # faiss id → (document, text)
        _next: int = PrivateAttr(default=0)

        def __init__(self, dimensions: int) -> None:
            super().__init__()
            self._index = faiss.IndexIDMap2(faiss.IndexFlatL2(dimensions))

        @property
        def client(self) -> Any:
            return self._index

        def add(self, nodes: Any, **_: Any) -> list[str]:
            ids = np.arange(self._next, self._next + len(nodes), dtype=np.int64)
            self._next += len(nodes)
            self._index.add_with_ids(np.asarray([node.get_embedding() for node in nodes], dtype=np.float32), ids)
            self._nodes.update(
                {int(at): (node.ref_doc_id, node.get_content()) for at, node in zip(ids, nodes, strict=True)}
            )
            return [node.node_id for node in nodes]

        def delete(self, ref_doc_id: str, **_: Any) -> None:
            gone = [at for at, (source, _text) in self._nodes.items() if source == ref_doc_id]
            self._index.remove_ids(np.asarray(gone, dtype=np.int64))
            for at in gone:
                del self._nodes[at]

        def query(self, query: Any, **_: Any) -> Any:
            return VectorStoreQueryResult()

        def search(self, vector: Vectors, top_k: int) -> list[str]:
            _, ids = self._index.search(vector.reshape(1, -1), top_k)
            return [self._nodes[int(at)][1] for at in ids[0]]

        def persist(self, persist_path: str, fs: Any = None) -> None:
            faiss.write_index(self._index, persist_path)
            Path(persist_path + ".json").write_text(json.dumps(self._nodes))

    return MapStore


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Of log seconds over log size, by least squares."""
    return float(np.polyfit([math.log(size) for size in sizes], [math.log(value) for value in seconds], 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1k and 10k passages, fewer rounds")
    quick = parser.parse_args().quick
    sizes, rounds = ([1000, 10_000], 7) if quick else ([1000, 10_000, 100_000], 21)
    measured: dict[int, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        settings = Settings(home=home, database_url=f"sqlite:///{home}/catalog.db")
        pull(settings, DEFAULT_EMBEDDER, lambda _: None)
        catalog = open_catalog(settings)
        with catalog.session() as session:
            tenant = create_tenant(session, "bench")
        chosen = get_embedder(settings, DEFAULT_EMBEDDER)
        embed = Ready(open_embedder(chosen))
        sides = {}
        for size in sizes:
            vectors = random_vectors(size, chosen.dimensions)
            folder = Path(scratch) / str(size)
            folder.mkdir()
            sides[size] = (Ours(catalog, tenant, size, embed, vectors), Peer(folder, size, embed, vectors))
            measured[size] = {name: [] for name in ("edit", "put", "embed", "peer", "peer_disk", "bytes")}
        editions = {size: [1] * SECTIONS for size in sizes}
        changed_bytes = 0
        for turn in range(rounds):
            for place, size in enumerate(sizes):  # interleaved, so that a slow moment of the machine meets all of them
                ours, peer = sides[size]
                now, mine = editions[size], measured[size]
                chosen_sections = [(turn * EDITED + at) % SECTIONS for at in range(EDITED)]
                for at in chosen_sections:
                    now[at] = 100 * (place + 1) + turn  # a tenant's stores share vectors: no text stands in two of them
                texts = [f"Parcels > Rule {at}\n{section(at, now[at])}" for at in chosen_sections]
                changed_bytes = sum(len(text.encode()) + 4 * chosen.dimensions for text in texts)
                began = time.perf_counter()
                embed.passages(texts)
                mine["embed"].append(time.perf_counter() - began)
                seconds, put, written = ours.edit(now)
                mine["edit"].append(seconds)
                mine["put"].append(put)
                mine["bytes"].append(written)
                found, on_disk = peer.edit(now)
                mine["peer"].append(found)
                mine["peer_disk"].append(on_disk)
        catalog.close()

    ratios = {
        size: statistics.median(edit / alone for edit, alone in zip(row["edit"], row["embed"], strict=True))
        for size, row in measured.items()
    }
    medians = {size: {name: statistics.median(row[name]) for name in row} for size, row in measured.items()}
    slope_edit = slope(sizes, [medians[size]["edit"] for size in sizes])
    slope_peer = slope(sizes, [medians[size]["peer_disk"] for size in sizes])
    print(f"edit of {EDITED} of {SECTIONS} sections, medians of {rounds}, milliseconds")
    print(
        "passages   embed alone   found   ratio   put_document   LlamaIndex found   LlamaIndex on disk   bytes written"
    )
    for size, row in medians.items():
        ms = {name: 1000 * value for name, value in row.items()}
        print(
            f"{size:>8}   {ms['embed']:>11.1f}   {ms['edit']:>5.1f}   {ratios[size]:>5.2f}   {ms['put']:>12.1f}   "
            f"{ms['peer']:>16.1f}   {ms['peer_disk']:>18.1f}   {row['bytes']:>13,.0f}"
        )
    print(f"log-log slope: {slope_edit:.3f} (target <= {TARGET_SLOPE}), LlamaIndex on disk {slope_peer:.3f}")
    print(f"changed bytes (text and vectors): {changed_bytes:,}")
    report(
        "an edit is found in little more than the time of embedding what changed, whatever the store's size",
        max(ratios.values()),
        "x embedding alone",
        f"<= {TARGET_RATIO}",
        "the embedder alone; LlamaIndex IngestionPipeline, upserts, FAISS (a stand-in for its map store)",
        rounds,
        slope=round(slope_edit, 4),
        slope_target=f"<= {TARGET_SLOPE}",
        ratios={str(size): round(value, 3) for size, value in ratios.items()},
        medians={str(size): {name: round(value, 5) for name, value in row.items()} for size, row in medians.items()},
        changed_bytes=changed_bytes,
        bytes_ratio=round(max(row["bytes"] for row in medians.values()) / changed_bytes, 2),
        bytes_target=f"<= {TARGET_BYTES}",
    )


if __name__ == "__main__":
    main()
