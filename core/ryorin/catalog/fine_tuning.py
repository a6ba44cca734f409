"""
Fine-tuning jobs: what the API asks for, the worker trains and both tell of. Where serve and train meet.

A job's `params` is a `FineTuning`; its `progress` holds `step`, `steps`, `estimated_finish` and `kept`, the step of the
furthest checkpoint; its `result` after success `adapter`, `release_version`, `fine_tuned_model` and `trained_tokens`,
after failure `error` {code, message, param}. Its id ends the name of the model it makes:
`ft:<base>:<tenant>:<suffix>:<id>`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ryorin.catalog.clock import NowS
from ryorin.catalog.tables import Job, JobEvent
from ryorin.digests import new_id
from ryorin.errors import NotFound

KIND = "fine_tune"
PREFIX = "ftjob-"
_ID = re.compile(r"[A-Za-z0-9]{1,58}")
_TICK_S = 1e-6  # floats of today's Unix time differ by a quarter of it


@dataclass(frozen=True)
class FineTuning:
    """
    A request to train an adapter.

    model: as it was asked for; base: the base model's name; start_from: the adapter that training begins with.
    method: "supervised", "dpo" or "reinforcement", with `hyperparameters`, each a number or "auto". grader: of
    reinforcement, in JSON. suffix: of the model's name.
    training_file, validation_file: ids of the tenant's files; without the latter rows are held out of the former.
    prompt_digest: of the tenant's prompt that is trained for, the current one when the job was created; None in jobs of
    before it was kept.
    """

    model: str
    base: str
    training_file: str
    method: str = "supervised"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    start_from: str | None = None
    validation_file: str | None = None
    suffix: str | None = None
    metadata: dict[str, Any] | None = None
    prompt_digest: str | None = None
    grader: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is kept in the job's params."""
        return asdict(self)

    @classmethod
    def from_json(cls, params: dict[str, Any]) -> FineTuning:
        """The inverse."""
        return cls(**params)

    def asks_the_same(self, other: FineTuning) -> bool:
        """Whether both are the same request; what `model` and the tenant's prompt meant at the time may differ."""
        resolved: dict[str, Any] = {"base": "", "start_from": None, "prompt_digest": None}
        return replace(self, **resolved) == replace(other, **resolved)


def model_name(base: str, tenant: str, suffix: str | None, job_id: str) -> str:
    """What the model that a job makes is called."""
    return f"ft:{base}:{tenant}:{suffix or ''}:{job_id.removeprefix(PREFIX)}"


def job_of_model(session: Session, tenant_id: str, model: str) -> Job | None:
    """The tenant's job that made the model of this name."""
    end = model.rpartition(":")[2]
    job = session.get(Job, PREFIX + end) if model.startswith("ft:") and _ID.fullmatch(end) else None
    if job is None or job.tenant_id != tenant_id or (job.result or {}).get("fine_tuned_model") != model:
        return None
    return job


def get_job(session: Session, tenant_id: str, job_id: str) -> Job:
    """A fine-tuning job of the tenant. Raises NotFound in the same words for what does not exist and is another's."""
    job = session.scalar(select(Job).where(Job.tenant_id == tenant_id, Job.id == job_id, Job.kind == KIND))
    if job is None:
        raise NotFound(f"Could not find fine tune: {job_id}", code="fine_tune_not_found", param="fine_tuning_job_id")
    return job


def finished_models(session: Session, tenant_id: str) -> Sequence[tuple[str, float]]:
    """The tenant's fine-tuned models and when they were finished, the newest first."""
    jobs = session.scalars(
        select(Job)
        .where(Job.tenant_id == tenant_id, Job.kind == KIND, Job.status == "succeeded")
        .order_by(Job.finished_at.desc())
    )
    return [(job.result["fine_tuned_model"], job.finished_at or 0.0) for job in jobs if job.result]


def add_event(
    session: Session,
    tenant_id: str,
    job_id: str,
    message: str,
    *,
    level: str = "info",
    data: dict[str, Any] | None = None,
) -> None:
    """
    Append to what happened to the job. data: of a step or an epoch; the event is then one of metrics.

    Its time is the database's, and after that of every event that is there: the order is that of writing, whatever the
    clocks of the machines say.
    """
    newest = select(func.max(JobEvent.created_at)).where(JobEvent.job_id == job_id).scalar_subquery()
    now, last = session.execute(select(NowS(), newest)).one()
    session.add(
        JobEvent(
            id=new_id("ftevent-"),
            tenant_id=tenant_id,
            job_id=job_id,
            created_at=max(now, (last or 0.0) + _TICK_S),
            level=level,
            type="message" if data is None else "metrics",
            message=message,
            data=data,
        )
    )
