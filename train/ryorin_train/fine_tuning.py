"""
The job that trains an adapter for the API: `/v1/fine_tuning/jobs` puts it into the queue, any worker does it.

The training itself runs in a process of its own (child.py). Its checkpoints outlive it: a job that was paused, or whose
worker stopped or died, goes on from the last one. When it is done, a release with the new adapter is made, which
answers by the model's name at once and is live only when it is promoted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ryorin.blobs import check_blob
from ryorin.catalog import Catalog, jobs
from ryorin.catalog.files import get_file
from ryorin.catalog.fine_tuning import FineTuning, add_event, model_name
from ryorin.catalog.jobs import Lease
from ryorin.catalog.tables import Adapter, Job, Release, Tenant, VectorStore
from ryorin.catalog.tenants import get_prompt
from ryorin.errors import InvalidInput, NotFound, RyorinError
from ryorin.foreground import Foreground
from ryorin.release import Retrieval, create_release
from ryorin.worker import Work
from ryorin_train.auto import Wanted
from ryorin_train.giving_way import GivingWay
from ryorin_train.recipe import PreferenceRecipe, Recipe, ReinforcementRecipe

LOOK_S = 0.5
METRICS_S = 1.0  # of a quick run not every step is kept as an event
EVENTS_AGAIN_S = 5.0  # after the database could not be written to
STOP_S = 30.0  # a checkpoint that is being written is finished first
METHODS: dict[str, type[Recipe]] = {
    "supervised": Recipe,
    "dpo": PreferenceRecipe,
    "reinforcement": ReinforcementRecipe,
}
# The gateway keeps its own searches to one thread; training takes what the engine leaves.
SERVERS_OWN = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
LINES = {"say", "record", "kept", "computing", "finished", "error"}  # child.py
Line = dict[str, Any]
_logger = logging.getLogger("ryorin.fine_tuning")


class TrainingFailed(RyorinError):
    """The training process ended without a result."""


def recipe_of(wanted: FineTuning) -> Wanted:
    """
    The recipe of a request: its hyperparameters; what is "auto" is left to the rules of auto.py.

    batch_size counts rows. learning_rate_multiplier is of the method's default rate, compute_multiplier of the number
    of answers to a prompt.
    """
    kind = METHODS[wanted.method]
    given = {name: value for name, value in wanted.hyperparameters.items() if value != "auto"}
    values: dict[str, Any] = {"seed": wanted.seed}
    if "n_epochs" in given:
        values["epochs"] = given["n_epochs"]
    if "batch_size" in given:
        values["batch_rows"] = given["batch_size"]
    if "learning_rate_multiplier" in given:
        values["learning_rate"] = kind().learning_rate * given["learning_rate_multiplier"]
    if "compute_multiplier" in given:
        values["answers"] = max(2, round(ReinforcementRecipe.answers * given["compute_multiplier"]))
    if "keep_general" in given:
        values["keep_general"] = given["keep_general"]
    if "beta" in given:
        values["beta"] = given["beta"]
    return Wanted(kind, values)


class Events:
    """
    The events of a job, in order. What the database does not take now is written with the next: progress that cannot be
    told is no reason to end a training. Of a job that is another's by now nothing is told.
    """

    def __init__(self, catalog: Catalog, lease: Lease) -> None:
        self._catalog, self._lease = catalog, lease
        self._waiting: list[tuple[str, dict[str, Any] | None]] = []
        self._failed_at: float | None = None

    def add(self, message: str, data: dict[str, Any] | None = None) -> None:
        """Write an event, now or later. data: of a step or an epoch. Raises LeaseLost."""
        self._waiting.append((message, data))
        if self._failed_at is not None and time.monotonic() - self._failed_at < EVENTS_AGAIN_S:
            return
        try:
            with self._catalog.session() as session:
                self.write(session)
        except SQLAlchemyError as error:
            if self._failed_at is None:
                _logger.warning("job %s: its progress cannot be written now: %s", self._lease.job_id, error)
            self._failed_at = time.monotonic()
        else:
            self._waiting.clear()
            self._failed_at = None

    def write(self, session: Session) -> None:
        """Write what waits, with the session's transaction. Raises LeaseLost."""
        jobs.check(session, self._lease)
        for message, data in self._waiting:
            add_event(session, self._lease.tenant_id, self._lease.job_id, message, data=data)


class FineTune:
    """Handler of the jobs 'fine_tune'."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def run(self, work: Work) -> None:
        """Train; make the adapter, the release and the model's name known."""
        lease = work.lease
        wanted = FineTuning.from_json(lease.params)
        asked = self._asked(lease, wanted)
        events = Events(self._catalog, lease)
        events.add("Fine-tuning job started" if lease.attempt == 1 else "Fine-tuning job taken up again")
        finished = self._watch(work, asked, events)
        with self._catalog.session() as session:
            tenant = session.get_one(Tenant, lease.tenant_id)
            release = self._release(session, tenant, lease, wanted, finished["adapter"])
            name = model_name(wanted.base, tenant.name, wanted.suffix, lease.job_id)
            result = {**finished, "release_version": release.version, "fine_tuned_model": name}
            events.write(session)
            work.finish(session, result)
            add_event(session, lease.tenant_id, lease.job_id, f"New fine-tuned model created: {name}")
            add_event(
                session,
                lease.tenant_id,
                lease.job_id,
                f"It answers by its name and as {tenant.name}@{release.version}; 'ryorin release promote "
                f"{release.version} --tenant {tenant.name}' makes it the one that {tenant.name!r} names",
            )
            add_event(session, lease.tenant_id, lease.job_id, "The job has successfully completed")

    def failed(self, session: Session, lease: Lease, error: Exception) -> None:
        """Say why in the job and its events."""
        known = isinstance(error, RyorinError) and not isinstance(error, TrainingFailed)
        message = error.message if isinstance(error, RyorinError) else f"{type(error).__name__}: {error}"
        code = getattr(error, "code", None) if known else "server_error"
        shown = {"code": code or "invalid_request_error", "message": message, "param": getattr(error, "param", None)}
        session.get_one(Job, lease.job_id).result = {"error": shown}
        add_event(session, lease.tenant_id, lease.job_id, message, level="error")

    def _asked(self, lease: Lease, wanted: FineTuning) -> dict[str, Any]:
        """What the training process is told."""
        files = {}
        with self._catalog.session() as session:
            tenant = session.get_one(Tenant, lease.tenant_id)
            for role in ("training_file", "validation_file"):
                file_id = getattr(wanted, role)
                if file_id is not None:
                    try:
                        file = get_file(session, lease.tenant_id, file_id)
                    except NotFound:
                        raise InvalidInput(f"the file {file_id} is gone", code="file_not_found", param=role) from None
                    path = check_blob(self._catalog.settings.blobs_dir, file.sha256)
                    files[role] = {"path": str(path), "name": file.filename}
        return {"job_id": lease.job_id, "tenant": tenant.name, "params": lease.params, "files": files}

    def _watch(self, work: Work, asked: dict[str, Any], events: Events) -> dict[str, Any]:
        """Run the training process, tell what it tells, and end it when the job is no longer ours."""
        started, last = time.time(), 0.0
        first: int | None = None
        end: Line | None = None
        kept = self._kept(work.lease)
        with _child(self._catalog, asked, work.foreground) as lines:
            while True:
                work.check()
                try:
                    line = lines.get(timeout=LOOK_S)
                except queue.Empty:
                    continue
                if "exit" in line:
                    return _ended(end, line["exit"])
                if "finished" in line or "error" in line:
                    end = line
                    continue
                if "say" in line:
                    events.add(line["say"])
                    continue
                if "kept" in line:
                    if line["kept"] > kept:  # further than any attempt before
                        kept = line["kept"]
                        work.progress = {**(work.progress or {}), "kept": kept}
                        self._renew(work)
                    continue
                values = line["record"]
                step, steps = values["step"], values["steps"]
                first = step - 1 if first is None else first
                left = (time.time() - started) / (step - first) * (steps - step) if step > first else 0.0
                finish = round(time.time() + left)
                work.progress = {"step": step, "steps": steps, "estimated_finish": finish, "kept": kept}
                if "epoch" in values or step == steps or time.time() - last >= METRICS_S:
                    last = time.time()
                    events.add(_told(values), values)

    def _release(
        self, session: Session, tenant: Tenant, lease: Lease, wanted: FineTuning, adapter_name: str
    ) -> Release:
        """A release of the new adapter; documents and retrieval are those of the live one, if there is one."""
        adapter = session.scalars(select(Adapter).where(Adapter.name == adapter_name)).one()
        prompt = get_prompt(session, tenant, adapter.prompt_digest)
        live = session.get(Release, tenant.live_release_id) if tenant.live_release_id else None
        stores: list[VectorStore] = []
        if live is not None:
            stores = [session.get_one(VectorStore, store_id) for store_id in live.store_ids]
        return create_release(
            session,
            tenant,
            base_digest=adapter.base_digest,
            prompt=prompt,
            adapter=adapter,
            stores=stores,
            retrieval=None if live is None else Retrieval.stored(live.retrieval),
            note=f"{lease.job_id}, from {wanted.model}",
        )

    def _kept(self, lease: Lease) -> int:
        """The furthest checkpoint of the attempts before."""
        with self._catalog.session() as session:
            kept: int = (session.get_one(Job, lease.job_id).progress or {}).get("kept", 0)
        return kept

    def _renew(self, work: Work) -> None:
        try:
            with self._catalog.session() as session:
                work.renew(session)
        except SQLAlchemyError as error:  # the next checkpoint is another chance
            _logger.warning("job %s: its attempts cannot be counted anew now: %s", work.lease.job_id, error)


def fine_tune(catalog: Catalog) -> FineTune:
    """The handler, for `ryorin.worker.KINDS`."""
    return FineTune(catalog)


@contextlib.contextmanager
def _child(catalog: Catalog, asked: dict[str, Any], foreground: Foreground) -> Iterator[queue.Queue[Line]]:
    """
    The training process, and the lines that it writes; after the last {"exit": its return code}. It is ended with the
    block, and gives way to `foreground`.
    """
    settings = catalog.settings
    inherited = {name: value for name, value in os.environ.items() if name not in SERVERS_OWN}
    process = subprocess.Popen(
        [sys.executable, "-m", "ryorin_train.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C in a terminal is the worker's to hear
        env=inherited | {"RYORIN_HOME": str(settings.home), "RYORIN_DATABASE_URL": settings.database_url},
    )
    assert process.stdin is not None and process.stdout is not None
    lines: queue.Queue[Line] = queue.Queue()
    giving_way = GivingWay(process, foreground)
    reader = threading.Thread(target=_read, args=(process, lines, giving_way.may_stop), name="training", daemon=True)
    reader.start()
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
        with giving_way.watching():
            yield lines
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()


def _ended(line: Line | None, code: int) -> dict[str, Any]:
    """What the training process came to, by its last line and its return code."""
    if line is None and code == -signal.SIGKILL:
        raise TrainingFailed(
            "the training process was killed, as the kernel does when memory runs out; the machine's log may say so. "
            "Train shorter rows, a smaller base model, or on a machine with more memory"
        )
    if line is None:
        raise TrainingFailed(f"the training process ended with code {code} and no word; see its worker's log")
    if "error" in line:
        error = line["error"]
        kind = TrainingFailed if error["code"] == "server_error" else InvalidInput
        raise kind(error["message"], code=error["code"], param=error["param"])
    finished: dict[str, Any] = line["finished"]
    return finished


def _read(process: subprocess.Popen[str], lines: queue.Queue[Line], may_stop: threading.Event) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and line.keys() & LINES:  # what a library prints is no line of ours
                if line.get("computing"):
                    may_stop.set()
                elif "computing" in line:
                    may_stop.clear()
                else:
                    lines.put(line)
    lines.put({"exit": process.wait()})


def _told(values: dict[str, Any]) -> str:
    """A line of the loss curve in OpenAI's words."""
    if "train_reward" in values:
        told = f"train reward={values['train_reward']:.3f}"
    else:
        told = f"training loss={values.get('train_loss', values.get('mean_train_loss')):.2f}"
    words = f"Step {values['step']}/{values['steps']}: {told}"
    if "held_out_loss" in values:
        words += f", validation loss={values['held_out_loss']:.2f}"
    if "held_out_reward" in values:
        words += f", valid reward={values['held_out_reward']:.3f}"
    return words
