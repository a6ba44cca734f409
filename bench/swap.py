"""
Promotions under load, against the same load without them.

Two releases with an adapter each take turns as a tenant's live one, by the command's own way (`ryorin.rollout`, which
asks the gateway to load what comes next), while questions come at random moments. The scripted engine answers with the
adapter's name, so each answer says which release gave it. Blocks with and without promotions take turns. The value is
the ratio of the 99th percentiles of what answers took; no question may fail, and none may be answered by a release that
was not live at any time between its coming in and its answer.

    python bench/swap.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import report
from scripted import BASE, TENANT, Ended, House, Load, client, opened, served

RUNNING, ANSWER_S, RATE = 16, 0.1, 20.0
TARGET = 1.05


def two_releases(home: Path) -> dict[str, int]:
    """Two adapters as training leaves them, and a release of each: adapter's name → version."""
    from ryorin.adapter_files import adapter_digest
    from ryorin.catalog.tables import Adapter
    from ryorin.catalog.tenants import current_prompt, get_tenant
    from ryorin.digests import new_id
    from ryorin.release import create_release, promote

    made = {}
    with contextlib.closing(opened(home)) as catalog:
        for letter in ("a", "b"):
            name = f"{TENANT}-{letter * 12}"
            folder = catalog.settings.adapters_dir / name
            folder.mkdir(parents=True)
            (folder / "adapter_config.json").write_text(json.dumps({"r": 16}))
            (folder / "adapter_model.safetensors").write_bytes(letter.encode())
            with catalog.session() as session:
                tenant = get_tenant(session, TENANT)
                prompt = current_prompt(session, tenant)
                row = Adapter(
                    id=new_id("ad_"), tenant_id=tenant.id, name=name, digest=adapter_digest(folder), base_digest=BASE,
                    prompt_digest=prompt.digest, rank=16, manifest={},
                )  # fmt: skip
                session.add(row)
                session.flush()
                release = create_release(session, tenant, base_digest=BASE, prompt=prompt, adapter=row, stores=[])
                if letter == "a":
                    promote(session, tenant, release)
                made[name] = release.version
    return made


class Promoter:
    """Promotes one after the other in a thread. moves: (from when it was certainly live, adapter's name)."""

    def __init__(self, home: Path, releases: dict[str, int]) -> None:
        from ryorin.rollout import Rollout

        self._catalog = opened(home)
        self._rollout = Rollout(self._catalog)
        self._releases = releases
        self._names = list(releases)
        self.moves: list[tuple[float, float, str]] = [(0.0, 0.0, self._names[0])]  # begun, done, adapter

    def run(self, count: int, stop: threading.Event) -> None:
        """`count` promotions, or until it is stopped."""
        for _ in range(count):
            if stop.is_set():
                return
            name = self._names[len(self.moves) % 2]
            began = time.time()
            self._rollout.promote(TENANT, self._releases[name])
            self.moves.append((began, time.time(), name))

    def close(self) -> None:
        """Give the catalog back."""
        self._catalog.close()


def wrong(ended: list[Ended], moves: list[tuple[float, float, str]]) -> int:
    """Answers of a release that was not live at any time between a question's coming and its answer."""
    count = 0
    for each in ended:
        end = each.came_at + each.seconds
        live = {
            name
            for at, (began, _, name) in enumerate(moves)
            # it may have been live from when its promotion began to when the next one was done
            if began <= end and (at + 1 == len(moves) or moves[at + 1][1] >= each.came_at)
        }
        count += each.answer not in live
    return count


async def measured(house: House, promotions: int, blocks: int) -> dict[str, Any]:
    """Blocks of the same load with and without promotions."""
    draw = random.Random(0)
    promoter = Promoter(house.home, two_releases(house.home))
    async with client() as http:
        warm, steady, swapped = (Load(http, house) for _ in range(3))
        await warm.ready()
        await warm.run(RATE, 3, draw)
        for _ in range(blocks):
            stop = threading.Event()
            began = time.perf_counter()
            work = asyncio.create_task(asyncio.to_thread(promoter.run, promotions // blocks, stop))
            while not work.done():
                await swapped.run(RATE, 2, draw)
            await work
            await steady.run(RATE, time.perf_counter() - began, draw)
    promoter.close()
    return {"steady": steady, "swapped": swapped, "moves": promoter.moves}


def p99(load: Load) -> float:
    """Of what answers took, in seconds."""
    return float(np.percentile([each.seconds for each in load.ended if each.status == 200], 99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="60 promotions instead of 1,000")
    promotions, blocks = (60, 2) if parser.parse_args().quick else (1000, 10)
    with (
        tempfile.TemporaryDirectory() as scratch,
        served(Path(scratch) / "home", RUNNING, ANSWER_S) as house,
    ):
        found = asyncio.run(measured(house, promotions, blocks))
    steady, swapped, moves = found["steady"], found["swapped"], found["moves"]
    failed = sum(each.status != 200 for each in swapped.ended) + swapped.broken.total()
    stale = wrong([each for each in swapped.ended if each.status == 200], moves)
    report(
        "answers while the live release changes: 99th percentile, none failed, none of a release that was not live",
        p99(swapped) / p99(steady),
        "times the same without promotions",
        f"<= {TARGET}, failed 0, stale 0",
        "the same gateway, engine and load without promotions",
        len(swapped.ended),
        promotions=len(moves) - 1,
        failed=failed,
        stale=stale,
        p99_ms={"steady": round(1000 * p99(steady), 1), "swapped": round(1000 * p99(swapped), 1)},
    )
    if failed or stale:
        sys.exit(f"error: {failed} questions failed, {stale} were answered by a release that was not live")


if __name__ == "__main__":
    main()
