"""
Opening the catalog: engine, pragmas, schema.

SQLite runs in WAL mode with foreign keys on and is migrated when it is opened, under a lock on the file beside it.
A transaction that writes begins IMMEDIATE with its first write: it waits its turn there, instead of failing later with
'database is locked', and reading never waits. PostgreSQL belongs to its operator: a schema that is behind is an error
that names `ryorin db upgrade`.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from ryorin.catalog.tables import Base
from ryorin.errors import InvalidInput, RequirementMissing, Unavailable
from ryorin.settings import Settings

MIGRATIONS = Path(__file__).parent / "migrations"
HEAD = "0011"
BUSY_TIMEOUT_S = 30
CONNECTIONS = {"pool_size": 15, "max_overflow": 0}  # kept open: opening one costs more than most statements
ADVISORY_LOCK = 0x72796F72696E  # 'ryorin': any number that no other program on the same database takes


def insert_into(bind: Engine | Connection, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that can say what happens ON CONFLICT, in the database's own words."""
    return postgresql.insert(table) if bind.dialect.name == "postgresql" else sqlite.insert(table)


class Catalog:
    """
    A connection pool to the catalog and the settings it belongs to.

    >>> with catalog.session() as session:      # one transaction: commits at the end, rolls back on an error
    ...     tenant = get_tenant(session, "support")
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

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for reading alone: all its statements see the database as it was at the first of them."""
        with self._sessions.begin() as session:
            if self.engine.dialect.name == "sqlite":
                session.connection().exec_driver_sql("BEGIN")  # the driver begins none before the first write
            else:
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def open_catalog(settings: Settings) -> Catalog:
    """
    Open the catalog that `settings` name.

    Raises RequirementMissing when a PostgreSQL schema is not at the version this code needs, Unavailable when the
    database cannot be reached, InvalidInput when the address or the file is not one of a catalog.
    """
    engine = _make_engine(settings)
    try:
        with _explained(settings):
            if engine.dialect.name == "sqlite":
                _migrate_sqlite(engine)
            else:
                version = _schema_version(engine)
                if version != HEAD:
                    raise RequirementMissing(
                        f"the catalog's schema is at version {version or 'none'}, this Ryorin needs {HEAD}; "
                        "run 'ryorin db upgrade'"
                    )
    except BaseException:
        engine.dispose()
        raise
    return Catalog(settings, engine)


def upgrade_database(settings: Settings) -> str:
    """Bring the schema of the catalog that `settings` name to this code's version, and return that version."""
    engine = _make_engine(settings)
    try:
        with _explained(settings):
            if engine.dialect.name == "sqlite":
                _migrate_sqlite(engine)
            else:
                upgrade(engine)
    finally:
        engine.dispose()
    return HEAD


def upgrade(engine: Engine) -> None:
    """
    Run the migrations that `engine` lacks, all of them or none; running them again changes nothing.

    Raises RequirementMissing when the schema is of a newer Ryorin.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # the driver begins none for CREATE TABLE by itself
        else:
            connection.execute(select(func.pg_advisory_xact_lock(ADVISORY_LOCK)))  # two upgrades at once: one waits
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise RequirementMissing(
                f"the catalog's schema is not known to this Ryorin, which is at {HEAD} ({error}); upgrade Ryorin"
            ) from error


def _make_engine(settings: Settings) -> Engine:
    unusable = InvalidInput(  # without its text, which may hold a password
        "the catalog's address cannot be used; RYORIN_DATABASE_URL is written "
        "postgresql://USER:PASSWORD@HOST/DATABASE or sqlite:////FOLDER/catalog.db, with %40 for an @ in the password"
    )
    try:
        url = make_url(settings.database_url)
    except (ArgumentError, ValueError) as error:
        raise unusable from error
    # hide_parameters: errors go to logs, and parameters are documents, questions and answers
    if url.drivername.partition("+")[0] in ("postgresql", "postgres"):
        return create_engine(
            url.set(drivername="postgresql+psycopg"), pool_pre_ping=True, hide_parameters=True, **CONNECTIONS
        )
    if url.drivername not in ("sqlite", "sqlite+pysqlite") or not url.database or url.database.startswith(":"):
        raise unusable
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": "IMMEDIATE"},
        hide_parameters=True,
        **CONNECTIONS,
    )
    event.listen(engine, "connect", _sqlite_pragmas)
    return engine


def _migrate_sqlite(engine: Engine) -> None:
    path = Path(str(engine.url.database))
    if path.exists() and path.stat().st_size and _schema_version(engine) == HEAD:
        return
    with _file_lock(path.with_name(path.name + ".migrate")):
        with engine.connect() as connection:  # kept by the file; switching it needs the file alone, hence the lock
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        if _schema_version(engine) != HEAD:
            upgrade(engine)


@contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    """Errors of the database in words, without the password in its address."""
    try:
        yield
    except DatabaseError as error:
        where = make_url(settings.database_url).render_as_string(hide_password=True)
        reason = str(error.orig).strip().splitlines()[0] if error.orig else type(error).__name__
        if isinstance(error, OperationalError):
            raise Unavailable(f"the catalog {where} cannot be opened: {reason}") from error
        raise InvalidInput(f"{where} is not a catalog of Ryorin: {reason}") from error


def _schema_version(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _sqlite_pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    # secure_delete=FAST: what is deleted is overwritten in pages that are written anyway. Where SQLite was built to
    # overwrite always, a page that becomes free would be written, twice, only for that.
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON", "secure_delete=FAST"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
