"""
Ten times what the engine can do, against the same gateway within its capacity.

An engine of known capacity stands behind the real gateway, each in a process of its own: it answers `RUNNING` requests
at once, each in `ANSWER_S`. Questions come at random moments, whether or not earlier ones are answered: first at 0.8
of the capacity, then at 10 times it. The value is the ratio of the 99th percentiles of what answered questions took.
Every refusal must be 429 or 503 with Retry-After, nothing may break, and the gateway's memory must stay.

    python bench/overload.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import report
from scripted import House, Load, client, served

RUNNING, ANSWER_S = 8, 0.4
WAITING = 6  # three quarters of RUNNING, as the gateway's defaults are
CAPACITY = RUNNING / ANSWER_S  # questions a second
TARGET = 2.0


async def measured(house: House, seconds: float) -> dict[str, Any]:
    """Both loads, and by how many bytes the gateway grew under the second."""
    draw, process = random.Random(0), psutil.Process(house.pid)
    async with client() as http:
        warm, steady, first, flood = (Load(http, house) for _ in range(4))
        await warm.ready()
        await warm.run(CAPACITY * 0.8, 3, draw)  # nothing is cold
        await steady.run(CAPACITY * 0.8, seconds, draw)
        await first.run(CAPACITY * 10, min(10.0, seconds / 2), draw)  # memory is compared once it was flooded
        before = process.memory_info().rss
        await flood.run(CAPACITY * 10, seconds, draw)
        grown = process.memory_info().rss - before
    if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
        sys.exit("error: the gateway died")
    return {"steady": steady, "flood": flood, "grown": grown, "before": before}


def p99(load: Load) -> float:
    """Of what answered questions took, in seconds."""
    return float(np.percentile([each.seconds for each in load.ended if each.status == 200], 99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="15 s of each load instead of 120")
    seconds = 15.0 if parser.parse_args().quick else 120.0
    with (
        tempfile.TemporaryDirectory() as scratch,
        served(Path(scratch) / "home", RUNNING, ANSWER_S, max_running=RUNNING, max_waiting=WAITING) as house,
    ):
        found = asyncio.run(measured(house, seconds))
    steady, flood = found["steady"], found["flood"]
    statuses = Counter(each.status for each in flood.ended)
    right = [each for each in flood.ended if each.status == 200 or (each.status in (429, 503) and each.said_when)]
    print(json.dumps({"steady": Counter(each.status for each in steady.ended), "flood": statuses}), file=sys.stderr)
    if flood.broken or len(right) < len(flood.ended):
        wrong = len(flood.ended) - len(right)
        sys.exit(f"error: {flood.broken.total()} connections broke, {wrong} refusals were not as they must be")
    report(
        "answered questions at ten times the capacity take no longer than twice as long, 99th percentile",
        p99(flood) / p99(steady),
        "times the same at 0.8 of the capacity",
        f"<= {TARGET}",
        "the same gateway and engine within their capacity",
        statuses[200],
        refused=sum(count for status, count in statuses.items() if status != 200),
        answered_share_of_capacity=round(statuses[200] / (CAPACITY * seconds), 3),
        p99_ms={"steady": round(1000 * p99(steady)), "flood": round(1000 * p99(flood))},
        memory_grown_share=round(found["grown"] / found["before"], 4),
    )


if __name__ == "__main__":
    main()
