"""
`/v1/fine_tuning/jobs`: asking for adapters and following how they are trained. A worker trains them.

A job that is paused is shown as queued, with an event that says so: OpenAI's statuses have no other word for it. Of a
job's epochs only the last one's model is kept, so a job that succeeded has one checkpoint.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson
from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ryorin.catalog import audit, jobs
from ryorin.catalog.files import get_file
from ryorin.catalog.fine_tuning import KIND, PREFIX, FineTuning, add_event, get_job
from ryorin.catalog.tables import Job, JobEvent, Tenant
from ryorin.catalog.tenants import current_prompt
from ryorin.errors import Conflict, InvalidInput, NotFound
from ryorin.graders import read_grader
from ryorin.models.registry import BaseModel
from ryorin.scopes import TRAIN
from ryorin.training import GENERAL_TEXTS
from ryorin_serve.auth import Caller, ScopedRoute
from ryorin_serve.context import Context
from ryorin_serve.paging import Page, list_object, read_page, rows_of
from ryorin_serve.prepare import Preparer
from ryorin_serve.requests import (
    caller_of,
    choice,
    fields_of,
    idempotent_id,
    integer,
    key_reused,
    pairs,
    path_id,
    query_of,
    read_json,
    shown_id,
    text,
)

JOBS = "/v1/fine_tuning/jobs"
JOB = f"{JOBS}/{{job_id}}"
FIELDS = (
    "model",
    "training_file",
    "validation_file",
    "suffix",
    "seed",
    "metadata",
    "integrations",
    "hyperparameters",
    "method",
)
KEEP_GENERAL = "keep_general"  # not OpenAI's
COMMON = ("batch_size", "learning_rate_multiplier", "n_epochs")
HYPERPARAMETERS = {
    "supervised": (*COMMON, KEEP_GENERAL),
    "dpo": (*COMMON, "beta"),
    "reinforcement": (*COMMON, "compute_multiplier"),
}
NOT_HERE = {  # of OpenAI's reinforcement, and why
    "eval_interval": "held-out prompts are graded before training and after each epoch",
    "eval_samples": "a held-out prompt is answered once, by the likeliest answer",
    "reasoning_effort": "the models here have no efforts",
}
DEFAULTED = (None, "auto", "default")
SUFFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_SEED = 2**31 - 1
FOLLOW_S = 0.5
LAST_EVENT = "Last-Event-ID"
LATE_S = 60.0  # an event is seen when its transaction ends, which may be after that of a later one


class FineTuningRoutes:
    """The handlers. base: the base model that this server runs; others could not answer here."""

    def __init__(self, context: Context, preparer: Preparer, base: BaseModel) -> None:
        self._context = context
        self._preparer = preparer
        self._base = base

    def routes(self) -> list[ScopedRoute]:
        """What is served."""
        return [
            ScopedRoute(JOBS, self.create, TRAIN, methods=["POST"]),
            ScopedRoute(JOBS, self.list, TRAIN),
            ScopedRoute(JOB, self.retrieve, TRAIN),
            ScopedRoute(f"{JOB}/cancel", self.cancel, TRAIN, methods=["POST"]),
            ScopedRoute(f"{JOB}/pause", self.pause, TRAIN, methods=["POST"]),
            ScopedRoute(f"{JOB}/resume", self.resume, TRAIN, methods=["POST"]),
            ScopedRoute(f"{JOB}/events", self.events, TRAIN),
            ScopedRoute(f"{JOB}/checkpoints", self.checkpoints, TRAIN),
        ]

    async def create(self, request: Request) -> Response:
        """Ask for an adapter."""
        query_of(request, ())
        body = fields_of(await read_json(request, self._context.options.max_body_bytes), FIELDS)
        shown = await self._context.in_thread(self._create, request, body)
        self._context.wake()
        return JSONResponse(shown)

    async def list(self, request: Request) -> Response:
        """The caller's jobs, the newest first."""
        page = read_page(request)
        return JSONResponse(await self._context.in_thread(self._list, caller_of(request), page))

    async def retrieve(self, request: Request) -> Response:
        """One job."""
        query_of(request, ())
        return JSONResponse(await self._context.in_thread(self._shown, request))

    async def cancel(self, request: Request) -> Response:
        """Give a job up."""
        return await self._move(request, "cancel", jobs.end, "The job was cancelled")

    async def pause(self, request: Request) -> Response:
        """Let a job rest; what was trained since its last checkpoint is trained again later."""
        return await self._move(request, "pause", jobs.pause, "The job was paused; /resume continues it")

    async def resume(self, request: Request) -> Response:
        """Continue a paused job."""
        response = await self._move(request, "resume", jobs.resume, "The job was resumed")
        self._context.wake()
        return response

    async def events(self, request: Request) -> Response:
        """
        What happened to a job, the newest first; with `stream=true` all of it as it happens, the oldest first.

        A stream that broke off goes on behind the event that the header Last-Event-ID names, as server-sent events do:
        https://html.spec.whatwg.org/multipage/server-sent-events.html#the-last-event-id-header
        """
        page = read_page(request, ("stream",))
        if choice(request.query_params.get("stream", "false"), "stream", ("true", "false")) == "true":
            since, told = await self._context.in_thread(self._told, request)
            return StreamingResponse(self._follow(request, since, told), media_type="text/event-stream")
        return JSONResponse(await self._context.in_thread(self._events, request, page))

    async def checkpoints(self, request: Request) -> Response:
        """The models that a job left: its last one."""
        read_page(request)
        return JSONResponse(await self._context.in_thread(self._checkpoints, request))

    def _create(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        caller = caller_of(request)
        job_id, keyed = idempotent_id(request, PREFIX)
        wanted = _wanted(body, self._base.name)
        with self._context.catalog.session() as session:
            known = session.get(Job, job_id) if keyed else None
        if known is not None:  # before anything is looked up that may have changed since
            _check_same(known, wanted)
            return job_object(known, caller.tenant_name)
        start_from = None if wanted.model == self._base.name else self._adapter(caller, wanted.model)
        with self._context.catalog.session() as session:
            for name in ("training_file", "validation_file"):
                if name == "training_file" or getattr(wanted, name) is not None:
                    _check_file(session, caller.tenant_id, getattr(wanted, name), name)
            wanted = replace(wanted, start_from=start_from, prompt_digest=_prompt_digest(session, caller))
            made = jobs.enqueue(
                session, caller.tenant_id, KIND, wanted.to_json(), key=job_id if keyed else None, job_id=job_id
            )
            job = session.get_one(Job, made)
            if keyed:  # the same request may have been here at the same time
                _check_same(job, wanted)
            if session.scalar(select(JobEvent.id).where(JobEvent.job_id == made).limit(1)) is None:
                add_event(session, caller.tenant_id, made, f"Created fine-tuning job: {made}")
                audit.note(session, caller.tenant_id, "job.create", made, method=wanted.method)
            return job_object(job, caller.tenant_name)

    def _adapter(self, caller: Caller, model: str) -> str:
        """The adapter of one of the caller's models, to begin with."""
        known = f"{self._base.name!r}, which this server runs, or a model of yours that has an adapter"
        try:
            adapter = self._preparer.pin(caller, model).adapter
        except NotFound:
            raise InvalidInput(f"model is {model!r}; use {known}.", code="model_not_found", param="model") from None
        if adapter is None:
            raise InvalidInput(f"model {model!r} has no adapter to go on from; use {known}.", param="model")
        return adapter.name

    def _list(self, caller: Caller, page: Page) -> dict[str, Any]:
        statement = select(Job).where(Job.tenant_id == caller.tenant_id, Job.kind == KIND)
        with self._context.catalog.session() as session:

            def find(job_id: str) -> tuple[float, str] | None:
                job = session.scalar(statement.where(Job.id == job_id.replace("\0", "?")))
                return None if job is None else (job.created_at, job.id)

            rows, more = rows_of(session, statement, Job.created_at, Job.id, page, find)
            return list_object([job_object(job, caller.tenant_name) for job in rows], more)

    def _shown(self, request: Request) -> dict[str, Any]:
        return job_object(self._job_of(request), caller_of(request).tenant_name)

    def _job_of(self, request: Request) -> Job:
        with self._context.catalog.session() as session:
            try:
                return get_job(session, caller_of(request).tenant_id, path_id(request, "job_id"))
            except NotFound as error:
                raise NotFound(
                    f"Could not find fine tune: {shown_id(request, 'job_id')}", code=error.code, param=error.param
                ) from None

    async def _move(self, request: Request, act: str, move: Callable[[Session, str, str], bool], said: str) -> Response:
        query_of(request, ())

        def moved() -> dict[str, Any]:
            job = self._job_of(request)
            with self._context.catalog.session() as session:
                if not move(session, job.tenant_id, job.id):
                    raise Conflict(f"Job {job.id} is {job.status}; that cannot be done to it now.", code="job_status")
                add_event(session, job.tenant_id, job.id, said)
                audit.note(session, job.tenant_id, f"job.{act}", job.id)
            return self._shown(request)

        return JSONResponse(await self._context.in_thread(moved))

    def _events(self, request: Request, page: Page) -> dict[str, Any]:
        job = self._job_of(request)
        statement = select(JobEvent).where(JobEvent.job_id == job.id)
        with self._context.catalog.session() as session:

            def find(event_id: str) -> tuple[float, str] | None:
                event = session.scalar(statement.where(JobEvent.id == event_id.replace("\0", "?")))
                return None if event is None else (event.created_at, event.id)

            rows, more = rows_of(session, statement, JobEvent.created_at, JobEvent.id, page, find)
            return list_object([event_object(event) for event in rows], more)

    def _told(self, request: Request) -> tuple[float, set[str]]:
        """From when on a stream looks for events, and which of those its reader has. Raises InvalidInput."""
        job = self._job_of(request)
        last = request.headers.get(LAST_EVENT)
        if not last:
            return 0.0, set()
        with self._context.catalog.session() as session:
            event = session.scalar(select(JobEvent).where(JobEvent.job_id == job.id, JobEvent.id == last))
            if event is None:
                raise InvalidInput(
                    f"{LAST_EVENT} is {last!r}; use the id of an event of {job.id}, or leave it out to hear all.",
                    param=LAST_EVENT,
                )
            since = event.created_at - LATE_S
            before = tuple_(JobEvent.created_at, JobEvent.id) <= (event.created_at, event.id)
            known = select(JobEvent.id).where(JobEvent.job_id == job.id, JobEvent.created_at >= since, before)
            return since, set(session.scalars(known))

    async def _follow(self, request: Request, since: float, told: set[str]) -> AsyncIterator[bytes]:
        over = False
        while not over:
            over, events = await self._context.in_thread(self._news, request, since)
            for event in events:
                if event.id not in told:
                    yield b"id: " + event.id.encode() + b"\ndata: " + orjson.dumps(event_object(event)) + b"\n\n"
            told = {event.id for event in events}
            if events:
                since = events[-1].created_at - LATE_S
            if not over:
                await asyncio.sleep(FOLLOW_S)
        yield b"data: [DONE]\n\n"

    def _news(self, request: Request, since: float) -> tuple[bool, Sequence[JobEvent]]:
        """Whether the job has ended, and its events from then on."""
        job = self._job_of(request)
        with self._context.catalog.session() as session:
            found = session.scalars(
                select(JobEvent)
                .where(JobEvent.job_id == job.id, JobEvent.created_at >= since)
                .order_by(JobEvent.created_at, JobEvent.id)
            ).all()
        return job.status in jobs.FINISHED, found

    def _checkpoints(self, request: Request) -> dict[str, Any]:
        job = self._job_of(request)
        if job.status != "succeeded" or job.result is None:
            return list_object([], has_more=False)
        with self._context.catalog.session() as session:
            newest = session.scalars(
                select(JobEvent)
                .where(JobEvent.job_id == job.id, JobEvent.type == "metrics")
                .order_by(JobEvent.created_at.desc(), JobEvent.id.desc())
            )
            last = next((event.data for event in newest if event.data and "epoch" in event.data), {})
        metrics = {
            "step": last.get("step"),
            "train_loss": last.get("mean_train_loss"),
            "full_valid_loss": last.get("held_out_loss"),
            "full_valid_mean_token_accuracy": last.get("held_out_token_accuracy"),
        }
        shown = {
            "id": f"ftckpt-{job.id.removeprefix(PREFIX)}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": int(job.finished_at or 0),
            "fine_tuned_model_checkpoint": job.result["fine_tuned_model"],
            "fine_tuning_job_id": job.id,
            "metrics": {name: value for name, value in metrics.items() if value is not None},
            "step_number": last.get("step", 0),
        }
        return list_object([shown], has_more=False)


def _wanted(body: dict[str, Any], base: str) -> FineTuning:
    """What a request asks for, but for what has to be looked up. Raises InvalidInput."""
    model = text(body, "model", 256)
    if not model:
        raise InvalidInput("model is missing: a base model, or one of yours to go on from.", param="model")
    if body.get("integrations"):
        raise InvalidInput("integrations are not supported here; leave them out.", param="integrations")
    method, hyperparameters, grader = _method(body)
    seed = body.get("seed")
    suffix = text(body, "suffix", 64)
    if suffix is not None and SUFFIX.fullmatch(suffix) is None:
        raise InvalidInput(
            f"suffix is {suffix!r}; use 1 to 64 letters, digits, dots, dashes and underscores.", param="suffix"
        )
    return FineTuning(
        model=model,
        base=base,
        training_file=text(body, "training_file", 64) or "",
        method=method,
        hyperparameters=hyperparameters,
        seed=0 if seed is None else integer(seed, "seed", 0, MAX_SEED),
        validation_file=text(body, "validation_file", 64),
        suffix=suffix,
        metadata=pairs(body, "metadata", strings_only=True),
        grader=grader,
    )


def _check_same(job: Job, wanted: FineTuning) -> None:
    """Raises InvalidInput when the job that was made with the same key is another one than is wanted now."""
    if not wanted.asks_the_same(FineTuning.from_json(job.params)):
        raise key_reused("job")


def _prompt_digest(session: Session, caller: Caller) -> str:
    """Of the prompt to train for. Raises InvalidInput when the tenant has none."""
    try:
        return current_prompt(session, session.get_one(Tenant, caller.tenant_id)).digest
    except NotFound as error:
        raise InvalidInput(f"There is nothing to train for: {error.message}.", code="prompt_missing") from None


def job_object(job: Job, tenant: str) -> dict[str, Any]:
    """A job as the API shows it."""
    wanted = FineTuning.from_json(job.params)
    result, progress = job.result or {}, job.progress or {}
    asked = {name: "auto" for name in HYPERPARAMETERS[wanted.method] if name != KEEP_GENERAL} | wanted.hyperparameters
    graded = {} if wanted.grader is None else {"grader": wanted.grader}
    shown: dict[str, Any] = {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created_at),
        "error": result.get("error") if job.status == "failed" else None,
        "fine_tuned_model": result.get("fine_tuned_model"),
        "finished_at": None if job.finished_at is None else int(job.finished_at),
        "hyperparameters": asked if wanted.method == "supervised" else {},
        "method": {"type": wanted.method, wanted.method: {"hyperparameters": asked} | graded},
        "model": wanted.model,
        "organization_id": tenant,
        "result_files": [],
        "seed": wanted.seed,
        "status": _status(job),
        "trained_tokens": result.get("trained_tokens"),
        "training_file": wanted.training_file,
        "validation_file": wanted.validation_file,
        "integrations": [],
        "metadata": wanted.metadata or {},
    }
    if job.status == "running" and "estimated_finish" in progress:
        shown["estimated_finish"] = progress["estimated_finish"]
    return shown


def event_object(event: JobEvent) -> dict[str, Any]:
    """An event as the API shows it."""
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": int(event.created_at),
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data or {},
    }


def _status(job: Job) -> str:
    if job.status == "paused":
        return "queued"
    return "validating_files" if job.status == "running" and not job.progress else job.status


def _method(body: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
    """
    The method, its hyperparameters, from `method` or, as older scripts send them, from the top, and the grader that
    reinforcement has. Raises InvalidInput.
    """
    given = body.get("method")
    if given is None:
        return "supervised", _hyperparameters(body.get("hyperparameters"), "supervised", "hyperparameters."), None
    if body.get("hyperparameters") is not None:
        raise InvalidInput("hyperparameters stand beside method; give them inside it alone.", param="hyperparameters")
    fields_of(given, ("type", "supervised", "dpo", "reinforcement"), "method.")
    kind = choice(given.get("type"), "method.type", tuple(HYPERPARAMETERS))
    others = [name for name in given if name not in ("type", kind) and given[name] is not None]
    if others:
        raise InvalidInput(f"method.{others[0]} does not belong to type {kind!r}.", param=f"method.{others[0]}")
    where = f"method.{kind}."
    is_graded = kind == "reinforcement"
    inner = fields_of(given.get(kind) or {}, ("hyperparameters", *(["grader"] if is_graded else [])), where)
    if is_graded:
        read_grader(inner.get("grader"), f"{where}grader")
    return kind, _hyperparameters(inner.get("hyperparameters"), kind, where + "hyperparameters."), inner.get("grader")


def _hyperparameters(value: Any, kind: str, where: str) -> dict[str, Any]:
    given = value or {}
    if kind == "reinforcement" and isinstance(given, dict):
        given = {name: each for name, each in given.items() if name not in NOT_HERE or each not in DEFAULTED}
        for name in NOT_HERE.keys() & given:
            raise InvalidInput(f"{where}{name} is not done here: {NOT_HERE[name]}; leave it out.", param=where + name)
    found = fields_of(given, HYPERPARAMETERS[kind], where)
    for name, each in found.items():
        if each == "auto":
            continue
        if name == KEEP_GENERAL:
            integer(each, where + name, 0, GENERAL_TEXTS)
        elif name in ("batch_size", "n_epochs"):
            integer(each, where + name, 1, 1000)
        elif isinstance(each, bool) or not isinstance(each, int | float) or not math.isfinite(each) or each <= 0:
            raise InvalidInput(f"{where}{name} is {each!r}; use a number above 0, or 'auto'.", param=where + name)
    return {name: each for name, each in found.items() if each != "auto"}


def _check_file(session: Session, tenant_id: str, file_id: str, param: str) -> None:
    """Raises InvalidInput when the tenant has no such file for fine-tuning."""
    if not file_id:
        raise InvalidInput(f"{param} is missing: the id of a file with purpose 'fine-tune'.", param=param)
    try:
        file = get_file(session, tenant_id, file_id)
    except NotFound:
        raise InvalidInput(f"file {file_id} does not exist.", code="file_not_found", param=param) from None
    if file.purpose != "fine-tune":
        raise InvalidInput(
            f"file {file_id} has purpose {file.purpose!r}; upload it with purpose 'fine-tune'.",
            code="invalid_file_purpose",
            param=param,
        )
    if file.status_details is not None:
        raise InvalidInput(
            f"file {file_id} cannot be learned from: {file.status_details}", code="invalid_training_file", param=param
        )
