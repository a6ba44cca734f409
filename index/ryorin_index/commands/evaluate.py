"""`ryorin index evaluate` and `ryorin index draft-cases`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ryorin.catalog.tenants import get_tenant
from ryorin.commands.common import (
    catalog_session,
    counting_line,
    json_option,
    opened_catalog,
    print_json,
    say,
    tenant_option,
)
from ryorin.errors import InvalidInput
from ryorin.release import SEARCH_MODES, Retrieval
from ryorin_index.store import get_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ryorin_index.evaluate import Judged, Scores

DEFAULT_K = 10
DEFAULT_DRAFTS = 100


@click.command()
@click.argument("store")
@click.option("--cases", "cases_file", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@tenant_option
@click.option("--k", default=DEFAULT_K, show_default=True, type=click.IntRange(1, 50), help="Passages that count.")
@click.option(
    "--mode", "modes", multiple=True, type=click.Choice(SEARCH_MODES), help="Only these ways; all unless given."
)
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Keep the run as FILE, to compare with.")
@click.option(
    "--baseline", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A kept run to compare with."
)
@json_option
def evaluate(
    store: str,
    cases_file: Path,
    tenant_name: str,
    k: int,
    modes: tuple[str, ...],
    save: Path | None,
    baseline: Path | None,
    as_json: bool,
) -> None:
    """
    Measure how well a store's search finds the passages that answer questions.

    recall@k, MRR and nDCG with 95% intervals, for search by meaning, by words and by both, each by language. Two runs
    on the same cases are compared pair by pair, whatever lies between them: two generations of a store, two stores of
    the same documents with different embedders.

    \b
    A case is a line of JSON:
        {"question": "…", "language": "en", "relevant": [{"document": "returns.md", "heading": "…", "quote": "…"}]}

    Example:
        ryorin index evaluate handbook --cases cases.jsonl --save before.json --tenant support
        ryorin index evaluate handbook --cases cases.jsonl --baseline before.json --tenant support
    """
    from ryorin_index.evaluate import evaluate as run
    from ryorin_index.evaluate import judge, load_cases, summarise
    from ryorin_index.search import Searcher

    cases = load_cases(cases_file)
    before = _read_run(baseline) if baseline else None
    with opened_catalog() as catalog:
        with catalog.session() as session:
            chosen = get_store(session, get_tenant(session, tenant_name), store)
            judged, unmatched = judge(session, chosen, cases)
        if not judged:
            raise InvalidInput(
                f"no place of the {len(cases)} cases has a passage in store {store!r}; is the document's file name "
                "right, and do its heading and quote stand in it? 'ryorin index documents' lists the names"
            )
        searcher = Searcher(catalog)

        def search(question: str, mode: str) -> list[int]:
            hits = searcher.search(chosen.tenant_id, [chosen.id], question, retrieval=Retrieval(top_k=k, mode=mode))
            return [hit.passage_id for hit in hits]

        scores = run(judged, search, modes or SEARCH_MODES, k, counting_line("searches"))
    rows = summarise(judged, scores)
    result: dict[str, Any] = {
        "store": store,
        "k": k,
        "generation": chosen.generation,
        "embedder": chosen.embedder,
        "cases": len(cases),
        "unmatched": [case.question for case in unmatched],
        "rows": rows,
    }
    if before is not None:
        result["compared"] = _compared(judged, scores, before)
    if save is not None:
        save.write_text(json.dumps(result | {"values": _values(judged, scores)}, ensure_ascii=False), encoding="utf-8")
    if as_json:
        print_json(result)
    else:
        _show(result, k)


@click.command(name="draft-cases")
@click.argument("store")
@tenant_option
@click.option("-n", "--count", default=DEFAULT_DRAFTS, show_default=True, type=click.IntRange(1), help="Cases at most.")
@click.option("--endpoint", metavar="URL", help="An OpenAI-compatible server whose model writes the questions.")
@click.option("--model", metavar="M", help="With --endpoint: the model's name.")
@click.option("--api-key-env", metavar="VAR", help="With --endpoint: the environment variable that holds the key.")
def draft_cases(
    store: str, tenant_name: str, count: int, endpoint: str | None, model: str | None, api_key_env: str | None
) -> None:
    """
    Draft evaluation cases from the store's own documents, as JSONL, for a person to correct.

    Without a model the questions are headings and rare words of the passages, which flatters search by words.

    Example: ryorin index draft-cases handbook --tenant support > cases.jsonl
    """
    from ryorin_index.draft import draft_cases as draft
    from ryorin_index.draft import model_asker

    if bool(endpoint) != bool(model):
        raise InvalidInput("--endpoint and --model go together: name the server and its model", param="endpoint")
    key = os.environ.get(api_key_env, "") if api_key_env else ""
    if api_key_env and not key:
        raise InvalidInput(f"the variable {api_key_env} is not set; put the key into it", param="api_key_env")
    ask = model_asker(endpoint, model, key) if endpoint and model else None
    drafted = 0
    with catalog_session() as (_, session):
        chosen = get_store(session, get_tenant(session, tenant_name), store)
        for row in draft(session, chosen, count, ask):
            print_json(row)
            drafted += 1
    say(f"{drafted} cases drafted; read them before you trust what is measured with them")


def _values(judged: Sequence[Judged], scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """What a later run is compared with: each case's measures."""
    from ryorin_index.evaluate import MEASURES

    return [
        {
            "question": case.case.question,
            "language": case.case.language,
            "modes": {
                mode: {measure: float(found.of(measure)[number]) for measure in MEASURES}
                for mode, found in scores.items()
            },
        }
        for number, case in enumerate(judged)
    ]


def _read_run(path: Path) -> dict[str, Any]:
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {case["question"]: case["modes"] for case in run["values"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path} is not a run that --save wrote", param="baseline") from error


def _compared(
    judged: Sequence[Judged], scores: Mapping[str, Scores], before: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Ours minus the baseline on the cases that both have, by mode and measure."""
    import numpy as np

    from ryorin_index.evaluate import MEASURES
    from ryorin_index.statistics import compare

    rows = []
    for mode, found in scores.items():
        both = [number for number, case in enumerate(judged) if mode in before.get(case.case.question, {})]
        if not both:
            raise InvalidInput(f"the baseline has no case of these with mode {mode}; compare runs on the same cases")
        for measure in MEASURES:
            theirs = np.array([before[judged[number].case.question][mode][measure] for number in both])
            rows.append(
                {"mode": mode, "measure": measure, "cases": len(both), **compare(found.of(measure)[both], theirs)}
            )
    return rows


def _show(result: dict[str, Any], k: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from ryorin_index.evaluate import MEASURES

    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("language", "search", "cases", f"recall@{k}", f"MRR@{k}", f"nDCG@{k}"):
        table.add_column(column, justify="left" if column in ("language", "search") else "right")
    for row in result["rows"]:
        cells = [f"{row[name]['mean']:.3f} ({row[name]['low']:.3f} to {row[name]['high']:.3f})" for name in MEASURES]
        table.add_row(row["language"], row["mode"], str(row["cases"]), *cells)
    console.print(table)
    if "compared" in result:
        table = Table(box=None, pad_edge=False, header_style="bold", title="against the baseline", title_justify="left")
        for column in ("search", "measure", "cases", "difference", "95% interval", "p"):
            table.add_column(column, justify="left" if column in ("search", "measure") else "right")
        for row in result["compared"]:
            table.add_row(
                row["mode"],
                row["measure"],
                str(row["cases"]),
                f"{row['difference']:+.3f}",
                f"{row['low']:+.3f} to {row['high']:+.3f}",
                f"{row['p']:.3f}",
            )
        console.print(table)
    if result["unmatched"]:
        say(f"{len(result['unmatched'])} cases left out: a place of theirs has no passage in the store, such as of")
        say("  " + result["unmatched"][0])
