"""The catalog: migrations, and writers that wait for each other, on SQLite and PostgreSQL."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, inspect, select, text
from sqlalchemy.exc import IntegrityError

from ryorin.catalog import Catalog, open_catalog
from ryorin.catalog.database import HEAD, MIGRATIONS, upgrade, upgrade_database
from ryorin.catalog.tables import Base, Dataset, Document, Passage, Tenant, Tombstone, Vector, VectorStore
from ryorin.catalog.tenants import create_tenant, get_tenant
from ryorin.errors import Conflict, InvalidInput, RequirementMissing, RyorinError, Unavailable
from ryorin.settings import Settings, load_settings
from ryorin_index.texts import read_text

PROCESSES = multiprocessing.get_context("forkserver")  # forked from a process that has imported this file, once
PROCESSES.set_forkserver_preload([__name__])


def test_tables_and_migrations_say_the_same(catalog: Catalog) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with catalog.engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    assert differences == []


def test_head_is_the_newest_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_upgrading_again_changes_nothing(catalog: Catalog) -> None:
    with catalog.session() as session:
        create_tenant(session, "support")
    upgrade(catalog.engine)
    with catalog.session() as session:
        assert get_tenant(session, "support").name == "support"


def test_an_error_rolls_everything_back(catalog: Catalog) -> None:
    with pytest.raises(RuntimeError), catalog.session() as session:
        create_tenant(session, "support")
        raise RuntimeError
    with catalog.session() as session:
        assert session.scalars(select(Tenant)).all() == []


def test_foreign_keys_hold(catalog: Catalog) -> None:
    from ryorin.catalog.tables import ApiKey

    with pytest.raises(IntegrityError), catalog.session() as session:
        session.add(ApiKey(id="key_1", tenant_id="ten_none", prefix="p", hmac="h", scopes="chat"))


def test_errors_of_the_database_hold_no_data(catalog: Catalog) -> None:
    """They go to logs; what was asked and answered must not."""
    from ryorin.catalog.tables import ApiKey

    with pytest.raises(IntegrityError) as raised, catalog.session() as session:
        session.add(
            ApiKey(id="key_1", tenant_id="ten_none", prefix="p", hmac="h", scopes="chat", label="a secret word")
        )
    assert "a secret word" not in str(raised.value)


def test_sqlite_is_in_wal_mode(settings: Settings) -> None:
    catalog = open_catalog(settings)
    with catalog.engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    catalog.close()


def test_a_broken_off_migration_leaves_no_tables(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of creating the schema: nothing stays, and the next opening succeeds."""
    from alembic import op

    created = []
    create_table = op.create_table

    def interrupted(*words: Any, **more: Any) -> Any:
        created.append(words[0])
        if len(created) == 4:
            raise KeyboardInterrupt
        return create_table(*words, **more)

    monkeypatch.setattr(op, "create_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_catalog(settings)
    monkeypatch.undo()
    engine = create_engine(settings.database_url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    open_catalog(settings).close()


def test_a_postgres_schema_that_is_behind_is_refused(postgres: str, home: Path) -> None:
    behind = Settings(home=home, database_url=postgres)  # the database 'postgres' itself was never upgraded
    with pytest.raises(RequirementMissing, match="ryorin db upgrade"):
        open_catalog(behind)


def test_upgrade_of_postgres(make_postgres_database: Callable[[], str], home: Path) -> None:
    address = make_postgres_database()
    settings = Settings(home=home, database_url=address)
    engine = create_engine(address.replace("postgresql://", "postgresql+psycopg://"))
    Base.metadata.drop_all(engine)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    engine.dispose()
    assert upgrade_database(settings) == HEAD
    open_catalog(settings).close()


def test_a_newer_schema_is_refused(settings: Settings) -> None:
    catalog = open_catalog(settings)
    with catalog.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    catalog.close()
    with pytest.raises(RequirementMissing, match="upgrade Ryorin"):
        open_catalog(settings)


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("postgresql://ryorin:secret@127.0.0.1:1/none", Unavailable, "cannot be opened"),
        ("nonsense", InvalidInput, "RYORIN_DATABASE_URL"),
        ("oracle9://x", InvalidInput, "RYORIN_DATABASE_URL"),
        ("postgresql://ryorin:secret@host:secret/db", InvalidInput, "RYORIN_DATABASE_URL"),
        ("postgres://ryorin:secret@127.0.0.1:1/none", Unavailable, "cannot be opened"),
        ("sqlite://", InvalidInput, "RYORIN_DATABASE_URL"),
        ("sqlite:///:memory:", InvalidInput, "RYORIN_DATABASE_URL"),
        ("sqlite+aiosqlite:///x.db", InvalidInput, "RYORIN_DATABASE_URL"),
    ],
)
def test_a_bad_address_is_explained(home: Path, url: str, kind: type[RyorinError], words: str) -> None:
    with pytest.raises(kind, match=words) as raised:
        open_catalog(Settings(home=home, database_url=url))
    assert "secret" not in str(raised.value)


def test_a_file_that_is_no_database_is_explained(home: Path) -> None:
    (home / "catalog.db").write_text("not a database, but long enough to be looked at " * 50)
    with pytest.raises(InvalidInput, match="is not a catalog"):
        open_catalog(load_settings())


def test_two_tenants_of_one_name_at_once(catalog: Catalog) -> None:
    """Both look, both find nothing, both insert: one gets a Conflict, not a traceback of the database."""
    barrier = threading.Barrier(2, timeout=20)
    outcomes: list[str] = []

    def create() -> None:
        barrier.wait()
        try:
            with catalog.session() as session:
                create_tenant(session, "support")
            outcomes.append("created")
        except Conflict:
            outcomes.append("conflict")

    threads = [threading.Thread(target=create) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["conflict", "created"]


def test_processes_open_and_write_at_once(settings: Settings) -> None:
    """Four processes open a home that does not exist yet and write 25 times each: none meets 'database is locked'."""
    processes = [PROCESSES.Process(target=_write_tenants, args=(settings, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    catalog = open_catalog(settings)
    with catalog.session() as session:
        assert len(session.scalars(select(Tenant)).all()) == 100
    catalog.close()


def test_reading_does_not_wait_for_a_writer(settings: Settings) -> None:
    catalog = open_catalog(settings)
    with catalog.session() as writer:
        create_tenant(writer, "support")
        with catalog.session() as reader:
            assert reader.scalars(select(Tenant)).all() == []
    catalog.close()


def _write_tenants(settings: Settings, number: int) -> None:
    catalog = open_catalog(settings)
    for turn in range(25):
        with catalog.session() as session:
            session.scalars(select(Tenant)).all()  # read, then write: the order that deadlocks naive SQLite users
            create_tenant(session, f"tenant-{number}-{turn}")
    catalog.close()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_what_the_second_schema_held_is_kept(database: str, home: Path, request: pytest.FixtureRequest) -> None:
    """Schema 0003 moves the documents' texts, and in SQLite vectors and tombstones, into other tables."""
    address = request.getfixturevalue("postgres_url") if database == "postgresql" else f"sqlite:///{home}/catalog.db"
    engine = create_engine(address.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        if database == "postgresql":
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        upgrade_to("0002", connection)
        for statement in (
            "INSERT INTO tenants (id, name, description, created_at) VALUES ('t', 'support', '', 1)",
            "INSERT INTO vector_stores (id, tenant_id, name, embedder, embedder_digest, dimensions, generation, "
            "created_at) VALUES ('v', 't', 'handbook', 'e5', 'sha256:e5', 1, 3, 1)",
            "INSERT INTO documents (id, tenant_id, store_id, source, filename, title, media_type, sha256, text, "
            "created_at, updated_at) VALUES ('d', 't', 'v', '/a.md', 'a.md', 'A', 'text/plain', 'x', '本文 w', 1, 1)",
            "INSERT INTO documents (id, tenant_id, store_id, source, filename, title, media_type, sha256, text, "
            "created_at, updated_at) VALUES ('e', 't', 'v', '/e.md', 'e.md', 'E', 'text/markdown', 'x', '', 1, 1)",
            "INSERT INTO passages (tenant_id, store_id, document_id, generation, ordinal, text, sha256, heading, "
            "start, \"end\") VALUES ('t', 'v', 'd', 3, 0, 'words', 'two', '', 3, 8)",
            "INSERT INTO tombstones (passage_id, store_id, generation) VALUES (8, 'v', 2), (7, 'v', 3)",
        ):
            connection.execute(text(statement))
        vectors = text(
            "INSERT INTO vectors (tenant_id, embedder_digest, sha256, vector) VALUES ('t', 'sha256:e5', :d, :v)"
        )
        connection.execute(vectors, [{"d": "one", "v": b"\x00\x00\x80\x3f"}, {"d": "two", "v": b"\x00\x00\x80\xbf"}])
    engine.dispose()
    settings = Settings(home=home, database_url=address)
    upgrade_database(settings)
    catalog = open_catalog(settings)
    with catalog.session() as session:
        assert [read_text(session, "t", each) for each in ("d", "e")] == ["本文 w", ""]
        kept = session.execute(select(Vector.sha256, Vector.vector).order_by(Vector.sha256)).all()
        removed = session.execute(select(Tombstone.passage_id, Tombstone.generation).order_by(Tombstone.generation))
        assert [tuple(row) for row in kept] == [("one", b"\x00\x00\x80\x3f"), ("two", b"\x00\x00\x80\xbf")]
        assert [tuple(row) for row in removed] == [(8, 2), (7, 3)]
        assert session.scalars(select(Passage.text)).one() == "words"
        session.delete(session.get_one(Document, "e"))
    with pytest.raises(IntegrityError), catalog.session() as session:
        session.add(Vector(tenant_id="t", embedder_digest="sha256:e5", sha256="one", vector=b""))
    catalog.close()


def upgrade_to(revision: str, connection: Connection) -> None:
    """Run the migrations up to one of them."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def test_vectors_of_the_first_schema_are_kept(settings: Settings) -> None:
    """Schema 0001 held a vector in each passage; the next holds one for each text."""
    path = settings.home / "catalog.db"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        upgrade_to("0001", connection)
        connection.execute(
            text("INSERT INTO tenants (id, name, description, created_at) VALUES ('t', 'support', '', 1)")
        )
        connection.execute(
            text(
                "INSERT INTO vector_stores (id, tenant_id, name, embedder, dimensions, generation, created_at) "
                "VALUES ('v', 't', 'handbook', 'e5', 1, 3, 1)"
            )
        )
        connection.execute(
            text(
                "INSERT INTO documents (id, tenant_id, store_id, source, filename, title, media_type, sha256, text, "
                "created_at, updated_at) "
                "VALUES ('d', 't', 'v', '/a.md', 'a.md', 'A', 'text/markdown', 'x', 'Words', 1, 1)"
            )
        )
        for ordinal, digest in enumerate(("one", "two", "one")):
            connection.execute(
                text(
                    "INSERT INTO passages (tenant_id, store_id, document_id, generation, ordinal, text, sha256, "
                    'heading, start, "end", vector) '
                    "VALUES ('t', 'v', 'd', 3, :ordinal, 'Words', :digest, '', 0, 5, x'0000803f')"
                ),
                {"ordinal": ordinal, "digest": digest},
            )
        connection.execute(
            text(
                "INSERT INTO datasets (id, tenant_id, filename, digest, rows, created_at) "
                "VALUES ('ds', 't', 'rows.jsonl', 'x', 2, 1)"
            )
        )
    engine.dispose()
    catalog = open_catalog(settings)
    with catalog.session() as session:
        dataset = session.scalars(select(Dataset)).one()
        kept = session.execute(
            select(Vector.embedder_digest, Vector.sha256, Vector.vector).order_by(Vector.sha256)
        ).all()
        store = session.scalars(select(VectorStore)).one()
    catalog.close()
    assert [tuple(row) for row in kept] == [
        ("name:e5", "one", b"\x00\x00\x80\x3f"),
        ("name:e5", "two", b"\x00\x00\x80\x3f"),
    ]
    assert (store.embedder_digest, store.title, store.attributes) == ("name:e5", "handbook", {})
    assert (dataset.kind, dataset.lineage["origin"]) == ("chat", "files")
    assert dataset.lineage["files"] == [{"name": "rows.jsonl"}]
