"""
How long an edit takes to be found, against building the index anew.

A store of many short documents; one of them is edited, and `add_paths` and a search follow, as in a server whose
operator runs `ryorin index add`. The peer is what a store without increments must do: parse, embed and index every
document again.
Real embedder (multilingual-e5-small), SQLite, one process; both sides in every round.

    python bench/freshness.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from common import report

from ryorin.catalog import Catalog, open_catalog
from ryorin.catalog.tables import VectorStore
from ryorin.catalog.tenants import create_tenant, get_tenant
from ryorin.models.registry import DEFAULT_EMBEDDER, get_embedder, pull
from ryorin.settings import Settings
from ryorin_index.embed import Embed, open_embedder
from ryorin_index.ingest import add_paths
from ryorin_index.search import Searcher
from ryorin_index.store import create_store

TARGET_S = 1.0
TENANT = "bench"


def document(number: int, days: int) -> str:
    return (
        f"# Guide {number}\n\n## Returns\n\nGoods of kind {number} can be returned within {days} days.\n\n"
        f"## 配送\n\n商品{number}は{days}日以内にお届けします。\n"
    )


def build(catalog: Catalog, name: str, folder: Path, embed: Embed) -> tuple[VectorStore, float]:
    with catalog.session() as session:
        store = create_store(
            session, get_tenant(session, TENANT), name, get_embedder(catalog.settings, DEFAULT_EMBEDDER)
        )
    began = time.perf_counter()
    done = add_paths(catalog, store, [folder], lambda: embed)
    assert not done.failed, done.failed
    return store, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer documents and rounds")
    quick = parser.parse_args().quick
    count, rounds = (100, 5) if quick else (1000, 10)
    with tempfile.TemporaryDirectory() as scratch:
        home, folder = Path(scratch) / "home", Path(scratch) / "documents"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.md").write_text(document(number, 30), encoding="utf-8")
        settings = Settings(home=home, database_url=f"sqlite:///{home}/catalog.db")
        pull(settings, DEFAULT_EMBEDDER, lambda _: None)
        catalog = open_catalog(settings)
        with catalog.session() as session:
            tenant = create_tenant(session, TENANT)
        embed = open_embedder(get_embedder(settings, DEFAULT_EMBEDDER))
        store, _ = build(catalog, "live", folder, embed)
        searcher = Searcher(catalog, lambda _: embed)
        searcher.search(tenant.id, [store.id], "warm", 1)
        edits, rebuilds = [], []
        for turn in range(rounds):
            number, days = turn * 7 % count, 40 + turn
            (folder / f"{number}.md").write_text(document(number, days), encoding="utf-8")
            began = time.perf_counter()
            add_paths(catalog, store, [folder / f"{number}.md"], lambda: embed)
            hits = searcher.search(tenant.id, [store.id], f"Guide {number} returns of kind {number}", 10)
            edits.append(time.perf_counter() - began)
            assert any(f"within {days} days" in hit.text for hit in hits), "the edit was not found"
            rebuilds.append(build(catalog, f"anew-{turn}", folder, embed)[1])
        catalog.close()
    ratio = statistics.median(anew / edit for anew, edit in zip(rebuilds, edits, strict=True))
    edit = statistics.median(edits)
    print(f"{count} documents, 2 passages each, medians of {rounds}")
    print(
        f"edit to found  {edit:.3f} s\nbuilt anew     {statistics.median(rebuilds):.3f} s\nratio          {ratio:.0f}"
    )
    report(
        "an edited document is found within a second",
        edit,
        "s",
        f"<= {TARGET_S}",
        "the index built anew",
        rounds,
        peer_value=round(statistics.median(rebuilds), 3),
        ratio=round(ratio, 1),
        documents=count,
    )


if __name__ == "__main__":
    main()
