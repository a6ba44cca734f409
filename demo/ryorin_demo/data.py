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
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ryorin.prompt import PromptPassage, render
from ryorin.prompt_file import read_prompt_file
from ryorin_demo import rules
from ryorin_demo.mixing import PARTS, grouped_choice, mixed_choice, mixed_gap, mixed_limit
from ryorin_demo.rules import Choice, Limit

Desk = Literal["support", "people"]
DESKS: tuple[Desk, ...] = ("support", "people")
PROMPTS = Path(__file__).parent / "prompts"
DATASETS = Path(__file__).parent / "datasets"
SEED = 20
COMMON = 560  # of each desk
EXAMPLES = {"support": 130, "people": 130}
REFUSED = "The documents do not answer this question."
WRITTEN = {
    "support": (rules.SUPPORT_LIMITS, rules.SUPPORT_CHOICES),
    "people": (rules.PEOPLE_LIMITS, rules.PEOPLE_CHOICES),
}
_DRILLS = 0.12  # the share of rows that only compare numbers
_DRILL_LINES = 8
_LIMIT_TURNS = (1, 1, 2)
_CHOICE_TURNS = (1, 2, 2, 3)
_ANSWERED = 0.72  # of the questions; the others must be refused
_LIMITS = 0.42  # of the rules; the others are choices
_MIXED = 0.7  # the share of rules put together by chance
_GROUPED = 0.6  # of the choices tell apart things of one kind
_BESIDE = 0.25  # of the conversations have one passage without a rule


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
    drills = round(_DRILLS * count)
    rows = [_drill(draw) for _ in range(drills)] + [_conversation(desk, draw) for _ in range(count - drills)]
    draw.shuffle(rows)
    return rows


def common_examples(seed: int, count: int) -> list[dict[str, Any]]:
    """
    `count` rows of each desk in one order mixed by the seed, each with its desk's own prompt as its system message.

    They teach what both desks need, to find and judge a rule; an adapter of one desk then takes less of its own.
    """
    rows: list[dict[str, Any]] = []
    for desk in DESKS:
        prompt = read_prompt_file(PROMPTS / f"{desk}.json")
        for row in examples(desk, seed, count):
            passages = [PromptPassage(**passage) for passage in row["passages"]] if "passages" in row else None
            rows.append({"messages": render(prompt, row["messages"], passages)})
    random.Random(seed).shuffle(rows)
    return rows


def _conversation(desk: Desk, draw: random.Random) -> dict[str, Any]:
    """Some questions about the same two passages; the more, the cheaper each is to train on."""
    is_limit = draw.random() < _LIMITS
    rules_here = [_rule(desk, is_limit, draw)]
    while len(rules_here) < 2:
        other = _rule(desk, is_limit if draw.random() < 0.5 else draw.random() < 0.5, draw)
        if other.heading != rules_here[0].heading:
            rules_here.append(other)
    laid_out = [_passage(rule, draw) for rule in rules_here]
    passages = [passage for passage, _, _ in laid_out]
    answerable = [0, 1]
    if (
        draw.random() < _BESIDE
    ):  # what a search brings along when nothing else is near: an introduction, another language
        number = draw.randrange(2)
        passages[number] = dict(draw.choice(rules.INTRODUCTIONS[desk] + rules.JAPANESE))
        answerable.remove(number)
    messages: list[dict[str, str]] = []
    asked: set[str] = set()
    for _ in range(draw.choice(_LIMIT_TURNS if is_limit else _CHOICE_TURNS)):
        kind = "answered" if draw.random() < _ANSWERED else draw.choice(("gap", "gap", "other", "outside"))
        if kind == "answered":
            number = answerable[0] if draw.random() < 0.9 else draw.choice(answerable)  # a good search puts it first
            rule, (_, limit, fact) = rules_here[number], laid_out[number]
            if isinstance(rule, Limit):
                question, reason, decision = _judge_limit(rule, limit, draw)
            else:
                question, fact, reason, decision = _judge_choice(rule, draw)
            answer = ANSWERS[desk](number + 1, fact, reason, decision)
        else:
            question = _unanswered(desk, kind, [passage["text"] for passage in passages], rules_here, draw)
            answer = ANSWERS[desk](None, None, REFUSED, "NO")
        key = question if kind != "answered" or isinstance(rule, Limit) else f"{number} {_named(rule, question)}"
        if key not in asked:
            asked.add(key)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "passages": passages}


def _rule(desk: Desk, is_limit: bool, draw: random.Random) -> Limit | Choice:
    if not is_limit and draw.random() < _GROUPED:
        return grouped_choice(PARTS[desk], draw)
    if draw.random() < _MIXED:
        return mixed_limit(PARTS[desk], draw) if is_limit else mixed_choice(PARTS[desk], draw)
    limits, choices = WRITTEN[desk]
    return draw.choice(limits) if is_limit else draw.choice(choices)


def _unanswered(desk: Desk, kind: str, texts: list[str], near: Sequence[Limit | Choice], draw: random.Random) -> str:
    """A question the passages do not answer: about a thing they name, by another rule, or not the desk's at all."""
    if kind == "outside":
        return _fill(draw.choice(rules.OUTSIDE[desk]), draw)
    if kind == "gap":
        named = [
            thing for _, things in PARTS[desk].kinds for thing in things.split(", ") if thing in " ".join(texts).lower()
        ]
        return mixed_gap(PARTS[desk], draw.choice(named) if named and draw.random() < 0.5 else None, draw)
    while (other := _rule(desk, draw.random() < 0.5, draw)).heading in {rule.heading for rule in near}:
        pass
    if isinstance(other, Choice):
        return _judge_choice(other, draw)[0]
    return _judge_limit(other, draw.randrange(other.low, other.high + 1, other.step), draw)[0]


def _drill(draw: random.Random) -> dict[str, Any]:
    """Comparing alone, many times in one row: the step in which a small model errs most."""
    asked, answered = [], []
    for _ in range(_DRILL_LINES):
        high, step = draw.choice(((12, 1), (40, 1), (99, 1), (99, 1), (90_000, 500), (90_000, 1000)))
        unit = (
            "yen" if step > 1 else draw.choice(("days", "weeks", "months", "hours", "kg", "people", "years", "pieces"))
        )
        limit, most = draw.randrange(2, high // step) * step, draw.random() < 0.6
        fact = draw.choice(draw.choice((rules.WITHIN, rules.UP_TO)) if most else rules.LEAST).format(
            n=f"{limit:,}", u=unit
        )
        value = _value(limit, step, draw)
        reason, decision = limit_reason(most, value, limit)
        asked.append(f"{value:,} {unit}: {fact}?")
        answered.append(f"{reason} {decision}")
    messages = [
        {"role": "user", "content": "\n".join(["Compare.", *asked])},
        {"role": "assistant", "content": "\n".join(answered)},
    ]
    return {"messages": messages}


def _passage(rule: Limit | Choice, draw: random.Random) -> tuple[dict[str, str], int, str]:
    """A passage of a rule with a limit drawn anew, that limit (0 for a choice) and the words that state it."""
    if isinstance(rule, Choice):
        return _laid_out(rule, rule.text, draw), 0, ""
    limit = draw.randrange(rule.low, rule.high + 1, rule.step)
    fact = draw.choice(rule.words).format(n=f"{limit:,}", u=rule.unit)
    text = rule.text.format(fact=fact)
    return _laid_out(rule, text[0].upper() + text[1:], draw), limit, fact


def _laid_out(rule: Limit | Choice, text: str, draw: random.Random) -> dict[str, str]:
    """A section under its heading path or, one time in seven, a page of a PDF: heading first, its lines broken."""
    if draw.random() < 1 / 7:
        return {"title": rule.area, "text": f"{rule.heading}\n{textwrap.fill(text, 58)}"}
    return {"title": f"{rule.area} > {rule.heading}", "text": text}


def _value(limit: int, step: int, draw: random.Random) -> int:
    """The value a question asks about: half of the time the limit itself or a step beside it, often of other length."""
    chance = draw.random()
    if chance < 0.5:
        value = limit + draw.choice((0, -1, 1)) * step
    elif chance < 0.7:  # a number of other length than the limit: 8 to 12, 20,000 to 6,000
        power = 10 ** (len(str(limit)) - 1)
        value = (
            draw.randrange(2, 10) * power * 10
            if limit < 10 * step or draw.random() < 0.4
            else draw.randrange(power // 10 or 1, power)
        )
        value = max(step, value // step * step)
    else:
        below, above = range(step, limit, step), range(limit + step, max(limit * 2, limit + 9 * step), step)
        value = draw.choice(draw.choice([values for values in (below, above) if values]))
    return max(value, 2 if step == 1 else step)


def _judge_limit(rule: Limit, limit: int, draw: random.Random) -> tuple[str, str, str]:
    value = _value(limit, rule.step, draw)
    question = _fill(draw.choice(rule.questions), draw, f"{value:,}")
    return question, *limit_reason(rule.most, value, limit)


def limit_reason(most: bool, value: int, limit: int) -> tuple[str, str]:
    """
    The reason and the decision for a value against a limit.

    A model of 135 million parameters does not see which of two numbers is larger; of two digits it does. So the reason
    compares how many digits the numbers have and then, if that is the same, goes through them until two differ.
    """
    name = "limit" if most else "minimum"
    good = value <= limit if most else value >= limit
    verdict = (
        ("within the limit" if good else "over the limit")
        if most
        else ("minimum reached" if good else "below the minimum")
    )
    return f"{value:,}, {name} {limit:,}: {compared(value, limit)}: {verdict}.", "YES" if good else "NO"


def compared(value: int, limit: int) -> str:
    """How two numbers compare: 'digits 2-2 same, 3-3 same, 1-0 more' for 31 and 30, 'digits 1-2 less' for 8 and 12."""
    left, right = str(value), str(limit)
    steps = [f"digits {_against(len(left), len(right))}"]
    if len(left) == len(right):
        for one, other in zip(left, right, strict=True):
            steps.append(_against(int(one), int(other)))
            if one != other:
                break
    return ", ".join(steps)


def _against(one: int, other: int) -> str:
    return f"{one}-{other} {'same' if one == other else 'more' if one > other else 'less'}"


def _judge_choice(rule: Choice, draw: random.Random) -> tuple[str, str, str, str]:
    """Question, fact, reason and decision. The fact is the whole sentence that decides."""
    decision = draw.choice(("YES", "NO"))
    if not (rule.yes if decision == "YES" else rule.no):
        decision = "NO" if decision == "YES" else "YES"
    question, words, _ = draw.choice(rule.yes if decision == "YES" else rule.no)
    fact = next(sentence for sentence in rule.text.removesuffix(".").split(". ") if words in sentence)
    return _fill(question, draw), fact, "This is allowed." if decision == "YES" else "This is not allowed.", decision


def _named(rule: Choice, question: str) -> str:
    """The case a question of the rule is about, so that no case is asked twice in a conversation."""
    return next((case for one, _, case in rule.yes + rule.no if one == question), question)


def _fill(template: str, draw: random.Random, value: str = "") -> str:
    return template.format(item=draw.choice(rules.ITEMS), name=draw.choice(rules.NAMES), v=value)


def to_jsonl(rows: Sequence[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of one of our own files."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training_file(desk: Desk) -> Path:
    """The committed training examples of a desk."""
    return DATASETS / f"{desk}.train.jsonl"


def common_file() -> Path:
    """The committed training examples that both desks share."""
    return DATASETS / "common.train.jsonl"


def held_out_file(desk: Desk) -> Path:
    """The committed held-out cases of a desk: asked against the real corpus, never trained on."""
    return DATASETS / f"{desk}.heldout.jsonl"


def main(arguments: Sequence[str]) -> int:
    """Write the training files, or with --check compare them with what is committed."""
    files = {training_file(desk): examples(desk, SEED + 1, EXAMPLES[desk]) for desk in DESKS}
    files[common_file()] = common_examples(SEED, COMMON)
    stale = 0
    for path, rows in files.items():
        text = to_jsonl(rows)
        if "--check" in arguments:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                print(f"{path.name} is not what the generator makes; run: python -m ryorin_demo.data")
                stale = 1
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{path.name}: {len(rows)} examples")
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
