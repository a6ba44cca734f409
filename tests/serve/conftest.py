"""The house of `scripted_house`: two tenants in a real catalog, a real gateway on loopback, a scripted engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gated_embedder import GatedEmbedder, fake_embedder
from scripted_house import House, built

from ryorin_serve import routes_vector_stores
from ryorin_serve.options import ServeOptions


@pytest.fixture
def options() -> ServeOptions:
    """The gateway's options; a test module may override them."""
    return ServeOptions(max_model_len=400, max_answer_tokens=100, tool_call_parser="hermes")


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


@pytest.fixture(scope="module")
def embedder() -> GatedEmbedder:
    """The embedder of the library."""
    return GatedEmbedder()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, empty_sqlite: Path, embedder: GatedEmbedder) -> Iterator[House]:
    """A house that indexes and searches; its tests make what they need in it. Files of 200,000 bytes at most."""
    with built_library(tmp_path_factory, empty_sqlite, embedder) as house:
        yield house


@contextmanager
def built_library(
    tmp_path_factory: pytest.TempPathFactory, database: Path | str, embedder: GatedEmbedder
) -> Iterator[House]:
    options = ServeOptions(max_model_len=400, max_answer_tokens=100, max_file_bytes=200_000, max_body_bytes=100_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routes_vector_stores, "get_embedder", lambda *_: fake_embedder())
        with built(tmp_path_factory.mktemp("library") / "home", database, options, embed=embedder) as house:
            yield house
            embedder.gate.set()


@pytest.fixture(scope="module")
def library_on_postgresql(
    tmp_path_factory: pytest.TempPathFactory, module_postgres_url: str, embedder: GatedEmbedder
) -> Iterator[House]:
    """The same with its catalog on PostgreSQL."""
    with built_library(tmp_path_factory, module_postgres_url, embedder) as house:
        yield house
