"""
Which lever to pull: a tenant's cases through four arms, each failure with its cause, and what that says.

The arms are the base model with and without documents, and the release's adapter with and without them; what the
release does not have is left out. They differ in nothing else: the prompt, the stores and the cases are the same.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ryorin.digests import digest_of
from ryorin.errors import InvalidInput
from ryorin_index.statistics import compare_shares, share
from ryorin_train.judging.attribution import CAUSES, Attribution, attribute, given_passages, needed_passages
from ryorin_train.judging.cases import Cases, shown
from ryorin_train.judging.grade import Grader
from ryorin_train.judging.how import How
from ryorin_train.judging.measures import MEASURES, Judged, figures, values
from ryorin_train.judging.run import Runner
from ryorin_train.judging.served import Target, load_target, serving, without_adapter

if TYPE_CHECKING:
    from ryorin.catalog import Catalog
    from ryorin_train.judging.asking import Progress

RIGHT = MEASURES[0]
GOOD_ENOUGH = 0.95
SIGNIFICANT = 0.05
RANKS = 50
SHOWN_DOCUMENTS = 5


@dataclass(frozen=True)
class Arm:
    """One way to answer."""

    name: str
    target: Target
    retrieval: bool


def diagnose(
    catalog: Catalog,
    tenant_name: str,
    cases: Cases,
    how: How,
    *,
    release: int | None = None,
    url: str | None = None,
    api_key_env: str | None = None,
    say: Callable[[str], None],
    progress_of: Callable[[str], Progress],
) -> dict[str, Any]:
    """
    The diagnosis of a release, the live one unless named: its arms, the causes of its failures, the levers.

    Raises as `evaluate` does.
    """
    from ryorin.catalog.tenants import get_tenant

    with catalog.session() as session:
        tenant = get_tenant(session, tenant_name)
        target = load_target(session, tenant, release)
        asked = cases.of("held_out")
        if not asked:
            raise InvalidInput(f"{cases.name} has no held-out cases; a diagnosis needs some", param="cases")
        grader = Grader(cases.rubric, target.prompt.answer_schema)
        grader.check(cases)
        bare = without_adapter(session, tenant, target) if target.adapter else target
    arms = arms_of(target, bare)
    results: dict[str, list[Judged]] = {}
    with serving(catalog, [target, bare], url, api_key_env, how.concurrency, say) as server:
        runner = Runner(catalog, server, how, progress_of)
        for arm in arms:
            results[arm.name] = runner.judge(arm.target, asked, grader, retrieval=arm.retrieval)
    full = arms[-1]
    judged = results[full.name]
    causes = _causes(catalog, full, judged)
    ranks = _ranks(catalog, full, judged, causes)
    gains = _gains(arms, results)
    tally = _tally(causes, len(asked))
    report: dict[str, Any] = {
        "kind": "diagnosis",
        "tenant": tenant_name,
        "release": {
            "version": target.version,
            "digest": target.digest,
            "state": target.state,
            "adapter": target.adapter,
        },
        "cases": {"file": cases.name, "digest": cases.digest, "held_out": len(asked)},
        "how": how.spec(),
        "arms": [{"name": arm.name, "figures": figures(results[arm.name])} for arm in arms],
        "gains": gains,
        "arm_of_causes": full.name,
        "causes": tally,
        "behaviour": dict(_behaviours(judged, causes)),
        "failures": _failures(judged, causes, ranks),
        "levers": _levers(target, judged, causes, ranks, gains, tally),
    }
    return {"digest": digest_of(report), "made_at": round(time.time(), 3), **report}


def arms_of(target: Target, bare: Target) -> list[Arm]:
    """The arms that the release has parts for; the last one is the release as it serves."""
    arms = [Arm("prompt only", bare, False)]
    if target.retrieves:
        arms.append(Arm("retrieval only", bare, True))
    if target.adapter:
        arms.append(Arm("tuned only", target, False))
    if target.retrieves and target.adapter:
        arms.append(Arm("both", target, True))
    return arms


def _causes(catalog: Catalog, arm: Arm, judged: Sequence[Judged]) -> list[Attribution | None]:
    target = arm.target
    context = str(target.retrieval.get("context", "passage"))
    with catalog.session() as session:
        needed = needed_passages(session, target.tenant_id, target.store_ids, [one.case for one in judged])
        causes = []
        for one, need in zip(judged, needed, strict=True):
            given = None
            if not arm.retrieval:
                given = given_passages(session, target.tenant_id, (), context)
            elif one.answer.passages is not None:
                given = given_passages(session, target.tenant_id, one.answer.passages, context)
            causes.append(attribute(one.grade, need, given))
    return causes


def _ranks(
    catalog: Catalog,
    arm: Arm,
    judged: Sequence[Judged],
    causes: Sequence[Attribution | None],
) -> list[int | None]:
    """For each retrieval failure the rank, from 1, by which all that is needed is found; None beyond `RANKS`."""
    from ryorin.release import Retrieval
    from ryorin_index.search import MAX_QUERY_CHARACTERS, Searcher

    ranks: list[int | None] = [None] * len(judged)
    failed = [place for place, cause in enumerate(causes) if cause and cause.cause == "retrieval"]
    if not failed:
        return ranks
    target = arm.target
    searcher = Searcher(catalog)
    try:
        with catalog.session() as session:
            needed = needed_passages(session, target.tenant_id, target.store_ids, [judged[at].case for at in failed])
        how = Retrieval.stored(target.retrieval)
        for at, need in zip(failed, needed, strict=True):
            question = judged[at].case.question[:MAX_QUERY_CHARACTERS]
            hits = searcher.search(target.tenant_id, target.store_ids, question, RANKS, retrieval=how)
            order = [hit.passage_id for hit in hits]
            firsts = [
                next((rank for rank, passage in enumerate(order, 1) if passage in place), None) for place in need.places
            ]
            known = [rank for rank in firsts if rank is not None]
            ranks[at] = max(known) if len(known) == len(firsts) else None
    finally:
        searcher.close()
    return ranks


def _gains(arms: Sequence[Arm], results: dict[str, list[Judged]]) -> list[dict[str, Any]]:
    """What documents and tuning add, in answers that are all right, paired."""
    names = [arm.name for arm in arms]
    pairs = [
        ("documents", "retrieval only", "prompt only"),
        ("tuning", "tuned only", "prompt only"),
        ("tuning, with documents", "both", "retrieval only"),
        ("documents, when tuned", "both", "tuned only"),
    ]
    return [
        {
            "adds": what,
            "arm": more,
            "beside": less,
            **compare_shares(values(RIGHT, results[more]), values(RIGHT, results[less])),
        }
        for what, more, less in pairs
        if more in names and less in names
    ]


def _tally(causes: Sequence[Attribution | None], cases: int) -> list[dict[str, Any]]:
    """Failures by cause, as shares of all cases."""
    rows = []
    for cause in CAUSES:
        found = np.array([one is not None and one.cause == cause for one in causes], float)
        rows.append({"cause": cause, "failures": int(found.sum()), "cases": cases, **share(found).as_json()})
    return rows


def _behaviours(judged: Sequence[Judged], causes: Sequence[Attribution | None]) -> list[tuple[str, int]]:
    """What is wrong in behaviour failures, most frequent first; one answer may be wrong in several ways."""
    wrong: Counter[str] = Counter()
    for one, cause in zip(judged, causes, strict=True):
        if cause is not None and cause.cause == "behaviour":
            wrong.update(one.grade.wrong())
    return wrong.most_common()


def _failures(
    judged: Sequence[Judged], causes: Sequence[Attribution | None], ranks: Sequence[int | None]
) -> list[dict[str, Any]]:
    return [
        {
            "line": one.case.line,
            "question": shown(one.case, 200),
            "cause": cause.cause,
            "reason": cause.reason,
            "rank": rank,
            "wrong": one.grade.wrong(),
            "answer": one.answer.text,
            "cited": list(one.answer.cited),
            "error": one.answer.error,
        }
        for one, cause, rank in zip(judged, causes, ranks, strict=True)
        if cause is not None
    ]


def _levers(
    target: Target,
    judged: Sequence[Judged],
    causes: Sequence[Attribution | None],
    ranks: Sequence[int | None],
    gains: Sequence[dict[str, Any]],
    tally: Sequence[dict[str, Any]],
) -> list[dict[str, str]]:
    """What to do, the lever with the most failures behind it first, in plain words."""
    right = sum(one.grade.right for one in judged)
    levers: list[dict[str, str]] = []
    for row in sorted(tally, key=lambda row: -row["failures"]):
        if row["failures"]:
            of_it = [place for place, cause in enumerate(causes) if cause and cause.cause == row["cause"]]
            advice = {
                "knowledge": _advise_knowledge,
                "retrieval": _advise_retrieval,
                "behaviour": _advise_behaviour,
                "unclear": _advise_unclear,
            }[row["cause"]](target, [judged[at] for at in of_it], [ranks[at] for at in of_it], gains)
            levers.append({"lever": row["cause"], "advice": advice})
    if right / len(judged) >= GOOD_ENOUGH:
        plain = next((row for row in gains if row["adds"] == "tuning, with documents" or row["adds"] == "tuning"), None)
        words = f"{right} of {len(judged)} answers are right: no lever is worth much now."
        if plain and plain["p"] >= SIGNIFICANT:
            words += " The adapter adds nothing that can be measured here; without it there is less to look after."
        levers.insert(0, {"lever": "none", "advice": words})
    return levers


def _advise_knowledge(
    target: Target, judged: Sequence[Judged], _ranks: Sequence[int | None], _gains: Sequence[dict[str, Any]]
) -> str:
    documents = Counter(place.document for one in judged for place in one.case.expected.documents or ())
    named = ", ".join(f"{name} ({count})" for name, count in documents.most_common(SHOWN_DOCUMENTS))
    which = f" They concern {named}." if named else ""
    return (
        f"Documents: the passage that answers is missing or outdated in the store.{which} Add or correct them with "
        f"'ryorin index add STORE FILE --tenant {target.tenant}'; no training can know what they will say."
    )


def _advise_retrieval(
    target: Target, judged: Sequence[Judged], ranks: Sequence[int | None], _gains: Sequence[dict[str, Any]]
) -> str:
    if not target.retrieves:
        return "Retrieval: the release looks for no passages; create one with its stores and --top-k 3."
    near = [rank for rank in ranks if rank is not None]
    words = "Retrieval: the passage is in the store and did not reach the prompt."
    if near:
        enough = int(np.quantile(near, 0.8, method="higher"))
        reached = sum(rank <= enough for rank in near)
        if enough > target.top_k:
            words += (
                f" {len(near)} of {len(ranks)} stand among the first {RANKS}: --top-k {enough} in place of "
                f"{target.top_k} would reach {reached}."
            )
        else:
            words += f" {len(near)} of {len(ranks)} are within --top-k {target.top_k}: the context was too short."
    far = len(ranks) - len(near)
    if far:
        words += f" {far} are not found at all: look at the words of these documents, their headings, and the embedder."
    return f"{words} Measure a change with 'ryorin index evaluate'."


def _advise_behaviour(
    target: Target, judged: Sequence[Judged], _ranks: Sequence[int | None], gains: Sequence[dict[str, Any]]
) -> str:
    wrong = Counter(name for one in judged for name in one.grade.wrong())
    kinds = ", ".join(f"{name} ({count})" for name, count in wrong.most_common())
    words = f"Behaviour: what was needed was in the prompt, and the answer is wrong all the same: {kinds}."
    tuning = next((row for row in gains if row["adds"] == "tuning, with documents"), None) or next(
        (row for row in gains if row["adds"] == "tuning"), None
    )
    if target.adapter is None:
        return (
            f"{words} Try the prompt's wording first. Where that does not do it, train on examples of exactly these "
            f"kinds: 'ryorin train sft --tenant {target.tenant} --data FILE'."
        )
    if tuning and tuning["p"] < SIGNIFICANT and tuning["difference"] > 0:
        return f"{words} The adapter helps ({tuning['difference']:+.0%}): give it examples of these kinds and train on."
    return f"{words} The adapter does not help measurably: look at its data before you train more."


def _advise_unclear(
    _target: Target, _judged: Sequence[Judged], _ranks: Sequence[int | None], _gains: Sequence[dict[str, Any]]
) -> str:
    return (
        "Unclear: these cases do not say which document answers them, or the log does not say what was in the prompt; "
        "give them 'documents' or 'facts'."
    )
