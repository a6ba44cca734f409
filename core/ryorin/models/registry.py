"""
Base models and embedders by name: what the rest of Ryorin asks for.

A base model is a folder that transformers, TRL and vLLM load; its digest is what adapters are bound to. An embedder is
run by `ryorin_index.embed`; here is only what it is. How models come onto the machine: `install`; how they lie there:
`store`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from ryorin.digests import SHORT
from ryorin.errors import InvalidInput, NotFound
from ryorin.models.bundled import BUNDLED
from ryorin.models.install import pull_bundled
from ryorin.models.store import Manifest, OnEvent, check_files, folder_of, read_manifests
from ryorin.settings import Settings

DEFAULT_BASE = "smollm2-135m-instruct"
DEFAULT_EMBEDDER = "multilingual-e5-small"

EmbedderKind = Literal["openvino", "sentence-transformers", "openai"]


@dataclass(frozen=True)
class BaseModel:
    """A base model on this machine. path: folder with config, bfloat16 or float32 safetensors, tokenizer."""

    name: str
    digest: str
    path: Path
    source: str


@dataclass(frozen=True)
class Embedder:
    """
    An embedder on this machine or behind a URL.

    digest: vectors of one digest may be compared with each other. dimensions: length of its vectors.
    path: the sentence-transformers folder; None for an endpoint.
    url, model, api_key_env: of kind 'openai'.
    """

    name: str
    kind: EmbedderKind
    digest: str
    dimensions: int
    path: Path | None = None
    url: str | None = None
    model: str | None = None
    api_key_env: str | None = None


@dataclass(frozen=True)
class ListedModel:
    """One line of `ryorin models list`. state: 'present' or 'not pulled'; digest and path are None when not pulled."""

    name: str
    role: str
    state: str
    digest: str | None
    source: str
    path: str | None


def get_base(settings: Settings, name: str = DEFAULT_BASE) -> BaseModel:
    """
    The base model of that name.

    Raises NotFound, naming the present ones and the next step, when it is unknown, not pulled or damaged; InvalidInput
    when the name is an embedder's.
    """
    return _base(settings, _present(settings, name, "base"))


def base_by_digest(settings: Settings, digest: str) -> BaseModel:
    """The base model that an adapter or a release is bound to. Raises NotFound when this machine does not have it."""
    manifests = [manifest for manifest in read_manifests(settings) if manifest.role == "base"]
    for manifest in manifests:
        if manifest.digest == digest:
            return _base(settings, manifest)
    known = ", ".join(f"{manifest.name} {manifest.digest[:SHORT]}" for manifest in manifests) or "none"
    raise NotFound(
        f"no base model with digest {digest[:SHORT]} on this machine (present: {known}); "
        "bring the model here with 'ryorin models pull' or 'ryorin models add'",
        param="base",
    )


def get_embedder(settings: Settings, name: str = DEFAULT_EMBEDDER) -> Embedder:
    """The embedder of that name; raises as `get_base` does."""
    manifest = _present(settings, name, "embedder")
    check_files(settings, manifest)
    if manifest.kind not in get_args(EmbedderKind):
        raise NotFound(
            f"embedder {name!r} was fetched by an earlier version of Ryorin; fetch it anew with "
            f"'ryorin models pull {name}': its stores stay as they are",
            param="model",
        )
    return Embedder(
        name=manifest.name,
        kind=cast(EmbedderKind, manifest.kind),
        digest=manifest.digest,
        dimensions=manifest.dimensions,
        path=folder_of(settings, manifest) if manifest.files else None,
        url=manifest.url,
        model=manifest.model,
        api_key_env=manifest.api_key_env,
    )


def same_vectors(embedder: Embedder, digest: str) -> bool:
    """Whether vectors made under `digest` may be searched with this embedder's."""
    known = BUNDLED.get(embedder.name)
    return digest == embedder.digest or (known is not None and digest in known.earlier_digests)


def list_models(settings: Settings) -> list[ListedModel]:
    """The models that are present, and the bundled ones that could be pulled; base models first."""
    present = read_manifests(settings)
    lines = [
        ListedModel(
            name=manifest.name,
            role=manifest.role,
            state="present",
            digest=manifest.digest,
            source=manifest.source,
            path=str(folder_of(settings, manifest)),
        )
        for manifest in present
    ]
    names = {manifest.name for manifest in present}
    lines += [
        ListedModel(name=model.name, role=model.role, state="not pulled", digest=None, source=model.source, path=None)
        for model in BUNDLED.values()
        if model.name not in names
    ]
    return sorted(lines, key=lambda line: (line.role, line.name))


def pull(settings: Settings, name: str, on_event: OnEvent = lambda _: None) -> BaseModel | Embedder:
    """
    Fetch a bundled model unless it is there; `on_event` gets lines of progress.

    Raises NotFound for an unknown name, Unavailable when it cannot be fetched, InvalidInput when what was fetched is
    not what it should be, RequirementMissing when disk or a package is missing.
    """
    manifest = pull_bundled(settings, name, on_event)
    return get_base(settings, name) if manifest.role == "base" else get_embedder(settings, name)


def _base(settings: Settings, manifest: Manifest) -> BaseModel:
    check_files(settings, manifest)
    return BaseModel(manifest.name, manifest.digest, folder_of(settings, manifest), manifest.source)


def _present(settings: Settings, name: str, role: str) -> Manifest:
    manifests = read_manifests(settings)
    for manifest in manifests:
        if manifest.name == name and manifest.role == role:
            return manifest
        if manifest.name == name:
            raise InvalidInput(f"model {name!r} is of role {manifest.role!r}; here a model of role {role!r} is needed")
    if name in BUNDLED and BUNDLED[name].role == role:
        raise NotFound(
            f"model {name!r} is not on this machine yet; fetch it with 'ryorin models pull {name}'", param="model"
        )
    names = {manifest.name for manifest in manifests if manifest.role == role}
    names |= {model.name for model in BUNDLED.values() if model.role == role}
    raise NotFound(
        f"no {role} model {name!r} (known: {', '.join(sorted(names))}); "
        f"add it with 'ryorin models add {name} --hf ORG/NAME --role {role}' or '--path DIR'",
        param="model",
    )
