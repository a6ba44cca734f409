"""
Moving a tenant's traffic from one release to another, while gateways run.

A release is loaded before it gets traffic: each running gateway of its base model is asked to load it (the adapter into
the engine, the stores into memory) and says what became of it; then the tenant's row is changed, in one transaction. If
one of them cannot load it, or does not in time, nothing is changed and the error says why. Without a gateway that runs,
and for a tenant's first release, the row is changed at once. Requests in flight finish on the release they began with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.orm import Session

from ryorin.catalog import Catalog, gateways
from ryorin.catalog.tables import Gateway, Release, Tenant
from ryorin.catalog.tenants import get_tenant
from ryorin.errors import Conflict, Unavailable
from ryorin.release import (
    before_live,
    check_usable,
    ensure_release,
    get_release,
    live_release,
    promote,
    rollback,
)
from ryorin.release_parts import NONE, adapter_by_name, parts_like
from ryorin.settings import LOAD_WAIT_S
from ryorin.traffic import CANARY, LIVE, SHADOW, beside, check_beside, set_beside

LOOK_S = 0.1
NOT_LOADED = "release_not_loaded"


@dataclass(frozen=True)
class Moved:
    """What was done. version, share: of the part now; before: the version it had. gateways: how many loaded it."""

    tenant: str
    part: str
    version: int | None
    before: int | None
    changed: bool
    share: float | None = None
    gateways: int = 0


@dataclass(frozen=True)
class Arrangement:
    """
    How a tenant's traffic is to be parted. What is None stays; a canary or shadow is (version, share), or (None, None)
    to end it.
    """

    live: int | None = None
    canary: tuple[int | None, float | None] | None = None
    shadow: tuple[int | None, float | None] | None = None


def point(session: Session, tenant: Tenant, wish: Arrangement) -> None:
    """Change the tenant's row as wished. Raises as `promote` and `set_beside`."""
    if wish.live is not None:
        promote(session, tenant, get_release(session, tenant, wish.live))
    for part, wished in ((CANARY, wish.canary), (SHADOW, wish.shadow)):
        if wished is not None:
            version, share = wished
            set_beside(session, tenant, part, None if version is None else get_release(session, tenant, version), share)


class Rollout:
    """
    Promotes, rolls back, sets canary and shadow. Blocking.

    wait_s: how long the gateways may take; 0 changes the row at once and lets them load when the first request comes.
    on_progress: gets a line on what is waited for, and whether it is the last.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        wait_s: float = LOAD_WAIT_S,
        on_progress: Callable[[str, bool], None] = lambda _line, _finished: None,
    ) -> None:
        self._catalog = catalog
        self._wait_s = wait_s
        self._on_progress = on_progress

    def promote(self, tenant_name: str, version: int) -> Moved:
        """
        Make a release live.

        Raises NotFound when there is none, Conflict when it cannot be served, Unavailable when it is not loaded in
        time; nothing is changed then.
        """
        with self._catalog.session() as session:
            tenant = get_tenant(session, tenant_name)
            release = get_release(session, tenant, version)
            check_usable(session, tenant, release)
            already = tenant.live_release_id == release.id
        loaded = 0 if already else self._load(tenant, release, LIVE)
        with self._catalog.session() as session:
            promotion = promote(session, get_tenant(session, tenant_name), release)
            before = version if promotion is None else _version(session, promotion.previous_release_id)
        return Moved(tenant_name, LIVE, version, before, promotion is not None, gateways=loaded)

    def rollback(self, tenant_name: str) -> Moved:
        """
        Make the release live that was live before. Raises as `promote`, and Conflict when there is none or when
        somebody else moved the live release meanwhile.
        """
        with self._catalog.session() as session:
            tenant = get_tenant(session, tenant_name)
            release = before_live(session, tenant)
            check_usable(session, tenant, release)
        loaded = self._load(tenant, release, LIVE)
        with self._catalog.session() as session:
            promotion = rollback(session, get_tenant(session, tenant_name))
            if promotion.release_id != release.id:
                raise Conflict(
                    f"the live release of tenant {tenant_name!r} was changed by somebody else while release "
                    f"{release.version} was loaded; nothing was done, look at 'ryorin release list' and repeat"
                )
            before = _version(session, promotion.previous_release_id)
        return Moved(tenant_name, LIVE, release.version, before, True, gateways=loaded)

    def swap_adapter(
        self, tenant_name: str, adapter_name: str, *, note: str = "", allow_prompt_mismatch: bool = False
    ) -> Moved:
        """
        Make a release live that equals the live one but for its adapter ('none' for the base model alone).

        Such a release is made unless there is one. Raises NotFound when nothing is live or there is no such adapter,
        Conflict when it is for another base model or prompt, and as `promote`; a release that was made stays then.
        """
        with self._catalog.session() as session:
            tenant = get_tenant(session, tenant_name)
            adapter = None if adapter_name == NONE else adapter_by_name(session, tenant, adapter_name)
            release = ensure_release(
                session,
                tenant,
                **parts_like(session, live_release(session, tenant), adapter),
                note=note or f"adapter {adapter_name}",
                allow_prompt_mismatch=allow_prompt_mismatch,
            )
        return self.promote(tenant_name, release.version)

    def canary(self, tenant_name: str, version: int | None, share: float | None = None) -> Moved:
        """Give a release a share of the traffic; None ends the canary. Raises as `promote` and `set_beside`."""
        return self._beside(tenant_name, CANARY, version, share)

    def shadow(self, tenant_name: str, version: int | None, share: float | None = None) -> Moved:
        """Let a release answer a share of the requests unseen; None ends it. Raises as `promote` and `set_beside`."""
        return self._beside(tenant_name, SHADOW, version, share)

    def arrange(self, tenant_name: str, wish: Arrangement) -> None:
        """
        Move several parts of the traffic in one transaction, once all that is new in it is loaded: all of it or none.

        Raises as the single moves do.
        """
        with self._catalog.session() as session:
            tenant = get_tenant(session, tenant_name)
            pointed = {tenant.live_release_id, tenant.canary_release_id, tenant.shadow_release_id}
            wished = [
                (LIVE, wish.live),
                (CANARY, wish.canary and wish.canary[0]),
                (SHADOW, wish.shadow and wish.shadow[0]),
            ]
            new = [(part, get_release(session, tenant, version)) for part, version in wished if version is not None]
            for _, release in new:
                check_usable(session, tenant, release)
        for part, release in new:
            if release.id not in pointed:
                self._load(tenant, release, part)
        with self._catalog.session() as session:
            point(session, get_tenant(session, tenant_name), wish)

    def _beside(self, tenant_name: str, part: str, version: int | None, share: float | None) -> Moved:
        loaded, release = 0, None
        with self._catalog.session() as session:
            tenant = get_tenant(session, tenant_name)
            present, _ = beside(tenant, part)
            before = _version(session, present)
            if version is not None:
                release = get_release(session, tenant, version)
                check_beside(tenant, part, release, share or 0.0)
                check_usable(session, tenant, release)
        if release is not None and release.id != present:  # another share of the same needs no loading
            loaded = self._load(tenant, release, part)
        with self._catalog.session() as session:
            changed = set_beside(session, get_tenant(session, tenant_name), part, release, share)
        return Moved(tenant_name, part, version, before, changed, share if release else None, loaded)

    def _load(self, tenant: Tenant, release: Release, part: str) -> int:
        """Have the gateways load the release; how many did."""
        if not self._wait_s or tenant.live_release_id is None:  # a tenant's first release: nobody is served yet
            return 0
        with self._catalog.session() as session:
            running = gateways.running_gateways(session)
            fitting = {one.id: one for one in running if one.base_digest == release.base_digest}
            if running and not fitting:
                served = ", ".join(sorted({one.base_digest[:12] for one in running}))
                raise Conflict(
                    f"{_unchanged(tenant, release, part)}: it is for base model {release.base_digest[:12]}, and "
                    f"the running gateways serve {served}; start one "
                    "with 'ryorin serve --base', or do not ask them (--wait 0, or wait_s: 0 in a request)",
                    code=NOT_LOADED,
                )
            wished = gateways.wish(session, release, list(fitting))
        if not wished:
            return 0
        try:
            return self._watch(tenant, release, part, wished, fitting)
        finally:
            with self._catalog.session() as session:
                gateways.unwish(session, wished)

    def _watch(
        self, tenant: Tenant, release: Release, part: str, wished: list[str], fitting: dict[str, Gateway]
    ) -> int:
        began = time.monotonic()
        while True:
            with self._catalog.session() as session:
                rows = gateways.loads(session, wished)
                alive = {one.id for one in gateways.running_gateways(session)}
            for row in rows:
                if row.status == gateways.FAILED:
                    raise Conflict(
                        f"{_unchanged(tenant, release, part)}: {fitting[row.gateway_id].place} could not load it: "
                        f"{row.reason}",
                        code=NOT_LOADED,
                    )
            done = [row for row in rows if row.status == gateways.DONE]
            waiting = [row for row in rows if row.status == gateways.WANTED and row.gateway_id in alive]
            line = f"release {release.version} is loaded by {len(done)} of {len(done) + len(waiting)} gateways"
            self._on_progress(line, not waiting)
            if not waiting:
                return len(done)
            if time.monotonic() - began > self._wait_s:
                late = waiting[0]
                raise Unavailable(
                    f"{_unchanged(tenant, release, part)}: {fitting[late.gateway_id].place} did not load it "
                    f"within {self._wait_s:g} s ({late.reason or 'it does not say why'}); repeat it, "
                    "allow more time (--wait SECONDS, or wait_s in a request), or do not ask it (0)",
                    code=NOT_LOADED,
                )
            time.sleep(LOOK_S)


def _unchanged(tenant: Tenant, release: Release, part: str) -> str:
    return f"release {release.version} of tenant {tenant.name!r} was not made {part}, and nothing has changed"


def _version(session: Session, release_id: str | None) -> int | None:
    return session.get_one(Release, release_id).version if release_id else None
