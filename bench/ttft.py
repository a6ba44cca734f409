"""
Time to the first token with retrieval through the gateway, against vLLM given the same finished prompt.

Real vLLM and the bundled embedder behind `ryorin serve`; a store of made-up pages, each on a subject of its own. A
question is asked of the gateway, which embeds it, searches, and puts the passages into the prompt; then the engine is
asked for exactly the messages that the gateway made, under another cache salt. Prompts share no whole block of the
prefix cache, which is checked by vLLM's own count: both ways are cold. The value is the median of the ratios of pairs,
which take turns in who goes first.

    python bench/ttft.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import report, ryorin
from real import SERVED_AS, Answer, Place, engine_of, home_of, serving, streamed, tenant_of

TENANT, TOP_K = "bench", 5
SYSTEM = "Answer from the documents."
TARGET = 1.05
SUBJECTS = ("lamps", "kettles", "chairs", "clocks", "carpets", "mirrors", "shelves", "curtains", "plates", "towels")
RULES = ("returns", "repairs", "deliveries", "gift wrapping", "invoices", "loans", "exchanges", "orders by phone")


def pages(folder: Path, count: int) -> list[str]:
    """Pages of about 200 tokens each; the questions that they answer."""
    folder.mkdir()
    draw, questions = random.Random(0), []
    for number in range(count):
        subject = f"{draw.choice(SUBJECTS)} of the series {draw.choice('ABCDEFGH')}{number}"
        rule = draw.choice(RULES)
        lines = [f"# {rule.capitalize()} of {subject}", ""]
        for _ in range(9):
            days, place = draw.randrange(2, 90), f"counter {draw.randrange(1, 60)} in hall {draw.randrange(1, 9)}"
            lines.append(f"For {rule} of {subject} the limit is {days} days, counted from the day at {place}.")
        (folder / f"page-{number}.md").write_text("\n".join(lines))
        questions.append(f"What is the limit for {rule} of {subject}?")
    draw.shuffle(questions)
    return questions


def finished(home: Path, question: str) -> list[dict[str, str]]:
    """The messages that the gateway makes for the question, by the code that it makes them with."""
    from ryorin.catalog import open_catalog
    from ryorin.catalog.tenants import current_prompt, get_tenant
    from ryorin.prompt import Prompt, render
    from ryorin.release import Retrieval, live_release
    from ryorin.settings import load_settings
    from ryorin_index.retrieve import retrieve
    from ryorin_index.search import Searcher

    global _made
    if _made is None:
        catalog = open_catalog(load_settings())
        _made = catalog, Searcher(catalog)
    catalog, searcher = _made
    with catalog.session() as session:
        tenant = get_tenant(session, TENANT)
        release = live_release(session, tenant)
        prompt = Prompt.from_spec(current_prompt(session, tenant).spec)
        ids, how = release.store_ids, Retrieval.stored(release.retrieval)
    hits = retrieve(catalog, searcher, tenant.id, ids, question, how) or []
    asked: Any = [{"role": "user", "content": question}]
    return [dict(message) for message in render(prompt, asked, [hit.prompt_passage for hit in hits])]  # type: ignore[arg-type]


_made: Any = None


async def measured(gateway: Place, engine: Place, questions: list[str], home: Path) -> list[tuple[Answer, Answer]]:
    import aiohttp

    found = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as http:
        for number, question in enumerate(questions):
            common = {"max_tokens": 4, "temperature": 0}
            ours = {"model": TENANT, "messages": [{"role": "user", "content": question}], **common}
            theirs = {
                "model": SERVED_AS, "messages": finished(home, question), "cache_salt": f"bench-{number}", **common
            }  # fmt: skip
            answers = {}
            for place, body in ((gateway, ours), (engine, theirs))[:: 1 if number % 2 else -1]:
                answers[place] = await streamed(http, place, body)
            pair = answers[gateway], answers[engine]
            if pair[0].prompt_tokens != pair[1].prompt_tokens or pair[0].text != pair[1].text:
                raise SystemExit(f"error: not the same prompt: {pair}")
            if number and any(answer.cached for answer in pair):
                raise SystemExit(f"error: a prompt was not cold: {pair}")
            if number:  # the first of all is warm-up
                found.append(pair)
                print(f"{number}: {pair[0].first_s:.3f} s, {pair[1].first_s:.3f} s", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="8 pairs instead of 60")
    count = 9 if parser.parse_args().quick else 61
    with tempfile.TemporaryDirectory() as scratch:
        home = home_of(Path(scratch), embedder=True)
        questions = pages(Path(scratch) / "pages", 120)[:count]
        ryorin(home, "tenant", "create", TENANT)
        ryorin(home, "index", "create", "rules", "--tenant", TENANT)
        ryorin(home, "index", "add", "rules", Path(scratch) / "pages", "--tenant", TENANT)
        key = tenant_of(home, TENANT, SYSTEM, "--adapter", "none", "--top-k", TOP_K, made=True)
        os.environ["RYORIN_HOME"] = str(home)
        with serving("--max-model-len", "4096", "--no-train") as server:
            found = asyncio.run(measured(Place(server.url, key), engine_of(server), questions, home))
    first = {
        name: statistics.median(pair[place].first_s for pair in found) for place, name in enumerate(("gateway", "vllm"))
    }
    report(
        "time to the first token with retrieval, cold",
        statistics.median(ours.first_s / theirs.first_s for ours, theirs in found),
        "times that of the same finished prompt",
        f"<= {TARGET}",
        "vLLM given the messages that the gateway made",
        len(found),
        median_s={name: round(value, 3) for name, value in first.items()},
        added_ms=round(1000 * statistics.median(ours.first_s - theirs.first_s for ours, theirs in found), 1),
        prompt_tokens=round(statistics.median(ours.prompt_tokens for ours, _ in found)),
    )


if __name__ == "__main__":
    main()
