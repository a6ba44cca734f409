"""
How well hybrid search finds the right section, against search by vectors alone and by words alone.

138 questions each in English and in Japanese about the Debian Reference, written for this bench, each with the sections
that answer it (bench/data/debian-reference.jsonl); the documents are the HTML chapters of the Debian packages
debian-reference-en and debian-reference-ja, which `apt-get download` fetches, so this bench runs on Debian and its kin.
Two stores, one a language, the default embedder. The peers are our own store's dense and lexical searches, each case in
all three.

    python bench/hybrid.py [--quick] [--cache FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import report

from ryorin.catalog import Catalog, open_catalog
from ryorin.catalog.tables import VectorStore
from ryorin.catalog.tenants import create_tenant, get_tenant
from ryorin.errors import NotFound
from ryorin.models.registry import DEFAULT_EMBEDDER, get_embedder, pull
from ryorin.release import SEARCH_MODES, Retrieval
from ryorin.settings import Settings
from ryorin_index.embed import open_embedder
from ryorin_index.evaluate import Case, Place, Scores, evaluate, judge
from ryorin_index.search import Searcher
from ryorin_index.statistics import compare, interval
from ryorin_index.store import create_store, get_store
from ryorin_index.sync import add_paths

DATA = Path(__file__).parent / "data" / "debian-reference.jsonl"
TENANT = "bench"
K = 10
LANGUAGES = ("en", "ja")
QUICK_CHAPTERS = ("ch01", "ch09", "ch12")


def chapters(cache: Path, language: str, quick: bool) -> list[Path]:
    """The HTML chapters of one language, fetched and unpacked once."""
    package = f"debian-reference-{language}"
    folder = cache / package
    if not folder.exists():
        print(f"fetching {package}", file=sys.stderr)
        subprocess.run(["apt-get", "download", "-qq", package], cwd=cache, check=True)
        subprocess.run(["dpkg-deb", "-x", next(cache.glob(f"{package}_*.deb")), folder], check=True)
    found = sorted((folder / "usr/share/debian-reference").glob(f"ch*.{language}.html"))
    return [path for path in found if not quick or path.name[:4] in QUICK_CHAPTERS]


def cases(language: str, files: list[Path]) -> list[Case]:
    """The questions whose chapters are among the files."""
    names = {path.name for path in files}
    found = []
    for line in DATA.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        places = [
            Place(f"ch{int(section.split('.')[0]):02}.{language}.html", heading=f"{section}. ")
            for section in row["sections"]
        ]
        known = tuple(place for place in places if place.document in names)
        if known:
            found.append(Case(row[language], known, language))
    return found


def indexed(catalog: Catalog, name: str, files: list[Path], tenant: str = TENANT) -> VectorStore:
    """A store of the files; those that it holds already cost nothing."""
    embedder = get_embedder(catalog.settings, DEFAULT_EMBEDDER)
    with catalog.session() as session:
        owner = get_tenant(session, tenant)
        try:
            store = get_store(session, owner, name)
        except NotFound:
            store = create_store(session, owner, name, embedder)
    done = add_paths(catalog, store, files, lambda: open_embedder(embedder))
    assert not done.failed, done.failed
    return store


def measured(catalog: Catalog, store: VectorStore, asked: list[Case]) -> dict[str, Scores]:
    """The measures of each way to search."""
    with catalog.session() as session:
        judged, unmatched = judge(session, store, asked)
    assert not unmatched, [case.question for case in unmatched]
    searcher = Searcher(catalog)

    def search(question: str, mode: str) -> list[int]:
        retrieval = Retrieval(top_k=K, mode=mode)
        return [hit.passage_id for hit in searcher.search(store.tenant_id, [store.id], question, retrieval=retrieval)]

    return evaluate(judged, search, SEARCH_MODES, K)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three chapters instead of twelve")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "ryorin-bench-hybrid")
    options = parser.parse_args()
    cache = options.cache / ("quick" if options.quick else "full")
    cache.mkdir(parents=True, exist_ok=True)
    settings = Settings(home=cache / "home", database_url=f"sqlite:///{cache / 'home' / 'catalog.db'}")
    pull(settings, DEFAULT_EMBEDDER, lambda _: None)
    catalog = open_catalog(settings)
    with catalog.session() as session:
        try:
            get_tenant(session, TENANT)
        except NotFound:
            create_tenant(session, TENANT)
    margins, total, details = [], 0, {}
    print(f"{'':10}{'cases':>6}{'nDCG@10':>24}{'recall@10':>11}{'MRR@10':>8}")
    for language in LANGUAGES:
        files = chapters(options.cache, language, options.quick)
        asked = cases(language, files)
        found = measured(catalog, indexed(catalog, language, files), asked)
        total += len(asked)
        for mode, scores in found.items():
            ndcg = interval(scores.ndcg)
            print(
                f"{language} {mode:<7}{len(asked):>6}{ndcg.mean:>10.3f} ({ndcg.low:.3f}-{ndcg.high:.3f})"
                f"{scores.recall.mean():>10.3f}{scores.mrr.mean():>8.3f}"
            )
            details[f"{language}_{mode}"] = round(ndcg.mean, 4)
        for peer in ("dense", "lexical"):
            against = compare(found["hybrid"].ndcg, found[peer].ndcg)
            margins.append(against["difference"])
            details[f"{language}_over_{peer}"] = {name: round(value, 4) for name, value in against.items()}
            print(f"   hybrid - {peer}: {against['difference']:+.3f}, p {against['p']:.3f}")
    catalog.close()
    report(
        "hybrid search finds more than vectors or words alone: least margin in nDCG@10 over either, in either language",
        min(margins),
        "nDCG@10",
        "> 0",
        "dense and lexical alone, same store",
        total,
        **details,
    )


if __name__ == "__main__":
    main()
