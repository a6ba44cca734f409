"""Segments: equal to brute force over any history, shared between processes, whole or not used."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from long_runs import turns
from random_store import add_passages, bring_up, check, opened, random_vectors, remove_passages, truth
from sqlalchemy.exc import OperationalError

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Tenant, VectorStore
from ryorin.digests import canonical_json, digest_of
from ryorin_index import codes, disk, maintenance
from ryorin_index.dense import LOOK_EVERY_S
from ryorin_index.maintenance import Maintainer, maintain, rebuild, stats, verify
from ryorin_index.segments import FORMAT, folder_of

on_sqlite = pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)  # of files, whatever the database


@pytest.mark.parametrize("seed", range(turns(2, 20)))
def test_equals_brute_force_over_any_history(
    catalog: Catalog, store: VectorStore, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(maintenance, "SEGMENT_AT", 8)
    draw = random.Random(seed)
    index = opened(catalog, store)
    living: list[int] = []
    for step in range(40):
        action = draw.choice(("add", "add", "remove", "maintain", "force", "reopen", "adopt"))
        if action == "add":
            with catalog.session() as session:
                vectors = random_vectors(draw.randint(1, 12), store.dimensions, 100 * seed + step)
                living += add_passages(session, store, vectors)
        elif action == "remove" and living:
            gone = draw.sample(living, draw.randint(1, len(living)))
            with catalog.session() as session:
                remove_passages(session, store, gone)
            living = [each for each in living if each not in gone]
        elif action in ("maintain", "force"):
            maintain(catalog, store, force=action == "force")
        elif action == "reopen":
            index = opened(catalog, store)
        elif action == "adopt":
            index.adopt()
        bring_up(catalog, index)
        query = random_vectors(1, store.dimensions, 9000 + step)[0]
        allowed = np.asarray([*draw.sample(living, draw.randint(0, len(living))), -5, 10**12], np.int64)
        check(catalog, index, query, draw.randint(1, 12))
        check(catalog, index, query, draw.randint(1, 12), allowed)
        check(catalog, index, query, 5, allowed[-2:])
    assert verify(catalog, store) == []
    ids, vectors = truth(catalog, store)
    assert np.array_equal(index.vectors_of(ids), vectors)


@on_sqlite
def test_codes_are_chosen_by_recall_and_filters_come_first(
    catalog: Catalog, store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "CODES_AT", 2000)
    with catalog.session() as session:
        ids = np.asarray(add_passages(session, store, random_vectors(3000, store.dimensions, 1)))
    maintain(catalog, store)
    segments = stats(catalog, store)["segments"]
    assert [each["kind"] for each in segments] == ["pq4"] and segments[0]["recall"] >= codes.RECALL
    index = opened(catalog, store)
    with catalog.session() as session:
        remove_passages(session, store, ids[:300].tolist())
    bring_up(catalog, index)
    ids, vectors = truth(catalog, store)
    queries = random_vectors(50, store.dimensions, 2)
    hits = 0
    for query in queries:
        best = set(ids[np.argsort(-(vectors @ query))[:10]].tolist())
        found = index.search(query, 10)
        assert len(found) == 10 and {each for _, each in found} <= set(ids.tolist())
        hits += len(best & {each for _, each in found})
        few = sorted((vectors[::100] @ query).tolist(), reverse=True)[:10]  # 1%: all of them are scored
        assert np.allclose([score for score, _ in index.search(query, 10, ids[::100])], few, atol=1e-5)
        half = index.search(query, 10, ids[::2])
        assert len(half) == 10 and {each for _, each in half} <= set(ids[::2].tolist())
    assert hits / 500 >= 0.98


@on_sqlite
def test_files_of_an_earlier_format_are_made_anew_and_removed(catalog: Catalog, store: VectorStore) -> None:
    with catalog.session() as session:
        add_passages(session, store, random_vectors(50, store.dimensions, 1))
    maintain(catalog, store, force=True)
    folder = folder_of(catalog.settings, store)
    manifest = next(folder.glob("manifest-*.json"))
    body = {**json.loads(manifest.read_bytes())["manifest"], "format": FORMAT - 1}
    manifest.write_text(canonical_json({"manifest": body, "sha256": digest_of(body)}))
    old = folder / f"graph-{'0' * 64}"
    old.write_bytes(b"of a format that is no more")
    check(catalog, opened(catalog, store), random_vectors(1, store.dimensions, 3)[0], 10)
    maintain(catalog, store, force=True)
    assert not old.exists() and verify(catalog, store) == []
    assert stats(catalog, store)["segments"][0]["passages"] == 50


def test_a_running_reader_takes_over_what_another_wrote(catalog: Catalog, store: VectorStore) -> None:
    with catalog.session() as session:
        add_passages(session, store, random_vectors(50, store.dimensions, 1))
    index = opened(catalog, store)
    assert [part.name for part in index.state.parts] == [""]
    maintain(catalog, store, force=True)
    until = time.monotonic() + 30
    while not index.state.parts[0].name and time.monotonic() < until:
        time.sleep(LOOK_EVERY_S / 5)
        bring_up(catalog, index)
    assert index.state.parts[0].name
    check(catalog, index, random_vectors(1, store.dimensions, 3)[0], 10)


def test_old_files_go_and_the_maintainer_works_by_itself(
    catalog: Catalog, store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "SEGMENT_AT", 8)
    maintainer = Maintainer(catalog, lambda: [store], every_s=0.02)
    maintainer.start()
    try:
        for seed in range(6):
            with catalog.session() as session:
                add_passages(session, store, random_vectors(9, store.dimensions, seed))
            until = time.monotonic() + 30
            while stats(catalog, store)["tail"] and time.monotonic() < until:
                time.sleep(0.02)
            assert stats(catalog, store)["tail"] == 0
    finally:
        maintainer.stop()
    names = [path.name for path in folder_of(catalog.settings, store).iterdir()]
    assert sum(name.startswith("manifest-") for name in names) == maintenance.KEPT_MANIFESTS
    check(catalog, opened(catalog, store), random_vectors(1, store.dimensions, 30)[0], 10)


def test_the_maintainer_goes_on_when_the_database_was_away(catalog: Catalog, store: VectorStore) -> None:
    asked: list[int] = []
    enough = threading.Event()

    def stores() -> list[VectorStore]:
        asked.append(1)
        if len(asked) == 1:
            raise OperationalError("select", {}, Exception("away"))
        enough.set()
        return [store]

    maintainer = Maintainer(catalog, stores, every_s=0.01)
    maintainer.start()
    try:
        assert enough.wait(30)
    finally:
        maintainer.stop()


def test_only_one_maintains(catalog: Catalog, store: VectorStore) -> None:
    with disk.locked(folder_of(catalog.settings, store), wait=True):
        assert maintain(catalog, store) is None


def files_of(catalog: Catalog, store: VectorStore) -> list[Path]:
    return sorted(path for path in folder_of(catalog.settings, store).iterdir() if path.name != ".lock")


@on_sqlite
def test_every_flipped_bit_and_cut_is_found(
    catalog: Catalog, store: VectorStore, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verify tells, a search is right all the same, and a rebuild gives the same results."""
    monkeypatch.setattr(maintenance, "CODES_AT", 150)
    with catalog.session() as session:
        add_passages(session, store, random_vectors(160, store.dimensions, 1))
    maintain(catalog, store, force=True)
    with catalog.session() as session:
        add_passages(session, store, random_vectors(9, store.dimensions, 2))
    monkeypatch.setattr(maintenance, "SEGMENT_AT", 8)
    maintain(catalog, store)
    assert len({path.name[:3] for path in files_of(catalog, store)}) == 4 and verify(catalog, store) == []
    draw = random.Random(5)
    query = random_vectors(1, store.dimensions, 4)[0]
    before = opened(catalog, store).search(query, 10)
    for turn in range(turns(20, 200)):
        path = draw.choice(files_of(catalog, store))
        whole = path.read_bytes()
        if turn % 5:
            at = draw.randrange(len(whole))
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        else:
            path.write_bytes(whole[: draw.randrange(len(whole))])
        assert verify(catalog, store), path
        if turn % 10 == 0:
            check(catalog, opened(catalog, store), query, 10)
            rebuild(catalog, store)
            assert verify(catalog, store) == []
            assert opened(catalog, store).search(query, 10) == before
        else:
            path.write_bytes(whole)


def test_a_damaged_file_leaves_no_trace_after_maintenance(
    catalog: Catalog, store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "SEGMENT_AT", 8)
    for seed in (1, 2):
        with catalog.session() as session:
            add_passages(session, store, random_vectors(60 // seed**3, store.dimensions, seed))
        maintain(catalog, store)
    damaged = max(files_of(catalog, store), key=lambda path: path.stat().st_size)
    damaged.write_bytes(bytes(damaged.stat().st_size))
    check(catalog, opened(catalog, store), random_vectors(1, store.dimensions, 3)[0], 10)
    assert not damaged.exists()
    assert maintain(catalog, store) is not None
    assert verify(catalog, store) == [] and stats(catalog, store)["tail"] == 0


def test_commands(catalog: Catalog, store: VectorStore, tenant: Tenant, cli) -> None:  # type: ignore[no-untyped-def]
    with catalog.session() as session:
        add_passages(session, store, random_vectors(20, store.dimensions, 1))
    place = ("handbook", "--tenant", tenant.name)
    assert cli("index", "merge", *place).err == "20 passages written, 1 segments, generation 1\n"
    assert "tail                0" in cli("index", "stats", *place).out
    assert cli("index", "verify", *place).code == 0
    vectors = next(path for path in files_of(catalog, store) if path.name.startswith("vectors-"))
    vectors.write_bytes(b"\0" * vectors.stat().st_size)
    broken = cli("index", "verify", *place)
    assert broken.code == 1 and vectors.name in broken.err
    assert cli("index", "rebuild", *place, "--json").code == 0
    assert cli("index", "verify", *place).err == "whole\n"
