"""
How long `ryorin --help` takes, against the interpreter's own start.

The command line imports nothing but click until a command runs, so its help should cost little more than Python itself.
Each round starts both, one after the other; medians of all rounds.

    python bench/cli_help.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from common import report

TARGET_S = 0.5


def seconds(*words: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 10 if parser.parse_args().quick else 40
    pairs = [(seconds("-m", "ryorin.cli", "--help"), seconds("-c", "pass")) for _ in range(rounds)]
    ours, python = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"ryorin --help  {ours:.3f} s\npython -c pass {python:.3f} s\nratio          {ours / python:.1f}")
    report("ryorin --help is quick", ours, "s", f"<= {TARGET_S}", "python -c pass", rounds, peer_value=round(python, 4))


if __name__ == "__main__":
    main()
