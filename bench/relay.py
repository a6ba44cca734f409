"""
Tokens a second through the gateway, without retrieval, against vLLM asked directly, with 1, 8 and 32 streams at once.

Real vLLM behind `ryorin serve`; the client, the gateway and the engine share the machine's cores. Both ways carry the
same messages, the same sampling and the same number of tokens; rounds of the two take turns, each with texts of its
own. The value is the smallest of the three medians of the ratios of neighbouring rounds, which on a machine whose
memory others use too vary by a tenth and more; so their geometric mean is told with its 95% interval, and the share of
the cores that the gateway's process took meanwhile, which hardly varies.

    python bench/relay.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import report
from real import NEVER_ENDS, SERVED_AS, Place, engine_of, home_of, serving, tenant_of, together

from ryorin_index.statistics import interval

TENANT = "bench"
SYSTEM = "You answer questions about a company's rules."
STREAMS = (1, 8, 32)
TARGET = 0.99


def body(model: str, number: int, tokens: int) -> dict[str, Any]:
    """A request that nobody else makes."""
    question = {"role": "user", "content": f"Case {number}: which rules hold for orders that come late?"}
    asked = [question] if model == TENANT else [{"role": "system", "content": SYSTEM}, question]
    return {"model": model, "messages": asked, "max_tokens": tokens, "temperature": 0, "logit_bias": NEVER_ENDS}


@dataclass
class Measured:
    """Of one number of streams: pairs of tokens a second, through the gateway and directly; and the gateway's part."""

    pairs: list[tuple[float, float]] = field(default_factory=list)
    gateway_cpu_s: float = 0.0
    gateway_s: float = 0.0

    @property
    def ratios(self) -> list[float]:
        """Through the gateway over directly, of each pair."""
        return [ours / theirs for ours, theirs in self.pairs]

    @property
    def mean(self) -> tuple[float, float, float]:
        """The ratios' geometric mean and its interval."""
        found = interval(np.log(self.ratios))
        return math.exp(found.mean), math.exp(found.low), math.exp(found.high)


async def measured(gateway: Place, gateway_pid: int, engine: Place, pairs: int, tokens: int) -> dict[int, Measured]:
    """What is found for each number of streams."""
    number = 0
    process = psutil.Process(gateway_pid)
    found = {streams: Measured() for streams in STREAMS}

    async def rate(place: Place, streams: int) -> float:
        nonlocal number
        model = TENANT if place is gateway else SERVED_AS
        bodies = [body(model, number := number + 1, tokens) for _ in range(streams)]
        before = sum(process.cpu_times()[:2])
        answers, seconds = await together(place, bodies)
        assert all(answer.tokens == tokens for answer in answers)
        if place is gateway:
            found[streams].gateway_cpu_s += sum(process.cpu_times()[:2]) - before
            found[streams].gateway_s += seconds
        return sum(answer.tokens for answer in answers) / seconds

    for streams in STREAMS:
        for place in (gateway, engine):
            await rate(place, streams)  # nothing is cold
        found[streams] = Measured()
        for each in range(pairs):
            order = (gateway, engine) if each % 2 else (engine, gateway)
            rates = {place: await rate(place, streams) for place in order}
            found[streams].pairs.append((rates[gateway], rates[engine]))
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
            gateway = Place(server.url, key)
            found = asyncio.run(measured(gateway, server.ready["pid"], engine_of(server), pairs, tokens))
    ratios = {streams: statistics.median(each.ratios) for streams, each in found.items()}
    report(
        "tokens a second through the gateway, at the worst of 1, 8 and 32 streams",
        min(ratios.values()),
        "times those of vLLM asked directly",
        f">= {TARGET}",
        "the same vLLM without the gateway",
        sum(len(each.pairs) for each in found.values()),
        ratios={str(streams): round(ratio, 4) for streams, ratio in ratios.items()},
        geometric_means={str(streams): [round(value, 4) for value in each.mean] for streams, each in found.items()},
        gateway_share_of_cores={
            str(streams): round(each.gateway_cpu_s / each.gateway_s / (os.cpu_count() or 1), 5)
            for streams, each in found.items()
        },
        gateway_us_a_token={
            str(streams): round(1e6 * each.gateway_cpu_s / (streams * tokens * len(each.pairs)), 1)
            for streams, each in found.items()
        },
        tokens_a_second={
            str(streams): {
                "gateway": round(statistics.median(ours for ours, _ in each.pairs), 1),
                "vllm": round(statistics.median(theirs for _, theirs in each.pairs), 1),
            }
            for streams, each in found.items()
        },
    )


if __name__ == "__main__":
    main()
