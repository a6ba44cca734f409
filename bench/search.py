"""
Searching 100,000 vectors of real sentences: recall and time against exact search, and what our layer costs.

The vectors are those of a sentence-transformers model over sentences of the docstrings of the installed Python
packages; they are embedded once and kept in the folder --cache. Peers, in the same run and taking turns with ours:
FAISS IndexFlatIP over the same vectors, and the bare FAISS index that our segment holds, with the same number of exact
scores after it. Each answers 50 questions in turn, one after another; told besides is ours right after an exact search,
which leaves nothing in the processor's caches. One thread. Held-out sentences are the queries.

    python bench/search.py --model FOLDER [--quick] [--cache FOLDER]
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from common import report

from ryorin.catalog import open_catalog
from ryorin.catalog.tables import VectorStore
from ryorin.models.registry import Embedder
from ryorin.settings import Settings
from ryorin_index.codes import make_codes
from ryorin_index.dense import StoreIndex
from ryorin_index.parts import make_part

QUERIES, AT_ONCE = 500, 50
TARGET_SHARE, TARGET_RECALL, TARGET_LAYER = 1 / 20, 0.99, 1.1
BATCH = 2000


def sentences() -> list[str]:
    """Distinct sentences of docstrings, in a fixed random order."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
        found.update(dict.fromkeys(_sentences_of(path)))
    chosen = list(found)
    random.Random(0).shuffle(chosen)
    return chosen


def _sentences_of(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module | ast.AsyncFunctionDef):
            for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", ast.get_docstring(node) or ""):
                sentence = " ".join(sentence.split())
                if 40 <= len(sentence) <= 180 and sentence.count(" ") >= 5:
                    yield sentence


def load_vectors(cache: Path, count: int, model: Path | None) -> Any:
    """The first `count` vectors, embedded where the cache lacks them. Shape: (count, dim), float32, unit length."""
    cache.mkdir(parents=True, exist_ok=True)
    texts: list[str] = []
    opened: Any = None
    for at in range(0, count, BATCH):
        path = cache / f"part-{at:06d}.npy"
        if path.exists():
            continue
        if model is None:
            raise SystemExit(f"{cache} has {at} vectors, {count} are needed; give --model FOLDER")
        if opened is None:
            from sentence_transformers import SentenceTransformer

            texts, opened = sentences(), SentenceTransformer(str(model), local_files_only=True)
            opened.max_seq_length = 64
        vectors = opened.encode(texts[at : at + BATCH], batch_size=64, normalize_embeddings=True)
        np.save(cache / "writing.npy", vectors.astype(np.float32))
        (cache / "writing.npy").rename(path)
    parts = [np.load(cache / f"part-{at:06d}.npy") for at in range(0, count, BATCH)]
    return np.ascontiguousarray(np.concatenate(parts)[:count])


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the work gave."""
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20,000 vectors")
    parser.add_argument("--count", type=int, help="another number of vectors")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "ryorin-bench-search")
    parser.add_argument("--model", type=Path, help="a sentence-transformers folder, to embed what the cache lacks")
    options = parser.parse_args()
    count = options.count or (20_000 if options.quick else 100_000)
    import faiss

    faiss.omp_set_num_threads(1)
    vectors = load_vectors(options.cache, count + QUERIES, options.model)
    queries, vectors = vectors[count:], vectors[:count]
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    began = time.perf_counter()
    codes = make_codes(vectors)
    build_s = time.perf_counter() - began
    if codes is None:
        raise SystemExit("no codes reach the recall; the segment stays exact")
    index = _holding(replace(make_part(np.arange(1, count + 1), vectors), codes=codes))

    search = codes.index.search_c  # without FAISS's Python layer, as ours

    def bare(query: Any) -> Any:
        distances, found = np.empty(codes.candidates, np.float32), np.empty(codes.candidates, np.int64)
        search(1, faiss.swig_ptr(query), len(found), faiss.swig_ptr(distances), faiss.swig_ptr(found))
        scores = vectors[found] @ query
        best = np.argsort(-scores)[:10]
        return scores[best], found[best]

    draw = np.random.default_rng(0)
    allowed = np.sort(draw.choice(count, count // 100, replace=False)) + 1
    ways: dict[str, Callable[[Any], Any]] = {
        "exact": lambda query: flat.search(query[None], 10),
        "ours": lambda query: index.search(query, 10),
        "bare": bare,
        "filtered": lambda query: index.search(query, 10, allowed),
    }
    took: dict[str, list[float]] = {name: [] for name in (*ways, "cold")}
    found: dict[str, list[Any]] = {name: [] for name in ways}
    for turn, at in enumerate(range(0, QUERIES, AT_ONCE)):
        for name in sorted(ways, reverse=bool(turn % 2)):
            ways[name](queries[at - 1])  # what the one before left in the caches is nobody's business
            for query in queries[at : at + AT_ONCE]:
                seconds, result = timed(lambda name=name, query=query: ways[name](query))
                took[name].append(seconds)
                found[name].append(result)
    for query in queries:
        flat.search(query[None], 10)
        took["cold"].append(timed(lambda query=query: index.search(query, 10))[0])
    shares = {
        name: statistics.median(mine / exact for mine, exact in zip(took[name], took["exact"], strict=True))
        for name in ("ours", "cold")
    }
    layer = statistics.median(took["ours"]) / statistics.median(took["bare"])
    recall = statistics.mean(
        len({each - 1 for _, each in mine} & set(truth[1][0].tolist())) / 10
        for mine, truth in zip(found["ours"], found["exact"], strict=True)
    )
    full = 0
    for query, filtered in zip(queries, found["filtered"], strict=True):
        best = np.sort(vectors[allowed - 1] @ query)[::-1][:10]
        full += len(filtered) == 10 and np.allclose([score for score, _ in filtered], best, atol=1e-5)
    ms = {name: round(statistics.median(each) * 1e3, 3) for name, each in took.items()}
    print(f"{count} vectors of {vectors.shape[1]} dimensions, medians of {QUERIES} queries, one thread")
    print(f"exact Flat      {ms['exact']:8.3f} ms")
    ours = f"{codes.index.pq.M} codes of 4 bits, {codes.candidates} candidates"
    print(f"ours            {ms['ours']:8.3f} ms  {shares['ours']:.4f} x exact  ({ours})")
    print(f"  right after an exact search {ms['cold']:8.3f} ms  {shares['cold']:.4f} x exact")
    print(f"bare FAISS      {ms['bare']:8.3f} ms  ours is {layer:.3f} x bare")
    print(f"ours, 1% filter {ms['filtered']:8.3f} ms  full and exact {full} of {QUERIES}")
    print(f"recall@10       {recall:8.4f}     built in {build_s:.1f} s")
    report(
        "search by codes is as good as exact search in a twentieth of its time",
        shares["ours"],
        "x exact Flat",
        f"<= {TARGET_SHARE}, recall@10 >= {TARGET_RECALL}, layer <= {TARGET_LAYER}, filtered full",
        "FAISS IndexFlatIP",
        QUERIES,
        recall=round(recall, 4),
        layer=round(layer, 3),
        filtered_full=full,
        right_after_exact=round(shares["cold"], 4),
        vectors=count,
        candidates=codes.candidates,
        ms=ms,
        build_s=round(build_s, 1),
    )


def _holding(part: Any) -> StoreIndex:
    """A store's index that holds this part, brought up from files as any reader's is."""
    from sqlalchemy import insert

    from ryorin.catalog.tables import Document, Passage, Vector
    from ryorin.catalog.tenants import create_tenant
    from ryorin.digests import sha256_bytes
    from ryorin_index.segments import Manifest, folder_of, write_manifest, write_segment
    from ryorin_index.store import create_store

    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        settings = Settings(home=home, database_url=f"sqlite:///{home}/catalog.db")
        catalog = open_catalog(settings)
        embedder = Embedder(
            name="bench", kind="sentence-transformers", digest="0" * 64, dimensions=part.vectors.shape[1]
        )
        with catalog.session() as session:
            tenant = create_tenant(session, "bench")
            store = create_store(session, tenant, "bench", embedder)
            place = {"tenant_id": tenant.id, "store_id": store.id}
            document = {
                "source": "s",
                "filename": "f",
                "title": "t",
                "media_type": "text/plain",
                "attributes": {},
            }
            session.execute(
                insert(Document), [{"id": "doc_1", **place, **document, "sha256": "0" * 64, "generation": 1}]
            )
            digests = [sha256_bytes(row.tobytes()) for row in part.vectors]
            passage = {
                **place,
                "document_id": "doc_1",
                "generation": 1,
                "ordinal": 0,
                "text": "x",
                "start": 0,
                "end": 1,
            }
            rows = [{**passage, "id": int(at), "sha256": digest} for at, digest in zip(part.ids, digests, strict=True)]
            session.execute(insert(Passage), rows)
            mine = {"tenant_id": tenant.id, "embedder_digest": embedder.digest}
            known = dict(zip(digests, part.vectors, strict=True))
            session.execute(
                insert(Vector), [{**mine, "sha256": digest, "vector": row.tobytes()} for digest, row in known.items()]
            )
            store.generation = 1
        folder = folder_of(settings, store)
        folder.mkdir(parents=True)
        manifest = Manifest(1, store.id, embedder.digest, embedder.dimensions, 1, (write_segment(folder, part),))
        write_manifest(folder, manifest)
        index = StoreIndex(settings, store)
        with catalog.session() as session:
            began = time.perf_counter()
            index.refresh(session, session.get_one(VectorStore, store.id))
            print(f"opened from its files in {time.perf_counter() - began:.2f} s")
        catalog.close()
    return index


if __name__ == "__main__":
    main()
