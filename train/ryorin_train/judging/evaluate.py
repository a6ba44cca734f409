"""
The evaluation of a release: held-out cases through the real engine, what the figures are worth, and what to distrust.

The report is one JSON object, the same for the same answers; report.py and show.py only lay it out.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from ryorin import __version__
from ryorin.digests import digest_of
from ryorin.errors import InvalidInput
from ryorin_index.statistics import gap
from ryorin_train.judging.ability import MAX_TOKENS, ability, general_questions
from ryorin_train.judging.asking import Question
from ryorin_train.judging.attribution import given_passages
from ryorin_train.judging.cases import Case, Cases, shown
from ryorin_train.judging.grade import Grader
from ryorin_train.judging.how import How
from ryorin_train.judging.measures import MEASURES, Judged, comparison, confusion, figures, groups, latency, values
from ryorin_train.judging.memory import NO_DATA, STRING_WORDS, TrainedOn, repeated_strings, trained_on, was_trained_on
from ryorin_train.judging.run import Runner
from ryorin_train.judging.served import Target, ability_pair, load_target, serving
from ryorin_train.judging.wording import counted

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ryorin.catalog import Catalog
    from ryorin_train.judging.asking import Progress

FEW_CASES = 30
SHOWN_STRINGS = 5
GAP_MEASURES = ("right", "format", "decision", "facts", "citations")


def evaluate(
    catalog: Catalog,
    tenant_name: str,
    cases: Cases,
    how: How,
    *,
    release: int | None = None,
    against: int | None = None,
    general: bool = True,
    url: str | None = None,
    api_key_env: str | None = None,
    say: Callable[[str], None],
    progress_of: Callable[[str], Progress],
) -> dict[str, Any]:
    """
    The report on a release, the live one unless named, beside the one it is judged `against`.

    Raises NotFound for an unknown tenant or release, InvalidInput for cases that cannot be judged, and what asking
    raises: Unavailable, AuthenticationFailed, Conflict. Answers that came before that are kept.
    """
    from ryorin.catalog.tenants import get_tenant

    with catalog.session() as session:
        tenant = get_tenant(session, tenant_name)
        target = load_target(session, tenant, release)
        other = None if against is None else load_target(session, tenant, against)
        if other is not None and other.version == target.version:
            raise InvalidInput(
                f"release {target.version} cannot be compared with itself; name another", param="against"
            )
        grader = Grader(cases.rubric, target.prompt.answer_schema)
        grader.check(cases)
        data = trained_on(session, catalog.settings, target.adapter)
        rival_data = trained_on(session, catalog.settings, other.adapter) if other else NO_DATA
        held_out, training, leaked = _sides(cases, data, rival_data)
        purpose = _purpose(session, target.adapter)
        pair = ability_pair(session, tenant, target) if general and target.adapter else None
    targets = [target, *([other] if other else []), *(pair or ())]
    with serving(catalog, targets, url, api_key_env, how.concurrency, say) as server:
        runner = Runner(catalog, server, how, progress_of)
        judged = runner.judge(target, held_out, grader, again=True)
        trained = runner.judge(target, training, grader) if training else []
        rival: list[Judged] = []
        if other is not None:
            rival_grader = Grader(cases.rubric, other.prompt.answer_schema)
            rival = runner.judge(other, held_out, rival_grader, again=True)
        kept = _ability(runner, pair) if pair else None
    strings = _repeated(catalog, target, judged, data)
    gaps = _gaps(trained, judged)
    report: dict[str, Any] = {
        "kind": "evaluation",
        "tenant": tenant_name,
        "release": _release(target),
        "against": _release(other) if other else None,
        "purpose": purpose,
        "cases": {"file": cases.name, "digest": cases.digest, "held_out": len(held_out), "train": len(training)},
        "how": how.spec(),
        "figures": figures(judged),
        "against_figures": figures(rival) if other else None,
        "comparison": comparison(judged, rival) if other else None,
        "confusion": confusion(judged),
        "groups": groups(judged),
        "latency": latency(judged),
        "gaps": gaps,
        "ability": kept,
        "warnings": _warnings(judged, leaked, strings, gaps, kept, data, target),
        "wrong": [_wrong(one) for one in judged if one.grade.wrong()],
        "versions": {"ryorin": __version__, "python": platform.python_version(), "sudachipy": version("sudachipy")},
    }
    return {"digest": digest_of(report), "made_at": round(time.time(), 3), **report}


def evidence_of(report: dict[str, Any]) -> dict[str, Any]:
    """What a release keeps of the report on it: its digest and figures."""
    compared = report["comparison"]
    return {
        "report": report["digest"],
        "cases": report["cases"],
        "at": report["made_at"],
        "figures": {
            row["name"]: {name: row[name] for name in ("mean", "low", "high", "cases")} for row in report["figures"]
        },
        "against": report["against"]["version"] if report["against"] else None,
        "right_against": next((row for row in compared if row["name"] == "right"), None) if compared else None,
        "warnings": [warning["code"] for warning in report["warnings"]],
    }


def _sides(cases: Cases, data: TrainedOn, rival_data: TrainedOn) -> tuple[list[Case], list[Case], list[Case]]:
    """
    (held out, trained on, those of the file's held-out cases that either release was trained on).

    A case that the rival alone was trained on is on neither side: it would flatter the rival.
    """
    marked = cases.of("held_out")
    ours = [case for case in marked if was_trained_on(case, data)]
    lines = {case.line for case in ours}
    leaked = [case for case in marked if case.line in lines or was_trained_on(case, rival_data)]
    lines |= {case.line for case in leaked}
    held_out = [case for case in marked if case.line not in lines]
    if not held_out:
        cause = f": the {len(leaked)} that are marked so were trained on" if leaked else ""
        raise InvalidInput(
            f"{cases.name} has no held-out cases{cause}; an evaluation needs questions that were never trained on",
            param="cases",
        )
    return held_out, [*cases.of("train"), *ours], leaked


def _ability(runner: Runner, pair: tuple[Target, Target]) -> dict[str, Any]:
    sides = []
    for target in pair:
        questions = [
            Question(
                target.model,
                target.digest,
                ({"role": "user", "content": asked.question},),
                retrieval=False,
                sampling={"temperature": 0.0, "max_tokens": MAX_TOKENS},
            )
            for asked in general_questions()
        ]
        what = f"general ability of {target.adapter or 'the base model'}"
        sides.append([answers[0] for answers in runner.answers(target, questions, what)])
    return ability(*sides)


def _repeated(catalog: Catalog, target: Target, judged: Sequence[Judged], data: TrainedOn) -> list[list[str]]:
    """For each case the training strings that its answer repeats and its prompt did not hold."""
    if not data.answers:
        return [[] for _ in judged]
    context = str(target.retrieval.get("context", "passage"))
    allowed = []
    with catalog.session() as session:
        for one in judged:
            given = given_passages(session, target.tenant_id, one.answer.passages or (), context)
            said = "\n".join(message["content"] for message in one.case.messages)
            allowed.append("\n".join([target.prompt.system, given.text, said]))
    return repeated_strings([one.answer.text for one in judged], allowed, data)


def _gaps(trained: Sequence[Judged], held_out: Sequence[Judged]) -> list[dict[str, Any]]:
    """How much better the trained-on cases are answered than the held-out ones, by measure."""
    rows = []
    for measure in MEASURES:
        if measure.name in GAP_MEASURES and trained:
            one, other = values(measure, trained), values(measure, held_out)
            one, other = one[~np.isnan(one)], other[~np.isnan(other)]
            if len(one) and len(other):
                found = gap(one, other)
                rows.append(
                    {
                        "name": measure.name,
                        "label": measure.label,
                        "train": float(one.mean()),
                        "train_cases": len(one),
                        "held_out": float(other.mean()),
                        "held_out_cases": len(other),
                        "gap": found.as_json(),
                    }
                )
    return rows


def _warnings(
    judged: Sequence[Judged],
    leaked: Sequence[Case],
    strings: Sequence[Sequence[str]],
    gaps: Sequence[dict[str, Any]],
    kept: dict[str, Any] | None,
    data: TrainedOn,
    target: Target,
) -> list[dict[str, Any]]:
    """What makes the figures, or the model, doubtful."""
    found: list[dict[str, Any]] = []

    def warn(code: str, text: str, lines: Sequence[int] = ()) -> None:
        found.append({"code": code, "text": text, "lines": list(lines)})

    if leaked:
        warn(
            "trained_on",
            f"{counted(len(leaked), 'case')} marked as held out, but trained on; not counted as held out",
            [case.line for case in leaked],
        )
    for row in gaps:
        if row["gap"]["low"] is not None and row["gap"]["low"] > 0:
            warn(
                "overfitting",
                f"{row['label']}: {row['train']:.0%} of the training cases, {row['held_out']:.0%} of the held-out ones "
                f"(gap {row['gap']['mean']:.0%}, 95% {row['gap']['low']:.0%} to {row['gap']['high']:.0%}); fewer "
                "epochs, a lower rank or more varied rows",
            )
    memorised = [(one, string) for one, found_strings in zip(judged, strings, strict=True) for string in found_strings]
    if memorised:
        lines = list(dict.fromkeys(one.case.line for one, _ in memorised))
        examples = "; ".join(f"'{string}'" for _, string in memorised[:SHOWN_STRINGS])
        warn(
            "memorised",
            f"{counted(len(lines), 'answer')} with {STRING_WORDS} words or more of a training answer that no prompt "
            f"held: {examples}",
            lines,
        )
    if kept and kept["difference"] < -kept["allowed_loss"]:
        warn(
            "ability_lost",
            f"general ability fell from {kept['base']['mean']:.0%} to {kept['tuned']['mean']:.0%} "
            f"({counted(kept['worse'], 'question')} lost, {kept['better']} won, p = {kept['p']:.3f}); "
            "training on examples can hold on to it: sft --keep-general",
        )
    if target.adapter and (data.unknown or not data.datasets):
        warn(
            "data_unknown",
            f"the training data of {', '.join(data.unknown) or target.adapter} is not here: what was "
            "trained on and what is memorised cannot be told",
        )
    failed = [one for one in judged if one.answer.error]
    if failed:
        warn(
            "refused",
            f"{counted(len(failed), 'case')} with an error in place of an answer: {failed[0].answer.error}",
            [one.case.line for one in failed],
        )
    if len(judged) < FEW_CASES:
        warn(
            "few_cases",
            f"{counted(len(judged), 'held-out case')}; with fewer than {FEW_CASES} the intervals say little",
        )
    return found


def _wrong(one: Judged) -> dict[str, Any]:
    expected = one.case.expected
    return {
        "line": one.case.line,
        "question": shown(one.case, 200),
        "wrong": one.grade.wrong(),
        "answer": one.answer.text,
        "cited": list(one.answer.cited),
        "error": one.answer.error,
        "tone": list(one.grade.heard.broken or ()),
        "expected": {
            "decision": expected.decision,
            "facts": None if expected.facts is None else [list(fact) for fact in expected.facts],
            "documents": None if expected.documents is None else [place.document for place in expected.documents],
            "refuse": expected.refuse,
        },
    }


def _release(target: Target) -> dict[str, Any]:
    return {
        "version": target.version,
        "digest": target.digest,
        "state": target.state,
        "adapter": target.adapter,
        "base": target.base_digest,
        "prompt": target.prompt.digest,
        "top_k": target.top_k if target.retrieves else 0,
    }


def _purpose(session: Session, adapter_name: str | None) -> Any:
    """The purpose that the adapter's manifest states, if it states one: every report repeats it."""
    from sqlalchemy import select

    from ryorin.catalog.tables import Adapter

    manifest = session.scalar(select(Adapter.manifest).where(Adapter.name == adapter_name)) if adapter_name else None
    return (manifest or {}).get("purpose")
