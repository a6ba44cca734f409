"""
Seeing to it that an engine holds a release's adapter before it is asked for it.

Names and folders of adapters never change their content, so an adapter is loaded once in the life of an engine; the
engine's `generation` says when that life began anew. Requests that need the same adapter wait for one loading. What
nobody used for a while and no tenant points to is let go.

An adapter's files are checked against the digest in the catalog: once in this process, and again when a file is
another than it was (inode, size or time), which each request looks at, because vLLM reads a folder anew by itself when
it had no room for all. What does not match is refused; the other tenants' adapters go on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path

import aiohttp

from ryorin.adapter_files import CODE_BEARING, CONFIG_FILE, NAME, WEIGHTS_FILE, file_identity, is_whole
from ryorin.digests import SHORT
from ryorin.errors import Conflict, Unavailable
from ryorin_serve.engine_handle import EngineHandle, unavailable

HEALTH_TIMEOUT = aiohttp.ClientTimeout(total=5)
IDLE_S = 600.0  # after which an adapter that no tenant points to is let go
Verified = tuple[str, tuple[tuple[int, ...], ...]]  # a digest, and the identity of the files that had it


class AdapterFiles:
    """
    The folders of adapters, checked before an engine reads them; one for all engines.

    engines_folder: where the engines find what lies in `folder`, if that is another path there.
    """

    def __init__(self, folder: Path, max_rank: int, engines_folder: Path | None = None) -> None:
        self._folder = folder
        self._max_rank = max_rank
        self._engines_folder = engines_folder
        self._verified: dict[str, Verified] = {}

    def is_unchanged(self, name: str, digest: str) -> bool:
        """Whether the files are those that were found to have this digest."""
        try:
            return self._verified.get(name) == (digest, file_identity(self._folder / name))
        except OSError:
            return False

    def checked(self, name: str, digest: str) -> Path:
        """Where an engine finds the adapter, once its files are the catalog's. Blocking. Raises Conflict."""
        folder = checked_folder(self._folder, name, self._max_rank)
        try:
            seen = (digest, file_identity(folder))  # before they are read: a change meanwhile is noticed next time
        except OSError:
            seen = None
        if seen is None or self._verified.get(name) != seen:
            self._verified.pop(name, None)
            if seen is None or not is_whole(folder, digest):
                raise Conflict(
                    f"adapter {name!r} cannot be served: its files are not what was trained or imported (digest "
                    f"{digest[:SHORT]}); bring the folder back from a copy, import or train it again, or promote "
                    "another release",
                    code="adapter_damaged",
                    param="model",
                )
            self._verified[name] = seen
        return folder if self._engines_folder is None else self._engines_folder / name


class Adapters:
    """The adapters that one engine holds in its present life."""

    def __init__(self, engine: EngineHandle, http: aiohttp.ClientSession, files: AdapterFiles) -> None:
        self._engine = engine
        self._http = http
        self._files = files
        self._generation = 0
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._used: dict[str, float] = {}

    async def ensure(self, name: str, digest: str) -> None:
        """
        Return when the engine holds adapter `name`. digest: what the catalog says of its content.

        Raises Conflict when its files are not the catalog's or cannot be served, Unavailable when the engine does not
        answer.
        """
        self._begin_anew()
        self._used[name] = time.monotonic()
        task = self._loading.get(name)
        if task is not None and task.done() and not await asyncio.to_thread(self._files.is_unchanged, name, digest):
            if self._loading.get(name) is task:
                del self._loading[name]
            task = self._loading.get(name)
        if task is None:
            task = self._loading[name] = asyncio.create_task(self._load(name, digest))
            task.add_done_callback(partial(self._drop_if_failed, name))  # also when nobody waits for it any more
        await asyncio.shield(task)  # one waiter that gives up does not take the others' adapter away

    def forget(self, name: str) -> None:
        """The engine says it does not hold `name`: load it again when it is needed."""
        self._loading.pop(name, None)

    async def let_go(self, keep: Collection[str]) -> None:
        """Unload what was not asked for in the last `IDLE_S`, but for `keep`. An engine that is away holds nothing."""
        self._begin_anew()
        idle_since = time.monotonic() - IDLE_S
        for name in [name for name, used in self._used.items() if used < idle_since and name not in keep]:
            task = self._loading.get(name)
            if task is not None and not task.done():
                continue
            self.forget(name)  # first: a request that comes now loads it again
            del self._used[name]
            try:
                async with self._http.post(
                    f"{self._engine.url}/v1/unload_lora_adapter", json={"lora_name": name}
                ) as response:
                    await response.read()  # what it does not hold is as good as unloaded
            except (TimeoutError, aiohttp.ClientError):
                return

    def _begin_anew(self) -> None:
        if self._generation != self._engine.generation:
            self._generation = self._engine.generation
            self._loading, self._used = {}, {}

    def _drop_if_failed(self, name: str, task: asyncio.Task[None]) -> None:
        if (task.cancelled() or task.exception()) and self._loading.get(name) is task:
            del self._loading[name]

    async def _load(self, name: str, digest: str) -> None:
        folder = await asyncio.to_thread(self._files.checked, name, digest)
        try:
            async with self._http.post(
                f"{self._engine.url}/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)}
            ) as response:
                text = await response.text()
        except (TimeoutError, aiohttp.ClientError) as error:
            raise self._gone() from error
        if response.status == 200 or "has already been loaded" in text:
            return
        # vLLM says 500 both for an adapter that it cannot read and when it is about to die.
        if response.status >= 500 and not await self.healthy():
            raise self._gone()
        message = _message(text).replace(str(folder), name)
        raise Conflict(f"vLLM refused adapter {name}: {message}", code="adapter_refused", param="model")

    async def healthy(self) -> bool:
        """Whether the engine answers, however much it has to do."""
        try:
            async with self._http.get(f"{self._engine.url}/health", timeout=HEALTH_TIMEOUT) as response:
                return self._engine.state == "ready" and response.status == 200
        except (TimeoutError, aiohttp.ClientError):
            return False

    def _gone(self) -> Unavailable:
        return unavailable("The engine went away while it loaded an adapter; try again.", self._engine)


def checked_folder(adapters_dir: Path, name: str, max_rank: int) -> Path:
    """
    The folder of adapter `name`, once it is sure that it lies in `adapters_dir` and holds safetensors and no code.

    Raises Conflict. Its message goes to the client, so it names no path of this machine.
    """

    def refused(reason: str) -> Conflict:
        return Conflict(f"adapter {name!r} cannot be served: {reason}", code="adapter_unusable", param="model")

    if NAME.fullmatch(name) is None:
        raise refused("its name is not <tenant>-<digest12>")
    root = adapters_dir.resolve()
    folder = (root / name).resolve()
    if folder.parent != root or folder.name != name:
        raise refused("its folder does not lie among the adapters")
    if any((folder / name).is_symlink() or not (folder / name).is_file() for name in (WEIGHTS_FILE, CONFIG_FILE)):
        raise refused(f"its folder lacks {WEIGHTS_FILE} or {CONFIG_FILE}")
    unsafe = sorted(path.name for path in folder.rglob("*") if path.suffix.lower() in CODE_BEARING)
    if unsafe:
        raise refused(f"its folder holds {', '.join(unsafe)}; only safetensors are loaded")
    try:
        rank = int(json.loads((folder / CONFIG_FILE).read_text())["r"])
    except (ValueError, KeyError, TypeError):
        raise refused(f"its {CONFIG_FILE} cannot be read") from None
    if rank > max_rank:
        raise refused(f"its rank is {rank}, the server's limit is {max_rank}; start it with --max-lora-rank {rank}")
    return folder


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:300]
