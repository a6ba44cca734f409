"""The queue of requests: bounds, turns between tenants, leaving."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ryorin.errors import Unavailable
from ryorin_serve.admission import FULL, LATE, Admission, Bounds, Place


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


async def moment() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_no_more_are_answered_than_may_be_and_the_others_wait_in_order() -> None:
    async def work() -> None:
        admission = Admission(Bounds(2, 10, 10))
        order: list[int] = []

        async def ask(number: int) -> Place:
            place = await admission.enter("support")
            order.append(number)
            return place

        tasks = [asyncio.create_task(ask(number)) for number in range(5)]
        await moment()
        assert (order, admission.running, admission.waiting) == ([0, 1], 2, 3)
        for number in range(5):
            place = await tasks[number]
            place.leave()
            place.leave()  # which does nothing
            await moment()
            assert admission.running <= 2
        assert (order, admission.running, admission.waiting) == ([0, 1, 2, 3, 4], 0, 0)

    run(work)


def test_tenants_take_turns_whatever_one_of_them_asks() -> None:
    async def work() -> None:
        admission = Admission(Bounds(1, 100, 10))
        order: list[str] = []

        async def ask(tenant: str) -> None:
            place = await admission.enter(tenant)
            order.append(tenant)
            await asyncio.sleep(0)
            place.leave()

        flood = [asyncio.create_task(ask("flood")) for _ in range(20)]
        await moment()
        others = [asyncio.create_task(ask(tenant)) for tenant in ("people", "people", "sales")]
        await asyncio.gather(*flood, *others)
        waited = order[order.index("people") :]
        assert order.index("people") <= 8 and order.index("sales") <= order.index("people") + 2
        assert waited[:6].count("people") == 2

    run(work)


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    async def work() -> None:
        admission = Admission(Bounds(1, 2, 10))
        await admission.enter("support")
        waiting = [asyncio.create_task(admission.enter("support")) for _ in range(2)]
        await moment()
        with pytest.raises(Unavailable, match="2 requests wait already") as caught:
            await admission.enter("support")
        assert (caught.value.code, caught.value.http_status) == (FULL, 503)
        assert 1 <= caught.value.retry_after_s <= 60
        assert admission.waiting == 2
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (admission.waiting, admission.running) == (0, 1)

    run(work)


def test_of_a_full_queue_the_newest_of_the_longest_gives_way() -> None:
    async def work() -> None:
        admission = Admission(Bounds(1, 4, 10))
        place = await admission.enter("flood")
        flood = [asyncio.create_task(admission.enter("flood")) for _ in range(4)]
        await moment()
        people = asyncio.create_task(admission.enter("people"))
        await moment()
        assert admission.waiting == 4 and flood[3].done() and not flood[2].done()
        with pytest.raises(Unavailable, match="most are of this tenant"):
            flood[3].result()
        second = asyncio.create_task(admission.enter("people"))  # 3 of flood, 1 of people: one more gives way
        await moment()
        assert flood[2].done() and not second.done()
        with pytest.raises(Unavailable, match="wait already"):  # 2 and 2: nobody has to
            await admission.enter("people")
        place.leave()
        (await flood[0]).leave()
        (await people).leave()
        (await flood[1]).leave()
        (await second).leave()
        assert (admission.waiting, admission.running) == (0, 0)

    run(work)


def test_whoever_waits_too_long_is_told_so_and_loses_nothing_for_others() -> None:
    async def work() -> None:
        waits: list[float] = []
        admission = Admission(Bounds(1, 10, 0.05), on_wait=waits.append)
        place = await admission.enter("support")
        with pytest.raises(Unavailable, match=r"No place was free for 0\.05 s") as caught:
            await admission.enter("support")
        assert caught.value.code == LATE and admission.waiting == 0
        place.leave()
        (await admission.enter("support")).leave()
        assert (admission.running, waits) == (0, [0.0, 0.0])

    run(work)


def test_who_leaves_as_he_is_called_passes_the_place_on() -> None:
    async def work() -> None:
        admission = Admission(Bounds(1, 10, 10))
        place = await admission.enter("support")
        first, second = (asyncio.create_task(admission.enter("support")) for _ in range(2))
        await moment()
        place.leave()  # the first is called, and goes before it hears of it
        first.cancel()
        await moment()
        assert second.done() and first.cancelled()
        second.result().leave()
        assert (admission.running, admission.waiting) == (0, 0)

    run(work)
