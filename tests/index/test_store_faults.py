"""A short form of `long_faults.py`, and disks that are full or fail."""

from __future__ import annotations

import pytest
from random_store import add_passages, bring_up, check, opened, random_vectors

from ryorin.catalog import Catalog
from ryorin.catalog.tables import VectorStore
from ryorin_index import codes, disk, maintenance
from ryorin_index.maintenance import maintain, maintain_quietly, stats, verify


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "SEGMENT_AT", 8)
    monkeypatch.setattr(maintenance, "CODES_AT", 40)
    monkeypatch.setattr(codes, "SAMPLE", 20)


@pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)
@pytest.mark.parametrize("step", ["*.write", "*.fsync", "*.rename", "*.sync", "file.remove"])
def test_reads_go_on_and_writes_recover_when_a_disk_fails(
    catalog: Catalog, store: VectorStore, small: None, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    index = opened(catalog, store)
    query = random_vectors(1, store.dimensions, 99)[0]
    seed = 0
    for nth, action in ((1, "enospc"), (2, "eio"), (3, "enospc"), (1, "eio")):
        disk._times.clear()
        monkeypatch.setenv("RYORIN_FAILPOINTS", f"{step}:{action}:/{nth}")
        for _ in range(2):
            seed += 1
            with catalog.session() as session:
                add_passages(session, store, random_vectors(30, store.dimensions, seed))
            maintain_quietly(catalog, store)
            bring_up(catalog, index)
            check(catalog, index, query, 10)
            check(catalog, opened(catalog, store), query, 10)
        if nth == 1 and step != "file.remove":
            with pytest.raises(OSError, match="failpoint"):
                maintain(catalog, store, force=True)
        monkeypatch.delenv("RYORIN_FAILPOINTS")
        assert maintain(catalog, store, force=True) is not None
        assert stats(catalog, store)["tail"] == 0 and verify(catalog, store) == []
        check(catalog, opened(catalog, store), query, 10)
