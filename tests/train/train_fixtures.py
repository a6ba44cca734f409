"""
A tiny random Llama with a tokenizer of bytes and a chat template, as a base model of the test's home; a tenant.

Imported by the conftest.py here and by that of `tests/live/train`, where whole runs are tested.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import PROMPT
from tiny_base import make_tiny_base


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Threads that wait for one another cost more than the tiny model's work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of 3 layers and 60k weights, float32, random."""
    return make_tiny_base(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tokenizer(tiny_base: Path) -> Any:
    from ryorin_train.render import load_tokenizer

    return load_tokenizer(tiny_base)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """`write_rows(rows)`: a JSONL file of them."""

    def write(rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def with_base(home: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny base model under the default base's name, in the test's home; returns its digest."""
    from ryorin.models import registry
    from ryorin.models.registry import BaseModel

    digest = "d" * 64
    folder = home / "models" / digest[:12]
    shutil.copytree(tiny_base, folder)
    known = registry.get_base

    def get_base(settings: Any, name: str = registry.DEFAULT_BASE) -> BaseModel:
        if name == registry.DEFAULT_BASE:
            return BaseModel(name=name, digest=digest, path=folder, source="made in a test")
        return known(settings, name)

    monkeypatch.setattr(registry, "get_base", get_base)
    return digest


@pytest.fixture
def sqlite(migrated: Path) -> Any:
    """The home's catalog, on SQLite."""
    from ryorin.catalog import open_catalog
    from ryorin.settings import load_settings

    catalog = open_catalog(load_settings())
    yield catalog
    catalog.close()


@pytest.fixture
def tenant(sqlite: Any, with_base: str) -> str:
    """The name of a tenant with a prompt, in a home with the tiny base model."""
    from ryorin.catalog.tenants import create_tenant, set_prompt

    with sqlite.session() as session:
        set_prompt(session, create_tenant(session, "support"), PROMPT)
    return "support"
