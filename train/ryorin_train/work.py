"""
Work that makes an adapter, as a job: a row in the catalog, and a folder `<home>/jobs/<job id>/` to build it in.

Whatever ends the work, the folder goes and the row says how it ended.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ryorin.digests import new_id

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ryorin.catalog import Catalog

LOCK_FILE = "lock"


@contextmanager
def job_folder(
    catalog: Catalog, tenant_id: str, kind: str, params: dict[str, Any], held: str | None = None
) -> Iterator[tuple[str, Path]]:
    """
    A job's row and its working folder. Ctrl-C makes the row `cancelled`, an error `failed`; the folder is gone after
    either. The block itself writes `succeeded`, in the transaction that makes its result known.

    held: a job whose row somebody else keeps; only the folder is made then.
    """
    from ryorin.catalog.tables import Job

    clear_away_dead_jobs(catalog)
    job_id = held or new_id("job_")
    folder = catalog.settings.jobs_dir / job_id
    if held is None:
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
        if held is not None:
            raise
        cancelled = isinstance(error, KeyboardInterrupt)
        with catalog.session() as session:
            finish(
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
                    if job is not None and job.status == "running" and job.lease_token is None:
                        finish(session, job.id, "failed", error="its process was killed")
                shutil.rmtree(path.parent, ignore_errors=True)
        except (BlockingIOError, FileNotFoundError):  # it is at work, or another process has just cleared it away
            continue


def finish(
    session: Session, job_id: str, status: str, *, result: dict[str, Any] | None = None, error: str | None = None
) -> None:
    """Write down how a job ended."""
    from ryorin.catalog.tables import Job

    job = session.get_one(Job, job_id)
    job.status, job.result, job.error, job.finished_at = status, result, error, time.time()
