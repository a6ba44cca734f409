"""`/ready`: the catalog is asked, once for all who want to know."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted_house import House, built, eventually
from sqlalchemy import text

from ryorin_serve import readiness
from ryorin_serve.options import ServeOptions


@pytest.fixture
def house(tmp_path: Path, empty_sqlite: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(readiness, "LOOK_S", 0.2)
    with built(tmp_path / "home", empty_sqlite, ServeOptions(max_model_len=400)) as house:
        yield house


def ready(house: House) -> tuple[int, dict[str, Any]]:
    answer = httpx.get(f"{house.url}/ready", timeout=30)
    return answer.status_code, answer.json()


OK = (200, {"status": "ok", "engine": "ready", "catalog": "ready"})
DOWN = (503, {"status": "unavailable", "engine": "ready", "catalog": "down"})


def test_a_catalog_that_is_away_and_comes_back(house: House) -> None:
    assert ready(house) == OK
    with house.catalog.session() as session:
        session.execute(text("ALTER TABLE alembic_version RENAME TO away"))
    eventually(lambda: ready(house) == DOWN)
    assert httpx.get(f"{house.url}/health").status_code == 200
    with house.catalog.session() as session:
        session.execute(text("ALTER TABLE away RENAME TO alembic_version"))
    eventually(lambda: ready(house) == OK)


def test_a_catalog_that_hangs_is_asked_once_by_all(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, asked = threading.Event(), []
    real = readiness.Readiness._ask

    def ask(self: readiness.Readiness) -> bool:
        asked.append(threading.get_ident())
        return hangs.wait(30) and real(self)

    monkeypatch.setattr(readiness.Readiness, "_ask", ask)
    with ThreadPoolExecutor(20) as threads:
        assert set(map(str, threads.map(lambda _: ready(house), range(20)))) == {str(DOWN)}
    assert len(asked) == 1
    hangs.set()
    eventually(lambda: ready(house) == OK)


def test_nothing_else_is_told_without_a_key(house: House) -> None:
    assert set(ready(house)[1]) == {"status", "engine", "catalog"}
    for path in ("/ready/", "/ready/x", "/ready%20", "//ready"):
        assert httpx.get(house.url + path).status_code == 401, path
    assert httpx.post(f"{house.url}/ready").status_code == 405
