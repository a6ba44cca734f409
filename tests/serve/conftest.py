"""The house of `scripted_house`: two tenants in a real catalog, a real gateway on loopback, a scripted engine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scripted_house import BASE, Engine, House, Shelf, WordCounter, running

from ryorin.catalog import open_catalog, tenants
from ryorin.catalog.tables import VectorStore
from ryorin.digests import new_id
from ryorin.settings import Settings
from ryorin_serve.app import Gateway
from ryorin_serve.options import ServeOptions


@pytest.fixture
def options() -> ServeOptions:
    """The gateway's options; a test module may override them."""
    return ServeOptions(max_model_len=400, max_answer_tokens=100)


@pytest.fixture
def house(tmp_path: Path, empty_sqlite: Path, options: ServeOptions) -> Iterator[House]:
    """A house of the test's own."""
    with built(tmp_path / "home", empty_sqlite, options) as house:
        yield house


@pytest.fixture(scope="module")
def standing_house(tmp_path_factory: pytest.TempPathFactory, empty_sqlite: Path) -> Iterator[House]:
    """A house for tests that change nothing in it."""
    with built(tmp_path_factory.mktemp("house") / "home", empty_sqlite, ServeOptions(max_model_len=400)) as house:
        yield house


@contextmanager
def built(home: Path, empty_sqlite: Path, options: ServeOptions) -> Iterator[House]:
    """The house, with everything in it running."""
    home.mkdir()
    shutil.copy(empty_sqlite, home / "catalog.db")
    catalog = open_catalog(Settings(home=home, database_url=f"sqlite:///{home / 'catalog.db'}"))
    engine, shelf = Engine(), Shelf()
    engine.start()
    house = House(catalog, engine, shelf)
    for name in ("support", "people"):
        with catalog.session() as session:
            tenant = tenants.create_tenant(session, name)
            key, house.keys[name] = tenants.issue_key(session, tenant, catalog.settings.pepper())
            house.ids[name], house.key_ids[name] = tenant.id, key.id
            store = VectorStore(id=new_id("vs_"), tenant_id=tenant.id, name="handbook", embedder="e5", dimensions=3)
            session.add(store)
        house.release(name)
    shelf.put(house.ids["support"], "Returns: unused goods only.", "Refunds: within 30 days.", "Shipping: 2 days.")
    shelf.put(house.ids["people"], "Leave: 20 days a year.")
    gateway = Gateway(
        catalog,
        shelf,  # type: ignore[arg-type]
        engine,  # type: ignore[arg-type]
        BASE,
        base_served_as="ryorin-base",
        engine_key="engine-key",
        counter=WordCounter(),  # type: ignore[arg-type]
        options=options,
    )
    with running(gateway.app()) as house.url:
        yield house
        for client in house.clients:
            client.close()
    engine.stop()
    catalog.close()
