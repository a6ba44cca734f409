"""
Tokens a second through the gateway, without retrieval, against vLLM asked directly, with 1, 8 and 32 streams at once.

Real vLLM behind `ryorin serve`; the client, the gateway and the engine share the machine's cores. Both ways carry the
same messages, the same sampling and the same number of tokens; rounds of the two take turns, each with texts of its
own. The value is the smallest of the three medians of the ratios of neighbouring rounds.

    python bench/relay.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import report
from real import NEVER_ENDS, SERVED_AS, Place, engine_of, home_of, serving, tenant_of, together

TENANT = "bench"
SYSTEM = "You answer questions about a company's rules."
STREAMS = (1, 8, 32)
TARGET = 0.99


def body(model: str, number: int, tokens: int) -> dict[str, Any]:
    """A request that nobody else makes."""
    question = {"role": "user", "content": f"Case {number}: which rules hold for orders that come late?"}
    asked = [question] if model == TENANT else [{"role": "system", "content": SYSTEM}, question]
    return {"model": model, "messages": asked, "max_tokens": tokens, "temperature": 0, "logit_bias": NEVER_ENDS}


async def measured(gateway: Place, engine: Place, pairs: int, tokens: int) -> dict[int, list[tuple[float, float]]]:
    """Of each number of streams: pairs of tokens a second, through the gateway and directly."""
    number = 0
    found: dict[int, list[tuple[float, float]]] = {streams: [] for streams in STREAMS}

    async def rate(place: Place, streams: int) -> float:
        nonlocal number
        model = TENANT if place is gateway else SERVED_AS
        bodies = [body(model, number := number + 1, tokens) for _ in range(streams)]
        answers, seconds = await together(place, bodies)
        assert all(answer.tokens == tokens for answer in answers)
        return sum(answer.tokens for answer in answers) / seconds

    for streams in STREAMS:
        for place in (gateway, engine):
            await rate(place, streams)  # nothing is cold
        for each in range(pairs):
            order = (gateway, engine) if each % 2 else (engine, gateway)
            rates = {place: await rate(place, streams) for place in order}
            found[streams].append((rates[gateway], rates[engine]))
            print(f"{streams} streams, {each + 1}/{pairs}: {rates[gateway] / rates[engine]:.4f}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 pairs of rounds of 32 tokens instead of 9 of 96")
    pairs, tokens = (3, 32) if parser.parse_args().quick else (9, 96)
    with tempfile.TemporaryDirectory() as scratch:
        home = home_of(Path(scratch))
        key = tenant_of(home, TENANT, SYSTEM, "--adapter", "none", "--no-store")
        os.environ["RYORIN_HOME"] = str(home)
        with serving("--max-model-len", "2048", "--no-train") as server:
            found = asyncio.run(measured(Place(server.url, key), engine_of(server), pairs, tokens))
    ratios = {streams: statistics.median(ours / theirs for ours, theirs in rates) for streams, rates in found.items()}
    report(
        "tokens a second through the gateway, at the worst of 1, 8 and 32 streams",
        min(ratios.values()),
        "times those of vLLM asked directly",
        f">= {TARGET}",
        "the same vLLM without the gateway",
        sum(map(len, found.values())),
        ratios={str(streams): round(ratio, 4) for streams, ratio in ratios.items()},
        tokens_a_second={
            str(streams): {
                "gateway": round(statistics.median(ours for ours, _ in rates), 1),
                "vllm": round(statistics.median(theirs for _, theirs in rates), 1),
            }
            for streams, rates in found.items()
        },
    )


if __name__ == "__main__":
    main()
