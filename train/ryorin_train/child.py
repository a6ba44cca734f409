"""
The process that trains for a worker: a job in, lines of JSON out.

It is a process of its own, so that training shares no lock, memory or crash with what started it, and of the lowest
priority, so that on the same machine the engine's answers come first; the worker stops and continues it besides
(giving_way.py). It ends with the process that started it: standard input is open for as long as that lives.

On standard input, a line: {"job_id", "tenant", "params", "files"}. On standard output, a line each: {"say": …},
{"record": {…}} of the loss curve, {"kept": step} of a checkpoint, {"computing": true or false} for whether it may be
stopped, and at the end {"finished": {…}} or {"error": {"code", "message", "param"}}. What libraries print there goes to
standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ryorin.catalog import Catalog, open_catalog
from ryorin.catalog.fine_tuning import FineTuning
from ryorin.commands.common import stopping_in_order
from ryorin.errors import InvalidInput, NotFound, RowError, RyorinError
from ryorin.settings import load_settings

PR_SET_PDEATHSIG = 1  # linux/prctl.h
OOM_SCORE_ADJ_MAX = 1000  # linux/oom.h
LOCK_FILE = "training.lock"
Tell = Callable[[dict[str, Any]], None]


def main() -> None:
    """Train what standard input says."""
    tell = teller()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)  # who stands still could not end itself
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with contextlib.suppress(OSError):  # where memory runs out, this process is ended and no other
            Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ_MAX))
    try:
        asked = json.loads(sys.stdin.readline())
        threading.Thread(target=end_with_the_worker, daemon=True).start()
        settings = load_settings()
        with (
            stopping_in_order(),
            contextlib.closing(open_catalog(settings)) as catalog,
            alone_on_this_machine(settings.home, tell),
        ):
            tell({"finished": train(catalog, asked, tell)})
    except KeyboardInterrupt:  # paused, cancelled or stopped: the worker knows
        sys.exit(130)
    except RyorinError as error:
        tell({"error": {"code": code_of(error), "message": error.message, "param": error.param}})
    except Exception as error:  # whatever it is, the job says so
        traceback.print_exc()
        tell({"error": {"code": "server_error", "message": f"{type(error).__name__}: {error}", "param": None}})


def end_with_the_worker() -> None:
    """Stop in order when standard input ends, as it does with the worker, even with one that was killed."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def train(catalog: Catalog, asked: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """The adapter, as {"adapter", "trained_tokens"}."""
    from ryorin_train.datasets.store import given_bytes
    from ryorin_train.fine_tuning import recipe_of
    from ryorin_train.job import Request, run_dpo, run_sft
    from ryorin_train.progress import Listener
    from ryorin_train.reinforcement.job import READING, run_rl

    wanted = FineTuning.from_json(asked["params"])
    reading = READING if wanted.method == "reinforcement" else None
    files = {
        role: given_bytes(file["name"], Path(file["path"]).read_bytes(), reading)
        for role, file in asked["files"].items()
    }
    request = Request(
        tenant=asked["tenant"],
        data=files["training_file"],
        validation=files.get("validation_file"),
        prompt_digest=wanted.prompt_digest,
        base=wanted.base,
        start_from=wanted.start_from,
    )
    recipe = recipe_of(wanted)
    listener = Listener(
        say=lambda line: tell({"say": line}),
        record=lambda values: tell({"record": values}),
        kept=lambda step: tell({"kept": step}),
        computing=lambda computing: tell({"computing": computing}),
    )
    runs: dict[str, Any] = {
        "supervised": run_sft,
        "dpo": run_dpo,
        "reinforcement": partial(run_rl, grader=wanted.grader or {}),
    }
    run = runs[wanted.method]
    finished = run(catalog, request, recipe, listener, job_id=asked["job_id"])
    return {"adapter": finished.adapter, "trained_tokens": finished.manifest.get("trained_tokens", 0)}


@contextlib.contextmanager
def alone_on_this_machine(home: Path, tell: Tell) -> Iterator[None]:
    """Wait until no other worker trains on this machine: two would take memory and time from each other."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell({"say": "waiting for another training job on this machine"})
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def code_of(error: RyorinError) -> str:
    """An error's code as the API shows it."""
    if isinstance(error, RowError):
        return "invalid_training_file"
    if isinstance(error, InvalidInput | NotFound):  # to try again would not help
        return error.code or "invalid_request_error"
    return error.code or "server_error"


def teller() -> Tell:
    """Says lines of JSON to whoever started this process; standard output is standard error from then on."""
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(line: dict[str, Any]) -> None:
        lines.write(json.dumps(line) + "\n")
        lines.flush()

    return tell


if __name__ == "__main__":
    main()
