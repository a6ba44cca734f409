"""
The models of this machine: one folder a model, `<home>/models/<digest12>/`, described by the `ryorin.json` in it.

A folder appears whole or not at all: it is built as `.building-NAME` under the lock `.lock-NAME` and renamed when it
is complete. What a process that was killed left behind is removed by the next one that takes the lock. There is no
table in the catalog: a model is a property of the machine, and its digest says which one it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ryorin.blobs import sync_path
from ryorin.digests import SHORT
from ryorin.errors import Conflict, InvalidInput, NotFound
from ryorin.models.folders import ModelFile, Role
from ryorin.settings import Settings

MANIFEST = "ryorin.json"
NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
OnEvent = Callable[[str], None]


@dataclass(frozen=True)
class Manifest:
    """
    What `ryorin.json` says of a model.

    kind: how it is run: 'transformers' (base models), 'sentence-transformers', 'openvino' or 'openai' (embedders).
    dimensions: length of an embedder's vectors; 0 for a base model.
    url, model, api_key_env: an embedding endpoint, its model name, the environment variable that holds its key.
    """

    name: str
    role: Role
    digest: str
    source: str
    kind: str
    dimensions: int = 0
    url: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    files: dict[str, ModelFile] = field(default_factory=dict)
    created_at: float = field(default_factory=time.time)


def check_name(name: str) -> None:
    """Raise InvalidInput unless `name` may name a model."""
    if NAME_PATTERN.fullmatch(name) is None:
        raise InvalidInput(
            f"model name {name!r}: use lower-case letters, digits and inner hyphens, dots or underscores, 64 at most",
            param="name",
        )


def folder_of(settings: Settings, manifest: Manifest) -> Path:
    """Where a model's files and its manifest lie."""
    return settings.models_dir / manifest.digest[:SHORT]


def read_manifests(settings: Settings) -> list[Manifest]:
    """The models that are present, by name."""
    found = [_read_manifest(path) for path in settings.models_dir.glob(f"[!.]*/{MANIFEST}")]
    return sorted(found, key=lambda manifest: manifest.name)


def find(settings: Settings, name: str) -> Manifest | None:
    """The present model of that name."""
    return next((manifest for manifest in read_manifests(settings) if manifest.name == name), None)


def check_files(settings: Settings, manifest: Manifest) -> None:
    """Raise NotFound when a file of the model is gone or has another size than when it was taken over."""
    folder = folder_of(settings, manifest)
    for name, file in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise NotFound(
                f"model {manifest.name!r} is damaged: {path} is missing or not the {file.bytes} bytes it was; "
                f"remove {folder} and fetch it again with 'ryorin models pull' or 'add'",
                param="model",
            )


@contextmanager
def building(settings: Settings, name: str, on_event: OnEvent) -> Iterator[Path]:
    """
    An empty folder to build the model `name` in, alone on this machine; gone at the end, whatever happened.

    Waits while another process builds the same model.
    """
    check_name(name)
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    folder = settings.models_dir / f".building-{name}"
    with _locked(
        settings.models_dir / f".lock-{name}", lambda: on_event(f"{name}: another process fetches it; waiting")
    ):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def commit(settings: Settings, manifest: Manifest, content: Path) -> None:
    """
    Write the manifest into `content` and make that folder the model's, at once.

    Raises Conflict when the name or the very same model is there already.
    """
    with _locked(settings.models_dir / ".lock"):
        for present in read_manifests(settings):
            if present.name == manifest.name:
                raise Conflict(
                    f"model {manifest.name!r} exists already with digest {present.digest[:SHORT]}", param="name"
                )
            if present.digest == manifest.digest:
                raise Conflict(f"this model is here already as {present.name!r}; use that name", param="name")
        target = folder_of(settings, manifest)
        shutil.rmtree(target, ignore_errors=True)  # without a manifest: something broken off by other hands
        path = content / MANIFEST
        with path.open("w", encoding="utf-8") as handle:
            json.dump(asdict(manifest), handle, indent=2, ensure_ascii=False)
            handle.flush()
            os.fsync(handle.fileno())
        for name in manifest.files:
            with (content / name).open("rb") as data:
                os.fsync(data.fileno())
        content.rename(target)
        sync_path(settings.models_dir)


def _read_manifest(path: Path) -> Manifest:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = {name: ModelFile(**entry) for name, entry in value.pop("files").items()}
        return Manifest(**value, files=files)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInput(
            f"{path} cannot be read ({error}); remove {path.parent} and fetch the model again"
        ) from error


@contextmanager
def _locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
