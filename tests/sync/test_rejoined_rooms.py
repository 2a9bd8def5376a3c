"""Rooms that this server left and joined again through another server: no device may miss what changed meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from homeserver.graph.given_events import GivenRoom
from homeserver.graph.working_head import NewEvent
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import Database
from tests.factories.rooms import RoomFactory
from tests.fakes.reading_server import VERSION, ReadingServer, joined, user

BOB = user("bob")
LAZY: JsonObject = {"room": {"state": {"lazy_load_members": True}}}


async def bob_joins(server: ReadingServer, room: RoomFactory) -> None:
    join = room.join(BOB)
    state = room.state_before(join)
    await server.imports.import_room(VERSION, join, GivenRoom.of(state, room.auth_chain(list(state.values()))))


async def bob_leaves(server: ReadingServer, room: RoomFactory) -> None:
    head = await server.heads.get(room.room_id)
    await server.append(room.room_id, [NewEvent(room.leave(BOB), head.snapshot)])


def told(room: JsonObject, section: str) -> dict[tuple[str, str], JsonObject]:
    """The state that a client has which applied a room's update, as far as the update says."""
    events = [*room[section]["events"], *(room["timeline"]["events"] if section == "state" else ())]
    return {(e["type"], e["state_key"]): e["content"] for e in events if "state_key" in e}


@pytest.mark.parametrize("filter", [None, LAZY], ids=["all", "lazy"])
@pytest.mark.parametrize("section", ["state", "state_after"])
def test_every_older_token_is_told_the_state_of_now(
    database: Database, section: str, filter: JsonObject | None
) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = RoomFactory(server_name="other.org")
        room.create("mary")
        room.state_event("mary", "m.room.name", {"name": "as it was"})
        room.state_event("mary", "org.example.removed", {}, "x")
        for n in range(30):
            room.join(f"member{n:02}")
        tokens = [(await server.sync("bob"))["next_batch"]]
        await bob_joins(server, room)
        tokens.append((await server.sync("bob"))["next_batch"])
        await bob_leaves(server, room)
        tokens.append((await server.sync("bob"))["next_batch"])
        room.state_event("mary", "m.room.name", {"name": "renamed meanwhile"})
        room.state_event("mary", "m.room.topic", {"topic": "set meanwhile"})
        room.leave("member00")
        room.member("member01", "member01", "join", content={"displayname": "new name"})
        for n in range(20):
            room.join(f"new{n:02}")
        await bob_joins(server, room)
        for since in tokens:
            response = await server.sync("bob", since, state_after=section == "state_after", filter=filter)
            shown = joined(response, room.room_id)
            state = told(shown, section)
            assert state["m.room.name", ""] == {"name": "renamed meanwhile"}
            assert state["m.room.topic", ""] == {"topic": "set meanwhile"}
            assert state["m.room.member", BOB]["membership"] == "join"
            assert shown["summary"]["m.joined_member_count"] == 51
            if filter is None or since == tokens[1]:
                # Lazy loading hides no change of a member that the client may know from before.
                members = {key[1]: content for key, content in state.items() if key[0] == "m.room.member"}
                assert members["@member00:other.org"]["membership"] == "leave"
                assert members["@member01:other.org"]["displayname"] == "new name"
                assert {f"@new{n:02}:other.org" for n in range(20)} <= members.keys()

    asyncio.run(story())


def test_other_process_tells_it_too(database: Database) -> None:
    async def story() -> None:
        server, other = ReadingServer(database), ReadingServer(database)
        room = RoomFactory(server_name="other.org")
        room.create("mary")
        room.state_event("mary", "m.room.name", {"name": "as it was"})
        await bob_joins(server, room)
        since = (await other.sync("bob", (await server.sync("bob"))["next_batch"]))["next_batch"]
        poll = asyncio.create_task(other.sync("bob", since, timeout_ms=30_000))
        await bob_leaves(server, room)
        await other.notifier.catch_up(server.notifier.position)
        left = await poll
        assert list(left["rooms"]) == ["leave"]
        room.state_event("mary", "m.room.name", {"name": "renamed meanwhile"})
        await bob_joins(server, room)
        await other.notifier.catch_up(server.notifier.position)
        for token in (since, left["next_batch"]):
            state = told(joined(await other.sync("bob", token), room.room_id), "state")
            assert state["m.room.name", ""] == {"name": "renamed meanwhile"}

    asyncio.run(story())
