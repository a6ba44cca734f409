"""
The files of a store: immutable segments named by their content, and manifests that say which of them make it up.

    <home>/index/<store id>/<embedder digest, 12 letters>/
        manifest-<number>.json     the segments and the generation they cover, with its own SHA-256; the highest counts
        ids-… vectors-… codes-…    a segment: passage ids, their vectors, and from 20,000 passages on codes of 4 bits

A reader loads whole files into memory and checks their SHA-256 there, so a file that changes or goes away later cannot
harm it, and what is damaged is never searched: its passages come from SQL, where everything here was made from. Nothing
here knows SQL.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ryorin.catalog.tables import VectorStore
from ryorin.digests import SHORT, canonical_json, digest_of, sha256_bytes
from ryorin.errors import RyorinError
from ryorin.settings import Settings
from ryorin_index import disk
from ryorin_index.codes import codes_from_bytes
from ryorin_index.parts import Ids, Part

FORMAT = 3  # files of another one are not read: they are made anew from SQL
MANIFEST_NAME = re.compile(r"manifest-(\d{1,12})\.json")
FILE_NAME = re.compile(r"(ids|vectors|codes)-[0-9a-f]{64}")
ANY_FILE_NAME = re.compile(r"[a-z]+-[0-9a-f]{64}")  # of earlier formats too, which had other kinds
_log = logging.getLogger(__name__)


class Damaged(RyorinError):
    """A file of a store is missing or is not what was written; `path` is the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; its passages are read from the database, 'ryorin index rebuild' renews it")
        self.path = path


@dataclass(frozen=True)
class StoredFile:
    """A file of a segment; `name` ends in its SHA-256."""

    name: str
    bytes: int

    @property
    def sha256(self) -> str:
        """What the content's SHA-256 must be."""
        return self.name.rpartition("-")[2]


@dataclass(frozen=True)
class Segment:
    """`passages` of a store. candidates, recall: for ten results by codes, and the recall@10 measured with them."""

    passages: int
    ids: StoredFile
    vectors: StoredFile
    codes: StoredFile | None = None
    candidates: int = 0
    recall: float | None = None

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All files of the segment."""
        return tuple(file for file in (self.ids, self.vectors, self.codes) if file)

    @property
    def name(self) -> str:
        """The segment's own name, by its content."""
        return "/".join(file.name for file in self.files)


@dataclass(frozen=True)
class Manifest:
    """What makes up a store's files at a generation."""

    number: int
    store_id: str
    embedder_digest: str
    dimensions: int
    generation: int
    segments: tuple[Segment, ...]

    @property
    def file_names(self) -> set[str]:
        """Names of all files of all segments."""
        return {file.name for segment in self.segments for file in segment.files}


def folder_of(settings: Settings, store: VectorStore) -> Path:
    """Where the files of the store under its embedder lie."""
    return settings.home / "index" / store.id / store.embedder_digest[:SHORT]


def manifest_numbers(folder: Path) -> list[int]:
    """Numbers of the manifests, newest first."""
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    return sorted((int(match[1]) for name in names if (match := MANIFEST_NAME.fullmatch(name))), reverse=True)


def manifest_path(folder: Path, number: int) -> Path:
    """The path of a manifest."""
    return folder / f"manifest-{number}.json"


def newest_manifest(folder: Path, store: VectorStore) -> Manifest | None:
    """The newest manifest of the store that is whole; those that are not are logged and passed over."""
    for number in manifest_numbers(folder):
        try:
            manifest = read_manifest(manifest_path(folder, number))
        except Damaged as damage:
            _log.warning("%s", damage)
            continue
        mine = (store.id, store.embedder_digest, store.dimensions)
        if (manifest.store_id, manifest.embedder_digest, manifest.dimensions) == mine:
            return manifest
    return None


def read_manifest(path: Path) -> Manifest:
    """Raises Damaged unless the file is a whole manifest of this format."""
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
        body = value["manifest"]
        if canonical_json(value).encode() != path.read_bytes() or value["sha256"] != digest_of(body):
            raise ValueError("its SHA-256 is another")
        if body.pop("format") != FORMAT or body["number"] != int(path.stem.partition("-")[2]):
            raise ValueError("it has another format or number")
        body["segments"] = tuple(_segment(**segment) for segment in body["segments"])
        return Manifest(**body)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(path, f"not a whole manifest ({error})") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make `manifest` the folder's newest. Raises OSError."""
    body = {"format": FORMAT, **asdict(manifest)}
    text = canonical_json({"manifest": body, "sha256": digest_of(body)})
    disk.write_file(manifest_path(folder, manifest.number), text.encode(), "manifest")


def write_segment(folder: Path, part: Part) -> Segment:
    """Write a part's files; those that are there already are written again. Raises OSError."""
    return Segment(
        passages=part.size,
        ids=_write(folder, "ids", part.ids.astype("<i8").tobytes()),
        vectors=_write(folder, "vectors", part.vectors.astype("<f4").tobytes()),
        codes=_write(folder, "codes", part.codes.to_bytes()) if part.codes else None,
        candidates=part.codes.candidates if part.codes else 0,
        recall=part.codes.recall if part.codes else None,
    )


def read_ids(folder: Path, segment: Segment) -> Ids:
    """The passage ids of a segment whose other files are there in full size. Raises Damaged."""
    for file in segment.files:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise Damaged(path, f"missing or not the {file.bytes} bytes it was")
    return np.frombuffer(_read(folder, segment.ids), "<i8")


def read_segment(folder: Path, segment: Segment, dimensions: int) -> Part:
    """A segment, loaded and checked. Raises Damaged."""
    ids = np.frombuffer(_read(folder, segment.ids), "<i8")
    vectors = np.frombuffer(_read(folder, segment.vectors), "<f4").reshape(-1, dimensions)
    codes = None
    if segment.codes is not None:
        codes = codes_from_bytes(_read(folder, segment.codes), segment.candidates, segment.recall or 0.0)
    return Part(ids, vectors, codes=codes, name=segment.name)


def load_parts(folder: Path, manifest: Manifest, known: Iterable[Part] = ()) -> tuple[list[Part], int]:
    """
    The manifest's segments that are whole, as parts without dead passages, and how many are not.

    known: parts that are loaded already. A damaged file is logged and removed, so that maintenance writes another.
    """
    loaded = {part.name: part for part in known if part.name}
    parts, damaged = [], 0
    for segment in manifest.segments:
        try:
            if segment.name in loaded:
                parts.append(loaded[segment.name].revived())
            else:
                parts.append(read_segment(folder, segment, manifest.dimensions))
        except Damaged as damage:
            _log.warning("%s", damage)
            with suppress(OSError):
                damage.path.unlink(missing_ok=True)
            damaged += 1
    return parts, damaged


def _segment(ids: Any, vectors: Any, codes: Any, **more: Any) -> Segment:
    files = [file and StoredFile(**file) for file in (ids, vectors, codes)]
    if not all(FILE_NAME.fullmatch(file.name) for file in files if file):
        raise ValueError("a file's name is not one of a segment")
    return Segment(ids=files[0], vectors=files[1], codes=files[2], **more)


def _write(folder: Path, kind: str, content: bytes) -> StoredFile:
    file = StoredFile(f"{kind}-{sha256_bytes(content)}", len(content))
    disk.write_file(folder / file.name, content, kind)
    return file


def _read(folder: Path, file: StoredFile) -> bytes:
    path = folder / file.name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Damaged(path, f"cannot be read ({error.strerror})") from error
    if len(content) != file.bytes or sha256_bytes(content) != file.sha256:
        raise Damaged(path, f"its {len(content)} bytes are not those that were written")
    return content
