"""What is answered from memory asks nobody, and says what the database would."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import Database
from tests.fakes.reading_server import ReadingServer, bodies, joined, user

LAZY: JsonObject = {"room": {"state": {"lazy_load_members": True}}}


@contextmanager
def no_reads(server: ReadingServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    async def read(*args: Any) -> Any:
        raise AssertionError(f"the database was asked: {args}")

    with monkeypatch.context() as patch:
        patch.setattr(server.database, "read", read)
        yield


@pytest.mark.parametrize("filter", [None, LAZY], ids=["all", "lazy"])
def test_message_typing_and_receipt_reach_those_who_wait_from_memory(
    database: Database, monkeypatch: pytest.MonkeyPatch, filter: JsonObject | None
) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        members = [f"member{n}" for n in range(20)]
        room = await server.create_room("alice", join=members, name="named")
        await server.send(room, "alice", "first")
        await server.typing.set_typing(user("alice"), room, False)
        since = {who: (await server.sync(who, filter=filter))["next_batch"] for who in members}
        with no_reads(server, monkeypatch):
            for n in range(3):
                polls = [
                    asyncio.create_task(server.sync(who, since[who], timeout_ms=30_000, filter=filter))
                    for who in members
                ]
                await asyncio.sleep(0)
                sent = await server.send(room, "alice", f"message {n}")
                for who, response in zip(members, await asyncio.gather(*polls), strict=True):
                    assert bodies(joined(response, room)) == [f"message {n}"]
                    since[who] = response["next_batch"]
            await server.receipts.post(user("alice"), room, "m.read", sent.event_id)
            await server.typing.set_typing(user("alice"), room, True)
            for who in members:
                response = await server.sync(who, since[who], filter=filter)
                assert len(joined(response, room)["ephemeral"]["events"]) == 2
                assert "rooms" not in await server.sync(who, response["next_batch"], filter=filter)
        await server.typing.stop()

    asyncio.run(story())


@pytest.mark.parametrize("state_after", [False, True])
def test_memory_says_what_the_database_says(database: Database, state_after: bool) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        await server.sync("bob")
        since = (await server.sync("bob"))["next_batch"]
        await server.send(room, "alice", "hello")
        await server.event(room, "alice", "m.room.topic", {"topic": "t"}, "")
        await server.join(room, "carol")
        message = await server.send(room, "carol", "hi")
        await server.receipts.post(user("carol"), room, "m.read", message.event_id)
        from_memory = await server.sync("bob", since, state_after=state_after)
        # Another process has nothing in memory.
        from_database = await ReadingServer(database).sync("bob", since, state_after=state_after)
        assert from_memory == from_database

    asyncio.run(story())
