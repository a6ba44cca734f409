"""
How many requests are answered at once, and who waits: a bounded queue that is fair between tenants.

The engine batches what it gets, but each request takes memory and slows the others; what is too much should wait here,
where it costs nothing, or be told at once to come later. Of those who wait the tenants take turns, each with its oldest
request, so that a flood of one delays another by one request. When the queue is full, whoever's tenant has the longest
queue gives way: a newcomer of another tenant takes the place of that tenant's newest.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from ryorin.errors import Unavailable

FULL, LATE = "queue_full", "queue_timeout"
LEAST_RETRY_S, MOST_RETRY_S = 1.0, 60.0
_WEIGHT = 0.1  # of the newest in the mean of how long an answer takes


@dataclass(frozen=True)
class Bounds:
    """running: requests answered at once. waiting: that wait at most. wait_s: how long one waits at most."""

    running: int
    waiting: int
    wait_s: float


class Admission:
    """
    The queue. on_wait: told how long a request waited, in seconds.

    running, waiting: now.
    """

    def __init__(self, bounds: Bounds, on_wait: Callable[[float], None] = lambda seconds: None) -> None:
        self._bounds = bounds
        self._on_wait = on_wait
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # whose turn is next comes first
        self.running = 0
        self._answer_s = 1.0  # that an answer takes, in the mean

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._queues.values()))

    def free_place(self) -> Place | None:
        """A place among those that are answered, to be left; None when it has to be waited for."""
        if self.running >= self._bounds.running or self._queues:
            return None
        self.running += 1
        self._on_wait(0.0)
        return Place(self)

    async def enter(self, tenant_id: str) -> Place:
        """The same, once there is one. Raises Unavailable when there will be none soon."""
        place = self.free_place()
        if place is not None:
            return place
        if self.waiting >= self._bounds.waiting:
            self._make_room(tenant_id)
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(tenant_id, deque()).append(called)
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._bounds.wait_s):
                await called
        except TimeoutError:
            if called.done() and not called.cancelled() and called.exception() is None:
                self._leave()
            self._forget(tenant_id, called)
            raise self._refusal(LATE, f"No place was free for {self._bounds.wait_s:g} s") from None
        except BaseException:  # the client left, or it was sent away for another tenant's request
            if called.done() and not called.cancelled() and called.exception() is None:
                self._leave()
            self._forget(tenant_id, called)
            raise
        self._on_wait(time.monotonic() - began)
        return Place(self)

    def left(self, seconds: float) -> None:
        """A place is free; its request took so long."""
        self._answer_s += _WEIGHT * (seconds - self._answer_s)
        self._leave()

    def _leave(self) -> None:
        self.running -= 1
        while self._queues and self.running < self._bounds.running:
            tenant_id, queue = next(iter(self._queues.items()))
            called = queue.popleft()
            self._queues.move_to_end(tenant_id)
            if not queue:
                del self._queues[tenant_id]
            if not called.done():
                self.running += 1
                called.set_result(None)

    def _make_room(self, tenant_id: str) -> None:
        """Send the newest of the longest queue away, if that is another tenant's and longer. Raises Unavailable."""
        longest = max(self._queues, key=lambda each: len(self._queues[each]), default=tenant_id)
        mine = len(self._queues.get(tenant_id, ()))
        if longest == tenant_id or len(self._queues[longest]) <= mine + 1:
            raise self._refusal(FULL, f"{self.waiting} requests wait already, which is the limit")
        called = self._queues[longest].pop()
        if not called.done():
            why = f"{self._bounds.waiting} requests wait, which is the limit, and most are of this tenant"
            called.set_exception(self._refusal(FULL, why))

    def _forget(self, tenant_id: str, called: asyncio.Future[None]) -> None:
        queue = self._queues.get(tenant_id)
        if queue is not None and called in queue:
            queue.remove(called)
            if not queue:
                del self._queues[tenant_id]

    def _refusal(self, reason: str, why: str) -> Unavailable:
        ahead = self._answer_s * (self.waiting + 1) / self._bounds.running
        retry_s = min(max(ahead, LEAST_RETRY_S), MOST_RETRY_S)
        return Unavailable(f"The server is busy: {why}. Try again.", retry_after_s=retry_s, code=reason)


class Place:
    """A place among those that are answered. Leaving it twice does nothing."""

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission
        self._began = time.monotonic()

    def leave(self) -> None:
        """Give it to the next."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.left(time.monotonic() - self._began)
