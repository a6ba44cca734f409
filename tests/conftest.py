"""
What every test may use: a home of its own, the catalog on SQLite and on a real PostgreSQL, the command line.

What is dear is made once a run and shared by its processes (`run_folder.py`):
    empty_sqlite             a migrated catalog file, to be copied
    postgres                 one server; `postgres_url` is an empty database for a test, `make_postgres_database()` a
                             new one for a fixture of any scope, `catalog` runs a test on SQLite and on PostgreSQL
Heavy modules are named by `Lazily` (`lazily.py`), so that reading a test file does not import them.

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
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from long_runs import turns
from run_folder import made_once, postgres_server, run_folder

os.environ.update(HF_HUB_OFFLINE="1", DO_NOT_TRACK="1", VLLM_NO_USAGE_STATS="1")
for variable in ("RYORIN_HOME", "RYORIN_DATABASE_URL", "RYORIN_PEPPER", "RYORIN_TENANT"):
    os.environ.pop(variable, None)

# Compiled modules are kept even where the environment forbids it: else every process of a run, the child of a test
# too, compiles what it imports, and pytest rewrites all test files (10 s a process). So hypothesis is imported below.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell that starts the tests in the background has SIGINT ignored, for them and for every command they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0", "::ffff:127.")


@dataclass(frozen=True)
class Ran:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ran]

# The longest files (a folder: all of its files), longest first.
FIRST = ("train", "test_sync", "test_snapshots", "test_lexical", "test_web", "test_gateway")

# Folders whose files stay together: all of them need torch and TRL, or the real engine.
TOGETHER = ("tests/train", "tests/live", "tests/live/train")


POSTGRESQL = {
    "postgresql", "postgres", "postgres_url", "module_postgres_url", "make_postgres_database", "library_on_postgresql",
}  # fmt: skip
_NONE = SimpleNamespace(params={})


def pytest_configure() -> None:
    """Properties are untimed, since a busy machine is no failure, and keep no folder of examples."""
    from hypothesis import settings

    settings.register_profile("ryorin", deadline=None, max_examples=turns(30, 1000), database=None)
    settings.load_profile("ryorin")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    What takes longest comes first, so that no process is left alone with it; `live` last, its engine before all.

    What runs on the PostgreSQL server is marked so, and `make fast` leaves it out.
    """
    for item in items:
        named = {*getattr(item, "fixturenames", ()), *map(str, getattr(item, "callspec", _NONE).params.values())}
        if named & POSTGRESQL:
            item.add_marker("postgresql")

    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(TESTS).parent
        if folder.parts[:1] == ("live",):
            return len(FIRST) + len(folder.parts)
        name = folder.name if folder.name == "train" else item.path.stem
        return FIRST.index(name) if name in FIRST else len(FIRST)

    items.sort(key=place)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """
    Where tests run in several processes, a file stays in one, and so does a folder of TOGETHER.

    Not by xdist's own `xdist_group`: xdist 3.8 writes it into a field that pytest 9.2 no longer reads, and deals
    every test by itself.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            folder = path.rpartition("/")[0]
            return folder if folder in TOGETHER else path

    config.option.loadscopereorder = False  # the order is that of `pytest_collection_modifyitems`
    return ByFile(config, log)


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
def migrated(home: Path, empty_sqlite: Path) -> Path:
    """The same home with an empty catalog on SQLite, which spares a test of commands the migrations."""
    shutil.copy(empty_sqlite, home / "catalog.db")
    return home


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
    """A migrated SQLite catalog without rows, made once a run, to be copied."""
    from ryorin.catalog import open_catalog
    from ryorin.settings import Settings

    def migrate(path: Path) -> None:
        open_catalog(Settings(home=path.parent, database_url=f"sqlite:///{path}")).close()

    return made_once(run_folder(tmp_path_factory) / "empty.db", migrate)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """
    The address of a real PostgreSQL, one for all processes of the run; its `template_ryorin` is migrated and empty.

    The address is that of the database `postgres`, which has no tables.
    """
    from sqlalchemy import text

    from ryorin.catalog.database import upgrade_database
    from ryorin.settings import Settings

    def prepare(server: Any) -> None:
        with _statements(server.get_uri(database="postgres")) as connection:
            for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
                connection.execute(text(f"ALTER SYSTEM SET {setting}"))
            connection.execute(text("SELECT pg_reload_conf()"))
            connection.execute(text("CREATE DATABASE template_ryorin"))
        home = run_folder(tmp_path_factory)
        upgrade_database(Settings(home=home, database_url=server.get_uri(database="template_ryorin")))

    with postgres_server(run_folder(tmp_path_factory) / "postgres", prepare) as server:
        yield server.get_uri(database="postgres")


@pytest.fixture(scope="session")
def make_postgres_database(postgres: str) -> Callable[[], str]:
    """
    `make_postgres_database()`: the address of a new migrated database, for a fixture of any scope (about 0.1 s).

    It goes with the server. Tests that only need an empty one take `postgres_url`.
    """
    from sqlalchemy import make_url, text

    def make() -> str:
        name = f"t{uuid.uuid4().hex}"
        with _statements(postgres) as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template_ryorin"))
        return make_url(postgres).set(database=name).render_as_string(hide_password=False)

    return make


@pytest.fixture(scope="session")
def empty_postgres(make_postgres_database: Callable[[], str]) -> Callable[[], str]:
    """This process' own database, emptied by each call of what this returns; its address."""
    from sqlalchemy import text

    from ryorin.catalog.tables import Base

    address = make_postgres_database()
    empty = "; ".join(
        [
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
            "SET session_replication_role = replica",  # no order of foreign keys to keep
            *(f"DELETE FROM {table}" for table in Base.metadata.tables),  # TRUNCATE takes ten times as long
        ]
    )

    def emptied() -> str:
        with _statements(address) as connection:  # a new one: a test may have ended all that there were
            connection.execute(text(empty))
        return address

    return emptied


@pytest.fixture
def postgres_url(empty_postgres: Callable[[], str]) -> str:
    """The address of a migrated database without rows, for a test that leaves the tables as they are."""
    return empty_postgres()


@pytest.fixture(scope="module")
def module_postgres_url(make_postgres_database: Callable[[], str]) -> str:
    """The address of a migrated database of this module's own."""
    return make_postgres_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty catalog, on SQLite and on PostgreSQL; the command line in the same test uses it too."""
    from ryorin.catalog import open_catalog
    from ryorin.settings import load_settings

    if request.param == "sqlite":
        request.getfixturevalue("migrated")
    else:
        monkeypatch.setenv("RYORIN_DATABASE_URL", request.getfixturevalue("postgres_url"))
    opened = open_catalog(load_settings())
    yield opened
    opened.close()


@contextlib.contextmanager
def _statements(address: str) -> Iterator[Any]:
    """A connection of SQLAlchemy to a PostgreSQL, each statement a transaction of its own."""
    from sqlalchemy import create_engine

    engine = create_engine(address.replace("postgresql://", "postgresql+psycopg://", 1), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()
