"""homeserver/federation_api/expensive_requests.py: no server keeps others, or our own users, waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from homeserver.errors import LimitExceeded
from homeserver.federation_api import expensive_requests
from homeserver.federation_api.expensive_requests import ExpensiveRequests
from homeserver.reading.shared_history import SharedHistory
from tests.fakes.servers import Servers
from tests.federation_api.asking import Asking, ask
from tests.waiting import WAIT_S

GREEDY, OTHER = "greedy.test", "other.test"


class Answering:
    """Requests that are answered when they are told to."""

    def __init__(self) -> None:
        self.expensive = ExpensiveRequests()
        self.begun: list[str] = []
        self.may_end = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def _answer(self, origin: str, may_wait: bool) -> None:
        async with self.expensive.turn(origin, may_wait_for_others=may_wait):
            self.begun.append(origin)
            await self.may_end.wait()

    async def ask(self, origin: str, count: int = 1, *, may_wait: bool = False) -> None:
        self.tasks += [asyncio.create_task(self._answer(origin, may_wait)) for _ in range(count)]
        for _ in range(5):
            await asyncio.sleep(0)

    async def end(self) -> None:
        self.may_end.set()
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*self.tasks)


def tell(story: Callable[[Answering], Awaitable[None]]) -> None:
    async def run() -> None:
        await story(Answering())

    asyncio.run(run())


def test_a_server_gets_a_few_turns_at_once_and_others_get_theirs() -> None:
    async def story(at: Answering) -> None:
        await at.ask(GREEDY, 20)
        assert at.begun == [GREEDY] * expensive_requests.AT_ONCE_PER_SERVER_MAX
        await at.ask(OTHER)
        assert at.begun[-1] == OTHER
        await at.end()
        assert at.begun.count(GREEDY) == 20

    tell(story)


def test_all_servers_together_get_so_many() -> None:
    async def story(at: Answering) -> None:
        for number in range(10):
            await at.ask(f"server{number}.test")
        assert len(at.begun) == expensive_requests.AT_ONCE_MAX
        # What waits for third servers itself does not wait for these, nor they for it.
        await at.ask(OTHER, 5, may_wait=True)
        assert at.begun.count(OTHER) == expensive_requests.AT_ONCE_PER_SERVER_MAX
        await at.end()
        assert len(at.begun) == 15

    tell(story)


def test_too_many_that_wait_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expensive_requests, "WAITING_PER_SERVER_MAX", 3)

    async def story(at: Answering) -> None:
        await at.ask(GREEDY, expensive_requests.AT_ONCE_PER_SERVER_MAX + 3)
        async with AsyncExitStack() as stack:
            with pytest.raises(LimitExceeded) as refusal:
                await stack.enter_async_context(at.expensive.turn(GREEDY))
            await stack.enter_async_context(at.expensive.turn(OTHER))
        assert refusal.value.status == 429
        # A request that is given up makes room.
        at.tasks.pop().cancel()
        await at.ask(GREEDY)
        await at.end()
        assert at.expensive._servers == {}

    tell(story)


METHODS = {
    "backfill": "backfill",
    "get_missing_events": "missing_events",
    "state": "state",
    "state_ids": "state_ids",
    "event_auth": "event_auth",
}
"""Endpoints, and what answers them."""


def test_the_endpoints_take_turns(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty expensive questions of a server at once are answered a few at a time; too many are refused."""
    monkeypatch.setattr(expensive_requests, "WAITING_PER_SERVER_MAX", 8)
    counts = {"now": 0, "most": 0}

    def counted(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def run(*args: Any, **options: Any) -> Any:
            counts["now"] += 1
            counts["most"] = max(counts["most"], counts["now"])
            try:
                for _ in range(1000):  # until all have come
                    await asyncio.sleep(0)
                return await method(*args, **options)
            finally:
                counts["now"] -= 1

        return run

    for name in METHODS.values():
        monkeypatch.setattr(SharedHistory, name, counted(getattr(SharedHistory, name)))

    async def story(at: Asking) -> None:
        room_id = await at.ours.room(at.alice)
        await at.join(room_id)
        event_id = await at.ours.send(at.alice, room_id)
        body = {"earliest_events": [], "latest_events": [event_id]}

        async def ask_one(endpoint: str) -> int:
            if endpoint == "get_missing_events":
                response = await at.post(body, endpoint, room_id)
            elif endpoint == "event_auth":
                response = await at.get(endpoint, room_id, event_id)
            else:
                response = await at.get(endpoint, room_id, query=f"event_id={event_id}&v={event_id}&limit=5")
            if response.status_code == 429:
                assert response.json()["errcode"] == "M_LIMIT_EXCEEDED"
            return response.status_code

        for endpoint in METHODS:
            counts["most"] = 0
            statuses = await asyncio.gather(*(ask_one(endpoint) for _ in range(20)))
            assert set(statuses) == {200, 429}, endpoint
            assert counts["most"] == expensive_requests.AT_ONCE_PER_SERVER_MAX, endpoint

    ask(servers, story)
