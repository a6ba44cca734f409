"""
The four arms on the held-out cases: what the prompt, the documents and the tuning each contribute.

Every arm is a release, asked by its pinned name (`support@2`) through the openai client; the answers are graded by
`ryorin_demo.grade`. The full arm is asked every case, the three it is compared with every third one, which spares half
of the time; `--all-cases` asks all of all. Decoding is greedy, so the same releases, documents and cases give the same
counts: a second run shows the stored ones.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ryorin.digests import digest_of, sha256_file
from ryorin.settings import Settings
from ryorin_demo.desks import DESKS, Desk
from ryorin_demo.grade import Grade, count, grade
from ryorin_demo.stages import ask, say

CONCURRENCY = 32
COMPARED_EVERY = 3
MAX_TOKENS = 120


@dataclass(frozen=True)
class Arm:
    """One way to answer: with or without passages, with or without the adapter."""

    name: str
    retrieval: bool
    tuned: bool


ARMS = (
    Arm("prompt only", retrieval=False, tuned=False),
    Arm("retrieval only", retrieval=True, tuned=False),
    Arm("tuned only", retrieval=False, tuned=True),
    Arm("both", retrieval=True, tuned=True),
)


def run_arms(
    settings: Settings,
    url: str,
    keys: dict[str, str],
    versions: dict[str, dict[str, int]],
    *,
    all_cases: bool,
    fresh: bool,
) -> dict[str, Any]:
    """Counts by desk and arm: cases, format valid, decision right, fact right."""
    counts: dict[str, Any] = {}
    for desk in DESKS:
        kept = settings.home / "demo" / f"arms-{desk.tenant}.json"
        cases = {arm: cases_of(desk, arm, all_cases=all_cases) for arm in ARMS}
        key = state_digest(desk, versions[desk.tenant], {arm.name: len(cases[arm]) for arm in ARMS})
        stored = json.loads(kept.read_text()) if kept.exists() else {}
        if stored.get("key") == key and not fresh:
            say(f"   {desk.tenant}: nothing changed since {stored['measured']}, its counts are shown again")
            counts[desk.tenant] = stored["counts"]
            continue
        models = {arm: f"{desk.tenant}@{versions[desk.tenant][arm.name]}" for arm in ARMS}
        asked = [(models[arm], case) for arm in ARMS for case in cases[arm]]
        told = iter(asyncio.run(ask_cases(url, keys[desk.tenant], desk, asked)))
        answers: dict[str, Any] = {}
        counts[desk.tenant] = {}
        for arm in ARMS:
            grades, answers[arm.name] = map(list, zip(*itertools.islice(told, len(cases[arm])), strict=True))
            counts[desk.tenant][arm.name] = count(grades)
        kept.parent.mkdir(parents=True, exist_ok=True)
        fresh_file = kept.with_suffix(".tmp")
        fresh_file.write_text(
            json.dumps(
                {
                    "key": key,
                    "measured": time.strftime("%Y-%m-%d %H:%M"),
                    "counts": counts[desk.tenant],
                    "answers": answers,
                },
                ensure_ascii=False,
                indent=1,
            ),
            encoding="utf-8",
        )
        fresh_file.replace(kept)
    return counts


def cases_of(desk: Desk, arm: Arm, *, all_cases: bool) -> list[dict[str, Any]]:
    """The cases that an arm is asked."""
    everything = desk.cases()
    return everything if all_cases or (arm.retrieval and arm.tuned) else everything[::COMPARED_EVERY]


def state_digest(desk: Desk, versions: dict[str, int], asked: dict[str, int]) -> str:
    """What the counts depend on: the releases, the documents, the cases and how they are asked."""
    releases = {release["version"]: release["digest"] for release in ask("release", "list", "--tenant", desk.tenant)}
    documents = {path.name: sha256_file(path) for path in sorted(desk.corpus.rglob("*")) if path.is_file()}
    return digest_of(
        {
            "releases": {arm: releases[version] for arm, version in versions.items()},
            "documents": documents,
            "cases": desk.cases(),
            "asked": asked,
            "max_tokens": MAX_TOKENS,
        }
    )


async def ask_cases(
    url: str, key: str, desk: Desk, asked: Sequence[tuple[str, dict[str, Any]]]
) -> list[tuple[Grade, dict[str, Any]]]:
    """
    Ask cases of a desk, each of a model, some at a time; the grade and what was answered, in their order.

    The arms are asked together, as the last answers of each would leave the engine with little to do.
    """
    from openai import AsyncOpenAI

    gate = asyncio.Semaphore(CONCURRENCY)
    done = 0

    async with AsyncOpenAI(base_url=url, api_key=key, timeout=600) as client:

        async def one(model: str, case: dict[str, Any]) -> tuple[Grade, dict[str, Any]]:
            nonlocal done
            async with gate:
                completion = await client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": case["question"]}],
                    temperature=0,
                    max_tokens=MAX_TOKENS,
                )
            message = completion.choices[0].message
            context = (message.model_extra or {}).get("context") or {}
            cited = {citation["number"]: citation["filepath"] for citation in context.get("citations", [])}
            text = message.content or ""
            done += 1
            if sys.stderr.isatty():
                print(f"\r   {desk.tenant}: {done}/{len(asked)}", end="", file=sys.stderr, flush=True)
            kept = {"question": case["question"], "answer": text, "cited": cited}
            documents = [cited.get(number, "") for number in range(1, desk.top_k + 1)]
            return grade(desk.tenant, case, text, documents), kept

        began = time.monotonic()
        told = await asyncio.gather(*(one(model, case) for model, case in asked))
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    models = ", ".join(dict.fromkeys(model for model, _ in asked))
    say(f"   {models}: {len(asked)} cases in {time.monotonic() - began:.0f} s")
    return told


def show_arms(counts: dict[str, Any]) -> None:
    """The table of counts."""
    from rich.console import Console
    from rich.table import Table

    for desk in DESKS:
        table = Table(title=f"{desk.tenant}: {desk.title}", title_justify="left")
        for column in ("arm", "format valid", "decision right", "cited fact right"):
            table.add_column(column, justify="left" if column == "arm" else "right")
        for arm in ARMS:
            row = counts[desk.tenant][arm.name]
            table.add_row(
                arm.name,
                share(row["format_valid"], row["cases"]),
                share(row["decision_right"], row["cases"]),
                share(row["fact_right"], row["cases"]),
            )
        Console(stderr=True).print(table)


def share(part: int, whole: int) -> str:
    """A count with its percentage."""
    return f"{part}/{whole} {part / whole:4.0%}" if whole else "-"
