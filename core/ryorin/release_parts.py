"""From what people name (an adapter, stores, a base model, settings) to the parts of a release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from sqlalchemy import select
from sqlalchemy.orm import Session

from ryorin.catalog.tables import Adapter, Prompt, Release, Tenant, VectorStore
from ryorin.catalog.tenants import current_prompt
from ryorin.errors import InvalidInput, NotFound
from ryorin.models import registry
from ryorin.release import Retrieval
from ryorin.settings import Settings

LATEST, NONE = "latest", "none"
RETRIEVAL_TYPES: dict[str, tuple[type, ...]] = {
    "top_k": (int,),
    "score_floor": (float, int),
    "mode": (str,),
    "dense_weight": (float, int),
    "lexical_weight": (float, int),
    "mmr": (float, int),
    "reranker": (str,),
    "reranker_digest": (str,),
    "context": (str,),
    "filters": (dict,),
    "query": (str,),
    "order": (str,),
}


@dataclass(frozen=True)
class Wanted:
    """
    What a release is to be made of, by name.

    adapter: a name, 'latest' or 'none'; None takes the newest that fits the base and the prompt, if there is one.
    stores: names in order; None takes all of the tenant's. retrieval: the fields of `Retrieval` that are chosen.
    base: a base model's name; None takes the adapter's, or the bundled one.
    """

    adapter: str | None = None
    stores: Sequence[str] | None = None
    retrieval: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None
    allow_prompt_mismatch: bool = False


class Parts(TypedDict):
    """The arguments of `create_release` and `ensure_release`."""

    base_digest: str
    prompt: Prompt
    adapter: Adapter | None
    stores: Sequence[VectorStore]
    retrieval: Retrieval


def find_parts(
    session: Session,
    settings: Settings,
    tenant: Tenant,
    wanted: Wanted,
    *,
    prompt: Prompt | None = None,
    base_digest: str | None = None,
) -> Parts:
    """
    The parts that are wanted.

    prompt: in place of the tenant's current one. base_digest: in place of the bundled base model's.

    Raises NotFound for what does not exist, InvalidInput for a value of retrieval that cannot be.
    """
    prompt = prompt or current_prompt(session, tenant)
    adapter = None
    if wanted.adapter not in (None, LATEST, NONE):
        adapter = adapter_by_name(session, tenant, str(wanted.adapter))
    if adapter is not None and wanted.base is None:
        base_digest = adapter.base_digest
    elif wanted.base is not None or base_digest is None:
        base_digest = registry.get_base(settings, wanted.base or registry.DEFAULT_BASE).digest
    if wanted.adapter in (None, LATEST):
        digest = None if wanted.allow_prompt_mismatch else prompt.digest
        adapter = _newest_adapter(session, tenant, base_digest, digest, must_exist=wanted.adapter == LATEST)
    stores = stores_by_name(session, tenant, wanted.stores)
    chosen = {name: value for name, value in wanted.retrieval.items() if value is not None}
    for name, value in chosen.items():
        if name not in RETRIEVAL_TYPES:
            known = ", ".join(RETRIEVAL_TYPES)
            raise InvalidInput(f"retrieval has no {name!r}; known: {known}", param=f"retrieval.{name}")
        if isinstance(value, bool) or not isinstance(value, RETRIEVAL_TYPES[name]):
            words = " or ".join(kind.__name__ for kind in RETRIEVAL_TYPES[name])
            raise InvalidInput(f"retrieval.{name} is {value!r}; it must be {words}", param=f"retrieval.{name}")
    retrieval = Retrieval(**{"top_k": Retrieval.top_k if stores else 0, **chosen})
    return Parts(base_digest=base_digest, prompt=prompt, adapter=adapter, stores=stores, retrieval=retrieval)


def parts_like(session: Session, release: Release, adapter: Adapter | None) -> Parts:
    """The parts of a release with another adapter in it. Raises NotFound when a store is gone."""
    stores = {
        row.id: row for row in session.scalars(select(VectorStore).where(VectorStore.tenant_id == release.tenant_id))
    }
    for store_id in release.store_ids:
        if store_id not in stores:
            raise NotFound(f"release {release.version} needs vector store {store_id}, which was deleted", param="store")
    return Parts(
        base_digest=release.base_digest,
        prompt=session.get_one(Prompt, release.prompt_id),
        adapter=adapter,
        stores=[stores[store_id] for store_id in release.store_ids],
        retrieval=Retrieval.stored(release.retrieval),
    )


def adapter_by_name(session: Session, tenant: Tenant, name: str) -> Adapter:
    """The tenant's adapter of that name. Raises NotFound."""
    adapters = session.scalars(
        select(Adapter)
        .where(Adapter.tenant_id == tenant.id, Adapter.deleted_at.is_(None))
        .order_by(Adapter.created_at.desc())
    ).all()
    for adapter in adapters:
        if adapter.name == name:
            return adapter
    known = ", ".join(adapter.name for adapter in adapters) or "none yet"
    raise NotFound(f"tenant {tenant.name!r} has no adapter {name!r} (known: {known})", param="adapter")


def _newest_adapter(
    session: Session, tenant: Tenant, base_digest: str, prompt_digest: str | None, *, must_exist: bool
) -> Adapter | None:
    """The newest adapter of that base and prompt (any prompt when None)."""
    query = select(Adapter).where(
        Adapter.tenant_id == tenant.id, Adapter.base_digest == base_digest, Adapter.deleted_at.is_(None)
    )
    if prompt_digest is not None:
        query = query.where(Adapter.prompt_digest == prompt_digest)
    adapter = session.scalar(query.order_by(Adapter.created_at.desc(), Adapter.id).limit(1))
    if adapter is None and must_exist:
        raise NotFound(
            f"tenant {tenant.name!r} has no adapter that fits base {base_digest[:12]} and the current prompt; "
            f"train one with 'ryorin train sft --tenant {tenant.name} --data FILE.jsonl'",
            param="adapter",
        )
    return adapter


def stores_by_name(session: Session, tenant: Tenant, names: Sequence[str] | None) -> list[VectorStore]:
    """The named stores in the order given, or all of the tenant's by name when None. Raises NotFound."""
    stores = session.scalars(
        select(VectorStore).where(VectorStore.tenant_id == tenant.id).order_by(VectorStore.name)
    ).all()
    if names is None:
        return list(stores)
    by_name = {store.name: store for store in stores}
    for name in names:
        if name not in by_name:
            raise NotFound(
                f"tenant {tenant.name!r} has no vector store {name!r} (known: {', '.join(by_name) or 'none yet'}); "
                f"create it with 'ryorin index create {name} --tenant {tenant.name}'",
                param="store",
            )
    return [by_name[name] for name in dict.fromkeys(names)]
