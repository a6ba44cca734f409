"""`ryorin data`: words in, words out; the work is in datasets/ and lint/."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ryorin.commands.common import (
    catalog_session,
    json_option,
    opened_catalog,
    print_json,
    print_rows,
    printable,
    say,
    stopping_in_order,
    tenant_option,
)
from ryorin_train.commands.ground import ground_command, grounded_lines
from ryorin_train.commands.options import purpose_option, read_purpose, reading_options
from ryorin_train.datasets.formats import FORMATS, Reading, load
from ryorin_train.datasets.store import (
    ORIGINS,
    Given,
    add_dataset,
    dataset_json,
    dataset_rows,
    find_dataset,
    lineage_of,
    list_datasets,
    made_from,
    open_data,
    purpose_given,
    purpose_of,
    set_purpose,
)
from ryorin_train.recipe import Recipe

if TYPE_CHECKING:
    from ryorin.catalog import Catalog
    from ryorin.catalog.tables import Dataset, Tenant
    from ryorin.purpose import Purpose
    from ryorin_train.lint.findings import Report
    from ryorin_train.lint.fix import Fixed
    from ryorin_train.render import Renderer

DEFAULTS = Recipe()
SHOWN_FINDINGS = 10  # of one code, on a terminal
SHOWN_ROWS = 12  # of one finding


@click.group()
def data() -> None:
    """
    Training data: immutable datasets, checked before they are trained on.

    \b
    Example:
        ryorin data lint examples.jsonl --tenant support
        ryorin data add examples.jsonl --tenant support --purpose purpose.yaml
        ryorin train sft --tenant support --data 3f9a2c11
    """


@data.command("add")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@tenant_option
@reading_options
@purpose_option
@click.option("--from", "origin", type=click.Choice(ORIGINS), default="files", show_default=True, help="Who made it.")
@click.option("--note", default="", metavar="TEXT", help="A remark for the lineage: who, when, from which logs.")
@json_option
def add_command(
    files: tuple[Path, ...],
    tenant_name: str,
    reading: Reading,
    purpose_file: Path | None,
    origin: str,
    note: str,
    as_json: bool,
) -> None:
    """
    Keep the rows of FILEs, in their order, as one dataset; the same rows again are the same dataset.

    Formats, told by content: OpenAI chat and preference JSONL, TRL conversational prompt/completion,
    prompt/chosen/rejected and prompt/completion/label JSONL, a directory of Hugging Face `datasets`, CSV. A row may
    carry "passages" (what retrieval found) and "source" (what it was made from). Every line that cannot be used is
    named; nothing is then kept.

    CSV columns are mapped to: system, user, assistant, label, chosen, rejected, passage, passages, source, or - to
    leave out.

    \b
    Examples:
        ryorin data add examples.jsonl --tenant support --purpose purpose.yaml
        ryorin data add faq.csv --map question=user,answer=assistant,id=- --tenant support
        ryorin data add corrected.jsonl --from people --note "reviewed by the desk" --tenant support
    """
    from ryorin.catalog.tenants import get_tenant
    from ryorin_train.data import raise_all

    purpose = read_purpose(purpose_file)
    loaded = [load(path, reading) for path in files]
    raise_all([error for each in loaded for error in each.errors])
    rows = [row for each in loaded for row in each.rows]
    with opened_catalog() as catalog:
        with catalog.session() as session:
            tenant = get_tenant(session, tenant_name)
        lineage = lineage_of(loaded, origin, note)
        kept, is_new = add_dataset(catalog, tenant, loaded[0].name, rows, lineage, purpose)
        with catalog.session() as session:
            result = {**dataset_json(kept, purpose_of(session, kept)), "new": is_new}
    if as_json:
        print_json(result)
    else:
        say(f"{kept.rows} {kept.kind} rows" + ("" if is_new else "; the tenant had this dataset already"))
        if result["purpose"] is None:
            say(f"it has no purpose statement yet; write one with 'ryorin data purpose {kept.digest[:12]} --set FILE'")
        click.echo(kept.digest[:12])


@data.command("list")
@tenant_option
@json_option
def list_command(tenant_name: str, as_json: bool) -> None:
    """
    List the tenant's datasets, newest first.

    \b
    Example:
        ryorin data list --tenant support
    """
    from ryorin.catalog.tenants import get_tenant

    with catalog_session() as (_, session):
        found = list_datasets(session, get_tenant(session, tenant_name))
        rows = [dataset_json(row, purpose) for row, purpose in found]
    columns = ("short", "name", "kind", "rows", "origin", "created_at")
    print_rows(rows, columns, as_json=as_json, empty="no datasets yet; 'ryorin data add FILE' keeps one")


@data.command("show")
@click.argument("dataset")
@tenant_option
@json_option
def show_command(dataset: str, tenant_name: str, as_json: bool) -> None:
    """
    Show a DATASET, named by its id or the beginning of its digest: rows, lineage, purpose.

    \b
    Example:
        ryorin data show 3f9a2c11 --tenant support
    """
    from ryorin.catalog.tenants import get_tenant

    with catalog_session() as (_, session):
        row = find_dataset(session, get_tenant(session, tenant_name), dataset)
        purpose = purpose_of(session, row)
        shown = dataset_json(row, purpose)
    if as_json:
        print_json(shown)
        return
    lineage = shown["lineage"]
    click.echo(f"{printable(row.filename)}: {row.rows} {row.kind} rows, digest {row.digest}, id {row.id}")
    for file in lineage.get("files", []):
        digest = f", SHA-256 {file['sha256'][:12]}" if "sha256" in file else ""
        click.echo(f"from {lineage['origin']}: {printable(file['name'])}{digest}")
    for parent in lineage.get("parents", []):
        click.echo(f"made from dataset {parent[:12]} ({lineage['origin']})")
    for line in grounded_lines(lineage):
        click.echo(line)
    if lineage.get("note"):
        click.echo(f"note: {printable(lineage['note'])}")
    _show_purpose(purpose)


@data.command("purpose")
@click.argument("dataset")
@tenant_option
@click.option(
    "--set", "purpose_file", type=click.Path(path_type=Path), metavar="FILE", help="Write this one beside it."
)
@json_option
def purpose_command(dataset: str, tenant_name: str, purpose_file: Path | None, as_json: bool) -> None:
    """
    Show a DATASET's purpose statement, or write one beside it.

    FILE is YAML or JSON: problem, why_not_prompt, why_not_retrieval, and success, a list of bounds such as
    {metric: decision, at_least: 0.9}. It is repeated in every report and in the manifest of every adapter that
    is trained on the dataset from then on.

    \b
    Examples:
        ryorin data purpose 3f9a2c11 --tenant support
        ryorin data purpose 3f9a2c11 --set purpose.yaml --tenant support
    """
    from ryorin.catalog.tenants import get_tenant

    given = read_purpose(purpose_file)
    with catalog_session() as (_, session):
        row = find_dataset(session, get_tenant(session, tenant_name), dataset)
        if given is not None:
            set_purpose(session, row, given)
        stated = purpose_of(session, row)
    if as_json:
        print_json({"dataset": row.digest, "purpose": None if stated is None else stated.spec()})
    else:
        _show_purpose(stated)


@data.command("lint")
@click.argument("source", metavar="FILE|DATASET")
@tenant_option
@reading_options
@click.option("--held-out", "held_out", metavar="FILE|DATASET", help="Rows or questions that must not be trained on.")
@click.option(
    "--base", "base_name", metavar="NAME", help="Whose tokenizer counts; the bundled base model unless named."
)
@click.option(
    "--max-row-tokens",
    type=int,
    default=DEFAULTS.max_row_tokens,
    show_default=True,
    help="The longest row, the base model's window at most.",
)
@click.option("--fix", "mend", is_flag=True, help="Keep a new dataset with what is safe to mend mended.")
@json_option
def lint_command(
    source: str,
    tenant_name: str,
    reading: Reading,
    held_out: str | None,
    base_name: str | None,
    max_row_tokens: int,
    mend: bool,
    as_json: bool,
) -> None:
    """
    Say what is wrong with training rows, and how to mend it. Exit code 2 when there are errors.

    Malformed and empty rows, contradictory answers, duplicates, rows near held-out ones, answers that break the
    tenant's answer schema, drift of format and tone, missing refusals and boundary cases, length, personal data and
    secrets (masked), label imbalance, trivial answers, answers that no passage supports. docs/datasets.md lists them.

    --fix takes off white space at the ends of texts and leaves out repeated and empty rows, in a new dataset whose
    lineage says so; the exit code then tells of what is left.

    \b
    Examples:
        ryorin data lint examples.jsonl --tenant support
        ryorin data lint 3f9a2c11 --held-out cases.jsonl --tenant support
        ryorin data lint examples.jsonl --fix --tenant support
    """
    from ryorin.catalog.tenants import get_tenant
    from ryorin_train.lint.fix import fix
    from ryorin_train.lint.run import lint

    with stopping_in_order(), opened_catalog() as catalog:
        with catalog.session() as session:
            tenant = get_tenant(session, tenant_name)
        given = open_data(catalog, tenant, source, reading, strict=False)
        stated = purpose_given(catalog, given)
        fixed: Fixed | None = None
        made: dict[str, Any] | None = None
        if mend:
            fixed = fix(given)
            made, given = _keep_fixed(catalog, tenant, given, fixed)
        asked = _held_out(catalog, tenant, held_out) if held_out else []
        prompt, open_renderer = _prompt(catalog, tenant, base_name, max_row_tokens)
        report = lint(given, prompt, open_renderer, asked, _progress("rows compared"))
    if as_json:
        extra = {"fixed": {**fixed.as_json(), "dataset": made}} if fixed else {}
        print_json({**report.as_json(), **extra, "purpose": None if stated is None else stated.spec()})
    else:
        if fixed is not None:
            _show_fixed(fixed, made)
        _show_report(report)
        _show_purpose(stated)
    if report.counts["error"]:
        sys.exit(2)


@data.command("split")
@click.argument("source", metavar="FILE|DATASET")
@tenant_option
@reading_options
@click.option(
    "--held-out", "share", type=float, default=DEFAULTS.held_out, show_default=True, help="Share of rows held out."
)
@click.option("--seed", type=int, default=DEFAULTS.seed, show_default=True, help="Of the choice.")
@json_option
def split_command(source: str, tenant_name: str, reading: Reading, share: float, seed: int, as_json: bool) -> None:
    """
    Part rows into a dataset to train on and one that is held out, never parting rows that belong together.

    Near-duplicates, rows of one "source" and rows that answer from one passage are a group, and a group is on one side.
    Rows appended to the file later leave the others where they are. 'ryorin train sft' parts its rows the same way.

    \b
    Example:
        ryorin data split examples.jsonl --held-out 0.2 --tenant support
    """
    from ryorin.catalog.tenants import get_tenant
    from ryorin.errors import InvalidInput
    from ryorin_train.datasets.groups import split_rows

    if not 0 < share <= 0.5:
        raise InvalidInput(f"--held-out is {share:g}; it must be above 0 and 0.5 at most", param="held_out")
    with opened_catalog() as catalog:
        with catalog.session() as session:
            tenant = get_tenant(session, tenant_name)
        given = open_data(catalog, tenant, source, reading)
        parted = split_rows(given.rows, share, seed)
        if not parted.held_out:
            raise InvalidInput(
                f"no row of {given.name} can be held out: its {len(given.rows)} rows make {parted.groups} group(s)",
                param="data",
            )
        purpose = purpose_given(catalog, given)
        parent, _ = add_dataset(catalog, tenant, given.name, given.rows, given.lineage, purpose)
        result: dict[str, Any] = {"rows": len(given.rows), "groups": parted.groups, "seed": seed, "share": share}
        for side, numbers in (("training", parted.training), ("held_out", parted.held_out)):
            lineage = {
                "origin": "split",
                "files": [],
                "parents": [parent.digest],
                "note": f"{side.replace('_', '-')} rows, share {share:g}, seed {seed}",
            }
            rows = [given.rows[number] for number in numbers]
            kept, _ = add_dataset(catalog, tenant, f"{given.name} ({side.replace('_', '-')})", rows, lineage, purpose)
            result[side] = {"dataset": kept.digest, "rows": len(rows)}
    if as_json:
        print_json(result)
        return
    say(f"{result['rows']} rows in {result['groups']} groups")
    for side in ("training", "held_out"):
        click.echo(f"{side.replace('_', '-'):8}  {result[side]['dataset'][:12]}  {result[side]['rows']} rows")


data.add_command(ground_command)


@data.command("export")
@click.argument("dataset")
@click.argument("out", type=click.Path(path_type=Path))
@tenant_option
@click.option(
    "--format", "format_name", type=click.Choice(FORMATS), help="CSV for a name in .csv, else OpenAI's JSONL."
)
@json_option
def export_command(dataset: str, out: Path, tenant_name: str, format_name: str | None, as_json: bool) -> None:
    """
    Write a DATASET to OUT, a file, or a directory for the format hf; reading it gives the same dataset again.

    A row that the format cannot carry is named, and nothing is then written. Nothing is overwritten.

    \b
    Examples:
        ryorin data export 3f9a2c11 examples.jsonl --tenant support
        ryorin data export 3f9a2c11 for-trl.jsonl --format trl-prompt-completion --tenant support
        ryorin data export 3f9a2c11 directory --format hf --tenant support
    """
    from ryorin.catalog.tenants import get_tenant
    from ryorin_train.datasets.writing import write_rows

    with opened_catalog() as catalog:
        with catalog.session() as session:
            row = find_dataset(session, get_tenant(session, tenant_name), dataset)
        rows = dataset_rows(catalog, row)
        written = write_rows(rows, out, format_name)
    if as_json:
        print_json({"dataset": row.digest, "rows": len(rows), "format": written, "out": str(out)})
    else:
        say(f"{len(rows)} rows as {written} in {out}")


def _keep_fixed(catalog: Catalog, tenant: Tenant, given: Given, fixed: Fixed) -> tuple[dict[str, Any] | None, Given]:
    """The new dataset as JSON and as what is linted next; None and what was given when nothing had to be mended."""
    from ryorin.errors import InvalidInput

    if not fixed.changes:
        return None, given
    if not fixed.rows:
        raise InvalidInput(f"no row of {given.name} is left; nothing was kept", param="data")
    lineage = made_from(catalog, given, "fix") | {"fixed": fixed.as_json()}
    row, _ = add_dataset(catalog, tenant, given.name, fixed.rows, lineage, purpose_given(catalog, given))
    return {"id": row.id, "digest": row.digest, "rows": row.rows}, _kept(catalog, row)


def _kept(catalog: Catalog, row: Dataset) -> Given:
    return Given(row.filename, dataset_rows(catalog, row), row.lineage, dataset_id=row.id)


def _held_out(catalog: Catalog, tenant: Tenant, reference: str) -> list[Any]:
    from ryorin_train.datasets.formats import read_questions

    path = Path(reference)
    return list(read_questions(path)) if path.is_file() else list(open_data(catalog, tenant, reference).rows)


def _prompt(
    catalog: Catalog, tenant: Tenant, base_name: str | None, max_row_tokens: int
) -> tuple[Any, Callable[[], Renderer] | None]:
    """The tenant's prompt, None without one, and what opens a renderer for it."""
    from ryorin.catalog.tenants import current_prompt
    from ryorin.errors import NotFound
    from ryorin.models.registry import DEFAULT_BASE, get_base
    from ryorin.prompt import Prompt

    try:
        with catalog.session() as session:
            prompt = Prompt.from_spec(current_prompt(session, tenant).spec)
    except NotFound:
        return None, None

    def renderer() -> Renderer:
        from ryorin_train.render import Renderer, context_window, load_tokenizer

        base = get_base(catalog.settings, base_name or DEFAULT_BASE)
        limit = min(max_row_tokens, context_window(base.path) or max_row_tokens)
        return Renderer(load_tokenizer(base.path), prompt, limit)

    if base_name is not None:
        get_base(catalog.settings, base_name)  # a name that was typed is checked at once
    return prompt, renderer


def _progress(what: str) -> Callable[[int, int], None]:
    """Tells on a terminal how far a long comparison has come."""
    if not sys.stderr.isatty():
        return lambda done, total: None

    def told(done: int, total: int) -> None:
        if done and done % 5000 == 0:
            click.echo(f"\r{done:,} of {total:,} {what}", err=True, nl=False)
            if done + 5000 > total:
                click.echo("\r\033[K", err=True, nl=False)

    return told


def _show_report(report: Report) -> None:
    counts = ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in report.counts.items())
    click.echo(f"{printable(report.name)}: {report.rows} {report.kind} rows; {counts}")
    told: dict[str, int] = {}
    for finding in report.findings:
        told[finding.code] = told.get(finding.code, 0) + 1
        if told[finding.code] <= SHOWN_FINDINGS:
            where = f"  rows {_lines(finding.rows)}" if finding.rows else ""
            click.echo(f"{finding.severity:7}  {finding.code}{where}\n         {printable(finding.message)}")
            click.echo(f"         → {finding.fix}")
    for code, count in told.items():
        if count > SHOWN_FINDINGS:
            click.echo(f"… and {count - SHOWN_FINDINGS} more of {code}; --json has all")
    for reason in report.skipped:
        click.echo(f"not checked  {printable(reason)}")


def _show_fixed(fixed: Fixed, made: dict[str, Any] | None) -> None:
    if made is None:
        say(f"nothing to mend: {fixed.rows_in} rows in, {len(fixed.rows)} out")
        return
    click.echo(f"mended: {fixed.rows_in} rows in, {len(fixed.rows)} out, dataset {made['digest'][:12]}")
    for change in fixed.changes:
        click.echo(f"  {change.code}: rows {_lines(change.rows)}: {change.what}")


def _show_purpose(purpose: Purpose | None) -> None:
    if purpose is None:
        click.echo("purpose: none stated")
        return
    click.echo(f"problem: {printable(purpose.problem)}")
    click.echo(f"why a prompt is not enough: {printable(purpose.why_not_prompt)}")
    click.echo(f"why retrieval is not enough: {printable(purpose.why_not_retrieval)}")
    click.echo(f"success: {', '.join(map(str, purpose.success))}")


def _lines(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
    return ", ".join(map(str, rows[:SHOWN_ROWS])) + more
