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
        # The token also says which process has told of those who type.
        del from_memory["next_batch"], from_database["next_batch"]
        assert from_memory == from_database

    asyncio.run(story())


@contextmanager
def counted_reads(server: ReadingServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the questions that the database is asked."""
    asked: list[str] = []
    read = server.database.read

    async def counting(question: Any, *args: Any) -> Any:
        asked.append(question.__name__)
        return await read(question, *args)

    with monkeypatch.context() as patch:
        patch.setattr(server.database, "read", counting)
        yield asked


def test_what_is_a_users_own_costs_one_small_read(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        invited_to = await server.create_room("alice", name="secret", join_rule="invite")
        since = (await server.sync("bob"))["next_batch"]
        await server.send(room, "alice", "hello")
        await server.set_account_data("bob", "org.example", {"n": 1})
        await server.set_account_data("bob", "org.example.room", {"n": 2}, room)
        await server.invite(invited_to, "alice", "bob")
        await server.member(room, "bob", "bob", "join", displayname="Robert")
        with counted_reads(server, monkeypatch) as asked:
            response = await server.sync("bob", since)
        assert asked == ["read_own"]
        assert response["account_data"]["events"] == [{"type": "org.example", "content": {"n": 1}}]
        shown = joined(response, room)
        assert bodies(shown) == ["hello"]
        assert shown["account_data"]["events"] == [{"type": "org.example.room", "content": {"n": 2}}]
        assert list(response["rooms"]["invite"]) == [invited_to]
        with no_reads(server, monkeypatch):
            assert "rooms" not in await server.sync("bob", response["next_batch"])
            await server.send(room, "alice", "again")
            assert bodies(joined(await server.sync("bob", response["next_batch"]), room)) == ["again"]

    asyncio.run(story())


def test_room_of_another_process_is_read_on_its_own(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        server, other = ReadingServer(database), ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        await other.notifier.catch_up(server.notifier.position)
        since = (await other.sync("bob"))["next_batch"]
        await server.event(room, "alice", "m.room.topic", {"topic": "t"}, "")
        await server.send(room, "alice", "hello")
        await other.notifier.catch_up(server.notifier.position)
        with counted_reads(other, monkeypatch) as asked:
            assert bodies(joined(await other.sync("bob", since), room)) == ["hello"]
        assert "read_ongoing" in asked
        assert "read" not in asked  # the look at all rooms of the user

    asyncio.run(story())


def test_ignored_users_are_not_heard_from_the_next_event_on(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob", "mallory"], name="named")
        since = (await server.sync("bob"))["next_batch"]
        await server.set_account_data("bob", "m.ignored_user_list", {"ignored_users": {user("mallory"): {}}})
        await server.send(room, "mallory", "spam")
        response = await server.sync("bob", since)
        assert "rooms" not in response
        await server.set_account_data("bob", "m.ignored_user_list", {"ignored_users": {}})
        await server.send(room, "mallory", "sorry")
        assert bodies(joined(await server.sync("bob", response["next_batch"]), room)) == ["sorry"]

    asyncio.run(story())


def test_room_left_and_invited_to_again_is_no_longer_joined(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        since = (await server.sync("bob"))["next_batch"]
        await server.leave(room, "bob")
        await server.invite(room, "alice", "bob")
        await server.send(room, "alice", "not for bob")
        response = await server.sync("bob", since)
        assert list(response["rooms"]) == ["invite"]
        await server.send(room, "alice", "nor this")
        assert "rooms" not in await server.sync("bob", response["next_batch"])

    asyncio.run(story())
