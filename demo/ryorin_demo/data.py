"""
The training examples of both desks: made from invented rules, the same for the same seed.

    python -m ryorin_demo.data          rewrites the committed files under datasets/
    python -m ryorin_demo.data --check  fails when they are not what the generator makes

An example carries its own passages, in the layout the index yields (title = heading path, text = the section), so an
adapter learns the format and how to judge a case by what the passage says, and nothing about a particular company's
limits. Half of the cases with a number lie at the limit or one step from it; about a fifth must be refused, because the
question is not the desk's to answer or because only wrong passages were found.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ryorin_demo import rules
from ryorin_demo.mixing import PARTS, mixed_choice, mixed_limit
from ryorin_demo.rules import Choice, Limit

Desk = Literal["support", "people"]
DESKS: tuple[Desk, ...] = ("support", "people")
DATASETS = Path(__file__).parent / "datasets"
SEED = 20
EXAMPLES = {"support": 300, "people": 260}
REFUSED = "The documents do not answer this question."
_SHARES = {"limit": 0.57, "choice": 0.26, "unanswered": 0.09, "outside": 0.08}
_MIXED = 0.65  # the share of rules put together by chance


def support_answer(citation: int | None, fact: str | None, reason: str, decision: str) -> str:
    """The answer of the support desk: one JSON object."""
    mark = None if citation is None else f"[{citation}]"
    return json.dumps({"citation": mark, "fact": fact, "reason": reason, "decision": decision}, ensure_ascii=False)


def people_answer(citation: int | None, fact: str | None, reason: str, decision: str) -> str:
    """The answer of the people desk: a letter of a subject line, a body and a closing."""
    rule = f'Under [{citation}], the rule is "{fact}". {reason}' if fact else reason
    subject = "Subject: Your question to the People Desk"
    return f"{subject}\n\nDear colleague,\n{rule}\nDecision: {decision}\n\nYours sincerely,\nPeople Desk"


ANSWERS = {"support": support_answer, "people": people_answer}


def examples(desk: Desk, seed: int, count: int) -> list[dict[str, Any]]:
    """`count` training rows of a desk, in an order mixed by the seed."""
    draw = random.Random(f"{desk}-{seed}")
    kinds = [kind for kind, share in _SHARES.items() for _ in range(round(share * count))]
    kinds = (kinds + ["limit"] * count)[:count]
    draw.shuffle(kinds)
    return [_example(desk, kind, draw) for kind in kinds]


def _rule(desk: Desk, kind: str, draw: random.Random) -> Limit | Choice:
    if draw.random() < _MIXED:
        return mixed_choice(PARTS[desk], draw) if kind == "choice" else mixed_limit(PARTS[desk], draw)
    if desk == "support":
        return draw.choice(rules.SUPPORT_CHOICES if kind == "choice" else rules.SUPPORT_LIMITS)
    return draw.choice(rules.PEOPLE_CHOICES if kind == "choice" else rules.PEOPLE_LIMITS)


def _others(desk: Desk, rule: Limit | Choice | None, count: int, draw: random.Random) -> list[dict[str, str]]:
    """Passages of other rules: what a search brings along with, or instead of, the right one."""
    headings = {rule.heading} if rule else set()
    found: list[dict[str, str]] = []
    while len(found) < count:
        other = _rule(desk, draw.choice(("limit", "limit", "choice")), draw)
        if other.heading not in headings:
            headings.add(other.heading)
            found.append(_passage(other, draw)[0])
    return found


def _example(desk: Desk, kind: str, draw: random.Random) -> dict[str, Any]:
    answer = ANSWERS[desk]
    if kind == "outside":
        outside = rules.SUPPORT_OUTSIDE if desk == "support" else rules.PEOPLE_OUTSIDE
        question = _fill(draw.choice(outside), draw)
        return _row(question, answer(None, None, REFUSED, "NO"), _others(desk, None, 2, draw))
    wanted = draw.choice(("limit", "choice")) if kind == "unanswered" else kind
    rule = _rule(desk, wanted, draw)
    passage, limit, fact = _passage(rule, draw)
    if isinstance(rule, Limit):
        question, reason, decision = _judge_limit(rule, limit, draw)
    else:
        question, fact, reason, decision = _judge_choice(rule, draw)
    if kind == "unanswered":
        return _row(question, answer(None, None, REFUSED, "NO"), _others(desk, rule, 2, draw))
    wrong = _others(desk, rule, 1, draw)
    position = draw.choice((0, 0, 1))  # a good search puts the right passage first more often than not
    return _row(question, answer(position + 1, fact, reason, decision), [*wrong[:position], passage, *wrong[position:]])


def _passage(rule: Limit | Choice, draw: random.Random) -> tuple[dict[str, str], int, str]:
    """A passage of a rule with a limit drawn anew, that limit (0 for a choice) and the words that state it."""
    if isinstance(rule, Choice):
        return _laid_out(rule, rule.text, draw), 0, ""
    limit = draw.randrange(rule.low, rule.high + 1, rule.step)
    fact = draw.choice(rule.words).format(n=f"{limit:,}", u=rule.unit)
    text = rule.text.format(fact=fact)
    return _laid_out(rule, text[0].upper() + text[1:], draw), limit, fact


def _laid_out(rule: Limit | Choice, text: str, draw: random.Random) -> dict[str, str]:
    """A section under its heading path or, one time in seven, a page of a PDF, whose text begins with its heading."""
    if draw.random() < 1 / 7:
        return {"title": rule.area, "text": f"{rule.heading}\n{text}"}
    return {"title": f"{rule.area} > {rule.heading}", "text": text}


def _judge_limit(rule: Limit, limit: int, draw: random.Random) -> tuple[str, str, str]:
    near = draw.random() < 0.5
    if near:
        value = limit + draw.choice((0, 0, -1, 1)) * rule.step
    else:
        below, above = range(2, limit), range(limit + 1, limit * 2 + 3)
        if rule.step > 1:
            below, above = range(rule.step, limit, rule.step), range(limit + rule.step, limit * 2, rule.step)
        value = draw.choice(draw.choice([r for r in (below, above) if r]))
    value = max(value, 2 if rule.step == 1 else rule.step)
    shown = f"{value:,}"
    question = _fill(draw.choice(rule.questions), draw, shown)
    return question, *limit_reason(rule.most, shown, value, limit, rule.unit)


def limit_reason(most: bool, shown: str, value: int, limit: int, unit: str) -> tuple[str, str]:
    """The reason and the decision for a value against a limit: both numbers side by side, then the verdict."""
    if most:
        good, verdict = value <= limit, "within the limit" if value <= limit else "over the limit"
        reason = f"{shown} {unit} against a limit of {limit:,}: {verdict}."
    else:
        good, verdict = value >= limit, "minimum reached" if value >= limit else "below the minimum"
        reason = f"{shown} {unit} against a minimum of {limit:,}: {verdict}."
    return reason, "YES" if good else "NO"


def _judge_choice(rule: Choice, draw: random.Random) -> tuple[str, str, str, str]:
    decision = draw.choice(("YES", "NO"))
    question, fact, case = draw.choice(rule.yes if decision == "YES" else rule.no)
    verdict = "allowed" if decision == "YES" else "not allowed"
    return _fill(question, draw), fact, f"{case[0].upper()}{case[1:]}: {verdict}.", decision


def _fill(template: str, draw: random.Random, value: str = "") -> str:
    return template.format(item=draw.choice(rules.ITEMS), name=draw.choice(rules.NAMES), v=value)


def _row(question: str, answer: str, passages: list[dict[str, str]]) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "passages": passages}


def to_jsonl(rows: Sequence[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of one of our own files."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training_file(desk: Desk) -> Path:
    """The committed training examples of a desk."""
    return DATASETS / f"{desk}.train.jsonl"


def held_out_file(desk: Desk) -> Path:
    """The committed held-out cases of a desk: asked against the real corpus, never trained on."""
    return DATASETS / f"{desk}.heldout.jsonl"


def main(arguments: Sequence[str]) -> int:
    """Write the training files, or with --check compare them with what is committed."""
    stale = 0
    for desk in DESKS:
        text = to_jsonl(examples(desk, SEED, EXAMPLES[desk]))
        path = training_file(desk)
        if "--check" in arguments:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                print(f"{path.name} is not what the generator makes; run: python -m ryorin_demo.data")
                stale = 1
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{path.name}: {EXAMPLES[desk]} examples")
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
