"""
Rate limits and budgets: what callers may use, checked in memory, counted in the catalog.

Counting must cost a request nothing and hold across gateways. So each gateway counts in memory and, every `SAVE_S`
seconds, adds what is new to the catalog and reads back what all gateways counted. A limit is thus exceeded by no more
than what the other gateways let in within `SAVE_S`, and by requests that were in flight when it was reached: a request
that began is finished. A gateway that is killed forgets what it counted in its last `SAVE_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from calendar import timegm
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from ryorin.catalog import Catalog
from ryorin.catalog.usage import Limits, Used, add_usage, forget_minutes, minute_of, month_of, usage_of
from ryorin.errors import OverLimit
from ryorin_serve.auth import Caller
from ryorin_serve.errors import INSUFFICIENT_QUOTA

SAVE_S = 1.0
FORGET_EVERY_S = 600.0

_logger = logging.getLogger("ryorin.serve")


@dataclass(frozen=True)
class Budget:
    """One limit, as it stands for a caller. name: as OpenAI's headers say it, "requests" or "tokens"."""

    whose: str
    name: str
    per: str
    limit: int
    left: int
    reset_s: float

    def refusal(self) -> OverLimit:
        """What is said when nothing is left."""
        used = f"{self.whose} may use {self.limit:,} {self.name} a {self.per}, and they are used"
        if self.per == "month":
            return OverLimit(
                f"{used}. An administrator can raise the budget ('ryorin tenant limits'); it begins anew next month.",
                INSUFFICIENT_QUOTA,
                retry_after_s=self.reset_s,
                code=INSUFFICIENT_QUOTA,
            )
        return OverLimit(
            f"{used}. Try again in {math.ceil(self.reset_s)} s.",
            self.name,
            retry_after_s=self.reset_s,
            code="rate_limit_exceeded",
        )


class Quotas:
    """Lets requests in, and counts what they use. clock: Unix seconds."""

    def __init__(self, catalog: Catalog, clock: Callable[[], float] = time.time) -> None:
        self._catalog = catalog
        self._clock = clock
        self._known: dict[tuple[str, str], Used] = {}  # (key or tenant, window): by the catalog
        self._new: dict[tuple[str, str, str], Used] = {}  # (tenant, key, window): not in the catalog yet
        self._written: dict[tuple[str, str, str], Used] = {}  # being added to the catalog, and not in _known yet
        self._callers: dict[str, str] = {}  # key: its tenant, of those whose use is watched
        self._looked: set[str] = set()  # keys of which it is known what was used before
        self._saving = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._forgot_at = float("-inf")

    async def run(self) -> None:
        """Save and look, until it is cancelled."""
        while True:
            await asyncio.sleep(SAVE_S)
            await self.save()

    async def save(self) -> None:
        """Add what is new to the catalog, and read what all gateways counted. Keeps it for later when that fails."""
        async with self._saving:
            tenants = set(self._callers.values())
            if not self._new and not tenants:
                return
            self._written, self._new = self._new, {}
            try:
                await asyncio.to_thread(self._write, self._written)
            except Exception as error:
                _logger.warning("what was used cannot be counted in the catalog now: %s", error)
                for key, used in self._written.items():
                    self._new.setdefault(key, Used()).add(used)
                self._written = {}
                return
            try:
                self._known = await asyncio.to_thread(self._read, tenants)
            except Exception as error:
                _logger.warning("what was used cannot be read from the catalog now: %s", error)
                for (tenant, key_id, window), used in self._written.items():
                    for who in (tenant, key_id):
                        self._known.setdefault((who, window), Used()).add(used)
            self._written = {}

    async def admit(self, caller: Caller) -> dict[str, str]:
        """
        Let a request in and count it; the headers that tell what is left.

        Raises OverLimit, which says when there is more.
        """
        limited = caller.key_limits != Limits() or caller.tenant_limits != Limits()
        if not limited:
            self._count(caller, Used(requests=1))
            return {}
        if caller.key_id not in self._looked:
            async with self._looking:  # whoever comes meanwhile waits for it
                if caller.key_id not in self._looked:
                    self._callers[caller.key_id] = caller.tenant_id
                    await self.save()  # what was used before this gateway knew the key
                    self._looked.add(caller.key_id)
        budgets = list(self._budgets(caller))
        for budget in budgets:
            if budget.left <= 0:
                raise budget.refusal()
        self._count(caller, Used(requests=1))
        headers: dict[str, str] = {}
        for name in ("requests", "tokens"):
            of_name = [budget for budget in budgets if budget.name == name and budget.per == "minute"]
            if of_name:
                tightest = min(of_name, key=lambda budget: budget.left)
                left = tightest.left - (name == "requests")
                headers[f"x-ratelimit-limit-{name}"] = str(tightest.limit)
                headers[f"x-ratelimit-remaining-{name}"] = str(left)
                headers[f"x-ratelimit-reset-{name}"] = f"{math.ceil(tightest.reset_s)}s"
        return headers

    def count_tokens(self, caller: Caller, tokens: int) -> None:
        """Count what an answer used, its prompt too."""
        if tokens:
            self._count(caller, Used(tokens=tokens))

    def _count(self, caller: Caller, used: Used) -> None:
        now = self._clock()
        for window in (minute_of(now), month_of(now)):
            self._new.setdefault((caller.tenant_id, caller.key_id, window), Used()).add(used)

    def _budgets(self, caller: Caller) -> Iterator[Budget]:
        now = self._clock()
        minute, month = minute_of(now), month_of(now)
        to_minute = 60 - now % 60
        of_both = (
            (caller.key_limits, caller.key_id, "This key"),
            (caller.tenant_limits, caller.tenant_id, "The tenant"),
        )
        for limits, who, whose in of_both:
            in_minute = self._used(who, minute)
            for limit, name, used in (
                (limits.requests_per_minute, "requests", in_minute.requests),
                (limits.tokens_per_minute, "tokens", in_minute.tokens),
            ):
                if limit is not None:
                    yield Budget(whose, name, "minute", limit, limit - used, to_minute)
            if limits.tokens_per_month is not None:
                limit, used = limits.tokens_per_month, self._used(who, month).tokens
                yield Budget(whose, "tokens", "month", limit, limit - used, _to_next_month(now))

    def _used(self, who: str, window: str) -> Used:
        """By the catalog and what is not in it yet."""
        total = Used()
        total.add(self._known.get((who, window), Used()))
        for counted in (self._new, self._written):
            for (tenant, key, of), used in counted.items():
                if of == window and who in (tenant, key):
                    total.add(used)
        return total

    def _write(self, new: dict[tuple[str, str, str], Used]) -> None:
        now = self._clock()
        with self._catalog.session() as session:
            add_usage(session, ((tenant, key, window, used) for (tenant, key, window), used in new.items()))
            if now - self._forgot_at > FORGET_EVERY_S:
                forget_minutes(session, now)
                self._forgot_at = now

    def _read(self, tenants: set[str]) -> dict[tuple[str, str], Used]:
        now = self._clock()
        with self._catalog.session() as session:
            return usage_of(session, tenants, (minute_of(now), month_of(now))) if tenants else {}


@contextlib.asynccontextmanager
async def counting(quotas: Quotas) -> AsyncIterator[None]:
    """Inside, what is used is saved every while, and once more at the end."""
    task = asyncio.create_task(quotas.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await quotas.save()


def _to_next_month(now: float) -> float:
    year, month = time.gmtime(now)[:2]
    return timegm((year + month // 12, month % 12 + 1, 1, 0, 0, 0, 0, 0, 0)) - now
