"""The default embedder, converted once a run; the tenant, the store and the documents of `tests/index`."""

from __future__ import annotations

from pathlib import Path

import pytest
from index_fixtures import embedder, folder, sqlite_store, store, tenant  # noqa: F401
from run_folder import made_once, run_folder


@pytest.fixture(scope="session")
def pulled_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    A folder of models that holds the default embedder, converted once a run (some seconds); to be read only.

    A test's home gets it by `(home / "models").symlink_to(pulled_models, target_is_directory=True)`.
    """
    from ryorin.models.registry import DEFAULT_EMBEDDER, pull
    from ryorin.settings import Settings

    home = made_once(
        run_folder(tmp_path_factory) / "pulled",
        lambda place: pull(Settings(home=place, database_url=""), DEFAULT_EMBEDDER),
    )
    return home / "models"
