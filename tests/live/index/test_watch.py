"""`ryorin index watch` as a process of its own, on real folders: what changes there is in the store a moment later."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, select, text

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, VectorStore
from ryorin.digests import sha256_bytes
from ryorin_index.source_rows import add_source
from ryorin_index.sync import only_one

SCRIPT = Path(__file__).with_name("watching_command.py")
WAIT_S = 60.0


class Watching:
    """The running command; `rounds` are the lines it printed, `said` what it told on standard error."""

    def __init__(self, *words: str, before: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*before, sys.executable, str(SCRIPT), "handbook", "--tenant", "support", "--json", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        self.rounds: queue.Queue[dict[str, Any]] = queue.Queue()
        self.said = ""
        self._readers = [threading.Thread(target=each) for each in (self._read_rounds, self._read_said)]
        for reader in self._readers:
            reader.start()

    def until(self, wanted: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The next round like that."""
        while True:
            try:
                found = self.rounds.get(timeout=WAIT_S)
            except queue.Empty:
                raise AssertionError(f"no such round; it said: {self.said}") from None
            if wanted(found):
                return found

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it as an operator does, and see that it ends in order."""
        self.process.send_signal(how)
        assert self.process.wait(WAIT_S) == 0, self.said
        self._finish()
        assert self.said.endswith("stopped\n") and "Traceback" not in self.said

    def _finish(self) -> None:
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def kill(self) -> None:
        """For a test that failed."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            self._finish()

    def _read_rounds(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.rounds.put(json.loads(line))

    def _read_said(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line


@contextmanager
def watching(*words: str, before: tuple[str, ...] = ()) -> Iterator[Watching]:
    running = Watching(*words, before=before)
    try:
        yield running
    finally:
        running.kill()


def held(catalog: Catalog) -> dict[str, str]:
    with catalog.session() as session:
        return {row[0]: row[1] for row in session.execute(select(Document.source, Document.sha256))}


def on_disk(folder: Path) -> dict[str, str]:
    return {
        str(path): sha256_bytes(path.read_bytes())
        for path in folder.rglob("*")
        if path.suffix in (".md", ".html") and not path.name.startswith(".")
    }


def save(path: Path, words: str) -> None:
    """As editors do: a new file beside the old one, then it takes its name."""
    fresh = path.with_name(f".{path.name}.swp")
    fresh.write_text(words, encoding="utf-8")
    fresh.replace(path)


def test_a_store_follows_its_folder(sqlite_store: tuple[Catalog, VectorStore], folder: Path, home: Path) -> None:
    catalog, store = sqlite_store
    with catalog.session() as session:
        add_source(session, store, str(folder), {})
    with watching() as watch:
        assert len(watch.until(lambda each: each["added"])["added"]) == 3
        save(folder / "returns.md", "# Returns\n\nUnopened goods go back within 45 days.\n")
        assert watch.until(lambda each: each["changed"])["changed"] == ["returns.md"]
        (folder / "late" / "deep").mkdir(parents=True)
        (folder / "late" / "deep" / "new.md").write_text("# 新しい\n\nお米は毎月届きます。\n", encoding="utf-8")
        watch.until(lambda each: "new.md" in each["added"])
        save(folder / "late" / "deep" / "new.md", "# 新しい\n\nお茶は毎週届きます。\n")  # in a folder that came later
        watch.until(lambda each: "new.md" in each["changed"])
        (folder / "shops.html").rename(folder / "late" / "places.html")
        watch.until(lambda each: each["renamed"])
        (folder / "late" / "places.html").unlink()
        watch.until(lambda each: each["deleted"])
        assert held(catalog) == on_disk(folder)
        # What no sync could see causes none.
        (folder / ".git").mkdir()
        (folder / ".git" / "index").write_text("Hidden")
        (folder / "notes.swp").write_bytes(b"x")
        (folder / "logo.png").write_bytes(b"y")
        time.sleep(0.6)  # an answer that must not come can only be waited for
        assert watch.rounds.empty()
        # Nobody can be asked, so what a folder lost at once stays and is told.
        for number in range(12):
            (folder / f"{number}.md").write_text(f"# D{number}\n\nWords {number}.")
        watch.until(lambda _: len(held(catalog)) == 15)
        (folder.parent / "out").mkdir()
        for number in range(12):
            (folder / f"{number}.md").rename(folder.parent / "out" / f"{number}.md")
        watch.until(lambda each: len(each["kept"]) == 12)
        # A disk that is not mounted for a while takes nothing along.
        folder.rename(folder.with_name("away"))
        assert "no such folder" in watch.until(lambda each: each["errors"])["errors"][0][1]
        assert len(held(catalog)) == 15
        folder.with_name("away").rename(folder)
        watch.until(lambda each: not each["errors"] and each["kept"])
        # What is away for a while is waited for.
        with only_one(catalog, store):
            save(folder / "returns.md", "# Returns\n\nWithin 60 days.\n")
            assert "being synced by another process" in watch.until(lambda each: "error" in each)["error"]
        watch.until(lambda each: each.get("changed"))
        (home / "embedder-away").touch()
        save(folder / "returns.md", "# Returns\n\nWithin 75 days.\n")
        assert watch.until(lambda each: "error" in each)["error"] == "the embedder is away"
        (home / "embedder-away").unlink()
        watch.until(lambda each: each.get("changed"))
        assert on_disk(folder).items() <= held(catalog).items()
        watch.stop()


def test_other_sources_are_synced_now_and_then_and_new_ones_join(
    sqlite_store: tuple[Catalog, VectorStore], tmp_path: Path, folder: Path, cli: Any
) -> None:
    catalog, store = sqlite_store
    repository = tmp_path / "guide"
    repository.mkdir()

    def commit(words: str) -> None:
        (repository / "guide.md").write_text(words)
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        for command in (("add", "."), (*who, "commit", "-qm", "x")):
            subprocess.run(["git", *command], cwd=repository, check=True)

    subprocess.run(["git", "init", "-q"], cwd=repository, check=True)
    commit("# Guide\n\nWords.\n")
    with catalog.session() as session:
        add_source(session, store, str(repository), {}, "git")
    refused = cli("index", "watch", "handbook", "--tenant", "support", "--interval", "0")
    assert refused.code == 2 and "has no folder to watch and an interval of 0" in refused.err
    with watching("--interval", "0.5") as watch:
        watch.until(lambda each: each["added"])
        commit("# Guide\n\nOther words.\n")
        watch.until(lambda each: each["changed"])
        with catalog.session() as session:
            add_source(session, store, str(folder), {})
        watch.until(lambda each: len(each["added"]) == 3)
        watch.stop(signal.SIGINT)


def test_a_database_that_is_away_is_waited_for(
    home: Path, postgres: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    from word_embedder import fake_embedder

    from ryorin.catalog import open_catalog
    from ryorin.catalog.tenants import create_tenant
    from ryorin.settings import load_settings
    from ryorin_index.store import create_store

    monkeypatch.setenv("RYORIN_DATABASE_URL", postgres_url)
    catalog = open_catalog(load_settings())
    with catalog.session() as session:
        add_source(
            session,
            create_store(session, create_tenant(session, "support"), "handbook", fake_embedder()),
            str(folder),
            {},
        )
    name = catalog.engine.url.database
    admin = create_engine(catalog.engine.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    catalog.close()
    with watching() as watch:
        watch.until(lambda each: each["added"])
        with admin.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"), {"name": name}
            )
            save(folder / "returns.md", "# Returns\n\nNone.\n")
            assert "database does not answer" in watch.until(lambda each: "error" in each)["error"]
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
        assert watch.until(lambda each: each.get("changed"))["changed"] == ["returns.md"]
        watch.stop()
    admin.dispose()


def test_where_the_system_cannot_tell_the_folder_is_looked_through(
    sqlite_store: tuple[Catalog, VectorStore], folder: Path
) -> None:
    """A namespace of its own has a limit of its own on what inotify may watch."""
    fence = ("unshare", "--user", "--map-root-user")
    if shutil.which("unshare") is None or subprocess.run([*fence, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no namespaces")
    catalog, store = sqlite_store
    with catalog.session() as session:
        add_source(session, store, str(folder), {})
    limit = ("sh", "-c", 'echo 1 > /proc/sys/user/max_inotify_watches && exec "$@"', "sh")
    with watching(before=(*fence, *limit)) as watch:
        watch.until(lambda each: each["added"])
        save(folder / "more" / "teiki.md", "# 定期便\n\nお茶は毎週届きます。\n")
        assert watch.until(lambda each: each["changed"])["changed"] == ["teiki.md"]
        watch.stop()
    assert "watch limit reached" in watch.said and "fs.inotify.max_user_watches" in watch.said
