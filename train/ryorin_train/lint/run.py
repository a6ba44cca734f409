"""All checks on one dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ryorin.errors import InvalidInput, RyorinError
from ryorin.prompt import Prompt
from ryorin_train.data import Row
from ryorin_train.datasets.store import Given
from ryorin_train.lint import grounding, length, lines, privacy, ratings, repeats, shapes, tone
from ryorin_train.lint.findings import Report, in_order
from ryorin_train.lint.turns import turns_of

if TYPE_CHECKING:
    from ryorin_train.render import Renderer

Told = Callable[[int, int], None]


def lint(
    given: Given,
    prompt: Prompt | None,
    open_renderer: Callable[[], Renderer] | None,
    held_out: Sequence[Row] = (),
    on_row: Told = lambda done, total: None,
) -> Report:
    """
    The findings of all checks, the gravest first.

    given: its rows and, of a file, the errors of those that cannot be used. prompt: the tenant's; None when it has none
    yet. open_renderer: loads the base model's tokenizer; None to leave lengths unchecked. held_out: rows that must not
    be trained on. on_row: told of the slowest check how many rows are done.
    """
    rows, skipped = given.rows, []
    turns = turns_of(rows)
    findings = [] if given.loaded is None else lines.unreadable(given.loaded)
    findings += lines.spaces(rows)
    findings += lines.trivial(turns)
    findings += repeats.duplicates(rows)
    findings += ratings.thumbs(rows)
    findings += repeats.same_questions(turns, on_row)
    if held_out:
        findings += repeats.leakage(rows, held_out, on_row)
    schema = prompt.answer_schema if prompt else None
    try:
        findings += shapes.breaks_schema(turns, schema) if schema is not None else shapes.format_drift(turns)
    except InvalidInput as error:
        skipped.append(f"schema: {error}")
    findings += shapes.labels(turns, schema)
    findings += tone.tone_drift(turns)
    findings += privacy.personal_data(rows)
    findings += grounding.ungrounded(turns)
    findings += grounding.uncited(turns)
    findings += grounding.missing_cases(turns)
    if prompt is None:
        skipped.append("schema and length: the tenant has no prompt yet; set one with 'ryorin prompt set'")
    elif open_renderer is None:
        skipped.append("length: no base model was asked for")
    else:
        try:
            findings += length.unfit(rows, open_renderer())
        except RyorinError as error:
            skipped.append(f"length: {error}")
    return Report(given.name, given.kind, len(rows), in_order(findings), tuple(skipped))
