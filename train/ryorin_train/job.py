"""
One run of supervised fine-tuning as a job: from a tenant and a file to an adapter in the catalog.

Everything is built in `<home>/jobs/<job id>/` and renamed into `<home>/adapters/` at the end, so an interrupted run
leaves no adapter. The same run again (tenant, base model, prompt, data, recipe, trainer version) is not trained again.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ryorin.digests import digest_of, new_id
from ryorin.errors import InvalidInput
from ryorin_train import TRAINER_VERSION
from ryorin_train.adapters import (
    adapter_digest,
    adapter_name,
    find_run,
    get_adapter,
    install,
    is_whole,
    write_manifest,
)
from ryorin_train.data import dataset_digest
from ryorin_train.datasets.formats import Reading, only_examples
from ryorin_train.datasets.groups import split_rows
from ryorin_train.datasets.store import add_dataset, open_data, purpose_of
from ryorin_train.recipe import Recipe
from ryorin_train.render import Renderer, load_tokenizer
from ryorin_train.sft import check_recipe, check_start, train

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ryorin.catalog import Catalog
    from ryorin.catalog.tables import Adapter
    from ryorin.models.registry import BaseModel
    from ryorin.purpose import Purpose

LOCK_FILE = "lock"
PACKAGES = ("torch", "transformers", "trl", "peft", "safetensors")


@dataclass(frozen=True)
class Finished:
    """What a run gave. reused: nothing was trained, an identical run had been. seconds: of this call."""

    adapter: str
    digest: str
    metrics: dict[str, float]
    reused: bool
    seconds: float
    job: str | None

    def as_json(self) -> dict[str, Any]:
        """The result of `ryorin train sft --json`."""
        return {
            "adapter": self.adapter,
            "digest": self.digest,
            "metrics": self.metrics,
            "reused": self.reused,
            "seconds": self.seconds,
            "job": self.job,
        }


def run_sft(
    catalog: Catalog,
    tenant_name: str,
    data: str,
    base_name: str | None,
    recipe: Recipe,
    say: Callable[[str], None],
    *,
    reading: Reading | None = None,
    purpose: Purpose | None = None,
    start_from: str | None = None,
    again: bool = False,
) -> Finished:
    """
    Train an adapter for the tenant's current prompt, or return the one that an identical run gave (unless `again`).

    data: a file or directory of examples, or the id or digest of a dataset of the tenant. reading: how a file is read.
    purpose: written beside the dataset, as `ryorin data purpose` does; what stands there goes into the manifest.
    start_from: the name of an adapter, of any tenant, whose weights are the first ones; its data shaped them.
    Raises NotFound for an unknown tenant, prompt, base model, adapter, file or dataset; RowError for lines that cannot
    be used; InvalidInput for a recipe that cannot be trained or served. All before anything is written or trained.
    """
    from ryorin.catalog.tables import Adapter
    from ryorin.catalog.tenants import current_prompt, get_tenant
    from ryorin.models.registry import DEFAULT_BASE, get_base
    from ryorin.prompt import Prompt

    began = time.monotonic()
    settings = catalog.settings
    with catalog.session() as session:
        tenant = get_tenant(session, tenant_name)
        prompt_row = current_prompt(session, tenant)
        prompt = Prompt.from_spec(prompt_row.spec)
    base = get_base(settings, base_name or DEFAULT_BASE)
    check_recipe(recipe, base.path)
    start = None if start_from is None else _start(catalog, start_from, base, recipe)
    given = open_data(catalog, tenant, data, reading)
    examples = only_examples(given.name, given.rows)
    run_digest = digest_of(
        {
            "trainer": TRAINER_VERSION,
            "kind": "sft",
            "tenant": tenant.id,
            "base": base.digest,
            "prompt": prompt_row.digest,
            "data": dataset_digest(examples),
            "recipe": recipe.spec(),
            "start": start.digest if start else None,
        }
    )
    if not again:
        with catalog.session() as session:
            known = find_run(session, settings, tenant, run_digest, base.digest)
        if known is not None:
            if purpose is not None:
                add_dataset(catalog, tenant, given.name, examples, given.lineage, purpose)
            say(f"{known.name} was trained with the same data and recipe; --again trains it anew")
            seconds = round(time.monotonic() - began, 1)
            return Finished(known.name, known.digest, known.manifest["metrics"], True, seconds, known.job_id)

    renderer = Renderer(load_tokenizer(base.path), prompt, recipe.max_row_tokens)
    rows = renderer.rows(given.name, examples)
    parted = split_rows(examples, recipe.held_out, recipe.seed)
    training, held_out = ([rows[number] for number in side] for side in (parted.training, parted.held_out))
    if recipe.held_out and not held_out:
        say("no row is held out: all belong to one group (near-duplicates, one passage or one source) or are too few")

    dataset, _ = add_dataset(catalog, tenant, given.name, examples, given.lineage, purpose)
    with catalog.session() as session:
        stated = purpose_of(session, dataset)
    params = {"base": base.name, "dataset": dataset.id, "recipe": recipe.spec(), "run_digest": run_digest}
    with _job(catalog, tenant.id, "sft", params) as (job_id, folder):
        build = folder / "adapter"
        build.mkdir()
        trained = train(
            base.path, training, held_out, recipe, build, say, settings.adapters_dir / start.name if start else None
        )
        digest = adapter_digest(build)
        name = adapter_name(tenant.name, digest)
        manifest = {
            "name": name,
            "digest": digest,
            "tenant": tenant.name,
            "kind": "sft",
            "base": {"name": base.name, "digest": base.digest},
            "start_from": {"name": start.name, "digest": start.digest} if start else None,
            "prompt_digest": prompt_row.digest,
            "data": {
                "digest": dataset.digest,
                "filename": given.name,
                "rows": len(examples),
                "trained": len(training),
                "held_out": len(held_out),
                "groups": parted.groups,
            },
            "purpose": stated.spec() if stated else None,
            "rank": recipe.rank,
            "alpha": recipe.alpha,
            "target_modules": sorted(recipe.targets),
            "recipe": recipe.spec(),
            "run_digest": run_digest,
            "metrics": trained.metrics,
            "tokens_per_s": trained.tokens_per_s,
            "train_seconds": trained.seconds,
            "versions": versions(),
            "created_at": round(time.time(), 3),
        }
        write_manifest(build, manifest)
        row = Adapter(
            id=new_id("ad_"),
            tenant_id=tenant.id,
            name=name,
            digest=digest,
            base_digest=base.digest,
            prompt_digest=prompt_row.digest,
            dataset_id=dataset.id,
            job_id=job_id,
            rank=recipe.rank,
            manifest=manifest,
        )
        _publish(catalog, build, row, job_id)
    seconds = round(time.monotonic() - began, 1)
    return Finished(name, digest, trained.metrics, False, seconds, job_id)


def _start(catalog: Catalog, name: str, base: BaseModel, recipe: Recipe) -> Adapter:
    """The adapter to start from. Raises NotFound, or InvalidInput when its base, shape or files are not right."""
    with catalog.session() as session:
        row, _ = get_adapter(session, name)
    if row.base_digest != base.digest:
        raise InvalidInput(
            f"{name} adapts base model {row.manifest['base']['name']} ({row.base_digest[:12]}), "
            f"this run {base.name} ({base.digest[:12]}); name its base with --base",
            param="start_from",
        )
    check_start(recipe, row.manifest["recipe"])
    if not is_whole(catalog.settings.adapters_dir / row.name, row.digest):
        raise InvalidInput(f"the files of {name} are damaged or gone; train it again with --again", param="start_from")
    return row


def versions() -> dict[str, str]:
    """The versions that made an adapter."""
    return {
        "ryorin_train": str(TRAINER_VERSION),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def _publish(catalog: Catalog, build: Path, row: Adapter, job_id: str) -> None:
    """
    Give the folder its name, then make it known. A folder that no row names in the end is taken away again.

    One process at a time: of two identical runs the second finds the first one's folder and row, or neither.
    """
    adapters_dir = catalog.settings.adapters_dir
    adapters_dir.mkdir(parents=True, exist_ok=True)
    with _alone_in(adapters_dir):
        try:
            install(build, adapters_dir, row.name)
            with catalog.session() as session:
                _record(session, row, job_id)
        except BaseException:
            if not _is_known(catalog, row.name):
                shutil.rmtree(adapters_dir / row.name, ignore_errors=True)
            raise


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_known(catalog: Catalog, name: str) -> bool:
    from sqlalchemy import select

    from ryorin.catalog.tables import Adapter

    with catalog.session() as session:
        return session.scalar(select(Adapter.id).where(Adapter.name == name)) is not None


def _record(session: Session, row: Adapter, job_id: str) -> None:
    """The adapter's row, unless training again gave the very same one, and the end of the job."""
    from sqlalchemy import select

    from ryorin.catalog.tables import Adapter

    if session.scalar(select(Adapter).where(Adapter.name == row.name)) is None:
        session.add(row)
    _finish(session, job_id, "succeeded", result={"adapter": row.name, "metrics": row.manifest["metrics"]})


@contextmanager
def _job(catalog: Catalog, tenant_id: str, kind: str, params: dict[str, Any]) -> Iterator[tuple[str, Path]]:
    """
    A job's row and its working folder. Ctrl-C makes the row `cancelled`, an error `failed`; the folder is gone after
    either. The block itself writes `succeeded`, in the transaction that makes its result known.
    """
    from ryorin.catalog.tables import Job

    clear_away_dead_jobs(catalog)
    job_id = new_id("job_")
    folder = catalog.settings.jobs_dir / job_id
    with catalog.session() as session:
        session.add(Job(id=job_id, tenant_id=tenant_id, kind=kind, params=params))
    try:
        folder.mkdir(parents=True)
        unlocked = folder / f"{LOCK_FILE}.new"
        with unlocked.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it when this process ends, however it ends
            unlocked.rename(folder / LOCK_FILE)  # only now: `clear_away_dead_jobs` looks for one that is not held
            yield job_id, folder
    except BaseException as error:
        cancelled = isinstance(error, KeyboardInterrupt)
        with catalog.session() as session:
            _finish(
                session,
                job_id,
                "cancelled" if cancelled else "failed",
                error="interrupted" if cancelled else f"{type(error).__name__}: {error}",
            )
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear_away_dead_jobs(catalog: Catalog) -> None:
    """Remove the working folders of jobs whose process was killed, and mark those jobs as failed."""
    from ryorin.catalog.tables import Job

    for path in catalog.settings.jobs_dir.glob(f"*/{LOCK_FILE}"):
        try:
            with path.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with catalog.session() as session:
                    job = session.get(Job, path.parent.name)
                    if job is not None and job.status == "running":
                        _finish(session, job.id, "failed", error="its process was killed")
                shutil.rmtree(path.parent, ignore_errors=True)
        except (BlockingIOError, FileNotFoundError):  # it is at work, or another process has just cleared it away
            continue


def _finish(
    session: Session, job_id: str, status: str, *, result: dict[str, Any] | None = None, error: str | None = None
) -> None:
    from ryorin.catalog.tables import Job

    job = session.get_one(Job, job_id)
    job.status, job.result, job.error, job.finished_at = status, result, error, time.time()
