"""`ryorin data ground`: words in, words out; the work is in ground/."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ryorin.commands.common import (
    counting_line,
    json_option,
    opened_catalog,
    print_json,
    printable,
    say,
    stopping_in_order,
    tenant_option,
)
from ryorin.window import Window
from ryorin_train.commands.options import reading_options
from ryorin_train.ground.shares import Shares
from ryorin_train.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ryorin.catalog import Catalog
    from ryorin.catalog.tables import Tenant, VectorStore
    from ryorin_train.datasets.formats import Reading
    from ryorin_train.ground.regime import Regime
    from ryorin_train.ground.run import Report
    from ryorin_train.ground.shares import Kind


SHOWN_REASONS = 10  # on a terminal


def share_option(kind: Kind, what: str) -> Callable[[Any], Any]:
    """The share of a kind of rows."""
    default = getattr(Shares, kind)
    return click.option(f"--{kind}", type=float, default=default, show_default=True, help=f"Share of rows with {what}.")


@click.command("ground")
@click.argument("source", metavar="FILE|DATASET")
@tenant_option
@reading_options
@click.option(
    "--release", "version", type=int, metavar="N", help="Retrieve as this release; the live one unless given."
)
@click.option("--store", "stores", multiple=True, metavar="NAME", help="In place of the release's stores.")
@share_option("right", "the right passage")
@share_option("wrong", "wrong passages only")
@share_option("none", "no passage, as when nothing is found")
@click.option(
    "--refusal",
    "refusals",
    multiple=True,
    metavar="[en=|ja=]TEXT|@FILE",
    help="What is answered where no passage answers; one for all questions, or one a language.",
)
@click.option("--base", "base_name", metavar="NAME", help="Whose tokenizer counts; the release's, or the bundled one.")
@click.option(
    "--max-model-len",
    type=click.IntRange(min=128),
    default=Window.max_model_len,
    show_default=True,
    help="As of 'ryorin serve': how long a prompt may be.",
)
@click.option("--seed", type=int, default=Recipe.seed, show_default=True, help="Of every choice.")
@json_option
def ground_command(
    source: str,
    tenant_name: str,
    reading: Reading,
    version: int | None,
    stores: tuple[str, ...],
    right: float,
    wrong: float,
    none: float,
    refusals: tuple[str, ...],
    base_name: str | None,
    max_model_len: int,
    seed: int,
    as_json: bool,
) -> None:
    """
    Give rows without passages those that the gateway would put into their prompts; keep them as a new dataset.

    Passages are found by the code and settings that serve: those of the live release or, without one, of 'ryorin
    release create'. A share of the rows gets the right passage among what retrieval finds, a share only wrong ones, a
    share none; the right answer of the last two is the refusal. Citations are moved to where their passage stands.

    The right passage lies in the document that a row's "source" names (source, file name or title) and holds what the
    answer quotes; without a source it is the passage that holds it. Answers whose passage is not in the stores are
    listed and left out. A row with "passages": [] needs no documents: its answer stays, whatever is found.

    \b
    Examples:
        ryorin data ground faq.jsonl --refusal @refusal.txt --tenant support
        ryorin data ground faq.jsonl --release 2 --right 0.6 --wrong 0.3 --none 0.1 --refusal @no.json --tenant support
        ryorin data ground faq.jsonl --refusal en=@en.txt --refusal "ja=資料に記載がありません。" --tenant support
    """
    from ryorin.catalog.tenants import get_tenant
    from ryorin.errors import InvalidInput
    from ryorin_index.search import Searcher
    from ryorin_train.datasets.store import add_dataset, dataset_json, made_from, open_data, purpose_given
    from ryorin_train.ground.regime import refusals_of
    from ryorin_train.ground.run import ground

    shares = Shares(right, wrong, none)
    with stopping_in_order(), opened_catalog() as catalog:
        with catalog.session() as session:
            tenant = get_tenant(session, tenant_name)
        given = open_data(catalog, tenant, source, reading)
        regime, used = _regime(catalog, tenant, version, stores, base_name, max_model_len)
        told = refusals_of([_text(each) for each in refusals], regime.prompt) if refusals else None
        began = time.monotonic()
        rows, report = ground(
            catalog,
            Searcher(catalog),
            regime,
            given.name,
            given.rows,
            shares,
            told,
            seed,
            counting_line("answers grounded"),
        )
        seconds = time.monotonic() - began
        if not rows:
            _show(report)
            raise InvalidInput(f"no row of {given.name} could be grounded; nothing was kept", param="data")
        lineage = made_from(catalog, given, "ground") | {
            "grounded": {
                "stores": _generations(catalog, used),
                "release": regime.release,
                "retrieval": asdict(regime.retrieval),
                "window": asdict(regime.window),
                "shares": asdict(shares),
                "refusals": dict(told.texts) if told else {},
                "seed": seed,
                **report.as_json(),
            }
        }
        kept, is_new = add_dataset(
            catalog, tenant, f"{given.name} (grounded)", rows, lineage, purpose_given(catalog, given)
        )
    if as_json:
        print_json({**dataset_json(kept, None), "new": is_new, "grounded": lineage["grounded"]})
    else:
        _show(report)
        say(f"{seconds:.1f} s, {report.answers / max(seconds, 0.001):.0f} answers a second")
        click.echo(kept.digest[:12])


def grounded_lines(lineage: Mapping[str, Any]) -> list[str]:
    """What a dataset's lineage says of its grounding."""
    grounded = lineage.get("grounded")
    if grounded is None:
        return []
    stores = ", ".join(f"{store['name']} at generation {store['generation']}" for store in grounded["stores"])
    shares = ", ".join(f"{share:g} {kind}" for kind, share in grounded["shares"].items())
    made = ", ".join(f"{count} {kind}" for kind, count in grounded["made"].items())
    return [f"grounded in {stores}; shares {shares}, seed {grounded['seed']}: {made}"]


def _regime(
    catalog: Catalog,
    tenant: Tenant,
    version: int | None,
    store_names: Sequence[str],
    base_name: str | None,
    max_model_len: int,
) -> tuple[Regime, list[VectorStore]]:
    """How the tenant is served, and its stores as they were when they were looked up."""
    from ryorin.catalog.tenants import current_prompt
    from ryorin.errors import InvalidInput
    from ryorin.models.registry import DEFAULT_BASE, base_by_digest, get_base
    from ryorin.prompt import Prompt
    from ryorin.prompt_tokens import TokenCounter
    from ryorin_index.store import live_stores
    from ryorin_train.ground.regime import Regime, served

    with catalog.session() as session:
        release, stores, retrieval = served(session, tenant, version, store_names)
        prompt = Prompt.from_spec(current_prompt(session, tenant).spec)
    live = live_stores(catalog, tenant.id, [store.id for store in stores])
    if not live:
        names = ", ".join(store.name for store in stores)
        raise InvalidInput(f"{names} expired; give it another 'expires_after' through the API first", param="store")
    if base_name is None and release is not None:
        base = base_by_digest(catalog.settings, release.base_digest)
    else:
        base = get_base(catalog.settings, base_name or DEFAULT_BASE)
    count = TokenCounter(base.path).count
    number = None if release is None else release.version
    regime = Regime(tenant.id, tuple(live), retrieval, prompt, Window(max_model_len), count, number)
    return regime, [store for store in stores if store.id in live]


def _text(given: str) -> str:
    """A refusal as it was written, or what stands in the file it names; its language stays before it."""
    from ryorin.errors import InvalidInput
    from ryorin_train.judging.cases import LANGUAGES

    for language in ("", *(f"{each}=" for each in LANGUAGES)):
        if given.startswith(f"{language}@"):
            path = Path(given.removeprefix(f"{language}@"))
            try:
                return language + path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInput(f"the refusal {path} cannot be read: {error}", param="refusal") from error
    return given


def _generations(catalog: Catalog, stores: Sequence[VectorStore]) -> list[dict[str, Any]]:
    """The stores with the generation they had before, and, where it moved meanwhile, the one they have now."""
    from ryorin.catalog.tables import VectorStore as StoreRow

    found = []
    with catalog.session() as session:
        for store in stores:
            now = session.get(StoreRow, store.id)
            row = {"id": store.id, "name": store.name, "generation": store.generation}
            if now is None or now.generation != store.generation:
                row["generation_at_end"] = None if now is None else now.generation
            found.append(row)
    return found


def _show(report: Report) -> None:
    say(f"{report.rows} rows with {report.answers} answers in, {report.rows_out} rows out")
    made = report.made
    say(
        f"right passage: {made['right']} rows; {report.retrieved} passages found by retrieval, {report.put_in} put in; "
        f"{report.by_source} answers of all kinds by their source"
    )
    say(f"wrong passages only: {made['wrong']} rows" + _but(report.nothing_else, "for which nothing else was found"))
    say(f"nothing found: {made['none']} rows")
    if any(report.as_they_are.values()):
        say(
            f"as they are: {report.as_they_are['refusing']} that refuse, {report.as_they_are['free']} that need no "
            "documents"
        )
    cited = report.citations
    say(f"citations: {cited['cited']} moved, {cited['placed']} put in, {cited['uncited']} answers cite nothing")
    if report.left_out:
        say(f"left out: {len(report.left_out)} answers")
    for line, reason in report.left_out[:SHOWN_REASONS]:
        say(printable(f"  line {line}: {reason}"))
    if len(report.left_out) > SHOWN_REASONS:
        say(f"  … and {len(report.left_out) - SHOWN_REASONS} more; --json has all")


def _but(count: int, what: str) -> str:
    return f", {count} {what}" if count else ""
