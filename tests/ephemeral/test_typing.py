from __future__ import annotations

import asyncio
from typing import Any

import pytest

from homeserver.errors import Forbidden
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import Database
from tests.fakes.clock import FakeClock
from tests.fakes.reading_server import ReadingServer, joined, user
from tests.waiting import WAIT_S

REMOTE = "other.org"
MARY = f"@mary:{REMOTE}"


def typing_in(response: JsonObject, room_id: str) -> list[str] | None:
    """Who types by a response; None if it does not say."""
    events = joined(response, room_id).get("ephemeral", {}).get("events", []) if "rooms" in response else []
    return next((event["content"]["user_ids"] for event in events if event["type"] == "m.typing"), None)


def edu(room_id: Any, user_id: Any, typing: Any) -> JsonObject:
    return {"edu_type": "m.typing", "content": {"room_id": room_id, "user_id": user_id, "typing": typing}}


def test_typing_and_stopping(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        since = (await server.sync("alice"))["next_batch"]
        await server.typing.set_typing(user("bob"), room, True)
        response = await server.sync("alice", since)
        assert typing_in(response, room) == [user("bob")]
        assert typing_in(await server.sync("alice"), room) == [user("bob")]
        await server.typing.set_typing(user("alice"), room, True)
        await server.typing.set_typing(user("bob"), room, False)
        response = await server.sync("alice", response["next_batch"])
        assert typing_in(response, room) == [user("alice")]
        await server.typing.set_typing(user("bob"), room, False)
        assert typing_in(await server.sync("alice", response["next_batch"]), room) is None
        assert [(who, typing) for _, who, typing in server.delivery.typing] == [
            (user("bob"), True),
            (user("alice"), True),
            (user("bob"), False),
        ]
        with pytest.raises(Forbidden):
            await server.typing.set_typing(user("carol"), room, True)
        await server.typing.stop()

    asyncio.run(story())


def test_typing_on_is_no_news_but_moves_the_time(database: Database) -> None:
    async def story() -> None:
        clock = FakeClock()
        server = ReadingServer(database, clock)
        room = await server.create_room("alice", join=["bob"], name="named")
        since = (await server.sync("alice"))["next_batch"]
        await server.typing.set_typing(user("bob"), room, True, 30_000)
        position = server.notifier.position
        clock.advance(20_000)
        await server.typing.set_typing(user("bob"), room, True, 30_000)
        clock.advance(20_000)
        await server.typing.expire()
        assert server.notifier.position == position
        assert typing_in(await server.sync("alice", since), room) == [user("bob")]
        # Other servers would have thought by now that the user has stopped.
        await server.typing.set_typing(user("bob"), room, True, 30_000)
        assert [typing for _, _, typing in server.delivery.typing] == [True, True]
        clock.advance(31_000)
        await server.typing.expire()
        assert typing_in(await server.sync("alice", since), room) == []
        assert [typing for _, _, typing in server.delivery.typing] == [True, True, False]
        await server.typing.stop()

    asyncio.run(story())


def test_time_runs_out_by_itself(database: Database) -> None:
    async def story() -> None:
        clock = FakeClock()
        server = ReadingServer(database, clock)
        room = await server.create_room("alice", join=["bob"], name="named")
        since = (await server.sync("alice"))["next_batch"]
        await server.typing.set_typing(user("bob"), room, True, 1)
        clock.advance(10)
        async with asyncio.timeout(WAIT_S):
            while typing_in(response := await server.sync("alice", since, timeout_ms=30_000), room) != []:
                since = response["next_batch"]
        await server.typing.stop()

    asyncio.run(story())


def test_timeouts_are_bounded(database: Database) -> None:
    async def story() -> None:
        clock = FakeClock()
        server = ReadingServer(database, clock)
        room = await server.create_room("alice", join=["bob"], name="named")
        await server.typing.set_typing(user("bob"), room, True, 10**15)
        clock.advance(120_000)
        await server.typing.expire()
        assert server.typing.users_in(room) == []
        await server.typing.set_typing(user("bob"), room, True, 0)
        assert server.typing.users_in(room) == []
        await server.typing.stop()

    asyncio.run(story())


def test_users_of_other_servers(database: Database) -> None:
    async def story() -> None:
        clock = FakeClock()
        server = ReadingServer(database, clock)
        room = await server.create_room("alice", name="named")
        await server.member(room, MARY, MARY, "join")
        await server.typing.receive(REMOTE, edu(room, MARY, True))
        assert server.typing.users_in(room) == [MARY]
        clock.advance(61_000)
        await server.typing.expire()
        assert server.typing.users_in(room) == []
        for origin, who in (("evil.org", MARY), (REMOTE, f"@stranger:{REMOTE}"), (REMOTE, user("alice"))):
            await server.typing.receive(origin, edu(room, who, True))
        for malformed in (
            {"content": None},
            {},
            edu(1, MARY, True),
            edu(room, None, True),
            edu(room, MARY, "yes"),
            edu("!nowhere:x", MARY, True),
        ):
            await server.typing.receive(REMOTE, malformed)
        assert server.typing.users_in(room) == []
        assert server.delivery.typing == []
        await server.typing.stop()

    asyncio.run(story())


def test_restart_and_other_processes(database: Database) -> None:
    async def story() -> None:
        clock = FakeClock()
        server = ReadingServer(database, clock)
        room = await server.create_room("alice", join=["bob"], name="named")
        other = ReadingServer(database, clock)
        await server.typing.set_typing(user("bob"), room, True, 30_000)
        await server.typing.stop()
        restarted = ReadingServer(database, clock)
        await restarted.typing.start()
        assert restarted.typing.users_in(room) == [user("bob")]
        # One process hears that the user types on; the other's timer must not end it.
        clock.advance(20_000)
        await server.typing.set_typing(user("bob"), room, True, 30_000)
        clock.advance(20_000)
        await restarted.typing.expire()
        assert restarted.typing.users_in(room) == [user("bob")]
        await other.notifier.catch_up(server.notifier.position)
        assert typing_in(await other.sync("alice"), room) == [user("bob")]
        for typing in (server.typing, restarted.typing, other.typing):
            await typing.stop()

    asyncio.run(story())


@pytest.mark.parametrize("who", [user("bob"), MARY])
@pytest.mark.parametrize("membership", ["leave", "kick", "ban"])
def test_typing_ends_with_the_membership(database: Database, who: str, membership: str) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        server.writers.watch_departures(server.typing.departed)
        room = await server.create_room("alice", join=["bob"], name="named")
        await server.member(room, MARY, MARY, "join")
        if who == MARY:
            await server.typing.receive(REMOTE, edu(room, MARY, True))
        else:
            await server.typing.set_typing(who, room, True)
        since = (await server.sync("alice"))["next_batch"]
        sender = who if membership == "leave" else "alice"
        await server.member(room, sender, who, "ban" if membership == "ban" else "leave")
        async with asyncio.timeout(WAIT_S):
            while typing_in(response := await server.sync("alice", since, timeout_ms=30_000), room) != []:
                since = response["next_batch"]
        assert server.typing.users_in(room) == []
        await server.typing.stop()

    asyncio.run(story())


def test_a_notice_that_is_stored_while_its_user_leaves(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        server.writers.watch_departures(server.typing.departed)
        room = await server.create_room("alice", join=["bob"], name="named")
        store = server.typing._store

        async def leave_first(*arguments: Any) -> bool:
            server.typing._store = store  # type: ignore[method-assign]
            await server.leave(room, "bob")
            return await store(*arguments)

        server.typing._store = leave_first  # type: ignore[method-assign]
        await server.typing.set_typing(user("bob"), room, True)
        assert server.typing.users_in(room) == []
        await server.typing.stop()

    asyncio.run(story())
