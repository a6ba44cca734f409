"""`ryorin train evaluate` and `ryorin diagnose`: words in, words out; the work is in evaluate.py and diagnose.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ryorin.commands.common import (
    counting_line,
    json_option,
    opened_catalog,
    print_json,
    say,
    stopping_in_order,
    tenant_option,
)
from ryorin_train.judging.how import How

DEFAULTS = How()
Function = TypeVar("Function", bound=Callable[..., Any])


def _asking_options(function: Function) -> Function:
    """What both commands take."""
    options = [
        click.option(
            "--cases",
            "cases_file",
            required=True,
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Cases, JSONL.",
        ),
        click.option("--release", type=int, metavar="N", help="The release; the live one unless named."),
        click.option(
            "--url", metavar="URL", help="A running server; without it one is started, and stopped at the end."
        ),
        click.option(
            "--api-key-env",
            metavar="VAR",
            help="The environment variable with a key of the tenant; by default a key is made for the run.",
        ),
        click.option(
            "--temperature",
            type=click.FloatRange(0, 2),
            default=DEFAULTS.temperature,
            show_default=True,
            help="Of the answers that are graded.",
        ),
        click.option(
            "--max-tokens",
            type=click.IntRange(1),
            default=DEFAULTS.max_tokens,
            show_default=True,
            help="Of an answer, at most.",
        ),
        click.option(
            "--concurrency",
            type=click.IntRange(1, 256),
            default=DEFAULTS.concurrency,
            show_default=True,
            help="Questions asked at once.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.command("evaluate")
@tenant_option
@_asking_options
@click.option("--against", type=int, metavar="N", help="Compare with release N, case by case.")
@click.option(
    "--samples",
    type=int,
    default=DEFAULTS.samples,
    show_default=True,
    help="Answers to each case at the served temperature, for consistency; 0 for none.",
)
@click.option("--seed", type=int, default=DEFAULTS.seed, show_default=True, help="Of those answers.")
@click.option("--no-general", is_flag=True, help="Leave out the general questions, base model against adapter.")
@click.option("--evidence", is_flag=True, help="Keep the report's digest and figures as the release's evidence.")
@json_option
def evaluate_command(
    tenant_name: str,
    cases_file: Path,
    release: int | None,
    against: int | None,
    url: str | None,
    api_key_env: str | None,
    no_general: bool,
    evidence: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """
    Judge a release on held-out cases, through the real engine.

    Format, decision, facts, citations, refusal, consistency, tone, hedging, length, time and general ability, with 95%
    intervals; against another release with paired tests. Warns of over-fitting and of what is said by heart. Answers
    are kept: a second run asks only what is missing. docs/evaluation.md describes the file of cases.

    \b
    A case is a line of JSON:
        {"question": "…", "expected": {"decision": "NO", "facts": ["30 days"], "documents": ["returns.md"]}}

    \b
    Examples:
        ryorin train evaluate --tenant support --cases cases.jsonl
        ryorin train evaluate --tenant support --cases cases.jsonl --release 4 --against 3 --evidence
        ryorin train evaluate --tenant support --cases cases.jsonl --url http://127.0.0.1:8000
    """
    from ryorin.catalog.tenants import get_tenant
    from ryorin.release import get_release, record_evidence
    from ryorin_train.judging.cases import read_cases
    from ryorin_train.judging.evaluate import evaluate, evidence_of
    from ryorin_train.judging.report import save
    from ryorin_train.judging.run import folder_of
    from ryorin_train.judging.show import show_evaluation

    how = How(**values)
    cases = read_cases(cases_file)
    with stopping_in_order(), opened_catalog() as catalog:
        report = evaluate(
            catalog,
            tenant_name,
            cases,
            how,
            release=release,
            against=against,
            general=not no_general,
            url=url,
            api_key_env=api_key_env,
            say=say,
            progress_of=lambda what: counting_line(f"answers of {what}"),
        )
        page = save(report, folder_of(catalog.settings, tenant_name), catalog.settings.adapters_dir)
        if evidence:
            with catalog.session() as session:
                row = get_release(session, get_tenant(session, tenant_name), report["release"]["version"])
                before = record_evidence(session, row, evidence_of(report))
    if as_json:
        print_json({**report, "page": str(page)})
        return
    show_evaluation(report, page)
    if evidence:
        told = " in place of an earlier one" if before else ""
        say(f"kept as evidence of release {report['release']['version']}{told}")


@click.command("diagnose")
@tenant_option
@_asking_options
@json_option
def diagnose_command(
    tenant_name: str,
    cases_file: Path,
    release: int | None,
    url: str | None,
    api_key_env: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """
    Find out which lever to pull: documents, retrieval or behaviour.

    Asks the cases of four arms (prompt only, retrieval only, tuned only, both; those the release has parts for), finds
    the cause of each failure (the needed passage is not in the store; it is there and was not in the prompt; it was in
    the prompt), and says what to do, with counts and 95% intervals. docs/evaluation.md describes the file of cases.

    \b
    Examples:
        ryorin diagnose --tenant support --cases cases.jsonl
        ryorin diagnose --tenant support --cases cases.jsonl --release 4 --url http://127.0.0.1:8000
    """
    from ryorin_train.judging.cases import read_cases
    from ryorin_train.judging.diagnose import diagnose
    from ryorin_train.judging.report import save
    from ryorin_train.judging.run import folder_of
    from ryorin_train.judging.show import show_diagnosis

    how = How(**values)
    cases = read_cases(cases_file)
    with stopping_in_order(), opened_catalog() as catalog:
        report = diagnose(
            catalog,
            tenant_name,
            cases,
            how,
            release=release,
            url=url,
            api_key_env=api_key_env,
            say=say,
            progress_of=lambda what: counting_line(f"answers of {what}"),
        )
        page = save(report, folder_of(catalog.settings, tenant_name), catalog.settings.adapters_dir)
    if as_json:
        print_json({**report, "page": str(page)})
    else:
        show_diagnosis(report, page)
