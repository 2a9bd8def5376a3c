"""homeserver/graph/outdated_heads.py: nobody is refused something by what another process has changed since.

Two processes on one database; neither hears anything of the other, which is how it is for a moment after every commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from homeserver.errors import Forbidden, MatrixError
from homeserver.graph.other_processes import OtherProcesses
from homeserver.graph.server_access import ServerAccess
from homeserver.graph.under_way import UnderWay
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.membership.membership import Memberships
from homeserver.notifier import Change
from homeserver.protocol.events import EventDraft
from homeserver.reading.listings import room_of_member
from homeserver.reading.room_access import RoomAccess
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict
from tests.factories.rooms import RoomFactory
from tests.fakes.homeserver import ALICE, BOB, CAROL, ZOE, CoreServer, add_users
from tests.fakes.servers import Servers

OURS, REMOTE = "ours.test:8448", "remote.test:8448"


@pytest.fixture
def pair(shared_database: Database, shared_database_url: str) -> Iterator[tuple[CoreServer, CoreServer]]:
    add_users(shared_database, ALICE, BOB, CAROL)
    second = Database(shared_database_url)
    yield CoreServer(shared_database), CoreServer(second)
    second.close()


def test_who_joined_through_another_process_may_send_and_read(pair: tuple[CoreServer, CoreServer]) -> None:
    here, there = pair

    async def story() -> None:
        room_id = await there.create_room(preset="public_chat")
        await here.send(room_id)
        await there.memberships.join(BOB, room_id)
        assert (await here.send(room_id, BOB)).event.sender == BOB
        await there.memberships.join(CAROL, room_id)
        assert (await RoomAccess(here.database, here.heads, here.events).of(CAROL, room_id)).is_joined

    asyncio.run(story())


def test_lists_of_a_room(pair: tuple[CoreServer, CoreServer]) -> None:
    here, there = pair

    async def story() -> None:
        room_id = await there.create_room(preset="public_chat")
        await here.heads.get(room_id)
        await there.memberships.join(BOB, room_id)
        assert BOB in (await room_of_member(here.heads, BOB, room_id)).joined
        with pytest.raises(Forbidden):
            await room_of_member(here.heads, CAROL, room_id)

    asyncio.run(story())


def test_a_role_that_another_process_gave_holds(pair: tuple[CoreServer, CoreServer]) -> None:
    here, there = pair

    async def story() -> None:
        room_id = await there.create_room(preset="public_chat")
        await there.memberships.join(BOB, room_id)
        with pytest.raises(Forbidden):
            await here.set_state(room_id, "m.room.topic", {"topic": "mine"}, sender=BOB)
        levels = (await there.state(room_id))["m.room.power_levels", ""].content
        await there.set_state(room_id, "m.room.power_levels", {**levels, "users": {ALICE: 100, BOB: 50}})
        topic = await here.set_state(room_id, "m.room.topic", {"topic": "mine"}, sender=BOB)
        assert (await there.heads.get(room_id)).generation <= (await here.heads.get(room_id)).generation
        assert topic.event.content == {"topic": "mine"}

    asyncio.run(story())


def test_memberships_are_judged_by_the_newest_state(pair: tuple[CoreServer, CoreServer]) -> None:
    here, there = pair

    async def story() -> None:
        room_id = await there.create_room(preset="private_chat")
        await here.heads.get(room_id)
        await there.memberships.invite(ALICE, room_id, BOB)
        await here.memberships.join(BOB, room_id)
        await there.heads.get(room_id)
        await there.memberships.kick(ALICE, room_id, BOB)
        await there.memberships.ban(ALICE, room_id, BOB)
        await here.memberships.unban(ALICE, room_id, BOB)
        await there.memberships.invite(ALICE, room_id, BOB)
        await here.memberships.kick(ALICE, room_id, BOB)
        assert await here.membership(room_id, BOB) == "leave"

    asyncio.run(story())


def test_who_was_removed_through_another_process_can_join_again(pair: tuple[CoreServer, CoreServer]) -> None:
    """A join does nothing for those who are in the room: by its newest state."""
    here, there = pair

    async def story() -> None:
        room_id = await there.create_room(preset="public_chat")
        await here.memberships.join(BOB, room_id)
        await there.memberships.kick(ALICE, room_id, BOB)
        await here.memberships.join(BOB, room_id)
        assert await here.membership(room_id, BOB) == "join"
        assert (await here.send(room_id, BOB)).event.sender == BOB

    asyncio.run(story())


def test_a_state_that_another_process_replaced_is_set_again(pair: tuple[CoreServer, CoreServer]) -> None:
    """What says the same as the state is not sent again; but the state is the newest one."""
    here, there = pair

    async def story() -> None:
        room_id = await there.create_room()
        first = await here.set_state(room_id, "m.room.topic", {"topic": "one"})
        await there.set_state(room_id, "m.room.topic", {"topic": "two"})
        again = await here.set_state(room_id, "m.room.topic", {"topic": "one"})
        fresh = await CoreServer(here.database).heads.get(room_id)
        if here.database.is_sqlite:
            assert again.event_id == first.event_id  # the server alone writes there
        else:
            assert fresh.state["m.room.topic", ""] == again.event_id != first.event_id

    asyncio.run(story())


def test_other_servers_are_let_in_by_the_newest_state(pair: tuple[CoreServer, CoreServer]) -> None:
    here, there = pair

    async def story() -> None:
        room = RoomFactory(room_localpart=f"let_in_{here.database.engine.dialect.name}")
        room.create("alice")
        await there.adopt(room)
        access = ServerAccess(here.heads, UnderWay(here.database, here.clock))
        with pytest.raises(Forbidden):
            await access.known_room(room.room_id, "other.org")
        await there.receive(room.join(ZOE))
        assert "other.org" in (await access.known_room(room.room_id, "other.org")).joined_servers

    asyncio.run(story())


def test_a_refusal_that_stands_is_checked_once(
    pair: tuple[CoreServer, CoreServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = pair

    async def story() -> None:
        room_id = await here.create_room()
        runs = 0

        async def job(working: WorkingHead) -> list[NewEvent]:
            nonlocal runs
            runs += 1
            raise Forbidden("No")

        with pytest.raises(Forbidden):
            await here.writers.submit(room_id, job)
        assert runs == 1
        # What is no refusal is not looked at, nor is what succeeds.
        asked: list[object] = []

        async def counted(head: object) -> bool:
            asked.append(head)
            return False

        monkeypatch.setattr(here.heads, "is_outdated", counted)
        await here.send(room_id)

        async def broken(working: WorkingHead) -> list[NewEvent]:
            raise ValueError("broken")

        with pytest.raises(ValueError, match="broken"):
            await here.writers.submit(room_id, broken)
        assert len(asked) == (0 if here.database.is_sqlite else 1)
        with pytest.raises(MatrixError):
            await here.sender.send(room_id, EventDraft("m.room.message", BOB, {"body": "not in it"}))
        assert asked

    asyncio.run(story())


def test_other_servers_events_are_taken_by_the_newest_state(
    servers: Servers, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that another server sends to a process which has not heard yet what makes them welcome."""

    async def hear_nothing(self: OtherProcesses, after: int, upto: int) -> list[Change]:
        return []

    monkeypatch.setattr(OtherProcesses, "load_changes", hear_nothing)

    async def story() -> None:
        async with servers:
            # The network leads to the one that started last.
            there, here = [await servers.ours(OURS, database={"url": postgresql_url}) for _ in range(2)]
            room = RoomFactory("11", REMOTE)
            room.create("mary")
            remote = servers.remote(REMOTE, room)
            bob = await here.user("bob")
            await here.join(bob, room.room_id, REMOTE)
            await here.get(Memberships).leave(bob, room.room_id)
            assert not (await here.head(room.room_id)).joined_local
            await there.join(bob, room.room_id, REMOTE)
            await remote.transaction(OURS, [message := room.send("mary")])
            assert (await here.wait_for(message.event_id)).verdict == Verdict.ACCEPTED

    asyncio.run(story())
