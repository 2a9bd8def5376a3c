from __future__ import annotations

import asyncio
from typing import Any

import pytest

from homeserver.errors import Forbidden
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import Database
from tests.fakes.clock import FakeClock
from tests.fakes.reading_server import ReadingServer, connect, joined, user
from tests.waiting import WAIT_S

REMOTE = "other.org"
MARY = f"@mary:{REMOTE}"


def typing_in(response: JsonObject, room_id: str) -> list[str] | None:
    """Who types by a response; None if it does not say."""
    events = joined(response, room_id).get("ephemeral", {}).get("events", []) if "rooms" in response else []
    return next((event["content"]["user_ids"] for event in events if event["type"] == "m.typing"), None)


def edu(room_id: Any, user_id: Any, typing: Any) -> JsonObject:
    return {"edu_type": "m.typing", "content": {"room_id": room_id, "user_id": user_id, "typing": typing}}


async def told_servers(server: ReadingServer) -> None:
    """Wait until the delivery has been told of everything."""
    if server.typing._telling is not None:
        await server.typing._telling


def test_typing_and_stopping(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        since = (await server.sync("alice"))["next_batch"]
        await server.typing.set_typing(user("bob"), room, True)
        await told_servers(server)
        response = await server.sync("alice", since)
        assert typing_in(response, room) == [user("bob")]
        assert typing_in(await server.sync("alice"), room) == [user("bob")]
        await server.typing.set_typing(user("alice"), room, True)
        await server.typing.set_typing(user("bob"), room, False)
        response = await server.sync("alice", response["next_batch"])
        assert typing_in(response, room) == [user("alice")]
        await server.typing.set_typing(user("bob"), room, False)
        assert typing_in(await server.sync("alice", response["next_batch"]), room) is None
        await told_servers(server)
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
        await told_servers(server)
        position = server.notifier.position
        clock.advance(20_000)
        await server.typing.set_typing(user("bob"), room, True, 30_000)
        clock.advance(20_000)
        server.typing.expire()
        assert server.notifier.position == position
        assert typing_in(await server.sync("alice", since), room) == [user("bob")]
        # Other servers would have thought by now that the user has stopped.
        await server.typing.set_typing(user("bob"), room, True, 30_000)
        await told_servers(server)
        assert [typing for _, _, typing in server.delivery.typing] == [True, True]
        clock.advance(31_000)
        server.typing.expire()
        assert typing_in(await server.sync("alice", since), room) == []
        await told_servers(server)
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
        server.typing.expire()
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
        server.typing.expire()
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


def test_a_restart_forgets_who_types_and_says_so(database: Database) -> None:
    async def story() -> None:
        clock = FakeClock()
        server = ReadingServer(database, clock)
        room = await server.create_room("alice", join=["bob"], name="named")
        quiet = await server.create_room("alice", join=["bob"], name="quiet")
        before = (await server.sync("alice"))["next_batch"]
        await server.typing.set_typing(user("bob"), room, True, 30_000)
        since = (await server.sync("alice", before))["next_batch"]
        await server.typing.stop()
        clock.advance(5_000)
        restarted = ReadingServer(database, clock)
        # Who had been told that somebody types is told that nobody does, wherever that was; once.
        response = await restarted.sync("alice", since)
        assert typing_in(response, room) == typing_in(response, quiet) == []
        assert "rooms" not in await restarted.sync("alice", response["next_batch"])
        # Who had not is told nothing, and both hear of what is new.
        response = await restarted.sync("alice", before)
        assert "rooms" not in response
        await restarted.typing.set_typing(user("bob"), room, True, 30_000)
        for token in (response["next_batch"], before):
            assert typing_in(await restarted.sync("alice", token), room) == [user("bob")]
        assert "rooms" not in await restarted.sync("alice", since)  # that is what it was told last
        await restarted.typing.stop()

    asyncio.run(story())


def test_processes_tell_each_other(database: Database) -> None:
    async def story() -> None:
        clock = FakeClock()
        here, there = ReadingServer(database, clock), ReadingServer(database, clock)
        connect(here, there)
        room = await here.create_room("alice", join=["bob"], name="named")
        await there.notifier.catch_up(here.notifier.position)
        since = (await here.sync("alice"))["next_batch"]
        waiting = asyncio.create_task(here.sync("alice", since, timeout_ms=30_000))
        await asyncio.sleep(0)
        await there.typing.set_typing(user("bob"), room, True, 30_000)
        response = await asyncio.wait_for(waiting, WAIT_S)
        assert typing_in(response, room) == [user("bob")]
        # From one process to the other and back, nothing is told again.
        for server in (there, here, there):
            response = await server.sync("alice", response["next_batch"])
            assert "rooms" not in response
        # One process hears that the user types on; the other's timer must not end it.
        clock.advance(20_000)
        await there.typing.set_typing(user("bob"), room, True, 30_000)
        clock.advance(20_000)
        here.typing.expire()
        assert here.typing.users_in(room) == [user("bob")]
        # A process that has just started asks for what it missed.
        third = ReadingServer(database, clock)
        connect(here, there, third)
        assert third.typing.users_in(room) == []
        third.typing.begin_to_hear()
        assert third.typing.users_in(room) == [user("bob")]
        clock.advance(11_000)
        for server in (here, there, third):
            server.typing.expire()
            told = await server.sync("alice", response["next_batch"])
            assert typing_in(told, room) == []
            assert "rooms" not in await here.sync("alice", told["next_batch"])
        for server in (here, there, third):
            await server.typing.stop()

    asyncio.run(story())


def test_notices_that_make_no_sense_do_no_harm(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"])
        for body in ("", "{", "[]", '["typing"]', '["typing","!a","@b",-1]', '["typing","!a","@b",1e9]', "null"):
            server.typing.hear(body)
        server.typing.hear(f'["typing","{room}","{user("carol")}",1000]')  # who has left here already
        assert server.notices.sent == [f'["typing","{room}","{user("carol")}",0]']
        assert len(server.typing) == 0
        await server.typing.stop()

    asyncio.run(story())


def test_typing_writes_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        await server.member(room, MARY, MARY, "join")
        since = (await server.sync("alice"))["next_batch"]

        def refuse(*_: Any) -> None:
            raise AssertionError("typing must not use the database")

        monkeypatch.setattr(database, "_submit", refuse)
        monkeypatch.setattr(database, "read", refuse)
        for typing in (True, True, False, True):
            await server.typing.set_typing(user("bob"), room, typing)
            await server.typing.receive(REMOTE, edu(room, MARY, typing))
        assert typing_in(await server.sync("alice", since), room) == [user("bob"), MARY]
        await server.typing.stop()

    asyncio.run(story())


def test_what_is_remembered_is_bounded(database: Database) -> None:
    async def story() -> None:
        clock = FakeClock()
        server = ReadingServer(database, clock)
        typing = server.typing
        typing.bytes_max = 50_000
        room = await server.create_room("alice", join=["bob"], name="named")
        await typing.set_typing(user("bob"), room, True)
        since = (await server.sync("alice"))["next_batch"]
        for number in range(300):
            for timeout_ms in (30_000, 1_000, 30_000, 0):
                typing.hear(f'["typing","!{number}","@a:b",{timeout_ms}]')
        assert typing.users_in(room) == [user("bob")]
        assert typing.bytes <= typing.bytes_max
        assert len(typing) < 60
        assert len(typing._due) <= 1_010
        for number in range(2_000):
            typing.hear(f'["typing","{room}","@{number}:b",1000]')
            typing.hear(f'["typing","!{number}","@a:b",1000]')
        assert typing.bytes <= typing.bytes_max
        assert len(typing.users_in(room)) <= 500
        # Much was forgotten since, but nothing that matters to alice.
        clock.advance(31_000)
        typing.expire()
        assert typing_in(await server.sync("alice", since), room) == []
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


def test_a_notice_that_comes_while_its_user_leaves(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        server.writers.watch_departures(server.typing.departed)
        room = await server.create_room("alice", join=["bob"], name="named")
        find = server.heads.find

        async def leave_meanwhile(room_id: str) -> Any:
            head = await find(room_id)
            server.heads.find = find  # type: ignore[method-assign]
            await server.leave(room, "bob")
            return head

        server.heads.find = leave_meanwhile  # type: ignore[method-assign]
        with pytest.raises(Forbidden):
            await server.typing.set_typing(user("bob"), room, True)
        assert server.typing.users_in(room) == []
        await server.typing.stop()

    asyncio.run(story())
