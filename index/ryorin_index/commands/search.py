"""`ryorin index search`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ryorin.catalog.tenants import get_tenant
from ryorin.commands.common import json_option, opened_catalog, print_json, printable, say, tenant_option
from ryorin.errors import InvalidInput
from ryorin.release import CONTEXTS, MAX_TOP_K, SEARCH_MODES, Retrieval
from ryorin_index.store import get_store, store_counts

if TYPE_CHECKING:
    from ryorin_index.search import Explanation

DEFAULT_TOP_K = 5


@click.command()
@click.argument("store")
@click.argument("query")
@tenant_option
@click.option(
    "--top-k", default=DEFAULT_TOP_K, show_default=True, type=click.IntRange(1, MAX_TOP_K), help="Passages at most."
)
@click.option(
    "--mode",
    default=Retrieval.mode,
    show_default=True,
    type=click.Choice(SEARCH_MODES),
    help="By meaning (dense), by words (lexical), or by both.",
)
@click.option("--filter", "filters", metavar="JSON", help="Only documents whose attributes pass, in OpenAI's grammar.")
@click.option("--score-floor", type=float, metavar="X", help="Leave out passages less similar than X (-1 to 1).")
@click.option("--rerank", metavar="FOLDER", help="A cross-encoder of sentence-transformers that orders the best anew.")
@click.option("--mmr", type=float, metavar="X", help="Relevance against variety, 1 to 0.")
@click.option(
    "--context",
    default=Retrieval.context,
    show_default=True,
    type=click.Choice(CONTEXTS),
    help="What of a passage's surroundings is shown with it.",
)
@click.option("--explain", is_flag=True, help="Show why each passage stands where it stands.")
@json_option
def search(
    store: str,
    query: str,
    tenant_name: str,
    top_k: int,
    mode: str,
    filters: str | None,
    score_floor: float | None,
    rerank: str | None,
    mmr: float | None,
    context: str,
    explain: bool,
    as_json: bool,
) -> None:
    """
    Search a store and show the passages, best first, with their similarity.

    \b
    Example:
        ryorin index search handbook "return unopened goods" --tenant support
        ryorin index search handbook "返品" --tenant support --mode lexical --explain
        ryorin index search handbook returns --tenant support --filter '{"type": "eq", "key": "year", "value": 2026}'
    """
    from ryorin_index.search import Searcher

    retrieval = Retrieval(
        top_k=top_k,
        score_floor=score_floor,
        mode=mode,
        mmr=mmr,
        reranker=rerank,
        context=context,
        filters=_json(filters),
    )
    with opened_catalog() as catalog:
        with catalog.session() as session:
            tenant = get_tenant(session, tenant_name)
            chosen = get_store(session, tenant, store)
            empty = not store_counts(session, chosen)["passages"]
        hits = Searcher(catalog).search(tenant.id, [chosen.id], query, retrieval=retrieval)
    if as_json:
        print_json([asdict(hit) for hit in hits])
        return
    if empty:
        say(f"store {store!r} is empty; fill it with 'ryorin index add {store} PATH'")
    elif not hits:
        say("nothing was found; try another --mode, or a wider --filter or --score-floor")
    for hit in hits:
        place = f", page {hit.page}" if hit.page else ""
        click.echo(f"{hit.score:.3f}  {hit.title}  ({printable(hit.filename)}{place})")
        if explain and hit.explanation is not None:
            click.echo(f"       [{_explained(hit.explanation)}]")
        click.echo("       " + (hit.context or hit.text).replace("\n", "\n       "))


def _json(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"--filter is not JSON: {error}", param="filters") from error
    if not isinstance(value, dict):
        raise InvalidInput('--filter must be an object such as {"type": "eq", "key": …}', param="filters")
    return value


def _explained(note: Explanation) -> str:
    parts = [
        f"dense #{note.dense_rank}, cosine {note.cosine:.3f}"
        if note.dense_rank
        else f"not among the dense, cosine {note.cosine:.3f}",
        f"lexical #{note.lexical_rank}, BM25 {note.bm25:.2f}" if note.lexical_rank else "not among the lexical",
        f"fused {note.fused:.5f}",
    ]
    if note.rerank is not None:
        parts.append(f"rerank {note.rerank:.3f}")
    if note.mmr_rank is not None:
        parts.append(f"variety #{note.mmr_rank}")
    if note.filtered:
        parts.append("passed the filter")
    if note.folded:
        parts.append(f"says the same as passages {', '.join(str(passage) for passage, _ in note.folded)}")
    return "; ".join(parts)
