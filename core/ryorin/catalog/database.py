"""
Opening the catalog: engine, pragmas, schema.

SQLite runs in WAL mode with foreign keys on and is migrated when it is opened, under a lock on the file beside it.
PostgreSQL belongs to its operator: a schema that is behind is an error that names `ryorin db upgrade`.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session, sessionmaker

from ryorin.errors import RequirementMissing
from ryorin.settings import Settings

MIGRATIONS = Path(__file__).parent / "migrations"
HEAD = "0001"
BUSY_TIMEOUT_S = 30


class Catalog:
    """
    A connection pool to the catalog and the settings it belongs to.

    >>> with catalog.session() as session:      # one transaction: commits at the end, rolls back on an error
    ...     tenant = tenants.get(session, "support")
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings = settings
        self.engine = engine
        self._sessions = sessionmaker(engine, expire_on_commit=False)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session in one transaction."""
        with self._sessions.begin() as session:
            yield session

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def open_catalog(settings: Settings) -> Catalog:
    """
    Open the catalog that `settings` name.

    Raises RequirementMissing when a PostgreSQL schema is not at the version this code needs.
    """
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
        event.listen(engine, "connect", _sqlite_pragmas)
        if _schema_version(engine) != HEAD:
            with _file_lock(Path(str(url.database) + ".migrate")):
                upgrade(engine)
    else:
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        engine = create_engine(url, pool_pre_ping=True)
        version = _schema_version(engine)
        if version != HEAD:
            raise RequirementMissing(
                f"the catalog's schema is at version {version or 'none'}, this Ryorin needs {HEAD}; "
                "run 'ryorin db upgrade'"
            )
    return Catalog(settings, engine)


def upgrade_database(settings: Settings) -> str:
    """Bring the schema of the catalog that `settings` name to this code's version, and return that version."""
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        open_catalog(settings).close()
    else:
        engine = create_engine(url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url)
        upgrade(engine)
        engine.dispose()
    return HEAD


def upgrade(engine: Engine) -> None:
    """Run the migrations that `engine` lacks; running them again changes nothing."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _schema_version(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _sqlite_pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
