"""
What a user waits while an adapter is trained on the same machine, against the same server with the training job paused.

`ryorin serve` with real vLLM answers streaming requests that come at random moments, as people's do; its own worker
trains an adapter for `/v1/fine_tuning/jobs` from the demo's rows. Blocks of requests with the job at work and paused
take turns, so that whatever else the machine does hits both. The value is the ratio of the 99th percentiles of the time
to the first token; the medians and the cores that training had meanwhile are told too. Each request's text is its own,
so no cache of prefixes answers it. Training has the kernel's idle priority and stands still while somebody waits for a
first token (ryorin_train/giving_way.py), up to four fifths of the time: `waited` says for how much of it somebody did.
In full a block takes over a minute, so that checkpoints are written in it.

    python bench/interference.py [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openai
import psutil
from common import report
from real import REPOSITORY, home_of, serving, tenant_of

from ryorin.models.registry import DEFAULT_BASE

ROWS = REPOSITORY / "demo/ryorin_demo/datasets/support.train.jsonl"
TENANT = "bench"
GAP_S = (0.1, 0.6)
WORDS = 200  # of a request
TARGET = 1.5


def first_token_s(client: openai.OpenAI, draw: random.Random) -> float:
    """The time from asking to the first piece of text, in seconds."""
    vocabulary = ("rule", "limit", "days", "order", "manager", "refund", "office", "letter", "answer", "month")
    text = " ".join(f"{draw.choice(vocabulary)}{draw.randrange(1000)}" for _ in range(WORDS // 2))
    began = time.perf_counter()
    stream = client.chat.completions.create(
        model=TENANT, messages=[{"role": "user", "content": text}], max_tokens=8, temperature=0, stream=True
    )
    first = 0.0
    for chunk in stream:
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - began
    if not first:
        raise SystemExit("an answer was empty; there is no first token to wait for")
    return first


def block(client: openai.OpenAI, draw: random.Random, count: int) -> list[float]:
    """The times of some requests, one after another."""
    times = []
    for _ in range(count):
        time.sleep(draw.uniform(*GAP_S))
        times.append(first_token_s(client, draw))
    return times


def training(client: openai.OpenAI, job: str, since: int) -> psutil.Process:
    """The process that trains, once it has taken a step after `since`, in seconds of Unix time."""
    while not any(
        "Step" in each.message and each.created_at > since for each in client.fine_tuning.jobs.list_events(job)
    ):
        state = client.fine_tuning.jobs.retrieve(job)
        if state.status not in ("validating_files", "queued", "running"):
            raise SystemExit(f"the training job is {state.status}: {state.error}")
        time.sleep(1)
    process = child()
    if process is None:
        raise SystemExit("no training process is found")
    return process


def child() -> psutil.Process | None:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ryorin_train.child" in process.cmdline():
                return process
    return None


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def percentile(times: Sequence[float], share: float) -> float:
    return float(np.percentile(np.asarray(times), share))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="32 requests instead of 960")
    options = parser.parse_args()
    pairs, count = (2, 8) if options.quick else (8, 60)
    draw = random.Random(0)
    idle: list[float] = []
    beside: list[float] = []
    worked, beside_s = 0.0, 0.0
    with tempfile.TemporaryDirectory() as scratch:
        home = home_of(Path(scratch))
        release = ("--adapter", "none", "--no-store")
        key = tenant_of(
            home, TENANT, "You answer questions about a company's rules.", *release, scopes=("chat", "train")
        )
        os.environ["RYORIN_HOME"] = str(home)
        with serving("--max-model-len", "2048") as server:
            client = openai.OpenAI(base_url=server.url, api_key=key, timeout=120)
            block(client, draw, count)  # nothing is cold
            with ROWS.open("rb") as rows:
                file = client.files.create(file=rows, purpose="fine-tune")
            job = client.fine_tuning.jobs.create(
                model=DEFAULT_BASE,
                training_file=file.id,
                method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 50}}},
            )
            training(client, job.id, since=0)
            for number in range(pairs):
                client.fine_tuning.jobs.pause(job.id)
                while child() is not None:
                    time.sleep(0.1)
                block(client, draw, 1)  # what paused it is over
                idle += block(client, draw, count)
                resumed = int(time.time())
                client.fine_tuning.jobs.resume(job.id)
                process = training(client, job.id, since=resumed)
                before, began = cpu_s(process), time.monotonic()
                beside += block(client, draw, count)
                worked, beside_s = worked + cpu_s(process) - before, beside_s + time.monotonic() - began
                print(f"{number + 1}/{pairs} pairs of blocks", file=sys.stderr)
            client.fine_tuning.jobs.cancel(job.id)
    shares = {
        name: round(percentile(beside, each) / percentile(idle, each), 3) for name, each in (("p50", 50), ("p90", 90))
    }
    report(
        "time to first token while an adapter is trained on the same machine, 99th percentile",
        percentile(beside, 99) / percentile(idle, 99),
        "times the same without training",
        f"<= {TARGET}",
        "the same server with the training job paused",
        len(beside),
        ratios=shares,
        idle_ms={f"p{each}": round(1000 * percentile(idle, each), 1) for each in (50, 99)},
        beside_ms={f"p{each}": round(1000 * percentile(beside, each), 1) for each in (50, 99)},
        waited=round(sum(beside) / beside_s, 2),
        training_cores=round(worked / beside_s, 2),
    )


if __name__ == "__main__":
    main()
