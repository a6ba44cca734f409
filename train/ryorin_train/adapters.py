"""
Finished adapters: their folders and their rows in the catalog.

An adapter is a folder `<home>/adapters/<tenant>-<digest12>/`, never changed once it has its name: vLLM caches by name
and path. What the files are called and how they are digested is in `ryorin.adapter_files`. Trainer and server meet
there and in the catalog, nowhere else.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ryorin.adapter_files import MANIFEST_FILE, NAME, adapter_digest, is_whole
from ryorin.blobs import sync_path
from ryorin.digests import SHORT, new_id
from ryorin.errors import Conflict, InvalidInput, NotFound
from ryorin_train.work import finish

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ryorin.catalog import Catalog
    from ryorin.catalog.tables import Adapter, Tenant
    from ryorin.settings import Settings


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json, and push every file of the folder to the disk."""
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
    for path in folder.iterdir():
        sync_path(path)


def publish(
    catalog: Catalog,
    build: Path,
    manifest: dict[str, Any],
    tenant_id: str,
    job_id: str,
    *,
    dataset_id: str | None = None,
    ends_job: bool = True,
) -> Adapter:
    """
    Give a built folder its manifest and the name in it, make it known and end the job; returns the adapter's row.

    ends_job: false leaves the end of the job to whoever runs it.
    That is an earlier row when the very same adapter is there already. A deleted one comes back with what is new.
    A folder that no row names in the end is taken away again. One process at a time: of two that build the same
    adapter the second finds the first one's folder and row, or neither. Raises Conflict when the name, which has twelve
    digits of the digest, belongs to an adapter of another digest, or the same weights are bound to another base model.
    """
    from ryorin.catalog.tables import Adapter

    _write_manifest(build, manifest)
    row = Adapter(
        id=new_id("ad_"),
        tenant_id=tenant_id,
        name=manifest["name"],
        digest=manifest["digest"],
        base_digest=manifest["base"]["digest"],
        prompt_digest=manifest["prompt_digest"] or "",
        dataset_id=dataset_id,
        job_id=job_id,
        rank=manifest["rank"],
        manifest=manifest,
    )
    adapters_dir = catalog.settings.adapters_dir
    adapters_dir.mkdir(parents=True, exist_ok=True)
    with _alone_in(adapters_dir):
        with catalog.session() as session:
            known = _find(session, row.name)
        if known is not None and known.digest != row.digest:
            raise Conflict(
                f"another adapter has the name {row.name} already; delete that one, or train with another seed"
            )
        if known is not None and known.deleted_at is None and known.base_digest != row.base_digest:
            raise Conflict(
                f"the same weights are here as {row.name} for base model {known.base_digest[:SHORT]}, and are now to "
                f"be for {row.base_digest[:SHORT]}; delete that adapter first if it was bound to the wrong one"
            )
        try:
            _install(build, adapters_dir, row.name)
            with catalog.session() as session:
                return _record(session, row, job_id if ends_job else None)
        except BaseException:
            with catalog.session() as session:
                known = _find(session, row.name)
            if known is None or known.deleted_at is not None:
                shutil.rmtree(adapters_dir / row.name, ignore_errors=True)
            raise


@dataclass(frozen=True)
class Deleted:
    """What `delete_adapter` did. found: whether there was anything. row_kept: old releases still name it."""

    found: bool
    row_kept: bool = False
    freed_bytes: int = 0


def delete_adapter(catalog: Catalog, name: str, *, force: bool = False) -> Deleted:
    """
    Delete an adapter: first its row, then its files; broken off in between, the next call removes the files.

    force: also when releases name it that are not live; its row then stays, without files, and those releases can no
    longer be promoted. Raises Conflict when a release uses it and `force` is not given, or when a live one does.
    """
    from sqlalchemy import select

    from ryorin.catalog import audit
    from ryorin.catalog.tables import Release, Tenant
    from ryorin.catalog.tenants import lock_tenant

    adapters_dir = catalog.settings.adapters_dir
    if NAME.fullmatch(name) is None:
        raise InvalidInput(f"{name!r} is no adapter's name; 'ryorin adapter list' shows them", param="name")
    adapters_dir.mkdir(parents=True, exist_ok=True)
    with _alone_in(adapters_dir):
        row_kept = False
        with catalog.session() as session:
            row = _find(session, name)
            if row is not None:
                tenant = session.get_one(Tenant, row.tenant_id)
                lock_tenant(session, tenant)  # no release is made or promoted until this is done
                row = _find(session, name)  # again: another machine may have deleted it just now
            if row is not None and row.deleted_at is not None:
                row = None
            if row is not None:
                releases = session.scalars(
                    select(Release).where(Release.adapter_id == row.id).order_by(Release.version)
                )
                used = [(release.version, release.id == tenant.live_release_id) for release in releases]
                _refuse_used(name, tenant.name, used, force)
                audit.note(session, tenant.id, "adapter.delete", name)
                row_kept = bool(used)
                if row_kept:
                    row.deleted_at = time.time()
                else:
                    session.delete(row)
        folder = adapters_dir / name
        there = folder.is_dir() and not folder.is_symlink()
        freed = folder_bytes(folder) if there else 0
        if there:
            shutil.rmtree(folder)
            sync_path(adapters_dir)
    return Deleted(found=there or row is not None, row_kept=row_kept, freed_bytes=freed)


def _refuse_used(name: str, tenant: str, used: Sequence[tuple[int, bool]], force: bool) -> None:
    live = [version for version, is_live in used if is_live]
    if live:
        raise Conflict(
            f"{name} is in use: release {live[0]} of tenant {tenant} is live; promote another release first "
            f"(ryorin release promote VERSION --tenant {tenant})",
            param="name",
        )
    if used and not force:
        versions = ", ".join(str(version) for version, _ in used)
        raise Conflict(
            f"{name} is named by release{'s' if len(used) > 1 else ''} {versions} of tenant {tenant}, not live; "
            "--force deletes it all the same, and they can no longer be promoted or rolled back to",
            param="name",
        )


def folder_bytes(folder: Path) -> int:
    """The size of an adapter's files; 0 when they are gone."""
    return sum(path.lstat().st_size for path in folder.iterdir()) if folder.is_dir() else 0


def find_run(session: Session, settings: Settings, tenant: Tenant, run_digest: str, base_digest: str) -> Adapter | None:
    """The tenant's adapter that an identical run gave, if its files are still as they were; the newest of several."""
    from sqlalchemy import select

    from ryorin.catalog.tables import Adapter

    rows = session.scalars(
        select(Adapter)
        .where(Adapter.tenant_id == tenant.id, Adapter.base_digest == base_digest, Adapter.deleted_at.is_(None))
        .order_by(Adapter.created_at.desc())
    )
    for row in rows:
        if row.manifest.get("run_digest") == run_digest and is_whole(settings.adapters_dir / row.name, row.digest):
            return row
    return None


def list_adapters(session: Session, tenant: Tenant | None) -> Sequence[tuple[Adapter, str]]:
    """(adapter, tenant name), newest first; of one tenant, or of all. Without deleted ones."""
    from sqlalchemy import select

    from ryorin.catalog.tables import Adapter, Tenant

    query = select(Adapter, Tenant.name).join(Tenant, Adapter.tenant_id == Tenant.id)
    query = query.where(Adapter.deleted_at.is_(None))
    if tenant is not None:
        query = query.where(Adapter.tenant_id == tenant.id)
    return [(adapter, name) for adapter, name in session.execute(query.order_by(Adapter.created_at.desc()))]


def get_adapter(session: Session, name: str) -> tuple[Adapter, str]:
    """(adapter, tenant name) of an adapter by its name. Raises NotFound."""
    from sqlalchemy import select

    from ryorin.catalog.tables import Adapter, Tenant

    found = session.execute(
        select(Adapter, Tenant.name).join(Tenant, Adapter.tenant_id == Tenant.id).where(Adapter.name == name)
    ).first()
    if found is None:
        raise NotFound(f"no adapter {name!r}; 'ryorin adapter list' shows all", param="adapter")
    if found[0].deleted_at is not None:
        raise NotFound(f"adapter {name!r} was deleted; import or train it again", param="adapter")
    return found[0], found[1]


def whole_folder(settings: Settings, row: Adapter) -> Path:
    """The adapter's folder, its files checked against the digest. Raises InvalidInput when they are damaged or gone."""
    folder = settings.adapters_dir / row.name
    if not is_whole(folder, row.digest):
        raise InvalidInput(
            f"the files of {row.name} are damaged or gone; bring {folder} back from a copy, or train or import it again"
        )
    return folder


def releases_using(session: Session, adapter: Adapter) -> list[dict[str, Any]]:
    """The releases that name the adapter: version, live or not, and the evidence that let them pass, if any."""
    from sqlalchemy import select

    from ryorin.catalog.tables import Release, Tenant

    tenant = session.get_one(Tenant, adapter.tenant_id)
    rows = session.scalars(select(Release).where(Release.adapter_id == adapter.id).order_by(Release.version))
    return [
        {"version": row.version, "live": row.id == tenant.live_release_id, "evidence": row.evidence} for row in rows
    ]


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _find(session: Session, name: str) -> Adapter | None:
    from sqlalchemy import select

    from ryorin.catalog.tables import Adapter

    return session.scalar(select(Adapter).where(Adapter.name == name))


def _install(built: Path, adapters_dir: Path, name: str) -> None:
    """
    Move a built folder to its name, atomically. A whole one that is there already stays: its content is the same,
    since the name is made of the digest. A damaged one makes way.
    """
    target = adapters_dir / name
    digest = adapter_digest(built)
    if target.exists() and not is_whole(target, digest):
        os.rename(target, built.with_name("damaged"))  # goes with the job's folder
    if not target.exists():
        os.rename(built, target)
        sync_path(adapters_dir)


def _record(session: Session, row: Adapter, job_id: str | None) -> Adapter:
    """The adapter's row, unless the very same one has one that is not deleted, and the end of the job."""
    from ryorin.catalog import audit

    known = _find(session, row.name)
    if known is None or known.deleted_at is not None:
        audit.note(session, row.tenant_id, "adapter.create", row.name, kind=row.manifest["kind"], job=job_id)
    if known is None:
        session.add(row)
        known = row
    elif known.deleted_at is not None:
        known.deleted_at = None
        known.created_at = time.time()
        for field in ("base_digest", "prompt_digest", "dataset_id", "job_id", "manifest"):
            setattr(known, field, getattr(row, field))
    if job_id is not None:
        finish(session, job_id, "succeeded", result={"adapter": row.name, "metrics": row.manifest["metrics"]})
    return known
