"""
Time to the first token with a thousand registered adapters, against the same with only the four that are asked for.

Real vLLM behind `ryorin serve`. Four departments with an adapter each are asked in turn. In between, 996 adapters of a
fifth are made known to the catalog and loaded into the engine, and taken away again: blocks with and without them take
turns. The value is the median of the ratios of neighbouring blocks' medians.

    python bench/adapters.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
from common import report, ryorin
from real import Place, adapters_of, engine_of, home_of, serving, streamed, tenant_of

ACTIVE = ("desk-a", "desk-b", "desk-c", "desk-d")
OTHERS = "others"
SYSTEM = "You answer questions about a company's rules."
WORDS = 120  # of a question
TARGET = 1.02


def question(draw: random.Random) -> str:
    vocabulary = ("rule", "limit", "days", "order", "manager", "refund", "office", "letter", "answer", "month")
    return " ".join(f"{draw.choice(vocabulary)}{draw.randrange(1000)}" for _ in range(WORDS))


async def block(gateway: str, keys: dict[str, str], count: int, draw: random.Random) -> float:
    """The median time to the first token of some questions, one after another, in seconds."""
    times = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as http:
        for number in range(count):
            desk = ACTIVE[number % len(ACTIVE)]
            asked = [{"role": "user", "content": question(draw)}]
            body = {"model": desk, "messages": asked, "max_tokens": 4, "temperature": 0}
            times.append((await streamed(http, Place(gateway, keys[desk]), body)).first_s)
    return statistics.median(times)


async def in_engine(engine: Place, names: list[str], home: Path, *, load: bool) -> None:
    """Load adapters into the engine, or unload them."""
    headers = {"authorization": f"Bearer {engine.key}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        for name in names:
            body = {"lora_name": name, **({"lora_path": str(home / "adapters" / name)} if load else {})}
            place = f"{engine.url}/{'load' if load else 'unload'}_lora_adapter"
            async with http.post(place, json=body) as answer:
                if answer.status != 200:
                    raise SystemExit(f"error: {name}: {answer.status} {await answer.text()}")


def forgotten(home: Path, names: list[str]) -> None:
    """Take adapters out of the catalog and off the disk."""
    from sqlalchemy import delete

    from ryorin.catalog import open_catalog
    from ryorin.catalog.tables import Adapter
    from ryorin.settings import load_settings

    with closing(open_catalog(load_settings())) as catalog, catalog.session() as session:
        session.execute(delete(Adapter).where(Adapter.name.in_(names)))
    for name in names:
        shutil.rmtree(home / "adapters" / name)


def measured(server: Any, home: Path, keys: dict[str, str], rounds: int, others: int, count: int) -> list[Any]:
    engine, draw, found = engine_of(server), random.Random(0), []
    asyncio.run(block(server.url, keys, 2 * len(ACTIVE), draw))  # nothing is cold
    for each in range(rounds):
        few = asyncio.run(block(server.url, keys, count, draw))
        began = time.perf_counter()
        names = adapters_of(home, OTHERS, range(1000 * each, 1000 * each + others), rank=8, layers=1)
        asyncio.run(in_engine(engine, names, home, load=True))
        took = time.perf_counter() - began
        many = asyncio.run(block(server.url, keys, count, draw))
        print(
            f"{each + 1}/{rounds}: {1000 * few:.0f} ms, {1000 * many:.0f} ms; loaded in {took:.0f} s", file=sys.stderr
        )
        asyncio.run(in_engine(engine, names, home, load=False))
        forgotten(home, names)
        after = asyncio.run(block(server.url, keys, count, draw))
        found.append((few, many, after))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of 16 questions with 200 adapters, not 4 of 48")
    rounds, others, count = (1, 196, 16) if parser.parse_args().quick else (4, 996, 48)
    with tempfile.TemporaryDirectory() as scratch:
        home = home_of(Path(scratch))
        os.environ["RYORIN_HOME"] = str(home)
        keys = {}
        for number, desk in enumerate(ACTIVE):
            keys[desk] = tenant_of(home, desk, SYSTEM, "--adapter", "none", "--no-store")
            (name,) = adapters_of(home, desk, [10**6 + number])
            ryorin(home, "release", "create", "--tenant", desk, "--adapter", name, "--no-store", "--promote")
        tenant_of(home, OTHERS, SYSTEM, "--adapter", "none", "--no-store")
        with serving("--max-model-len", "2048", "--max-loras", "4", "--no-train") as server:
            found = measured(server, home, keys, rounds, others, count)
    report(
        "time to the first token with many registered adapters, four of them asked for",
        statistics.median(many / ((few + after) / 2) for few, many, after in found),
        "times the same with those four alone",
        f"<= {TARGET}",
        "the same server with four adapters, before and after",
        len(found) * count,
        registered=others + len(ACTIVE),
        median_ms={
            "four": round(1000 * statistics.median((few + after) / 2 for few, _, after in found), 1),
            "many": round(1000 * statistics.median(many for _, many, _ in found), 1),
        },
    )


if __name__ == "__main__":
    main()
