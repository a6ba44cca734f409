"""
Making departments what a file says: what differs, and doing it.

What differs is found by doing it in a transaction that is undone: the plan and the deed are the same code. Of a tenant,
its documents' stores, its prompt and the releases that are missing are made in one transaction; then what gets traffic
is loaded and the traffic moved, in one transaction again (`ryorin.rollout`); last goes what the file says to remove.
What the file does not name is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Prompt, Release, Source, Tenant, VectorStore
from ryorin.catalog.tenants import create_tenant, keep_prompt, set_prompt
from ryorin.errors import Conflict
from ryorin.models import registry
from ryorin.models.folders import reranker_digest
from ryorin.prompt import Prompt as PromptValue
from ryorin.prompt_file import prompt_of, read_prompt_file
from ryorin.release import ensure_release, get_release, release_digest
from ryorin.release_parts import NONE, Wanted, find_parts
from ryorin.release_view import text_diff
from ryorin.rollout import Arrangement, Rollout, point
from ryorin.settings import Settings
from ryorin.traffic import CANARY, SHADOW, shown_share
from ryorin_index.chunking import make_chunking
from ryorin_index.declared.file import BesideSaid, FileSaid, PromptSaid, ReleaseSaid, SourceSaid, StoreSaid, TenantSaid
from ryorin_index.declared.state import left_alone_of, state_of
from ryorin_index.purge import check_releases, delete_store
from ryorin_index.source_rows import add_source, remove_source
from ryorin_index.sources import check_source
from ryorin_index.store import create_store


@dataclass(frozen=True)
class Plan:
    """
    What differs for a tenant. diff: a unified diff from what is to what the file says; steps: what is done about it.

    left_alone: what the catalog has and the file does not name.
    """

    tenant: str
    diff: str
    steps: list[str]
    left_alone: list[str]


@dataclass
class Made:
    """What the first transaction made, and what is left to do."""

    tenant: Tenant
    steps: list[str] = field(default_factory=list)
    arrangement: Arrangement = field(default_factory=Arrangement)
    sources: list[tuple[VectorStore, Source, bool]] = field(default_factory=list)  # to remove; whether documents stay
    stores: list[VectorStore] = field(default_factory=list)  # to remove


class _Undone(Exception):
    """Ends the transaction of a plan."""


class Applier:
    """
    Plans and applies a file. folder: where the file lies; its paths are relative to it. Blocking.

    Everything raises NotFound for an adapter, model or version that does not exist, Conflict for what cannot be changed
    in place, InvalidInput for a value that cannot be.
    """

    def __init__(self, catalog: Catalog, folder: Path) -> None:
        self._catalog = catalog
        self._settings: Settings = catalog.settings
        self._folder = folder

    def plan(self, said: FileSaid) -> list[Plan]:
        """What differs, tenant by tenant; nothing is written."""
        return [self._plan(name, tenant) for name, tenant in said.tenants.items()]

    def apply(self, said: FileSaid, rollout: Rollout, on_step: Callable[[str, str], None]) -> list[Plan]:
        """
        Make it so, tenant by tenant in the file's order; the plans of what was done.

        A tenant that fails ends it: the tenants before are done, and of that tenant what was live stays live.
        """
        done = []
        for name, tenant in said.tenants.items():
            plan = self._plan(name, tenant)
            done.append(plan)
            if not plan.steps:
                continue
            with self._catalog.session() as session:
                made = self._make(session, name, tenant)
            rollout.arrange(name, made.arrangement)
            for store, source, keep in made.sources:
                remove_source(self._catalog, store, source, keep_documents=keep)
            for store in made.stores:
                delete_store(self._catalog, store)
            for step in plan.steps:
                on_step(name, step)
        return done

    def _plan(self, name: str, said: TenantSaid) -> Plan:
        plan: Plan | None = None
        try:
            with self._catalog.session() as session:
                tenant = session.scalar(select(Tenant).where(Tenant.name == name))
                before = state_of(session, tenant, said)
                left_alone = left_alone_of(session, tenant, said)
                made = self._make(session, name, said)
                point(session, made.tenant, made.arrangement)
                for store in made.stores:
                    check_releases(session, store, force=False)
                gone = {source.id for _, source, _ in made.sources} | {store.id for store in made.stores}
                after = state_of(session, made.tenant, said, gone)
                diff = text_diff(before, after, f"{name} in the catalog", f"{name} in the file")
                plan = Plan(name, diff, made.steps, left_alone)
                raise _Undone
        except _Undone:
            assert plan is not None
            return plan

    def _make(self, session: Session, name: str, said: TenantSaid) -> Made:
        tenant = session.scalar(select(Tenant).where(Tenant.name == name))
        if tenant is None:
            made = Made(create_tenant(session, name, said.description or ""), ["create the tenant"])
        else:
            made = Made(tenant)
        if said.description is not None and made.tenant.description != said.description:
            made.tenant.description = said.description
            made.steps.append("change the description")
        prompt = self._own_prompt(session, made, said.prompt)
        for store_name, wish in said.stores.items():
            self._store(session, made, store_name, wish)
        self._traffic(session, made, said, prompt)
        for store, source, keep in made.sources:
            left = "; its documents stay" if keep else " and its documents"
            made.steps.append(f"remove the source {source.uri} of store {store.name}{left}")
        made.steps += [f"delete the store {store.name} and its documents" for store in made.stores]
        return made

    def _own_prompt(self, session: Session, made: Made, said: PromptSaid | None) -> Prompt | None:
        """The prompt that the file names, as the tenant's current one; None leaves it to the catalog."""
        if said is None:
            return None
        value = self._prompt_value(said)
        current = session.get(Prompt, made.tenant.prompt_id) if made.tenant.prompt_id else None
        if current is not None and current.digest == value.digest:
            return current
        made.steps.append(f"set the prompt {value.digest[:12]}")
        return set_prompt(session, made.tenant, value)

    def _prompt_value(self, said: PromptSaid) -> PromptValue:
        if said.file is not None:
            return read_prompt_file(self._folder / Path(said.file).expanduser())
        return prompt_of(said.system, said.answer_schema, "the file's prompt")

    def _store(self, session: Session, made: Made, name: str, said: StoreSaid) -> None:
        tenant = made.tenant
        store = session.scalar(select(VectorStore).where(VectorStore.tenant_id == tenant.id, VectorStore.name == name))
        if said.remove:
            made.stores += [store] if store is not None else []
            return
        chunking = make_chunking(said.max_tokens, said.overlap_tokens)
        if store is None:
            embedder = registry.get_embedder(self._settings, said.embedder or registry.DEFAULT_EMBEDDER)
            store = create_store(session, tenant, name, embedder, chunking)
            made.steps.append(f"create the store {name} with embedder {embedder.name}")
        elif said.embedder is not None and said.embedder != store.embedder:
            raise Conflict(
                f"store {name!r} of tenant {tenant.name!r} has embedder {store.embedder}, the file says "
                f"{said.embedder}; embed it anew with 'ryorin index embedder {name} {said.embedder} --tenant "
                f"{tenant.name}', or say {store.embedder}",
                param="embedder",
            )
        elif chunking is not None and chunking.to_json() != store.chunking:
            raise Conflict(
                f"store {name!r} of tenant {tenant.name!r} cuts by {store.chunking or 'the default'}, the file says "
                f"{chunking.to_json()}; how a store cuts is said when it is made: make another, or leave it out",
                param="max_tokens",
            )
        for source in said.sources:
            self._source(session, made, store, source)

    def _source(self, session: Session, made: Made, store: VectorStore, said: SourceSaid) -> None:
        uri = self._address(said.uri)
        if said.remove is not None and "://" not in uri and not Path(uri).is_dir():
            kind, address = said.kind or "folder", uri  # the folder may be gone already
        else:
            kind, address = check_source(uri, said.options, said.kind)
        known = session.scalar(
            select(Source).where(Source.store_id == store.id, Source.kind == kind, Source.uri == address)
        )
        if said.remove is not None:
            made.sources += [(store, known, said.remove == "keep-documents")] if known is not None else []
        elif known is None:
            add_source(session, store, uri, said.options, said.kind)
            made.steps.append(f"add the source {address} to store {store.name}")
        elif known.options != said.options:
            raise Conflict(
                f"source {address} of store {store.name!r} has the options {known.options}, the file says "
                f"{said.options}; to change them: 'ryorin index source remove {store.name} {known.id} --tenant "
                f"{made.tenant.name} --keep-documents', then apply the file",
                param="sources",
            )

    def _address(self, uri: str) -> str:
        """An address of the file; a path is relative to the file."""
        if "://" in uri or ":" in uri.partition("/")[0]:
            return uri
        return str((self._folder / Path(uri).expanduser()).resolve())

    def _traffic(self, session: Session, made: Made, said: TenantSaid, prompt: Prompt | None) -> None:
        tenant, names = made.tenant, [name for name, store in said.stores.items() if not store.remove]
        live: int | None = None
        if said.release is not None:
            release = self._release(session, made, said.release, names, prompt, tenant.live_release_id)
            if release.id != tenant.live_release_id:
                live = release.version
                made.steps.append(f"make release {live} live")
        beside: dict[str, tuple[int | None, float | None]] = {}
        for part, wish, default in ((CANARY, said.canary, None), (SHADOW, said.shadow, 1.0)):
            if wish is None:
                continue
            present = getattr(tenant, f"{part}_release_id"), getattr(tenant, f"{part}_share")
            if wish.ended:
                wanted: tuple[int | None, float | None] = (None, None)
                differs = present[0] is not None
                words = f"end the {part}"
            else:
                chosen = self._beside(session, made, said.release, wish, names, prompt, present[0])
                share = wish.share if wish.share is not None else default
                wanted, differs = (chosen.version, share), present != (chosen.id, share)
                words = f"make release {chosen.version} the {part} with {shown_share(share or 0)}"
            if differs:
                beside[part] = wanted
                made.steps.append(words)
        made.arrangement = Arrangement(live, beside.get(CANARY), beside.get(SHADOW))

    def _beside(
        self,
        session: Session,
        made: Made,
        release: ReleaseSaid | None,
        wish: BesideSaid,
        stores: list[str],
        prompt: Prompt | None,
        present: str | None,
    ) -> Release:
        if wish.version is not None:
            return get_release(session, made.tenant, wish.version)
        assert release is not None  # the file's own check
        differs = wish.parts
        if release.retrieval is not None and wish.retrieval is not None:
            changed = wish.retrieval.model_dump(exclude_none=True)
            differs["retrieval"] = release.retrieval.model_copy(update=changed)
        if wish.prompt is not None:
            prompt = keep_prompt(session, made.tenant, self._prompt_value(wish.prompt))
        return self._release(session, made, release.model_copy(update=differs), stores, prompt, present)

    def _release(
        self,
        session: Session,
        made: Made,
        said: ReleaseSaid,
        stores: list[str],
        prompt: Prompt | None,
        present: str | None,
    ) -> Release:
        """The release of these parts: what is pointed to at present, or another that is there, or a new one."""
        retrieval = said.retrieval.model_dump(exclude_none=True) if said.retrieval else {}
        if "reranker" in retrieval:
            folder = (self._folder / Path(retrieval["reranker"]).expanduser()).resolve()
            retrieval |= {"reranker": str(folder), "reranker_digest": reranker_digest(folder)}
        wanted = Wanted(
            adapter=said.adapter or NONE,
            stores=stores if said.stores is None else said.stores,
            retrieval=retrieval,
            base=said.base,
            allow_prompt_mismatch=bool(said.allow_prompt_mismatch),
        )
        parts = find_parts(session, self._settings, made.tenant, wanted, prompt=prompt)
        pointed = session.get(Release, present) if present else None
        if pointed is not None and pointed.digest == release_digest(**parts):
            return pointed
        before = {row.id for row in session.scalars(select(Release).where(Release.tenant_id == made.tenant.id))}
        release = ensure_release(
            session,
            made.tenant,
            **parts,
            note=said.note or "ryorin apply",
            allow_prompt_mismatch=wanted.allow_prompt_mismatch,
        )
        if release.id not in before:
            made.steps.append(f"create release {release.version}")
        return release


def plan_row(plan: Plan) -> dict[str, Any]:
    """As it is printed in JSON."""
    return {"drift": bool(plan.steps), **asdict(plan)}
