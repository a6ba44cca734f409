"""
Care of a store's files: writing and merging segments, checking them, making them anew.

Everything is made from SQL. One process at a time works on a store's files; searches go on meanwhile, here and in other
processes, and take over the new manifest when it is there. A disk that is full or fails costs speed only: what is in no
segment is read from SQL, and the next round tries again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog
from ryorin.catalog.tables import VectorStore
from ryorin.errors import Conflict, NotFound
from ryorin_index import disk
from ryorin_index.codes import make_codes
from ryorin_index.dense import passage_ids, read_vectors
from ryorin_index.lexical import LexicalIndex
from ryorin_index.parts import Ids
from ryorin_index.segments import (
    ANY_FILE_NAME,
    Damaged,
    Manifest,
    Segment,
    folder_of,
    manifest_numbers,
    manifest_path,
    newest_manifest,
    read_ids,
    read_manifest,
    read_segment,
    write_manifest,
    write_segment,
)
from ryorin_index.store import store_counts

SEGMENT_AT = 1000  # passages outside the segments from which one is written
CODES_AT = 20_000  # passages of a segment from which searching by codes is worth more than being exact
DEAD_SHARE = 0.25  # of a segment, from which it is written anew
MERGE_RATIO = 4  # a segment is merged into a new one unless it is more than so many times as large
KEPT_MANIFESTS = 2  # a reader may be about to open the files of the one before
MAINTAIN_EVERY_S = 10.0
_FAILURES = (OSError, SQLAlchemyError, NotFound, Conflict)
_NO_CODES = "store %s: no codes find enough of what is near in its %s passages, so they are searched exactly"
_FAILED = "store %s: its files stay as they are, tried again later: %s"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Maintained:
    """What a round did. passages: how many were written into a new segment; segments: how many there are now."""

    generation: int
    passages: int
    segments: int


def maintain(
    catalog: Catalog, store: VectorStore, *, force: bool = False, anew: bool = False, wait: bool = False
) -> Maintained | None:
    """
    Bring the store's files up to date when enough has changed; None when another process is at it.

    force: write a segment however little changed, and merge all into it. anew: keep no segment that is there.
    wait: for the other process. Raises OSError when the disk does not take the files; searches do not need them.
    """
    folder = folder_of(catalog.settings, store)
    with disk.locked(folder, wait=wait) as held:
        if not held:
            return None
        disk.clear_temporary(folder)
        manifest = newest_manifest(folder, store)
        with catalog.session() as session:
            generation = _generation(session, store)
            ids = passage_ids(session, store)
        held_segments = [] if manifest is None or anew else _whole(folder, manifest)
        kept = _kept(held_segments, ids, force)
        rest = np.setdiff1d(ids, np.concatenate([ids[:0], *(each for _, each in kept)]))
        lost = manifest is not None and len(kept) < len(manifest.segments)
        damaged = manifest is not None and len(held_segments) < len(manifest.segments)  # or not to be trusted: anew
        passages = 0
        if lost or (len(rest) and (force or anew)) or len(rest) >= SEGMENT_AT:
            segments = [segment for segment, _ in kept]
            if len(rest):
                with catalog.session() as session:
                    part = read_vectors(session, store, rest)
                if part.size:
                    if part.size >= CODES_AT:
                        part = replace(part, codes=make_codes(part.vectors))
                        if part.codes is None:
                            _log.warning(_NO_CODES, store.id, part.size)
                    segments.append(write_segment(folder, part))
                    passages = part.size
            number = max(manifest_numbers(folder), default=0) + 1
            ordered = tuple(sorted(segments, key=lambda segment: -segment.passages))
            manifest = Manifest(number, store.id, store.embedder_digest, store.dimensions, generation, ordered)
            write_manifest(folder, manifest)
        _clean(folder, 1 if damaged else KEPT_MANIFESTS)  # what is damaged stays in no manifest
        return Maintained(generation, passages, len(manifest.segments) if manifest else 0)


def maintain_quietly(catalog: Catalog, store: VectorStore) -> None:
    """`maintain` at the end of other work, which is done whatever becomes of the files: what fails is logged."""
    try:
        maintain(catalog, store)
    except _FAILURES as error:
        _log.warning(_FAILED, store.id, error)


def merge(catalog: Catalog, store: VectorStore) -> Maintained:
    """Merge the store's segments and what came since into one, and write the words that are in memory only."""
    done = maintain(catalog, store, force=True, wait=True)
    assert done is not None
    with catalog.reading() as session:
        _words(catalog, store).fold(session, session.get_one(VectorStore, store.id))
    return done


def rebuild(catalog: Catalog, store: VectorStore) -> Maintained:
    """Make the store's files anew from SQL, whatever is there. Raises Conflict while another process writes words."""
    done = maintain(catalog, store, anew=True, wait=True)
    assert done is not None
    with catalog.reading() as session:
        _words(catalog, store).rebuild(session, session.get_one(VectorStore, store.id))
    return done


def verify(catalog: Catalog, store: VectorStore) -> list[str]:
    """
    What is wrong with the store's files; changes nothing.

    Every file is checked against the manifests or its own checksum, the vectors in the segments against SQL.
    """
    folder = folder_of(catalog.settings, store)
    problems: list[str] = []
    with disk.locked(folder, wait=True):
        for number in manifest_numbers(folder):
            try:
                manifest = read_manifest(manifest_path(folder, number))
            except Damaged as damage:
                problems.append(str(damage))
                continue
            for segment in manifest.segments:
                try:
                    part = read_segment(folder, segment, manifest.dimensions)
                except Damaged as damage:
                    problems.append(str(damage))
                    continue
                with catalog.session() as session:
                    truth = read_vectors(session, store, part.ids)
                at = part.positions(truth.ids)
                if not np.array_equal(part.vectors[at], truth.vectors):
                    problems.append(f"{folder / segment.vectors.name}: its vectors are not those of the database")
    return list(dict.fromkeys([*problems, *_words(catalog, store).verify()]))


def stats(catalog: Catalog, store: VectorStore) -> dict[str, Any]:
    """
    Figures of the store: rows in SQL, and what of them lies in segments.

    tail: passages in no segment. dead_share: of the passages in segments, those that are removed.
    """
    folder = folder_of(catalog.settings, store)
    manifest = newest_manifest(folder, store)
    with catalog.session() as session:
        counts, generation = store_counts(session, store), _generation(session, store)
        ids = passage_ids(session, store)
    held = [each for _, each in _whole(folder, manifest)] if manifest else []
    covered = np.concatenate([ids[:0], *held])
    dead = len(np.setdiff1d(covered, ids))
    return {
        **counts,
        "generation": generation,
        "segment_generation": manifest.generation if manifest else None,
        "tail": len(np.setdiff1d(ids, covered)),
        "dead_share": round(dead / len(covered), 4) if len(covered) else 0.0,
        "segments": [
            {
                "passages": each.passages,
                "kind": "pq4" if each.codes else "exact",
                "candidates": each.candidates,
                "recall": each.recall,
            }
            for each in (manifest.segments if manifest else ())
        ],
        "bytes": sum(file.bytes for segment in (manifest.segments if manifest else ()) for file in segment.files),
        "embedder": store.embedder,
        "embedder_digest": store.embedder_digest,
        "dimensions": store.dimensions,
    }


def _words(catalog: Catalog, store: VectorStore) -> LexicalIndex:
    return LexicalIndex(catalog.settings.home, store.tenant_id, store.id)


class Maintainer:
    """
    Maintains the files of the stores in use, in a thread of its own; for processes that search for long.

    stores: tells which they are, at each round.
    """

    def __init__(
        self, catalog: Catalog, stores: Callable[[], Iterable[VectorStore]], every_s: float = MAINTAIN_EVERY_S
    ) -> None:
        self._catalog = catalog
        self._stores = stores
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ryorin-maintain", daemon=True)
        self._seen: dict[str, tuple[int, frozenset[str]]] = {}  # what each store was like after its last round

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; a round that is under way is waited for."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                stores = list(self._stores())
            except _FAILURES as error:
                _log.warning("the stores in use cannot be told now: %s", error)
                continue
            for store in stores:
                if self._stopping.is_set():
                    return
                self._maintain(store)

    def _maintain(self, store: VectorStore) -> None:
        folder = folder_of(self._catalog.settings, store)
        try:
            with self._catalog.session() as session:
                generation = _generation(session, store)
            if self._seen.get(store.id) == (generation, _names(folder)):
                return
            done = maintain(self._catalog, store)
            if done is not None:
                self._seen[store.id] = (done.generation, _names(folder))
        except _FAILURES as error:
            _log.warning(_FAILED, store.id, error)


def _names(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()


def _generation(session: Session, store: VectorStore) -> int:
    row = session.execute(
        select(VectorStore.generation, VectorStore.embedder_digest).where(
            VectorStore.id == store.id, VectorStore.tenant_id == store.tenant_id
        )
    ).one_or_none()
    if row is None:
        raise NotFound(f"no vector store {store.id}", param="store")
    if row.embedder_digest != store.embedder_digest:
        raise Conflict(f"store {store.name!r} changed its embedder; read it again")
    return row.generation


def _whole(folder: Path, manifest: Manifest) -> list[tuple[Segment, Ids]]:
    """The manifest's segments whose files are there, with their ids."""
    found = []
    for segment in manifest.segments:
        try:
            found.append((segment, read_ids(folder, segment)))
        except Damaged as damage:
            _log.warning("%s", damage)
    return found


def _kept(segments: list[tuple[Segment, Ids]], ids: Ids, force: bool) -> list[tuple[Segment, Ids]]:
    """
    The segments that stay as they are.

    Written anew are those with many dead passages and, when a segment is due, those that are not much larger than it:
    so there are few segments, and a passage is copied few times.
    """
    if force:
        return []
    alive = {segment.name: np.isin(each, ids, assume_unique=True) for segment, each in segments}
    kept = [(segment, each) for segment, each in segments if alive[segment.name].mean() >= 1 - DEAD_SHARE]
    kept.sort(key=lambda pair: -pair[0].passages)
    held = sum(int(alive[segment.name].sum()) for segment, _ in kept)
    due = len(ids) - held
    if due < SEGMENT_AT and len(kept) == len(segments):
        return kept
    while kept and kept[-1][0].passages <= MERGE_RATIO * due:
        due += kept.pop()[0].passages
    return kept


def _clean(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` manifests, and the files that none of those names."""
    numbers = manifest_numbers(folder)
    wanted: set[str] = set()
    whole = 0
    for number in numbers:
        try:
            manifest = read_manifest(manifest_path(folder, number))
        except Damaged:
            disk.remove_file(manifest_path(folder, number))
            continue
        whole += 1
        if whole <= keep:
            wanted |= manifest.file_names
        else:
            disk.remove_file(manifest_path(folder, number))
    for path in folder.iterdir():
        if ANY_FILE_NAME.fullmatch(path.name) and path.name not in wanted:
            disk.remove_file(path)
