"""Which events a timeline has, and where it begins."""

from __future__ import annotations

import asyncio

import pytest

from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import Database
from tests.fakes.reading_server import ReadingServer, bodies, joined, types, user


def test_limit_of_nothing_gives_no_timeline_but_the_state(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"])
        filter: JsonObject = {"room": {"timeline": {"limit": 0}}}
        first = await server.sync("bob", filter=filter)
        shown = joined(first, room)
        assert (shown["timeline"]["events"], shown["timeline"]["limited"]) == ([], True)
        assert sorted(types(shown["state"]["events"])).count("m.room.member") == 2
        await server.event(room, "alice", "m.room.topic", {"topic": "t"}, "")
        await server.send(room, "alice", "hello")
        for state_after in (False, True):
            shown = joined(await server.sync("bob", first["next_batch"], filter=filter, state_after=state_after), room)
            assert (shown["timeline"]["events"], shown["timeline"]["limited"]) == ([], True)
            assert types(shown["state_after" if state_after else "state"]["events"]) == ["m.room.topic"]

    asyncio.run(story())


def test_hidden_events_are_skipped(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", visibility="joined")
        await server.join(room, "bob")
        since = (await server.sync("bob"))["next_batch"]
        await server.send(room, "alice", "before")
        await server.leave(room, "bob")
        await server.send(room, "alice", "hidden")
        await server.event(room, "alice", "m.room.topic", {"topic": "hidden"}, "")
        await server.join(room, "bob")
        await server.send(room, "alice", "after")
        shown = joined(await server.sync("bob", since), room)
        assert bodies(shown) == ["before", "after"]
        assert [e["content"]["membership"] for e in shown["timeline"]["events"] if e["type"] == "m.room.member"] == [
            "leave",
            "join",
        ]
        # What is current of the state is visible to who is in the room, wherever it was set.
        assert [e["content"] for e in shown["state"]["events"]] == [{"topic": "hidden"}]

    asyncio.run(story())


@pytest.mark.parametrize("state_after", [False, True])
def test_timeline_ends_where_it_would_undo_the_state(database: Database, state_after: bool) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", visibility="joined")
        await server.join(room, "bob")
        since = (await server.sync("bob"))["next_batch"]
        await server.event(room, "alice", "m.room.topic", {"topic": "seen"}, "")
        await server.send(room, "alice", "before")
        await server.leave(room, "bob")
        await server.event(room, "alice", "m.room.topic", {"topic": "hidden"}, "")
        await server.join(room, "bob")
        shown = joined(await server.sync("bob", since, state_after=state_after), room)
        topics = [e["content"]["topic"] for e in shown["timeline"]["events"] if e["type"] == "m.room.topic"]
        if state_after:
            # Clients take no state from the timeline, so nothing need be left out.
            assert (topics, shown["timeline"]["limited"]) == (["seen"], False)
            assert {"topic": "hidden"} in [e["content"] for e in shown["state_after"]["events"]]
        else:
            assert (topics, shown["timeline"]["limited"]) == ([], True)
            assert bodies(shown) == ["before"]
            assert {"topic": "hidden"} in [e["content"] for e in shown["state"]["events"]]
        # Set again where the user sees it, the hidden one undoes nothing.
        await server.event(room, "alice", "m.room.topic", {"topic": "again"}, "")
        shown = joined(await server.sync("bob", since, state_after=state_after), room)
        topics = [e["content"]["topic"] for e in shown["timeline"]["events"] if e["type"] == "m.room.topic"]
        assert topics == ["seen", "again"]

    asyncio.run(story())


def test_new_room_with_hidden_history_is_not_shown_as_complete(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", visibility="joined")
        await server.send(room, "alice", "hidden")
        since = (await server.sync("bob"))["next_batch"]
        await server.join(room, "bob")
        for start in (since, None):
            shown = joined(await server.sync("bob", start), room)
            assert shown["timeline"]["limited"] is True
            assert shown["timeline"]["events"][-1]["state_key"] == user("bob")

    asyncio.run(story())
