"""What one process backfills is there for the clients of another one on the same database, who is told nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from homeserver.accounts.access_tokens import Requester
from homeserver.graph.missing_events import Backfiller, Filled
from homeserver.protocol.filters import parse_room_event_filter
from homeserver.reading.history import History
from homeserver.reading.paging import PageRequest
from homeserver.reading.state_and_members import StateAndMembers
from homeserver.reading.tokens import parse_token
from homeserver.storage.history_lanes import Gap
from tests.factories.rooms import RoomFactory
from tests.fakes.servers import OurServer, Servers
from tests.graph.test_receive import ALICE, EVE, OURS, REMOTE


class TwoProcesses:
    """Of one server, whose bob has joined a remote room with a history."""

    def __init__(self, first: OurServer, second: OurServer, room: RoomFactory, bob: str) -> None:
        self.first = first
        self.second = second
        self.room = room
        self.bob = bob

    async def scroll_back(self, server: OurServer) -> list[str]:
        """All that bob's client finds in the room's history, page by page."""
        history = server.get(History)
        found: list[str] = []
        start: str | None = None
        while True:
            place = parse_token(start) if start else None
            request = PageRequest(place, None, True, 4, parse_room_event_filter({}))
            page = await history.messages(Requester(self.bob, "DEVICE"), self.room.room_id, request)
            found += [seen.stored.event_id for seen in page.events]
            if page.end is None:
                return found
            start = page.end


def play(servers: Servers, database_url: str, story: Callable[[TwoProcesses], Awaitable[None]]) -> None:
    async def run() -> None:
        async with servers:
            first = await servers.ours(OURS, database={"url": database_url})
            room = RoomFactory("11", REMOTE)
            room.create("alice")
            room.join(EVE)
            for number in range(10):
                room.send(ALICE, str(number))
            servers.remote(REMOTE, room)
            bob = await first.user("bob")
            await first.join(bob, room.room_id, REMOTE)
            second = await servers.ours(OURS, database={"url": database_url})
            await story(TwoProcesses(first, second, room, bob))

    asyncio.run(run())


def test_state_that_was_at_hand_as_outliers(servers: Servers, postgresql_url: str) -> None:
    async def story(at: TwoProcesses) -> None:
        history, requester = at.second.get(History), Requester(at.bob, "DEVICE")
        await at.second.get(StateAndMembers).state(at.bob, at.room.room_id)
        whole = await at.scroll_back(at.first)
        assert set(whole) == set(at.room.events)
        join_rules = at.room.state["m.room.join_rules", ""].event_id
        assert join_rules.encode() in await history.event(requester, at.room.room_id, join_rules)
        assert await at.scroll_back(at.second) == whole

    play(servers, postgresql_url, story)


def test_a_gap_that_is_filled_while_another_process_looks(
    servers: Servers, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has seen the gap; when it looks more closely, the gap is gone. (While it asks, it holds the room's lease.)"""

    async def story(at: TwoProcesses) -> None:
        slow = at.second.get(History)._pages._backfiller
        assert isinstance(slow, Backfiller)
        original = slow.fill

        async def outrun(room_id: str, gaps: Sequence[Gap], seconds: float) -> Filled:
            await at.scroll_back(at.first)
            return await original(room_id, gaps, seconds)

        monkeypatch.setattr(slow, "fill", outrun)
        assert set(await at.scroll_back(at.second)) == set(at.room.events)

    play(servers, postgresql_url, story)
