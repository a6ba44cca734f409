"""
Finished adapters: digest, manifest, name, and their rows in the catalog.

An adapter is a folder `<home>/adapters/<tenant>-<digest12>/`, never changed once it has its name: vLLM caches by name
and path. Its digest is that of its weights and configuration without the base model's path, so it is the same on every
machine. Trainer and server meet here and in the catalog, nowhere else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ryorin.digests import SHORT, digest_of, sha256_file
from ryorin.errors import NotFound
from ryorin_train.servable import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ryorin.catalog.tables import Adapter, Tenant
    from ryorin.settings import Settings

MANIFEST_FILE = "manifest.json"


def adapter_digest(folder: Path) -> str:
    """Digest of an adapter's weights and configuration, wherever its base model lies and whichever PEFT wrote it."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    for field in ("base_model_name_or_path", "peft_version"):
        config.pop(field, None)
    return digest_of({"config": config, "weights": sha256_file(folder / WEIGHTS_FILE)})


def adapter_name(tenant_name: str, digest: str) -> str:
    """`<tenant>-<digest12>`."""
    return f"{tenant_name}-{digest[:SHORT]}"


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json, and push every file of the folder to the disk."""
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
    for path in folder.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def install(built: Path, adapters_dir: Path, name: str) -> Path:
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
        descriptor = os.open(adapters_dir, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return target


def find_run(session: Session, settings: Settings, tenant: Tenant, run_digest: str, base_digest: str) -> Adapter | None:
    """The tenant's adapter that an identical run gave, if its files are still as they were; the newest of several."""
    from sqlalchemy import select

    from ryorin.catalog.tables import Adapter

    rows = session.scalars(
        select(Adapter)
        .where(Adapter.tenant_id == tenant.id, Adapter.base_digest == base_digest)
        .order_by(Adapter.created_at.desc())
    )
    for row in rows:
        if row.manifest.get("run_digest") == run_digest and is_whole(settings.adapters_dir / row.name, row.digest):
            return row
    return None


def is_whole(folder: Path, digest: str) -> bool:
    """Whether the folder holds the adapter of this digest."""
    try:
        return adapter_digest(folder) == digest
    except (OSError, ValueError):
        return False


def list_adapters(session: Session, tenant: Tenant | None) -> Sequence[tuple[Adapter, str]]:
    """(adapter, tenant name), newest first; of one tenant, or of all."""
    from sqlalchemy import select

    from ryorin.catalog.tables import Adapter, Tenant

    query = select(Adapter, Tenant.name).join(Tenant, Adapter.tenant_id == Tenant.id)
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
    return found[0], found[1]
