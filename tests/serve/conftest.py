"""The house of `scripted_house`: two tenants in a real catalog, a real gateway on loopback, a scripted engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_house import House, built

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
