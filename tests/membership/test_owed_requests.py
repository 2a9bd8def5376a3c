"""homeserver/membership/owed_requests.py: a server that takes long keeps nobody else's requests waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from homeserver.membership.owed_requests import LEAVE, REQUESTS_AT_ONCE, REQUESTS_PER_SERVER, OwedRequests
from homeserver.protocol.json_types import JsonObject
from homeserver.storage import delivery as store
from homeserver.storage.database import Database
from tests.fakes.clock import FakeClock
from tests.waiting import WAIT_S

SLOW, QUICK = "slow.test", "quick.test"


class Others:
    """Other servers, of which one does not answer before it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answered: list[str] = []
        self.may_answer = asyncio.Event()
        self.changed = asyncio.Event()

    async def handshake(self, server_name: str, room_id: str, user_id: str, details: JsonObject) -> bool:
        self.asked.append(server_name)
        self.changed.set()
        if server_name == SLOW:
            await self.may_answer.wait()
        self.answered.append(server_name)
        self.changed.set()
        return True

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not is_so():
                self.changed.clear()
                await self.changed.wait()


def tell(database: Database, story: Callable[[OwedRequests, Others], Awaitable[None]]) -> None:
    async def run() -> None:
        owed, others = OwedRequests(database, FakeClock()), Others()
        await owed.start({LEAVE: others.handshake})
        try:
            await story(owed, others)
        finally:
            await owed.stop()

    asyncio.run(run())


def test_requests_do_not_wait_for_the_slowest_server(shared_database: Database) -> None:
    async def story(owed: OwedRequests, others: Others) -> None:
        for number in range(REQUESTS_AT_ONCE + 5):
            await owed.owe(LEAVE, f"!slow{number}:x", "@alice:ours.test", [SLOW], {})
        await others.until(lambda: others.asked.count(SLOW) == REQUESTS_PER_SERVER)
        for number in range(5):
            await owed.owe(LEAVE, f"!quick{number}:x", "@alice:ours.test", [QUICK], {})
            await others.until(lambda: others.answered.count(QUICK) == number + 1)  # noqa: B023 - awaited at once
        assert others.asked.count(SLOW) == REQUESTS_PER_SERVER
        others.may_answer.set()
        await others.until(lambda: others.answered.count(SLOW) == REQUESTS_AT_ONCE + 5)
        assert len(others.asked) == REQUESTS_AT_ONCE + 10  # each was asked once
        await asyncio.gather(*(task for _, task in owed._under_way.values()))

    tell(shared_database, story)
    assert shared_database.read_now(store.due_requests, 2**60, 100) == []


def test_what_is_under_way_at_a_stop_is_done_after_the_next_start(shared_database: Database) -> None:
    async def begin(owed: OwedRequests, others: Others) -> None:
        await owed.owe(LEAVE, "!left:x", "@alice:ours.test", [SLOW], {})
        await others.until(lambda: others.asked == [SLOW])

    async def end(owed: OwedRequests, others: Others) -> None:
        others.may_answer.set()
        await others.until(lambda: others.answered == [SLOW])

    tell(shared_database, begin)
    assert len(shared_database.read_now(store.due_requests, 2**60, 100)) == 1
    tell(shared_database, end)
