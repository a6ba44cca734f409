"""
What is asked: a release of the tenant, what stands beside it for comparison, and the server that answers.

Releases made here are never promoted. One is made only when the tenant has none of the same parts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ryorin.child_server import ChildServer
from ryorin.digests import digest_of
from ryorin.errors import InvalidInput
from ryorin.prompt import Prompt
from ryorin_train.judging.asking import Server

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ryorin.catalog import Catalog
    from ryorin.catalog.tables import Adapter, Release, Tenant, VectorStore

KEY_HOURS = 24
ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that an engine may be started for
WITHOUT_ADAPTER = "evaluation: the same without the adapter"
BASE_ABILITY = "evaluation: the base model, no prompt"
TUNED_ABILITY = "evaluation: the adapter, no prompt"


@dataclass(frozen=True)
class Target:
    """
    A release as it is judged.

    adapter: its name, or none. rank: of the adapter. state: digest of the release and of its stores' generations: what
    answers from documents depend on, as those without documents do on the release's own digest.
    """

    tenant_id: str
    tenant: str
    release_id: str
    version: int
    digest: str
    state: str
    base_digest: str
    adapter: str | None
    rank: int
    prompt: Prompt
    store_ids: tuple[str, ...]
    top_k: int
    retrieval: dict[str, Any]

    @property
    def model(self) -> str:
        """Its name in the API."""
        return f"{self.tenant}@{self.version}"

    @property
    def retrieves(self) -> bool:
        """Whether it looks for passages."""
        return self.top_k > 0 and bool(self.store_ids)


def load_target(session: Session, tenant: Tenant, version: int | None) -> Target:
    """The tenant's release of that version, or its live one. Raises NotFound."""
    from ryorin.release import get_release, live_release

    return _target(
        session, tenant, live_release(session, tenant) if version is None else get_release(session, tenant, version)
    )


def without_adapter(session: Session, tenant: Tenant, target: Target) -> Target:
    """The same release without its adapter; made when there is none."""
    from ryorin.catalog.tables import Prompt as PromptRow
    from ryorin.catalog.tables import Release
    from ryorin.release import Retrieval, ensure_release

    row = session.get_one(Release, target.release_id)
    made = ensure_release(
        session,
        tenant,
        base_digest=row.base_digest,
        prompt=session.get_one(PromptRow, row.prompt_id),
        adapter=None,
        stores=_stores(session, tenant, row.store_ids),
        retrieval=Retrieval.stored(row.retrieval),
        note=WITHOUT_ADAPTER,
    )
    return _target(session, tenant, made)


def ability_pair(session: Session, tenant: Tenant, target: Target) -> tuple[Target, Target]:
    """Base model and adapter, both without the tenant's prompt and documents, so that only the weights differ."""
    from ryorin.catalog.tables import Release
    from ryorin.catalog.tenants import keep_prompt
    from ryorin.release import Retrieval, ensure_release

    prompt = keep_prompt(session, tenant, Prompt(system=""))
    row = session.get_one(Release, target.release_id)
    pair = []
    for adapter, note in ((None, BASE_ABILITY), (_adapter(session, row), TUNED_ABILITY)):
        made = ensure_release(
            session,
            tenant,
            base_digest=row.base_digest,
            prompt=prompt,
            adapter=adapter,
            stores=[],
            retrieval=Retrieval(top_k=0),
            note=note,
        )
        pair.append(_target(session, tenant, made))
    return pair[0], pair[1]


@contextmanager
def serving(
    catalog: Catalog,
    targets: Sequence[Target],
    url: str | None,
    api_key_env: str | None,
    concurrency: int,
    say: Callable[[str], None],
) -> Iterator[Server]:
    """
    A server that answers for these releases: the one at `url`, or a `ryorin serve` started for it and ended after it.

    The key is the one in the environment variable `api_key_env`, or a fresh one of the tenant that ends with the run.
    Raises InvalidInput when the variable is not set, Unavailable when the server does not start.
    """
    with _key(catalog, targets[0], api_key_env) as key:
        if url is not None:
            yield Server(_base_url(url), key, concurrency)
            return
        with ChildServer(*_options(catalog, targets), say=say) as child:
            yield Server(child.url, key, concurrency)


def _base_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise InvalidInput(f"--url is {url!r}; it begins with http:// or https://", param="url")
    trimmed = url.rstrip("/")
    return trimmed if trimmed.endswith("/v1") else f"{trimmed}/v1"


def _options(catalog: Catalog, targets: Sequence[Target]) -> list[str]:
    from ryorin.models.registry import base_by_digest

    bases = {target.base_digest for target in targets}
    if len(bases) > 1:
        raise InvalidInput(
            "the two releases are of different base models, and a server runs one; start a server for each, and name "
            "it with --url: answers are kept, so the comparison then asks nothing anew",
            param="against",
        )
    rank = max(target.rank for target in targets)
    served = next(limit for limit in ADAPTER_RANKS if limit >= rank)
    return ["--port", "0", "--base", base_by_digest(catalog.settings, bases.pop()).name, "--max-lora-rank", str(served)]


@contextmanager
def _key(catalog: Catalog, target: Target, api_key_env: str | None) -> Iterator[str]:
    from ryorin.catalog.keys import issue_key, revoke_key
    from ryorin.catalog.tenants import get_tenant

    if api_key_env is not None:
        key = os.environ.get(api_key_env, "")
        if not key:
            raise InvalidInput(f"the variable {api_key_env} is not set; put the key into it", param="api_key_env")
        yield key
        return
    with catalog.session() as session:
        tenant = get_tenant(session, target.tenant)
        end = time.time() + KEY_HOURS * 3600
        row, secret = issue_key(session, tenant, catalog.settings.pepper(), "evaluation", end)
        key_id = row.id
    try:
        yield secret
    finally:
        with catalog.session() as session:
            revoke_key(session, get_tenant(session, target.tenant), key_id)


def _target(session: Session, tenant: Tenant, row: Release) -> Target:
    from ryorin.catalog.tables import Prompt as PromptRow

    adapter = _adapter(session, row)
    stores = _stores(session, tenant, row.store_ids)
    return Target(
        tenant_id=tenant.id,
        tenant=tenant.name,
        release_id=row.id,
        version=row.version,
        digest=row.digest,
        state=digest_of([row.digest, [[store.id, store.generation] for store in stores]]),
        base_digest=row.base_digest,
        adapter=adapter.name if adapter else None,
        rank=adapter.rank if adapter else ADAPTER_RANKS[0],
        prompt=Prompt.from_spec(session.get_one(PromptRow, row.prompt_id).spec),
        store_ids=tuple(row.store_ids),
        top_k=row.retrieval["top_k"],
        retrieval=row.retrieval,
    )


def _adapter(session: Session, row: Release) -> Adapter | None:
    from ryorin.catalog.tables import Adapter

    return session.get_one(Adapter, row.adapter_id) if row.adapter_id else None


def _stores(session: Session, tenant: Tenant, store_ids: Sequence[str]) -> list[VectorStore]:
    """The release's stores in its order. Raises NotFound for one that was deleted."""
    from sqlalchemy import select

    from ryorin.catalog.tables import VectorStore
    from ryorin.errors import NotFound

    mine = session.scalars(select(VectorStore).where(VectorStore.tenant_id == tenant.id, VectorStore.id.in_(store_ids)))
    found = {store.id: store for store in mine}
    for store_id in store_ids:
        if store_id not in found:
            raise NotFound(
                f"vector store {store_id} of the release is gone; create a release of the stores that are there with "
                f"'ryorin release create --tenant {tenant.name}'",
                param="release",
            )
    return [found[store_id] for store_id in store_ids]
