"""What a file of `ryorin apply` speaks of, as the catalog has it: one side of the difference that is shown."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ryorin.catalog.tables import Prompt, Release, Source, Tenant, VectorStore
from ryorin.release_parts import NONE
from ryorin.release_view import prompt_text, release_rows
from ryorin.traffic import CANARY, SHADOW, shown_share
from ryorin_index.declared.file import TenantSaid


def state_of(session: Session, tenant: Tenant | None, said: TenantSaid, gone: Collection[str] = ()) -> str:
    """
    What the file speaks of, as the catalog has it, in YAML; empty when there is no such tenant.

    gone: ids of stores and sources that are about to go.
    """
    import yaml  # type: ignore[import-untyped]

    if tenant is None:
        return ""
    state: dict[str, Any] = {}
    if said.description is not None:
        state["description"] = tenant.description
    if said.prompt is not None:
        prompt = session.get(Prompt, tenant.prompt_id) if tenant.prompt_id else None
        state["prompt"] = prompt_text(prompt.spec).splitlines() if prompt else None
    stores = session.scalars(select(VectorStore).where(VectorStore.tenant_id == tenant.id).order_by(VectorStore.name))
    for store in stores:
        if store.name in said.stores and store.id not in gone:
            sources = session.scalars(select(Source).where(Source.store_id == store.id).order_by(Source.uri)).all()
            state.setdefault("stores", {})[store.name] = {
                "embedder": store.embedder,
                "cut": store.chunking,
                "sources": [{one.uri: one.options} for one in sources if one.id not in gone],
            }
    for part, wish, release_id, share in (
        ("release", said.release, tenant.live_release_id, None),
        (CANARY, said.canary, tenant.canary_release_id, tenant.canary_share),
        (SHADOW, said.shadow, tenant.shadow_release_id, tenant.shadow_share),
    ):
        if wish is None:
            continue
        release = session.get(Release, release_id) if release_id else None
        if release is None:
            state[part] = None
            continue
        row = release_rows(session, tenant, [release])[0]
        state[part] = {
            "version": row["version"],
            "adapter": row["adapter"] or NONE,
            "stores": row["stores"],
            "retrieval": {name: value for name, value in row["retrieval"].items() if value is not None},
            "prompt": row["prompt"][:12],
            "base": row["base"][:12],
            **({"share": shown_share(share)} if share else {}),
        }
    return str(yaml.safe_dump({tenant.name: state}, sort_keys=False, allow_unicode=True, width=120))


def left_alone_of(session: Session, tenant: Tenant | None, said: TenantSaid) -> list[str]:
    """What the tenant has that the file does not name."""
    if tenant is None:
        return []
    stores = session.scalars(select(VectorStore).where(VectorStore.tenant_id == tenant.id).order_by(VectorStore.name))
    found = [f"store {store.name}" for store in stores if store.name not in said.stores]
    for part, wish in ((CANARY, said.canary), (SHADOW, said.shadow)):
        if wish is None and getattr(tenant, f"{part}_release_id"):
            found.append(f"the {part}")
    return found
