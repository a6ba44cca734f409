"""
The release: base model, adapter, knowledge, prompt and retrieval, pinned and switched as one.

A release never changes. A tenant's row points to the live one: promoting and rolling back move that pointer and append
a line to the promotions. Requests read it once, when they come in, and finish on what they read. Beside it may stand a
canary and a shadow (`ryorin.traffic`), which end when they become live.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ryorin.adapter_files import check_answers
from ryorin.catalog import audit
from ryorin.catalog.tables import Adapter, Promotion, Prompt, Release, Tenant, VectorStore
from ryorin.catalog.tenants import lock_tenant
from ryorin.digests import SHORT, digest_of, new_id
from ryorin.errors import Conflict, InvalidInput, NotFound
from ryorin.filters import parse_filter

SEARCH_MODES = ("hybrid", "dense", "lexical")
CONTEXTS = ("passage", "neighbours", "section")
QUERIES = ("last", "rewritten")
ORDERS = ("relevance", "shared")
MAX_TOP_K = 50


@dataclass(frozen=True)
class Retrieval:
    """
    How a release finds passages.

    top_k: passages in the prompt at most; 0 turns retrieval off.
    score_floor: passages whose similarity (cosine, -1 to 1) is below it are left out; None keeps all.
    mode: by vectors (dense), by words (lexical), or by both (hybrid).
    dense_weight, lexical_weight: of the two lists in hybrid's reciprocal rank fusion.
    mmr: relevance against variety, 1 to 0 (maximal marginal relevance); None chooses by relevance alone.
    reranker: the folder of a cross-encoder that puts the best in a new order; None has none. reranker_digest: which
    model lies there; another one is refused when it is loaded. None, as in releases made before, takes whatever does.
    context: what of a passage's surroundings stands in the prompt: nothing more, its neighbours, or its section.
    filters: which documents are searched, in the grammar of OpenAI's vector stores; None searches all.
    query: what is searched for: the last thing the user said, or that rewritten by the base model so that it stands
    without the conversation before it.
    order: of the passages in the prompt: best first, or so that prompts begin alike and the engine's cache is of use.
    """

    top_k: int = 3
    score_floor: float | None = None
    mode: str = "hybrid"
    dense_weight: float = 1.0
    lexical_weight: float = 1.0
    mmr: float | None = None
    reranker: str | None = None
    reranker_digest: str | None = None
    context: str = "passage"
    filters: dict[str, Any] | None = None
    query: str = "last"
    order: str = "relevance"

    def __post_init__(self) -> None:
        if not 0 <= self.top_k <= MAX_TOP_K:
            raise InvalidInput(f"top_k is {self.top_k}; it must be 0 (no retrieval) to {MAX_TOP_K}", param="top_k")
        if self.score_floor is not None and not -1 <= self.score_floor <= 1:
            raise InvalidInput(f"score_floor is {self.score_floor}; it must be -1 to 1", param="score_floor")
        if self.mode not in SEARCH_MODES:
            raise InvalidInput(f"mode is {self.mode!r}; known: {', '.join(SEARCH_MODES)}", param="mode")
        if self.context not in CONTEXTS:
            raise InvalidInput(f"context is {self.context!r}; known: {', '.join(CONTEXTS)}", param="context")
        if self.query not in QUERIES:
            raise InvalidInput(f"query is {self.query!r}; known: {', '.join(QUERIES)}", param="query")
        if self.order not in ORDERS:
            raise InvalidInput(f"order is {self.order!r}; known: {', '.join(ORDERS)}", param="order")
        for name in ("dense_weight", "lexical_weight"):
            if not 0 <= getattr(self, name) <= 100:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be 0 to 100", param=name)
        if self.mode == "hybrid" and not self.dense_weight + self.lexical_weight > 0:
            raise InvalidInput("dense_weight and lexical_weight are both 0; nothing would be found", param="mode")
        if self.mmr is not None and not 0 <= self.mmr <= 1:
            raise InvalidInput(f"mmr is {self.mmr}; it must be 0 (variety) to 1 (relevance)", param="mmr")
        if self.filters is not None:
            parse_filter(self.filters)

    @classmethod
    def stored(cls, row: Mapping[str, Any]) -> Retrieval:
        """What a release's row says. A release made before there were modes searched by vectors, and goes on so."""
        return cls(**{"mode": "dense", **row})

    def spec(self) -> dict[str, Any]:
        """The JSON form that is stored and digested; fields that came later are left out where they change nothing."""
        later = {"query": Retrieval.query, "order": Retrieval.order}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}

    @property
    def enabled(self) -> bool:
        """Whether anything is retrieved at all."""
        return self.top_k > 0


def create_release(
    session: Session,
    tenant: Tenant,
    *,
    base_digest: str,
    prompt: Prompt,
    adapter: Adapter | None = None,
    stores: Sequence[VectorStore] = (),
    retrieval: Retrieval | None = None,
    evidence: dict[str, Any] | None = None,
    note: str = "",
    allow_prompt_mismatch: bool = False,
    release_id: str | None = None,
) -> Release:
    """
    A new release of the tenant, not yet live; its id is a new one unless given.

    Raises Conflict when the adapter was deleted, was trained on another base model, or for another prompt unless
    `allow_prompt_mismatch`; InvalidInput when a part belongs to another tenant, retrieval has no store, or the adapter
    is a reward model.
    """
    if retrieval is None:
        retrieval = Retrieval() if stores else Retrieval(top_k=0)
    parts: list[Prompt | Adapter | VectorStore] = [prompt, *stores]
    if adapter is not None:
        parts.append(adapter)
    for part in parts:
        if part.tenant_id != tenant.id:
            raise InvalidInput(f"{part.id} does not belong to tenant {tenant.name!r}")
    if retrieval.enabled and not stores:
        raise InvalidInput("retrieval is on but the release has no vector store; name one or set top_k to 0")
    if len({(store.embedder, store.dimensions) for store in stores}) > 1:
        raise InvalidInput("the stores of a release must share one embedder, or their scores cannot be compared")
    _check_fits(adapter, base_digest, prompt, allow_prompt_mismatch)
    lock_tenant(session, tenant)
    if adapter is not None:  # read anew: whoever deletes an adapter holds the tenant too
        here = select(Adapter.id).where(Adapter.id == adapter.id, Adapter.deleted_at.is_(None))
        if session.scalar(here) is None:
            raise Conflict(f"adapter {adapter.name} was deleted; choose another, or import or train it again")
    latest = session.scalar(select(func.max(Release.version)).where(Release.tenant_id == tenant.id)) or 0
    release = Release(
        id=release_id or new_id("rel_"),
        tenant_id=tenant.id,
        version=latest + 1,
        digest=release_digest(base_digest, prompt, adapter, stores, retrieval),
        base_digest=base_digest,
        adapter_id=adapter.id if adapter else None,
        prompt_id=prompt.id,
        store_ids=[store.id for store in stores],
        retrieval=retrieval.spec(),
        evidence=evidence,
        note=note,
    )
    session.add(release)
    session.flush()
    audit.note(session, tenant.id, "release.create", f"{tenant.name}@{release.version}", digest=release.digest[:SHORT])
    return release


def ensure_release(
    session: Session,
    tenant: Tenant,
    *,
    base_digest: str,
    prompt: Prompt,
    adapter: Adapter | None,
    stores: Sequence[VectorStore],
    retrieval: Retrieval,
    note: str,
    allow_prompt_mismatch: bool = True,
) -> Release:
    """
    The tenant's first release of exactly these parts, or a new one with this note; never promoted by it.

    An adapter of another prompt is taken unless told otherwise: evaluation asks what an adapter does away from home.
    Otherwise as `create_release`.
    """
    lock_tenant(session, tenant)
    digest = release_digest(base_digest, prompt, adapter, stores, retrieval)
    mine = select(Release).where(Release.tenant_id == tenant.id, Release.digest == digest)
    known = session.scalar(mine.order_by(Release.version).limit(1))
    if known is not None:
        _check_fits(adapter, base_digest, prompt, allow_prompt_mismatch)
    return known or create_release(
        session,
        tenant,
        base_digest=base_digest,
        prompt=prompt,
        adapter=adapter,
        stores=stores,
        retrieval=retrieval,
        note=note,
        allow_prompt_mismatch=allow_prompt_mismatch,
    )


def _check_fits(adapter: Adapter | None, base_digest: str, prompt: Prompt, allow_prompt_mismatch: bool) -> None:
    if adapter is None:
        return
    check_answers(adapter.name, adapter.manifest)
    if adapter.base_digest != base_digest:
        raise Conflict(
            f"adapter {adapter.name} was trained on base {adapter.base_digest[:12]}, "
            f"the release names {base_digest[:12]}; retrain it or choose its base"
        )
    if adapter.prompt_digest != prompt.digest and not allow_prompt_mismatch:
        trained = f"prompt {adapter.prompt_digest[:12]}" if adapter.prompt_digest else "a prompt that is not known"
        raise Conflict(
            f"adapter {adapter.name} was trained for {trained}, "
            f"the release names {prompt.digest[:12]}; retrain it, or pass --allow-prompt-mismatch"
        )


def release_digest(
    base_digest: str, prompt: Prompt, adapter: Adapter | None, stores: Sequence[VectorStore], retrieval: Retrieval
) -> str:
    """What names the parts of a release, whenever and with whatever note it was made."""
    return digest_of(
        {
            "base": base_digest,
            "adapter": adapter.digest if adapter else None,
            "prompt": prompt.digest,
            "stores": [store.id for store in stores],
            "retrieval": retrieval.spec(),
        }
    )


def record_evidence(session: Session, release: Release, evidence: dict[str, Any]) -> dict[str, Any] | None:
    """
    Keep what an evaluation found as the release's evidence; returns what stood there before.

    Evidence says something of a release and is no part of it: its digest stays, and a later evaluation may replace it.
    """
    before, release.evidence = release.evidence, evidence
    session.flush()
    return before


def get_release(session: Session, tenant: Tenant, version: int) -> Release:
    """A release of the tenant by its version. Raises NotFound."""
    query = select(Release).where(Release.tenant_id == tenant.id, Release.version == version)
    release = session.scalar(query) if 0 < version < 2**31 else None  # the column's range: SQLite's driver raises
    if release is None:
        raise NotFound(
            f"tenant {tenant.name!r} has no release {version}; 'ryorin release list --tenant {tenant.name}' shows them",
            param="version",
        )
    return release


def list_releases(session: Session, tenant: Tenant) -> Sequence[Release]:
    """The tenant's releases, newest first."""
    return session.scalars(select(Release).where(Release.tenant_id == tenant.id).order_by(Release.version.desc())).all()


def live_release(session: Session, tenant: Tenant) -> Release:
    """What the tenant answers with now. Raises NotFound when nothing was promoted."""
    release = session.get(Release, tenant.live_release_id) if tenant.live_release_id else None
    if release is None:
        raise NotFound(
            f"tenant {tenant.name!r} has no live release; create and promote one with 'ryorin release'",
            code="model_not_found",
            param="model",
        )
    return release


def promote(session: Session, tenant: Tenant, release: Release) -> Promotion | None:
    """
    Make `release` live; the next request uses it. None when it is live already, which changes nothing.

    Raises InvalidInput for another tenant's release, Conflict when its adapter was deleted.
    """
    check_own(tenant, release)
    lock_tenant(session, tenant)
    return None if tenant.live_release_id == release.id else _switch(session, tenant, release.id, "promote")


def rollback(session: Session, tenant: Tenant) -> Promotion:
    """
    Make the release live that was live before the present one was promoted; a second rollback goes further back.

    Raises Conflict when there is none, or when its adapter was deleted.
    """
    lock_tenant(session, tenant)
    return _switch(session, tenant, before_live(session, tenant).id, "rollback")


def before_live(session: Session, tenant: Tenant) -> Release:
    """The release that a rollback would make live. Raises Conflict when there is none."""
    depth = 0  # promotions undone by rollbacks that followed them
    history = session.scalars(select(Promotion).where(Promotion.tenant_id == tenant.id).order_by(Promotion.id.desc()))
    for line in history:
        if line.kind == "rollback":
            depth += 1
        elif depth:
            depth -= 1
        elif line.previous_release_id is None:
            break
        else:
            return session.get_one(Release, line.previous_release_id)
    raise Conflict(f"tenant {tenant.name!r} has no earlier live release to roll back to")


def check_present(adapter: Adapter, release: Release) -> None:
    """Raise Conflict when the release's adapter was deleted."""
    if adapter.deleted_at is not None:
        raise Conflict(
            f"release {release.version} needs adapter {adapter.name}, which was deleted; import or train it again, or "
            "choose another release",
            code="adapter_deleted",
            param="model",
        )


def check_own(tenant: Tenant, release: Release) -> None:
    """Raise InvalidInput when the release is another tenant's."""
    if release.tenant_id != tenant.id:
        raise InvalidInput(f"release {release.id} does not belong to tenant {tenant.name!r}")


def check_usable(session: Session, tenant: Tenant, release: Release) -> None:
    """Raise InvalidInput when the release is another tenant's, Conflict when its adapter was deleted."""
    check_own(tenant, release)
    if release.adapter_id is not None:
        check_present(session.get_one(Adapter, release.adapter_id, populate_existing=True), release)


def _switch(session: Session, tenant: Tenant, release_id: str, kind: str) -> Promotion:
    release = session.get_one(Release, release_id)
    check_usable(session, tenant, release)
    promotion = Promotion(
        tenant_id=tenant.id, release_id=release_id, previous_release_id=tenant.live_release_id, kind=kind
    )
    tenant.live_release_id = release_id
    if tenant.canary_release_id == release_id:
        tenant.canary_release_id = tenant.canary_share = None
    if tenant.shadow_release_id == release_id:
        tenant.shadow_release_id = tenant.shadow_share = None
    session.add(promotion)
    audit.note(session, tenant.id, f"release.{kind}", f"{tenant.name}@{release.version}")
    session.flush()
    return promotion
