"""
Set up everything into .venv: checks the machine, installs the hashed lock, installs Ryorin itself.

Run by `make` with the system's Python; uses the standard library only. Safe to repeat: a finished set-up is recognised
by the digest of what it was made from and skipped in milliseconds; a broken-off one is taken up again.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "ryorin-setup"
LOG = VENV / "setup.log"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NEED_DISK_GB = 8
NEED_MEMORY_GB = 7
# A third of all code, hardly any of it imported: test suites, and models that are not served.
NOT_COMPILED = r"/tests/|/transformers/models/(?!(auto|llama)/)|/vllm/model_executor/models/"


def main() -> int:
    """Set up and return the exit code."""
    accelerator = os.environ.get("RYORIN_ACCELERATOR") or ("gpu" if shutil.which("nvidia-smi") else "cpu")
    problems = missing(accelerator)
    if problems:
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    lock = ROOT / "requirements" / f"{accelerator}.lock"
    wanted = hashlib.sha256(
        b"".join([lock.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), sys.version.encode(), str(ROOT).encode()])
    ).hexdigest()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return 0
    started = time.monotonic()
    python = VENV / "bin" / "python"
    say(f"[1/4] virtual environment in .venv ({accelerator} set, Python {platform.python_version()})")
    if subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode if python.exists() else True:
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    STAMP.unlink(missing_ok=True)
    install(python, lock)
    say("[3/4] byte-compiling (vLLM starts more than twice as fast for it)")
    compiled = subprocess.run(
        [python, "-m", "compileall", "-q", "-j", "0", "-x", NOT_COMPILED, VENV / "lib"],
        capture_output=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": ""},
    )
    LOG.open("ab").write(compiled.stdout + compiled.stderr)  # packages ship templates that are not Python: not an error
    say("[4/4] Ryorin itself, editable")
    run_pip(python, ["install", "--no-deps", "--no-build-isolation", "-e", str(ROOT)], total=0)
    STAMP.write_text(wanted)
    say(f"set up in {time.monotonic() - started:.0f} s; the command line is .venv/bin/ryorin")
    return 0


def missing(accelerator: str) -> list[str]:
    """What the machine lacks, each with the next step."""
    found = []
    if accelerator not in ("cpu", "gpu"):
        found.append(f"RYORIN_ACCELERATOR is {accelerator!r}; it must be cpu or gpu")
    if sys.version_info[:2] != (3, 11):
        found.append(
            f"Python is {platform.python_version()}, the locked set is for 3.11; name one with 'make PYTHON=python3.11'"
        )
    if sys.platform != "linux" or platform.machine() != "x86_64":
        found.append(f"the machine is {sys.platform} {platform.machine()}; the locked set is for Linux on x86_64")
    elif accelerator == "cpu" and " avx2 " not in f" {cpu_flags()} ":
        found.append("the processor has no AVX2, which vLLM's CPU build needs; use a newer machine or one with a GPU")
    for tool in ("gcc", "git"):
        if shutil.which(tool) is None:
            found.append(f"{tool} is not installed; install it with the system's package manager")
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if not STAMP.exists() and free_gb < NEED_DISK_GB:
        found.append(f"{free_gb:.1f} GB of disk are free here, {NEED_DISK_GB} GB are needed; free some")
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if memory_gb < NEED_MEMORY_GB:
        found.append(f"the machine has {memory_gb:.1f} GB of memory, {NEED_MEMORY_GB} GB are needed")
    return found


def cpu_flags() -> str:
    """The first processor's flags, as Linux lists them."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return line.partition(":")[2]
    return ""


def install(python: Path, lock: Path) -> None:
    """Install the lock from the configured package sources; if torch's CPU build is not there, with PyTorch's index."""
    total = sum(1 for line in lock.read_text().splitlines() if "==" in line and not line.startswith((" ", "#", "-")))
    say(f"[2/4] {total} packages, versions and hashes from requirements/{lock.name}")
    words = ["install", "--no-deps", "--require-hashes", "--no-compile", "--progress-bar", "off", "-r", str(lock)]
    if run_pip(python, words, total, may_fail="torch==" in lock.read_text() and "+cpu" in lock.read_text()):
        return
    say(f"      once more with PyTorch's CPU index, {TORCH_CPU_INDEX}")
    run_pip(python, [*words, "--extra-index-url", TORCH_CPU_INDEX], total)


def run_pip(python: Path, words: list[str], total: int, may_fail: bool = False) -> bool:
    """Run pip, count its packages on the screen, keep its words in .venv/setup.log."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *words]
    seen = 0
    tail: list[str] = []
    with LOG.open("a") as log:
        log.write(" ".join(command) + "\n")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            tail = [*tail[-19:], line.rstrip()]
            if line.startswith("Collecting ") and total:
                seen += 1
                progress(f"      fetched {seen}/{total}")
            elif line.startswith("Installing collected") and total:
                progress(f"      fetched {seen}/{total}, unpacking", last=True)
        code = process.wait()
    if code and not may_fail:
        print("\n".join(tail), file=sys.stderr)
        sys.exit(f"error: pip failed (exit {code}); its words are in {LOG.relative_to(ROOT)}; run make again to go on")
    return code == 0


def progress(text: str, last: bool = False) -> None:
    """A counter: one moving line on a terminal, a line every so often elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{text}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last or text.endswith("/0") or text.split()[1].split("/")[0].endswith("50"):
        say(text)


def say(text: str) -> None:
    """A line of progress; standard output is left to the command that follows."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; run make again to go on")
