"""
The engines as one: which of them answers a request, and what happens when it does not.

An engine is chosen by what it holds and by how much it does. Each adapter (or tenant, for the base model alone) has an
order of the engines of its own, by rendezvous hashing, and takes the first that is not loaded above its share:
consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2016). So an adapter and its prefixes in the
cache stay on few engines, a tenant with much traffic spreads over as many as it needs, and an engine that comes or goes
moves no more than its own. One that failed to answer is passed over for `COOLDOWN_S`, while there is another.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Sequence
from hashlib import blake2b

import aiohttp

from ryorin.errors import Unavailable
from ryorin_serve.adapters import AdapterFiles, Adapters
from ryorin_serve.engine_handle import EngineHandle, state_of, unavailable
from ryorin_serve.relay import Upstream

LOAD_BOUND = 1.25  # of the mean load: what an engine may have before the next in the order is taken
COOLDOWN_S = 5.0


class Replica:
    """
    One engine, and what it holds and does.

    in_flight: requests that it answers for this gateway.
    """

    def __init__(self, number: int, engine: EngineHandle, http: aiohttp.ClientSession, files: AdapterFiles) -> None:
        self.name = str(number).encode()
        self.engine = engine
        self.upstream = Upstream(engine, http)
        self.adapters = Adapters(engine, http, files)
        self.in_flight = 0
        self._cool_until = float("-inf")

    @property
    def is_cooling(self) -> bool:
        """Whether it failed a moment ago."""
        return time.monotonic() < self._cool_until

    def failed(self) -> None:
        """It did not answer a request: others first."""
        self._cool_until = time.monotonic() + COOLDOWN_S


class Fleet:
    """All engines of this gateway; it is ready when one of them is."""

    def __init__(self, engines: Sequence[EngineHandle], http: aiohttp.ClientSession, files: AdapterFiles) -> None:
        self.engines = engines
        self._replicas = [Replica(number, engine, http, files) for number, engine in enumerate(engines)]

    def check(self) -> None:
        """Raise Unavailable unless an engine is ready."""
        if not self.ready:
            raise unavailable(f"The engine is {state_of(self.engines)}; try again.", *self.engines)

    def choose(self, key: str, without: Collection[Replica] = ()) -> Replica:
        """
        The engine that answers what belongs to `key`.

        Raises Unavailable when there is none but those of `without`, which have been tried.
        """
        able = [each for each in self.ready if each not in without]
        if not able:
            self.check()
            raise unavailable("The engine went away; try again.", *self.engines)
        able = [each for each in able if not each.is_cooling] or able
        if len(able) == 1:
            return able[0]
        share = math.ceil(LOAD_BOUND * (1 + sum(each.in_flight for each in able)) / len(able))
        order = sorted(able, key=lambda each: blake2b(key.encode(), digest_size=8, key=each.name).digest())
        return next(each for each in order if each.in_flight < share)

    async def ensure(self, name: str, digest: str) -> None:
        """Return when every engine that answers holds the adapter. Raises as `Adapters.ensure`."""
        self.check()
        loading = [replica.adapters.ensure(name, digest) for replica in self.ready]
        failures = [each for each in await asyncio.gather(*loading, return_exceptions=True) if each is not None]
        for failure in failures:  # an engine that went away meanwhile is no reason while others hold it
            if not isinstance(failure, Unavailable) or len(failures) == len(loading):
                raise failure

    async def let_go(self, keep: Collection[str]) -> None:
        """Unload adapters that nobody uses, as `Adapters.let_go`."""
        for replica in self.ready:
            await replica.adapters.let_go(keep)

    async def waiting(self) -> int:
        """How many requests wait in the engines that say so. Raises Unavailable when none does."""
        self.check()
        told = await asyncio.gather(*(each.upstream.waiting() for each in self.ready), return_exceptions=True)
        counts = [each for each in told if isinstance(each, int)]
        if not counts:
            raise next(each for each in told if isinstance(each, BaseException))
        return sum(counts)

    async def answers(self) -> bool:
        """Whether an engine is there; asked of the engines, not of who watches them."""
        return any(await asyncio.gather(*(each.adapters.healthy() for each in self.ready)))

    @property
    def ready(self) -> list[Replica]:
        """The engines that answer."""
        return [each for each in self._replicas if each.engine.state == "ready"]

    @property
    def lives(self) -> tuple[int, ...]:
        """Which life each engine that answers is in; what was loaded into another is lost."""
        return tuple(each.engine.generation if each.engine.state == "ready" else 0 for each in self._replicas)
