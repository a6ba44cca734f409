"""
A git repository: the files of one commit, read from a bare copy without history.

git runs as a command, with no hooks, no submodules, no question for a password and only the protocols that are named.
A fingerprint is the blob's id, which is a digest of the content.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ryorin.errors import InvalidInput, RequirementMissing, Unavailable
from ryorin_index.sources.connector import Connector, Content, Item, check_size
from ryorin_index.sources.folder import path_filter

FETCH_TIMEOUT_S = 1800
STALLED_S = 60  # a transfer below 1 kB/s for so long is ended
_REF = "refs/ryorin/head"
_SAFE = (
    *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "protocol.ext.allow=never"),
    *("-c", "http.lowSpeedLimit=1000", "-c", f"http.lowSpeedTime={STALLED_S}", "-c", "gc.auto=0"),
    *("-c", "fetch.recurseSubmodules=false", "-c", "maintenance.auto=false"),
)


class GitRepository(Connector):
    """
    The files of a branch or tag (the default branch), below a subfolder.

    uri: a URL or the path of a repository on this machine. copy: the folder of the bare copy, made anew when lost.
    """

    named_by_content = True

    def __init__(
        self,
        uri: str,
        copy: Path,
        branch: str = "",
        subfolder: str = "",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> None:
        self.state: dict[str, Any] = {}
        self._uri, self._copy, self._branch = uri, copy, branch
        self._below = subfolder.strip("/") + "/" if subfolder.strip("/") else ""
        self._wanted = path_filter(include, exclude)
        self._reading = threading.Lock()
        self._reader: subprocess.Popen[bytes] | None = None
        self._blobs: dict[str, str] = {}

    def items(self) -> Iterator[Item]:
        """The commit's files; links, submodules and hidden files are passed over."""
        self._fetch()
        commit = self._git("rev-parse", "--verify", f"{_REF}^{{commit}}").strip().decode()
        name = f"git+{self._uri}{'@' + self._branch if self._branch else ''}#"
        where = ("--", self._below) if self._below else ()
        entries = self._git("ls-tree", "-r", "-z", "--full-tree", commit, *where).split(b"\0")
        if where and not any(entries):
            raise InvalidInput(f"{self._uri} has no folder {self._below!r} in {self._branch or 'its default branch'}")
        for entry in filter(None, entries):
            about, _, raw = entry.partition(b"\t")
            mode, _, blob = about.split(b" ")
            path = raw.decode(errors="surrogateescape")
            below = path[len(self._below) :]
            if not mode.startswith(b"100") or any(part.startswith(".") for part in below.split("/")):
                continue
            if self._wanted is None or self._wanted(below):
                source = name + path
                self._blobs[source] = blob.decode()
                yield Item(source, path.rpartition("/")[2], blob.decode(), -1)
        self.state = {"commit": commit}

    def read(self, item: Item) -> Content:
        """A file of the commit that was listed."""
        blob = self._blobs[item.source]
        with self._reading:
            if self._reader is None:
                self._reader = subprocess.Popen(
                    [*self._command(), "cat-file", "--batch"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=_environment(self._uri),
                )
            assert self._reader.stdin is not None and self._reader.stdout is not None
            self._reader.stdin.write(f"{blob}\n".encode())
            self._reader.stdin.flush()
            header = self._reader.stdout.readline().split()
            if len(header) != 3:
                self._end_reader()
                raise InvalidInput(f"{item.filename} cannot be read from the copy of {self._uri}", code="invalid_file")
            size = int(header[2])
            try:
                check_size(item.filename, size)
            except InvalidInput:
                self._end_reader()  # instead of reading it all
                raise
            data = self._reader.stdout.read(size + 1)[:-1]
        return Content(data, blob)

    def close(self) -> None:
        """End git."""
        with self._reading:
            self._end_reader()

    def _fetch(self) -> None:
        """Bring the copy up to date; one that git cannot use any more is made anew."""
        try:
            self._fetch_into(self._copy)
        except (InvalidInput, Unavailable) as first:
            if not self._copy.exists():
                raise
            fresh = self._copy.with_name(self._copy.name + ".new")
            try:
                shutil.rmtree(fresh, ignore_errors=True)
                self._fetch_into(fresh)
            except (InvalidInput, Unavailable):
                shutil.rmtree(fresh, ignore_errors=True)
                raise first from None
            shutil.rmtree(self._copy)
            fresh.rename(self._copy)

    def _fetch_into(self, folder: Path) -> None:
        if not (folder / "HEAD").exists():
            folder.mkdir(parents=True, exist_ok=True)
            self._git("init", "--bare", "--quiet", "--template=", str(folder), within=None)
        for lock in folder.rglob("*.lock"):  # of a fetch that was killed: the sync of a store runs once at a time
            lock.unlink(missing_ok=True)
        address = self._uri if not self._uri.startswith("/") else f"file://{self._uri}"  # so that --depth is honoured
        wanted = f"+{self._branch or 'HEAD'}:{_REF}"
        # --no-write-fetch-head: nothing but the one reference says what is kept
        self._git(
            *("fetch", "--depth=1", "--no-tags", "--quiet", "--no-write-fetch-head", "--update-shallow", "--"),
            *(address, wanted),
            within=folder,
            timeout_s=FETCH_TIMEOUT_S,
        )

    def _command(self, within: Path | None = None) -> list[str]:
        place = within or self._copy
        return ["git", *_SAFE, f"--git-dir={place}"]

    def _git(self, *words: str, within: Path | bool | None = True, timeout_s: float = 300) -> bytes:
        """Run git. Raises InvalidInput with what it said when it failed, Unavailable when it took too long."""
        if within is None:
            command = ["git", *_SAFE, *words]
        else:
            command = [*self._command(within if isinstance(within, Path) else None), *words]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                env=_environment(self._uri),
                timeout=timeout_s,
                check=False,
            )
        except FileNotFoundError as missing:
            raise RequirementMissing("the command git is not installed; a git source needs it") from missing
        except subprocess.TimeoutExpired as late:
            raise Unavailable(f"{self._uri}: git took longer than {timeout_s:.0f} s") from late
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise InvalidInput(f"git could not read {self._uri}: {said[-1]}", param="uri")
        return done.stdout

    def _end_reader(self) -> None:
        if self._reader is not None:
            self._reader.kill()
            self._reader.communicate()
            self._reader = None


def _environment(uri: str) -> dict[str, str]:
    """The environment of git: no question is asked, no other protocol than the source's own is used."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "SSH_ASKPASS": "true",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=20",
        "GIT_ALLOW_PROTOCOL": "file" if uri.startswith("/") else "https:http:ssh:git",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "LC_ALL": "C",
    }
