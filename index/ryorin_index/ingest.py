"""
Putting documents into a store and taking them out.

A document whose bytes are the ones indexed before costs a hash and nothing else. A changed one is parsed and cut; only
texts that have no vector yet are embedded, and passages that did not change stay the rows they are. What a document
was and what it becomes are swapped in one transaction, so a reader sees the old passages or the new ones, and an
interrupted run has lost nothing: run it again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, Passage, Tombstone, VectorStore
from ryorin.digests import new_id, sha256_bytes
from ryorin.errors import Conflict, InvalidInput, NotFound, RyorinError
from ryorin_index.chunking import Chunking, chunking_from_json, cut_otherwise, default_chunking
from ryorin_index.counting import TokenCounter, counter_of
from ryorin_index.embed import Embed
from ryorin_index.language import document_language
from ryorin_index.parse import ParsedDocument, parse_document
from ryorin_index.passages import PassageDraft, split_document
from ryorin_index.store import next_generation
from ryorin_index.texts import write_text
from ryorin_index.vectors import LOOKUP_BATCH, VectorsGone, embed_held, embed_missing, require_vectors

PUT_ATTEMPTS = 3  # to write what was embedded before a purge took it; the last one lets no purge come between


@dataclass(frozen=True)
class Incoming:
    """
    A document on its way into a store.

    source: what it is known by in the store, its resolved path or URL. data: its bytes.
    fingerprint: the source's cheap sign of change, kept with the document.
    attributes: what searches filter by, over what the document says of itself; None keeps those it was given before.
    chunking: how long its passages are; None for the store's. A document that was cut otherwise is cut anew.
    """

    source: str
    filename: str
    data: bytes
    fingerprint: str = ""
    source_id: str | None = None
    file_id: str | None = None
    attributes: dict[str, Any] | None = None
    chunking: Chunking | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a document. passages: how many it has now; embedded: how many of them needed the embedder."""

    change: Literal["added", "changed", "unchanged"]
    document_id: str
    passages: int = 0
    embedded: int = 0


@dataclass(frozen=True)
class Prepared:
    """A document that was read and cut, not yet written. before: the digest of what the store has of it."""

    incoming: Incoming
    sha256: str
    before: str | None
    parsed: ParsedDocument
    chunking: Chunking
    drafts: Sequence[PassageDraft]

    @property
    def texts(self) -> dict[str, str]:
        """What is embedded, by digest."""
        return {draft.sha256(self.parsed.title): draft.embedded_text(self.parsed.title) for draft in self.drafts}


def put_document(
    catalog: Catalog,
    store: VectorStore,
    incoming: Incoming,
    embed: Callable[[], Embed],
    on_batch: Callable[[int], None] = lambda embedded: None,
    within: Callable[[Session], None] = lambda session: None,
) -> Outcome:
    """
    Make the store hold what `incoming` says; searches find it when this returns.

    embed: opens the store's embedder; called only when a text has no vector yet.
    on_batch: told after each batch how many passages of this document have been embedded.
    within: called in the transaction that changes the document, at its end; what it raises undoes the change.
    Raises InvalidInput when it cannot be read, and what the store had of it stays; Conflict when another process put
    the same document at the same time, or the store's embedder is no longer the one that `store` says; Unavailable
    when the embedder does not answer.
    """
    prepared = prepare_document(catalog, store, incoming, within)
    if isinstance(prepared, Outcome):
        return prepared
    return finish_document(catalog, store, prepared, embed, on_batch, within)


def prepare_document(
    catalog: Catalog,
    store: VectorStore,
    incoming: Incoming,
    within: Callable[[Session], None] = lambda session: None,
) -> Prepared | Outcome:
    """
    Read and cut a document; one that the store has just so needs no more, and its outcome is returned.

    Raises InvalidInput when it cannot be read.
    """
    sha256 = sha256_bytes(incoming.data)
    counter = counter_of(catalog.settings, store)
    chunking = incoming.chunking or store_chunking(store, counter)
    with catalog.session() as session:
        before = _document(session, store, incoming.source)
        if before is not None and _same(before, incoming, sha256, chunking):
            _touch(before, incoming)
            before.status, before.error = "completed", None
            within(session)
            return Outcome("unchanged", before.id)
    parsed = parse_document(Path(incoming.filename), incoming.data)
    drafts = split_document(parsed, chunking, counter)
    return Prepared(replace(incoming, data=b""), sha256, before.sha256 if before else None, parsed, chunking, drafts)


def finish_document(
    catalog: Catalog,
    store: VectorStore,
    prepared: Prepared,
    embed: Callable[[], Embed],
    on_batch: Callable[[int], None] = lambda embedded: None,
    within: Callable[[Session], None] = lambda session: None,
) -> Outcome:
    """Embed what has no vector yet and put the document in place of what the store has. Raises as `put_document`."""
    return finish_documents(catalog, store, [prepared], embed, on_batch, within)[0]


def finish_documents(
    catalog: Catalog,
    store: VectorStore,
    several: Sequence[Prepared],
    embed: Callable[[], Embed],
    on_batch: Callable[[int], None] = lambda embedded: None,
    within: Callable[[Session], None] = lambda session: None,
) -> list[Outcome]:
    """The same for several documents, all of them in one transaction; it is begun also when there are none."""
    embedded = [0] * len(several)
    for attempt in range(1, PUT_ATTEMPTS + 1):
        for place, prepared in enumerate(several):
            before = sum(embedded)

            def tell(count: int, before: int = before) -> None:
                on_batch(before + count)

            embedded[place] += embed_missing(catalog, store, prepared.texts, embed, tell)
        try:
            return _write(catalog, store, several, embedded, within, embed if attempt == PUT_ATTEMPTS else None)
        except VectorsGone:
            if attempt == PUT_ATTEMPTS:
                raise
    raise AssertionError("not reached")


def _write(
    catalog: Catalog,
    store: VectorStore,
    several: Sequence[Prepared],
    embedded: Sequence[int],
    within: Callable[[Session], None],
    embed: Callable[[], Embed] | None,
) -> list[Outcome]:
    """Swap what the store has of documents for what was prepared, in one transaction; embed: also in it."""
    outcomes = []
    filename = ""
    try:
        with catalog.session() as session:
            generation = next_generation(session, store)
            if embed is not None:
                embed_held(session, store, {key: text for each in several for key, text in each.texts.items()}, embed)
            for prepared, count in zip(several, embedded, strict=True):
                filename = prepared.incoming.filename
                document_id = _put(session, store, prepared, generation)
                change: Literal["added", "changed"] = "added" if prepared.before is None else "changed"
                outcomes.append(Outcome(change, document_id, len(prepared.drafts), count))
            require_vectors(session, store, generation)
            within(session)
    except IntegrityError as error:
        raise _put_meanwhile(filename) from error
    return outcomes


def _put(session: Session, store: VectorStore, prepared: Prepared, generation: int) -> str:
    """One document, in the session's transaction; returns its id."""
    incoming, parsed, drafts = prepared.incoming, prepared.parsed, prepared.drafts
    document = _document(session, store, incoming.source)
    if (document.sha256 if document else None) != prepared.before:
        raise _put_meanwhile(incoming.filename)
    if document is None:
        document = Document(
            id=new_id("doc_"),
            tenant_id=store.tenant_id,
            store_id=store.id,
            source=incoming.source,
            attributes={},
            own_attributes={},
        )
        session.add(document)
    _touch(document, incoming)
    _set_attributes(document, parsed.attributes, incoming.attributes)
    document.title, document.media_type = parsed.title, parsed.media_type
    document.language, document.chunking = document_language(parsed.text), prepared.chunking.to_json()
    document.sha256, document.status, document.error = prepared.sha256, "completed", None
    document.generation, document.updated_at = generation, time.time()
    document.usage_bytes = usage_bytes(store, parsed.text, len(drafts))
    session.flush()
    write_text(session, document.id, parsed.text)
    _swap_passages(session, store, document, drafts, generation)
    session.flush()
    return document.id


def usage_bytes(store: VectorStore, text: str, passages: int) -> int:
    """What a document takes: its text, and the vectors of its passages."""
    return len(text.encode()) + 4 * store.dimensions * passages


def _put_meanwhile(filename: str) -> Conflict:
    return Conflict(f"{filename} was indexed by another process at the same time; run the command again")


def rename_document(session: Session, store: VectorStore, document_id: str, incoming: Incoming) -> None:
    """
    Give a document another source and file name; its passages, their ids and its title stay.

    Raises NotFound when it is gone, Conflict when another document has that source.
    """
    generation = next_generation(session, store)
    document = session.get(Document, document_id)
    if document is None or document.store_id != store.id:
        raise NotFound(f"document {document_id} of store {store.name!r} is gone; run the command again")
    if _document(session, store, incoming.source) is not None:
        raise _put_meanwhile(incoming.filename)
    document.source, document.generation, document.updated_at = incoming.source, generation, time.time()
    document.status, document.error = "completed", None
    _touch(document, incoming)
    _set_attributes(document, document.own_attributes, incoming.attributes)


def fail_document(session: Session, store: VectorStore, source: str, error: RyorinError) -> None:
    """Note why the last attempt at a document failed, when the store has it; its passages stay."""
    document = _document(session, store, source)
    if document is not None:
        document.status = "failed"
        document.error = {"code": error.code or "server_error", "message": error.message}


def store_chunking(store: VectorStore, counter: TokenCounter) -> Chunking:
    """How long a store's passages are, where a document does not say otherwise."""
    return default_chunking(counter.limit) if store.chunking is None else chunking_from_json(store.chunking)


def delete_documents(
    session: Session, store: VectorStore, documents: Sequence[Document], generation: int | None = None
) -> None:
    """
    Delete documents of the store with their passages, in the session's transaction.

    generation: the one that the transaction has begun; None counts the store's up.
    """
    generation = generation or next_generation(session, store)
    for document in documents:
        gone = list(session.scalars(select(Passage.id).where(Passage.document_id == document.id)))
        bury_passages(session, store, gone, generation)
        session.delete(document)
        session.flush()


def remove_documents(catalog: Catalog, store: VectorStore, names: Sequence[str]) -> list[str]:
    """
    Delete documents, named by file name, source path or id; searches stop finding them at once.

    All or nothing. Raises NotFound for a name that no document has, InvalidInput for one that several have.
    """
    with catalog.session() as session:
        chosen = []
        for name in dict.fromkeys(names):
            wanted = {name, str(Path(name).resolve())}
            found = session.scalars(
                select(Document).where(
                    Document.store_id == store.id,
                    Document.filename.in_(wanted) | Document.source.in_(wanted) | Document.id.in_(wanted),
                )
            ).all()
            if not found:
                raise NotFound(f"store {store.name!r} has no document {name!r}; 'ryorin index documents' lists them")
            if len(found) > 1:
                sources = ", ".join(document.source for document in found)
                raise InvalidInput(f"{name!r} names {len(found)} documents ({sources}); give the path of one")
            chosen.append(found[0])
        chosen = list(dict.fromkeys(chosen))
        delete_documents(session, store, chosen)
        return [document.source for document in chosen]


def _document(session: Session, store: VectorStore, source: str) -> Document | None:
    return session.scalar(select(Document).where(Document.store_id == store.id, Document.source == source))


def _same(document: Document, incoming: Incoming, sha256: str, chunking: Chunking) -> bool:
    attributes = document.attributes
    if incoming.attributes is not None:
        attributes = document.own_attributes | incoming.attributes
    return not cut_otherwise(document.fingerprint, incoming.fingerprint) and (
        document.sha256,
        document.filename,
        document.attributes,
        document.chunking,
    ) == (
        sha256,
        incoming.filename,
        attributes,
        chunking.to_json(),
    )


def _touch(document: Document, incoming: Incoming) -> None:
    """What is known of a document without reading it."""
    document.filename, document.fingerprint = incoming.filename, incoming.fingerprint
    document.source_id = incoming.source_id or document.source_id
    document.file_id = incoming.file_id or document.file_id


def _set_attributes(document: Document, own: dict[str, Any], given: dict[str, Any] | None) -> None:
    """What a document says of itself, and over it what its operator says; None keeps what that said before."""
    if given is None:
        before = document.own_attributes
        given = {key: value for key, value in document.attributes.items() if before.get(key) != value}
    document.attributes, document.own_attributes = own | given, own


def _swap_passages(
    session: Session, store: VectorStore, document: Document, drafts: Sequence[PassageDraft], generation: int
) -> None:
    """Make the document's passages those of `drafts`: rows whose text stays are kept, others removed or added."""
    present: dict[str, list[Passage]] = defaultdict(list)
    for passage in session.scalars(
        select(Passage).where(Passage.document_id == document.id).order_by(Passage.ordinal.desc())
    ):
        present[passage.sha256].append(passage)
    added = []
    for ordinal, draft in enumerate(drafts):
        digest = draft.sha256(document.title)
        place = {
            "ordinal": ordinal,
            "heading": draft.heading,
            "start": draft.start,
            "end": draft.end,
            "page": draft.page,
            "tokens": draft.tokens,
            "language": draft.language,
        }
        if present[digest]:
            passage = present[digest].pop()
            # Another heading: part of it was the document's title before, or is now. No key: of an earlier version.
            if passage.heading != draft.heading or not passage.fold_key:
                passage.fold_key = draft.fold_key
            for name, value in place.items():
                setattr(passage, name, value)
            continue
        added.append(
            Passage(
                tenant_id=store.tenant_id,
                store_id=store.id,
                document_id=document.id,
                generation=generation,
                text=draft.text,
                sha256=digest,
                fold_key=draft.fold_key,
                **place,
            )
        )
    # First what goes, so that the new rows may take its pages.
    bury_passages(session, store, [passage.id for left in present.values() for passage in left], generation)
    session.add_all(added)


def bury_passages(session: Session, store: VectorStore, passage_ids: Sequence[int], generation: int) -> None:
    """Delete passages and leave the tombstones that readers go by."""
    for at in range(0, len(passage_ids), LOOKUP_BATCH):
        batch = passage_ids[at : at + LOOKUP_BATCH]
        session.add_all(Tombstone(passage_id=gone, store_id=store.id, generation=generation) for gone in batch)
        session.execute(delete(Passage).where(Passage.id.in_(batch)).execution_options(synchronize_session="fetch"))
