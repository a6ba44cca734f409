"""
From a caller and a request to what the engine is asked: the release is read once, passages are searched, the prompt is
rendered and cut to the context, by the code that training rows get their passages by (`ryorin_index.retrieve`,
`ryorin.window`). All of it blocks; the gateway calls it in a thread, short prompts without retrieval excepted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog
from ryorin.catalog.fine_tuning import finished_models, job_of_model
from ryorin.catalog.tables import Adapter, Release, Tenant, VectorStore
from ryorin.catalog.tables import Prompt as PromptRow
from ryorin.errors import Conflict, InvalidInput, NotFound
from ryorin.models.registry import BaseModel
from ryorin.prompt import Message, Prompt, follows_up
from ryorin.prompt_tokens import TokenCounter
from ryorin.release import Retrieval, check_present
from ryorin.window import assemble
from ryorin_index.retrieve import query_of, retrieve
from ryorin_index.search import Hit, Searcher
from ryorin_serve.auth import Caller
from ryorin_serve.chat import ChatRequest, Knowledge
from ryorin_serve.context import require_live
from ryorin_serve.layout import Layout
from ryorin_serve.options import ServeOptions
from ryorin_serve.tracing import Traces

_MODEL = re.compile(r"(?P<tenant>[a-z0-9-]{1,48})(?:@(?P<version>[1-9][0-9]{0,8}))?")


@dataclass(frozen=True)
class PinnedAdapter:
    """An adapter as the catalog knows it. digest: of its files, which the engine's are checked against."""

    name: str
    digest: str


@dataclass(frozen=True)
class PinnedRelease:
    """A release as a request holds it to its end, whatever is promoted meanwhile. adapter: none is the base alone."""

    id: str
    version: int
    created_at: float
    base_digest: str
    adapter: PinnedAdapter | None
    prompt: Prompt
    store_ids: tuple[str, ...]
    retrieval: Retrieval


@dataclass(frozen=True)
class Prepared:
    """
    What the engine is asked.

    hits: the passages in the prompt, in their order there; None when retrieval was off.
    query: what was searched for. prompt_tokens: by the gateway's own count. max_tokens: limit of the answer.
    part: of the tenant's traffic. passed: the canary that should have answered, and why it could not.
    shadow: what answers the request once more.
    """

    release: PinnedRelease
    messages: list[Message]
    hits: list[Hit] | None
    prompt_tokens: int
    max_tokens: int
    retrieval_ms: float
    part: str
    query: str = ""
    passed: Passed | None = None
    shadow: PinnedRelease | None = None


@dataclass(frozen=True)
class Passed:
    """A canary that was passed over."""

    release_id: str
    reason: str


def retrieves(release: PinnedRelease, request: ChatRequest) -> bool:
    """Whether passages are searched for, or the catalog is asked about stores that the request names."""
    return request.knowledge.store_ids is not None or _retrieval(release, request.knowledge)[0].enabled


def needs_rewriting(release: PinnedRelease, request: ChatRequest) -> bool:
    """Whether the release searches for the question as it is rewritten, and there is something to rewrite it by."""
    searches = release.retrieval.enabled and request.knowledge.top_k != 0
    return searches and release.retrieval.query == "rewritten" and follows_up(request.conversation)


class Preparer:
    """Prepares requests for one served base model. Safe to share between threads."""

    def __init__(
        self,
        catalog: Catalog,
        searcher: Searcher,
        counter: TokenCounter,
        base: BaseModel,
        options: ServeOptions,
        traces: Traces,
    ) -> None:
        self._traces = traces
        self._catalog = catalog
        self._searcher = searcher
        self._counter = counter
        self._base = base
        self._options = options
        self._layout = Layout()

    def prepare(
        self, caller: Caller, request: ChatRequest, release: PinnedRelease, part: str, rewritten: str | None = None
    ) -> Prepared:
        """
        Everything the engine needs for `request`, answered by `release`.

        rewritten: what is searched for in place of what was said last, by a release that wants it so.
        Raises Conflict when the release is for another base model, InvalidInput when the conversation does not fit into
        the context or a store that the request names has expired. (Of a release's stores such a one is left out.)
        """
        if release.base_digest != self._base.digest:
            raise Conflict(
                f"release {caller.tenant_name}@{release.version} is for base model {release.base_digest[:12]}, this "
                f"server runs {self._base.name} ({self._base.digest[:12]}); serve that base model, or create a release "
                "for this one",
                code="base_model_mismatch",
                param="model",
            )
        retrieval, store_ids = _retrieval(release, request.knowledge)
        if retrieval.top_k and not store_ids:
            raise InvalidInput(
                f"release {caller.tenant_name}@{release.version} has no vector store to retrieve from; "
                "leave 'retrieval' out",
                param="retrieval",
            )
        if request.knowledge.store_ids is not None:
            self._require_live(caller.tenant_id, store_ids)
        began = time.perf_counter()
        query = query_of(request.conversation, rewritten if needs_rewriting(release, request) else None)
        with self._traces.within("retrieve") if retrieval.enabled else nullcontext():
            hits = retrieve(self._catalog, self._searcher, caller.tenant_id, store_ids, query, retrieval)
        retrieval_ms = (time.perf_counter() - began) * 1000 if hits is not None else 0.0
        passages = None if hits is None else [hit.prompt_passage for hit in hits]
        made = assemble(
            release.prompt,
            request.conversation,
            passages,
            partial(self._counter.count, tools=request.sampling.get("tools")),
            self._options.window,
            request.max_tokens,
            self._arranging(release, hits),
        )
        return Prepared(
            release=release,
            messages=made.messages,
            hits=None if hits is None else [hits[place] for place in made.passages or ()],
            query=query,
            prompt_tokens=made.prompt_tokens,
            max_tokens=made.max_tokens,
            retrieval_ms=retrieval_ms,
            part=part,
        )

    def _arranging(self, release: PinnedRelease, hits: Sequence[Hit] | None) -> Callable[[int], list[int]] | None:
        if hits is None or release.retrieval.order != "shared":
            return None

        def arrange(kept: int) -> list[int]:
            ids = [hit.passage_id for hit in hits[:kept]]
            return self._layout.ordered(release.id, ids, [len(hit.text) for hit in hits[:kept]])

        return arrange

    def pin(self, caller: Caller, model: str) -> PinnedRelease:
        """
        The release that `model` names for this caller: `<tenant>` is the live one, `<tenant>@<version>` that version,
        `ft:…` the one that a fine-tuning job made.

        Raises NotFound in the same words for what does not exist and for what is another tenant's; Conflict when the
        release's adapter was deleted.
        """
        unknown = NotFound(
            f"The model {model!r} does not exist or you do not have access to it.",
            code="model_not_found",
            param="model",
        )
        named = _MODEL.fullmatch(model)
        with self._catalog.session() as session:
            job = job_of_model(session, caller.tenant_id, model)
            if job is not None and job.result is not None:
                named = _MODEL.fullmatch(f"{caller.tenant_name}@{job.result['release_version']}")
            if named is None or named["tenant"] != caller.tenant_name:
                raise unknown
            mine = select(Release).where(Release.tenant_id == caller.tenant_id)
            if named["version"]:
                release = session.scalar(mine.where(Release.version == int(named["version"])))
            else:
                live = select(Tenant.live_release_id).where(Tenant.id == caller.tenant_id).scalar_subquery()
                release = session.scalar(mine.where(Release.id == live))
                if release is None:
                    raise NotFound(
                        f"tenant {caller.tenant_name!r} has no live release; create and promote one with "
                        "'ryorin release'",
                        code="model_not_found",
                        param="model",
                    )
            if release is None:
                raise unknown
            return pinned(session, release)

    def models(self, caller: Caller) -> list[tuple[str, float]]:
        """The caller's models as (name, created at): the alias when a release is live, releases, fine-tuned ones."""
        with self._catalog.session() as session:
            tenant = session.get_one(Tenant, caller.tenant_id)
            releases = session.scalars(
                select(Release).where(Release.tenant_id == caller.tenant_id).order_by(Release.version.desc())
            ).all()
            tuned = finished_models(session, caller.tenant_id)
        models = [(f"{caller.tenant_name}@{release.version}", release.created_at) for release in releases]
        live = [release for release in releases if release.id == tenant.live_release_id]
        alias = [(caller.tenant_name, live[0].created_at)] if live else []
        return [*alias, *models, *tuned]

    def _require_live(self, tenant_id: str, store_ids: Sequence[str]) -> None:
        named = select(VectorStore).where(VectorStore.tenant_id == tenant_id, VectorStore.id.in_(store_ids))
        with self._catalog.session() as session:
            for store in session.scalars(named):
                require_live(store)


def _retrieval(release: PinnedRelease, said: Knowledge) -> tuple[Retrieval, tuple[str, ...]]:
    """How a request retrieves, and from where: as its release does, but for what the request says."""
    retrieval, store_ids = release.retrieval, release.store_ids
    if said.store_ids is not None:
        store_ids = said.store_ids
        if not retrieval.enabled:
            retrieval = Retrieval()
    if said.top_k is not None:
        retrieval = replace(retrieval, top_k=said.top_k)
    if said.ranking is not None:
        given = said.ranking
        retrieval = replace(
            retrieval,
            score_floor=given.score_floor,
            dense_weight=given.dense_weight,
            lexical_weight=given.lexical_weight,
        )
    if said.filters is not None:
        both = said.filters
        if retrieval.filters is not None:
            both = {"type": "and", "filters": [retrieval.filters, said.filters]}
        retrieval = replace(retrieval, filters=both)
    return retrieval, store_ids


def pinned(session: Session, release: Release) -> PinnedRelease:
    """A release with all that a request needs of it. Raises Conflict when its adapter was deleted."""
    prompt = session.get_one(PromptRow, release.prompt_id)
    adapter = session.get_one(Adapter, release.adapter_id) if release.adapter_id else None
    if adapter is not None:
        check_present(adapter, release)
    return PinnedRelease(
        id=release.id,
        version=release.version,
        created_at=release.created_at,
        base_digest=release.base_digest,
        adapter=PinnedAdapter(adapter.name, adapter.digest) if adapter else None,
        prompt=Prompt.from_spec(prompt.spec),
        store_ids=tuple(release.store_ids),
        retrieval=Retrieval.stored(release.retrieval),
    )
