"""Which servers an event goes to, when the room has moved on since."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from homeserver.federation.destinations import Destinations
from homeserver.graph.events import Events
from homeserver.graph.send import Sender
from homeserver.graph.state import RoomHeads, StateReader
from homeserver.membership.membership import Memberships
from homeserver.protocol.events import EventDraft
from homeserver.storage.database import Database
from tests.fakes.servers import OurServer, RemoteServer, Servers
from tests.federation.test_delivery import join_remotely

OURS, FIRST, SECOND = "ours.test:8448", "first.test:8448", "second.test:8448"


@pytest.fixture
def servers(tmp_path: Path, migrated_sqlite_file: Path) -> Servers:
    return Servers(tmp_path, migrated_sqlite_file)


class _Room:
    """A room of ours with two servers beside it, and the question where its events go."""

    def __init__(self, ours: OurServer, first: RemoteServer, second: RemoteServer, alice: str, room_id: str) -> None:
        self.ours, self.first, self.second, self.alice, self.room_id = ours, first, second, alice, room_id
        self._asked = Destinations(
            OURS, ours.get(Database), ours.get(RoomHeads), StateReader(ours.get(Database), ours.get(Events)),
            ours.get(Events),
        )  # fmt: skip

    async def of(self, event_id: str) -> set[str]:
        stored = await self.ours.event(event_id)
        assert stored is not None
        return await self._asked.of_event(stored)

    async def member_event(self, user_id: str) -> str:
        return (await self.ours.head(self.room_id)).state["m.room.member", user_id]


def tell(servers: Servers, story: Callable[[_Room], Awaitable[None]]) -> None:
    async def run() -> None:
        async with servers:
            ours = await servers.ours(OURS)
            alice = await ours.user("alice")
            room = await ours.room(alice)
            await story(_Room(ours, servers.remote(FIRST), servers.remote(SECOND), alice, room))

    asyncio.run(run())


def test_who_was_removed_since_gets_what_came_before_and_the_removal(servers: Servers) -> None:
    async def story(at: _Room) -> None:
        bob = await join_remotely(at.ours, at.first, at.room_id)
        message = await at.ours.send(at.alice, at.room_id)
        await at.ours.get(Memberships).ban(at.alice, at.room_id, bob)
        ban = await at.member_event(bob)
        later = await at.ours.send(at.alice, at.room_id)
        assert await at.of(message) == {FIRST}
        assert await at.of(ban) == {FIRST}
        assert await at.of(later) == set()

    tell(servers, story)


def test_who_has_joined_since_does_not_get_what_came_before(servers: Servers) -> None:
    async def story(at: _Room) -> None:
        message = await at.ours.send(at.alice, at.room_id)
        await join_remotely(at.ours, at.first, at.room_id)
        second = await at.ours.send(at.alice, at.room_id)
        carol = await join_remotely(at.ours, at.second, at.room_id, "carol")
        third = await at.ours.send(at.alice, at.room_id)
        assert await at.of(message) == set()
        assert await at.of(second) == {FIRST}
        assert await at.of(await at.member_event(carol)) == {FIRST}
        assert await at.of(third) == {FIRST, SECOND}

    tell(servers, story)


def test_a_server_with_another_user_in_the_room_stays(servers: Servers) -> None:
    async def story(at: _Room) -> None:
        bob = await join_remotely(at.ours, at.first, at.room_id)
        await join_remotely(at.ours, at.first, at.room_id, "dora")
        message = await at.ours.send(at.alice, at.room_id)
        await at.ours.get(Memberships).kick(at.alice, at.room_id, bob)
        later = await at.ours.send(at.alice, at.room_id)
        assert await at.of(message) == await at.of(await at.member_event(bob)) == await at.of(later) == {FIRST}

    tell(servers, story)


def test_our_own_last_leave_goes_to_those_who_stay(servers: Servers) -> None:
    async def story(at: _Room) -> None:
        bob = await join_remotely(at.ours, at.first, at.room_id)
        levels = {"users": {at.alice: 100, bob: 100}}
        await at.ours.send_state(at.alice, at.room_id, "m.room.power_levels", levels)
        draft = EventDraft("m.room.member", at.alice, {"membership": "leave"}, at.alice)
        leave = await at.ours.get(Sender).send(at.room_id, draft)
        assert await at.of(leave.event_id) == {FIRST}

    tell(servers, story)
