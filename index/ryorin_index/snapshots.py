"""
Snapshots of a store: what its documents and passages were at a generation, and making it equal to that again.

A snapshot is a blob of gzipped JSON lines, a head and then one line a document with its passages, and a row in the
catalog. Vectors are not in it: they lie under the digests of their texts, and `purge` leaves those that a snapshot
names, so going back embeds nothing unless the embedder changed since. Passages that are the same stay the rows they
are.
"""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ryorin.blobs import blob_path, check_blob, keep_chunks
from ryorin.catalog import Catalog, audit
from ryorin.catalog.tables import Document, DocumentText, File, Passage, Snapshot, Source, VectorStore
from ryorin.digests import canonical_json, digest_of, is_name, new_id
from ryorin.errors import Conflict, InvalidInput, NotFound
from ryorin_index.embed import Embed
from ryorin_index.ingest import bury_passages, delete_documents
from ryorin_index.passages import embedded_text
from ryorin_index.store import next_generation
from ryorin_index.texts import write_text
from ryorin_index.vectors import VectorsGone, embed_missing, require_vectors

FORMAT = 1
ROLLBACK_ATTEMPTS = 5
EMBED_WINDOW = 2000  # texts held at once while looking for those without a vector
_COMPRESSION = 5
_FETCH = 200

_PASSAGE_OWN = {"id", "tenant_id", "store_id", "document_id", "generation"}
_DOCUMENT_OWN = {"tenant_id", "store_id", "generation", "updated_at"}
PASSAGE_COLUMNS = [column for column in Passage.__table__.columns if column.key not in _PASSAGE_OWN]
DOCUMENT_COLUMNS = [column for column in Document.__table__.columns if column.key not in _DOCUMENT_OWN]


@dataclass(frozen=True)
class RolledBack:
    """
    What going back did: documents brought back, changed and removed, and texts that had to be embedded.

    generation: the store's now. saved_as: the snapshot of what the store was before; None when nothing changed or none
    was wanted.
    """

    added: int
    changed: int
    removed: int
    embedded: int
    generation: int
    saved_as: str | None


@dataclass
class _Plan:
    """
    What must change for a store at `generation` to equal a snapshot.

    targets: id of a document in the snapshot → id of the row that becomes it, or None for a new row; only documents
    that differ. removed: ids of rows that no document of the snapshot is.
    """

    generation: int
    targets: dict[str, str | None] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)


def create_snapshot(catalog: Catalog, store: VectorStore, name: str | None = None) -> Snapshot:
    """
    Keep what the store holds now, under `name` or the present time. Adding and searching go on meanwhile.

    Raises InvalidInput for a bad name, Conflict for a taken one.
    """
    name = name or time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    if not is_name(name):
        raise InvalidInput(
            f"snapshot name {name!r}: use lower-case letters, digits and inner hyphens, 48 at most", param="name"
        )
    taken = Conflict(f"store {store.name!r} has a snapshot {name!r} already", param="name")
    counts = {"documents": 0, "passages": 0}
    with catalog.reading() as session:
        if session.scalar(select(Snapshot.id).where(Snapshot.store_id == store.id, Snapshot.name == name)):
            raise taken
        present = _present(session, store)
        snapshot = Snapshot(
            id=new_id("snap_"),
            tenant_id=store.tenant_id,
            store_id=store.id,
            name=name,
            generation=present.generation,
            embedder=present.embedder,
            embedder_digest=present.embedder_digest,
        )
        # The snapshot's id makes the blob its own: deleting one never takes another's bytes.
        head = {"format": FORMAT, "snapshot": snapshot.id, "store": store.id, "generation": present.generation}
        lines = _lines(session, store, head, counts)
        snapshot.sha256, snapshot.bytes = keep_chunks(catalog.settings.blobs_dir, _compressed(lines))
    snapshot.documents, snapshot.passages = counts["documents"], counts["passages"]
    try:
        with catalog.session() as session:
            session.add(snapshot)
    except IntegrityError as error:
        blob_path(catalog.settings.blobs_dir, snapshot.sha256).unlink(missing_ok=True)
        raise taken from error
    return snapshot


def list_snapshots(session: Session, store: VectorStore) -> list[Snapshot]:
    """The store's snapshots, newest first."""
    return list(
        session.scalars(
            select(Snapshot)
            .where(Snapshot.tenant_id == store.tenant_id, Snapshot.store_id == store.id)
            .order_by(Snapshot.created_at.desc(), Snapshot.id)
        )
    )


def get_snapshot(session: Session, store: VectorStore, name: str) -> Snapshot:
    """The store's snapshot of that name. Raises NotFound, naming those it has."""
    snapshots = list_snapshots(session, store)
    for snapshot in snapshots:
        if snapshot.name == name:
            return snapshot
    known = ", ".join(snapshot.name for snapshot in snapshots) or "none yet"
    raise NotFound(f"store {store.name!r} has no snapshot {name!r} (known: {known})", param="name")


def delete_snapshot(catalog: Catalog, store: VectorStore, name: str) -> None:
    """Remove a snapshot; vectors that only it needed go with the next purge. Raises NotFound."""
    with catalog.session() as session:
        snapshot = get_snapshot(session, store, name)
        session.delete(snapshot)
        audit.note(session, store.tenant_id, "snapshot.delete", f"{store.name}/{name}")
    blob_path(catalog.settings.blobs_dir, snapshot.sha256).unlink(missing_ok=True)


def rollback_store(
    catalog: Catalog,
    store: VectorStore,
    name: str,
    embed: Callable[[], Embed],
    *,
    save: bool = True,
    on_batch: Callable[[int], None] = lambda embedded: None,
) -> RolledBack:
    """
    Make the store's documents and passages those of a snapshot, in one transaction and one generation.

    embed: opens the store's embedder; called only when a text has no vector of it, which is when the embedder was
    changed after the snapshot was taken. save: take a snapshot of the present state first.
    The store's name, settings and embedder stay. Raises NotFound when the store has no such snapshot or its blob is
    gone, InvalidInput when the blob is damaged: nothing is changed then; Conflict when others write all the time.
    """
    with catalog.session() as session:
        snapshot = get_snapshot(session, store, name)
    path = check_blob(catalog.settings.blobs_dir, snapshot.sha256)
    embedded, saved = 0, None
    for _ in range(ROLLBACK_ATTEMPTS):
        plan = _compare(catalog, store, path)
        if not plan.targets and not plan.removed:
            return RolledBack(0, 0, 0, embedded, plan.generation, saved.name if saved else None)
        for texts in _texts(path, plan):
            embedded += embed_missing(catalog, store, texts, embed, partial(_tell, on_batch, embedded))
        if save and (saved is None or saved.generation != plan.generation):
            if saved is not None:  # of a state that somebody else's change has overtaken
                delete_snapshot(catalog, store, saved.name)
            saved = _save(catalog, store, plan.generation)
        try:
            with catalog.session() as session:
                generation = next_generation(session, store)
                if generation - 1 != plan.generation:
                    raise _Overtaken
                _apply(session, store, path, plan, generation)
                require_vectors(session, store, generation)
                audit.note(session, store.tenant_id, "store.rollback", f"{store.name}/{name}", generation=generation)
        except (_Overtaken, VectorsGone):
            continue
        added = sum(target is None for target in plan.targets.values())
        return RolledBack(
            added=added,
            changed=len(plan.targets) - added,
            removed=len(plan.removed),
            embedded=embedded,
            generation=generation,
            saved_as=saved.name if saved else None,
        )
    raise Conflict(
        f"store {store.name!r} changed {ROLLBACK_ATTEMPTS} times while it was being rolled back; "
        "stop what writes to it and run it again"
    )


def passage_digests(blobs_dir: Path, snapshot: Snapshot) -> Iterator[str]:
    """The digests of the texts that a snapshot names; raises as `check_blob` does."""
    for document in _documents(check_blob(blobs_dir, snapshot.sha256)):
        for passage in document["passages"]:
            yield passage["sha256"]


class _Overtaken(Exception):
    """Somebody changed the store between the plan and its transaction."""


def _tell(on_batch: Callable[[int], None], before: int, embedded: int) -> None:
    on_batch(before + embedded)


def _present(session: Session, store: VectorStore) -> VectorStore:
    """The store's row as it is now. Raises NotFound when it was deleted."""
    row = session.scalar(select(VectorStore).where(VectorStore.id == store.id))
    if row is None:
        raise NotFound(f"store {store.name!r} was deleted meanwhile", param="store")
    return row


def _save(catalog: Catalog, store: VectorStore, generation: int) -> Snapshot:
    """A snapshot of the present state, or the one that an earlier rollback took of the same generation."""
    name = f"before-rollback-{generation}"
    with catalog.session() as session:
        for snapshot in list_snapshots(session, store):
            if snapshot.name == name and snapshot.generation == generation:
                return snapshot
    return create_snapshot(catalog, store, name)


def _read_store(session: Session, store: VectorStore) -> Iterator[dict[str, Any]]:
    """The store's documents by id, each with its passages in order; few of them in memory at once."""
    passages = session.execute(
        select(Passage.document_id, *PASSAGE_COLUMNS)
        .where(Passage.tenant_id == store.tenant_id, Passage.store_id == store.id)
        .order_by(Passage.document_id, Passage.ordinal, Passage.id),
        execution_options={"yield_per": _FETCH},
    )
    documents = session.execute(
        select(*DOCUMENT_COLUMNS)
        .where(Document.tenant_id == store.tenant_id, Document.store_id == store.id)
        .order_by(Document.id),
        execution_options={"yield_per": _FETCH},
    )
    blocks = session.execute(
        select(DocumentText.document_id, DocumentText.text)
        .join(Document, Document.id == DocumentText.document_id)
        .where(Document.tenant_id == store.tenant_id, Document.store_id == store.id)
        .order_by(DocumentText.document_id, DocumentText.ordinal),
        execution_options={"yield_per": _FETCH},
    )
    following, block = next(passages, None), next(blocks, None)
    for row in documents:
        document = dict(row._mapping)
        texts = []
        while block is not None and block.document_id == document["id"]:
            texts.append(block.text)
            block = next(blocks, None)
        document["text"] = "".join(texts)
        document["passages"] = []
        while following is not None and following.document_id == document["id"]:
            passage = dict(following._mapping)
            del passage["document_id"]
            document["passages"].append(passage)
            following = next(passages, None)
        yield document


def _lines(session: Session, store: VectorStore, head: dict[str, Any], counts: dict[str, int]) -> Iterator[bytes]:
    yield canonical_json(head).encode() + b"\n"
    for document in _read_store(session, store):
        counts["documents"] += 1
        counts["passages"] += len(document["passages"])
        yield canonical_json(document).encode() + b"\n"


def _compressed(lines: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(_COMPRESSION, wbits=31)  # 31: with the head and tail of a gzip file, and no time in it
    for line in lines:
        if packed := packer.compress(line):
            yield packed
    yield packer.flush()


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rb") as handle:
        head = json.loads(next(handle))
        if head["format"] != FORMAT:
            raise InvalidInput(f"the snapshot is of format {head['format']}, this Ryorin reads {FORMAT}")
        yield from map(json.loads, handle)


def _same(document: Mapping[str, Any]) -> str:
    """A digest by which a document of the store is compared with one of a snapshot."""
    return digest_of({name: value for name, value in document.items() if name != "id"})


def _compare(catalog: Catalog, store: VectorStore, path: Path) -> _Plan:
    """
    A document of the snapshot is the row of its id, or else the one of its source that is no other document's.

    The latter was removed and added again since; it keeps the id that it has now.
    """
    kept = {document["id"]: document["source"] for document in _documents(path)}
    with catalog.reading() as session:
        plan = _Plan(_present(session, store).generation)
        rows = {document["id"]: (document["source"], _same(document)) for document in _read_store(session, store)}
    free = {source: row for row, (source, _) in rows.items() if row not in kept}
    matched = set()
    for document in _documents(path):
        row = document["id"] if document["id"] in rows else free.get(document["source"])
        if row is not None:
            matched.add(row)
        if row is None or rows[row][1] != _same(document):
            plan.targets[document["id"]] = row
    plan.removed = [row for row in rows if row not in matched]
    return plan


def _texts(path: Path, plan: _Plan) -> Iterator[dict[str, str]]:
    """The embedded texts of what will be written, by digest, some at a time."""
    texts: dict[str, str] = {}
    for document in _documents(path):
        if document["id"] in plan.targets:
            for passage in document["passages"]:
                texts[passage["sha256"]] = embedded_text(document["title"], passage["heading"], passage["text"])
        if len(texts) >= EMBED_WINDOW:
            yield texts
            texts = {}
    if texts:
        yield texts


def _apply(session: Session, store: VectorStore, path: Path, plan: _Plan, generation: int) -> None:
    if plan.removed:
        rows = [session.get_one(Document, row) for row in plan.removed]
        delete_documents(session, store, rows, generation)
    # Two documents may have swapped their sources, which are unique: none holds its own while they are written.
    for row in plan.targets.values():
        if row is not None:
            session.execute(update(Document).where(Document.id == row).values(source=f"rollback:{row}"))
    known = {
        "file_id": set(session.scalars(select(File.id).where(File.tenant_id == store.tenant_id))),
        "source_id": set(session.scalars(select(Source.id).where(Source.store_id == store.id))),
    }
    for document in _documents(path):
        if document["id"] in plan.targets:
            _write(session, store, document, plan.targets[document["id"]], known, generation)


def _write(
    session: Session,
    store: VectorStore,
    document: dict[str, Any],
    row: str | None,
    known: Mapping[str, set[str]],
    generation: int,
) -> None:
    """Make a document's row and passages those of the snapshot; passages whose text is there keep their rows."""
    passages, text = document.pop("passages"), document.pop("text")
    values = {column.key: document[column.key] for column in DOCUMENT_COLUMNS if column.key in document}
    values |= {"id": row or document["id"], "generation": generation, "updated_at": time.time()}
    for name, present in known.items():  # its file or its source may have been deleted since
        if values[name] not in present:
            values[name] = None
    if values["status"] == "in_progress":  # the attempt that was under way then is not under way now
        # An archive has no passages of its own; what was indexed once has a digest.
        values["status"] = "completed" if passages or values["sha256"] else "cancelled"
    left: dict[str, list[int]] = defaultdict(list)
    if row is None:
        session.execute(insert(Document).values(tenant_id=store.tenant_id, store_id=store.id, **values))
    else:
        session.execute(update(Document).where(Document.id == row).values(**values))
        for passage_id, digest in session.execute(
            select(Passage.id, Passage.sha256).where(Passage.document_id == row).order_by(Passage.ordinal.desc())
        ):
            left[digest].append(passage_id)
    write_text(session, values["id"], text)
    fresh = []
    for passage in passages:
        if left[passage["sha256"]]:
            session.execute(update(Passage).where(Passage.id == left[passage["sha256"]].pop()).values(**passage))
        else:
            own = {"tenant_id": store.tenant_id, "store_id": store.id, "document_id": values["id"]}
            fresh.append(passage | own | {"generation": generation})
    if fresh:
        session.execute(insert(Passage), fresh)
    bury_passages(session, store, [passage_id for ids in left.values() for passage_id in ids], generation)
