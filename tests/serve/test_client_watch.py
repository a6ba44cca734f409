"""Seeing that a client leaves: what runs for it is cancelled, and other cancellations stay what they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ryorin_serve.turn import ClientGone, ClientWatch


class Client:
    """A request whose client leaves when it is told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, str]:
        await self.left.wait()
        return {"type": "http.disconnect"}


def with_client(work: Callable[[Client, ClientWatch], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        client = Client()
        watch = ClientWatch(client)  # type: ignore[arg-type]
        await asyncio.wait_for(work(client, watch), 5)
        watch.end()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing is left behind"

    asyncio.run(run())


def test_work_is_cancelled_when_the_client_leaves() -> None:
    async def work(client: Client, watch: ClientWatch) -> None:
        cancelled = False
        with pytest.raises(ClientGone), watch:
            asyncio.get_running_loop().call_soon(client.left.set)
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                cancelled = True
                raise
        assert cancelled
        with pytest.raises(ClientGone), watch:
            raise AssertionError("it is gone, nothing more is begun")
        await asyncio.sleep(0)  # the task itself goes on

    with_client(work)


def test_what_ends_in_time_is_not_disturbed() -> None:
    async def work(client: Client, watch: ClientWatch) -> None:
        for _ in range(3):
            with watch:
                await asyncio.sleep(0)
        client.left.set()
        await asyncio.sleep(0.01)  # nothing runs inside, so nothing is cancelled

    with_client(work)


def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def work(client: Client, watch: ClientWatch) -> None:
        async def inside() -> None:
            with watch:
                await asyncio.sleep(5)

        task = asyncio.create_task(inside())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        both = asyncio.create_task(inside())
        await asyncio.sleep(0)
        client.left.set()
        both.cancel()  # the server stops in the moment in which the client leaves
        with pytest.raises(asyncio.CancelledError):
            await both

    with_client(work)


def test_a_deadline_inside_is_its_own() -> None:
    async def work(_client: Client, watch: ClientWatch) -> None:
        with pytest.raises(TimeoutError), watch:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(5)
        with watch:
            await asyncio.sleep(0)

    with_client(work)


def test_an_error_of_the_work_is_told_though_the_client_left() -> None:
    async def work(client: Client, watch: ClientWatch) -> None:
        with pytest.raises(ValueError, match="at the end"), watch:
            asyncio.get_running_loop().call_soon(client.left.set)
            try:
                await asyncio.sleep(5)
            finally:
                raise ValueError("at the end")

    with_client(work)
