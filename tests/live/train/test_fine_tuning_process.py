"""The process that trains for a worker: what it gives way to, and what a crash after it has trained leaves."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny import PROMPT, a_dozen, all_of, left_in

from ryorin.blobs import BlobWriter
from ryorin.catalog import jobs
from ryorin.catalog.fine_tuning import KIND, FineTuning
from ryorin.catalog.tables import Adapter, File, Job, JobEvent, Release
from ryorin.catalog.tenants import create_tenant, set_prompt
from ryorin.foreground import Foreground
from ryorin.worker import Worker
from ryorin_train import fine_tuning
from ryorin_train.child import LOCK_FILE

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it goes by the kernel of Linux")


def test_the_training_process_is_the_first_to_be_ended_and_the_last_to_run(home: Path) -> None:
    home.mkdir(exist_ok=True)
    own = Path("/proc/self/oom_score_adj").read_text()
    with (
        (home / LOCK_FILE).open("w") as lock,
        subprocess.Popen(
            [sys.executable, "-m", "ryorin_train.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        fcntl.flock(lock, fcntl.LOCK_EX)  # it waits behind another one, so that it can be looked at
        try:
            process.stdin.write("{}\n")
            process.stdin.flush()
            assert "waiting for another training job" in json.loads(process.stdout.readline())["say"]
            assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "1000\n" != own
            assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
        finally:
            process.terminate()


def test_it_ends_with_a_worker_that_is_killed_also_while_it_stands_still(home: Path) -> None:
    home.mkdir(exist_ok=True)
    worker = (
        "import subprocess, sys, time\n"
        "command = [sys.executable, '-m', 'ryorin_train.child']\n"
        "child = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)\n"
        "print(child.pid, file=child.stdin, flush=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    for stands_still in (False, True):
        with (home / LOCK_FILE).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # it waits behind another one
            with subprocess.Popen([sys.executable, "-c", worker], stdout=subprocess.PIPE, text=True) as killed:
                assert killed.stdout is not None
                child = psutil.Process(int(killed.stdout.readline()))
                assert "waiting for another training job" in json.loads(killed.stdout.readline())["say"]
                try:
                    if stands_still:
                        child.suspend()
                    killed.kill()
                    killed.wait()
                    child.wait(30)
                finally:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()


def eventually(look: Callable[[], Any]) -> Any:
    """What `look` returns once it is true."""
    end = time.monotonic() + 120
    while not (found := look()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
    return found


@pytest.fixture
def job_id(sqlite: Any, tiny_base: Path) -> str:
    """A job for the tiny base, whose file is there."""
    from ryorin.models.install import add_folder

    add_folder(sqlite.settings, "tiny", tiny_base, "base", lambda _: None)
    content = "".join(json.dumps({"messages": row["messages"]}) + "\n" for row in a_dozen()).encode()
    with BlobWriter(sqlite.settings.blobs_dir) as writer:
        writer.write(content)
        sha256 = writer.keep()
    with sqlite.session() as session:
        tenant = create_tenant(session, "support")
        prompt = set_prompt(session, tenant, PROMPT)
        session.add(
            File(
                id="file-rows",
                tenant_id=tenant.id,
                sha256=sha256,
                bytes=len(content),
                filename="rows.jsonl",
                purpose="fine-tune",
            )
        )
        wanted = FineTuning(
            model="tiny",
            base="tiny",
            training_file="file-rows",
            hyperparameters={"n_epochs": 1},
            prompt_digest=prompt.digest,
        )
        return jobs.enqueue(session, tenant.id, KIND, wanted.to_json())


def test_a_job_stands_still_while_somebody_waits_and_can_be_stopped_then(sqlite: Any, job_id: str) -> None:
    with sqlite.session() as session:
        job = session.get_one(Job, job_id)
        job.params = {**job.params, "hyperparameters": {"n_epochs": 150}}
    foreground = Foreground()
    worker = Worker(sqlite, kinds=[KIND], poll_s=0.01, foreground=foreground)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()

    def training() -> psutil.Process | None:
        if not any(event.message.startswith("Step") for event in all_of(sqlite, JobEvent)):
            return None
        return next((each for each in psutil.Process().children() if "ryorin_train.child" in each.cmdline()), None)

    process = eventually(training)
    for _ in range(2):
        leave = foreground.enter()
        eventually(lambda: process.status() == psutil.STATUS_STOPPED)
        time.sleep(0.1)  # its threads stop one after the other
        used = process.cpu_times().user
        time.sleep(0.3)
        assert process.cpu_times().user == used
        leave()
        eventually(lambda used=used: process.cpu_times().user > used)
    foreground.enter()
    eventually(lambda: process.status() == psutil.STATUS_STOPPED)
    worker.ask_to_stop()
    thread.join(120)
    assert not thread.is_alive() and not process.is_running()


def test_a_crash_between_the_adapter_and_the_end_of_the_job_makes_no_second_one(
    sqlite: Any, home: Path, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    release: Callable[..., Any] = fine_tuning.FineTune._release
    stored: list[Any] = []

    def crash_once(*args: Any) -> Any:
        stored.append([(each.name, each.digest) for each in all_of(sqlite, Adapter)])
        if len(stored) == 1:
            raise OSError("the power is gone")
        return release(*args)

    monkeypatch.setattr(fine_tuning.FineTune, "_release", crash_once)
    Worker(sqlite, kinds=[KIND], poll_s=0.01, retry_delay_s=0.001).run(drain=True)
    (job,) = all_of(sqlite, Job)
    assert (job.status, len(stored)) == ("succeeded", 2), job.error
    ((name, digest),) = stored[0]
    assert stored[1] == [(name, digest)]
    (adapter,) = all_of(sqlite, Adapter)
    assert (adapter.name, adapter.digest, adapter.job_id) == (name, digest, job_id)
    (made,) = all_of(sqlite, Release)
    assert (made.adapter_id, job.result["adapter"], job.result["release_version"]) == (adapter.id, name, made.version)
    assert job.result["trained_tokens"] == adapter.manifest["trained_tokens"] > 0
    assert left_in(home, "adapters") == [name] and left_in(home, "jobs") == left_in(home, "checkpoints") == []
    said = [event.message for event in all_of(sqlite, JobEvent)]
    assert sum(message.startswith(f"{name} was trained with the same data") for message in said) == 1
    assert said.count("The job has successfully completed") == 1
