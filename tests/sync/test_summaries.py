"""Summaries come when they have changed, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import Database
from tests.fakes.reading_server import ReadingServer, joined, user


async def summaries(database: Database, server: ReadingServer, since: str, room: str) -> JsonObject | None:
    """What a client is told, from memory and from the database alike."""
    found: JsonObject | None = joined(await server.sync("bob", since), room).get("summary")
    assert joined(await ReadingServer(database).sync("bob", since), room).get("summary") == found
    return found


Event = Callable[[ReadingServer, str], Awaitable[object]]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    "event",
    [
        lambda server, room: server.event(room, "alice", "m.room.topic", {"topic": "t"}, ""),
        lambda server, room: server.member(room, "carol", "carol", "join", displayname="Caroline"),
        lambda server, room: server.member(room, "bob", "bob", "join", displayname="Robert"),
        lambda server, room: server.member(room, "alice", "erin", "ban", reason="again"),
        lambda server, room: server.send(room, "alice", "hello"),
    ],
    ids=["topic", "name of another", "own name", "another reason", "message"],
)
def test_is_left_out_where_nothing_changed(database: Database, named: bool, event: Event) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob", "carol"], name="named" if named else None)
        await server.member(room, "alice", "erin", "ban")
        since = (await server.sync("bob"))["next_batch"]
        await event(server, room)
        assert await summaries(database, server, since, room) is None

    asyncio.run(story())


def test_says_what_changed(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob", "carol"], name="named")

        async def told(happening: Awaitable[object]) -> JsonObject | None:
            since = (await server.sync("bob"))["next_batch"]
            await happening
            return await summaries(database, server, since, room)

        counts = {"m.joined_member_count": 4, "m.invited_member_count": 0}
        assert await told(server.join(room, "dave")) == counts
        assert await told(server.invite(room, "alice", "erin")) == {**counts, "m.invited_member_count": 1}
        assert await told(server.leave(room, "erin")) == counts
        assert await told(server.member(room, "alice", "dave", "ban")) == {**counts, "m.joined_member_count": 3}
        assert await told(server.event(room, "alice", "m.room.name", {"name": "another"}, "")) is None
        heroes = {"m.heroes": [user("alice"), user("carol")]}
        nameless = await told(server.event(room, "alice", "m.room.name", {}, ""))
        assert nameless == {**counts, "m.joined_member_count": 3, **heroes}

    asyncio.run(story())


def test_new_name_may_make_others_the_heroes_of_a_large_room(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob", *(f"member{n}" for n in range(6))])
        since = (await server.sync("bob"))["next_batch"]
        await server.member(room, "member0", "member0", "join", displayname="new")
        found = await summaries(database, server, since, room)
        assert found is not None
        assert found["m.heroes"] == [user("alice"), *(user(f"member{n}") for n in range(1, 5))]

    asyncio.run(story())
