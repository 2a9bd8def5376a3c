"""What a client is told of rooms that its user has left, was invited to, or was removed from."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from homeserver.protocol.json_types import JsonObject
from homeserver.storage import user_rooms
from homeserver.storage.database import Database
from tests.fakes.reading_server import ReadingServer, types, user

ARCHIVED: JsonObject = {"room": {"include_leave": True}}

HowItEnds = Callable[[ReadingServer, str], Awaitable[object]]


async def forget(server: ReadingServer, room: str, who: str) -> None:
    standing = await server.database.read(user_rooms.standing_of, user(who), room)
    assert standing is not None
    await server.database.write(user_rooms.forget, user(who), standing.room_nid)


def left(response: JsonObject, room: str) -> JsonObject:
    assert list(response["rooms"]) == ["leave"]
    found: JsonObject = response["rooms"]["leave"][room]
    return found


def memberships(room: JsonObject, section: str = "timeline") -> list[str]:
    return [e["content"]["membership"] for e in room[section]["events"] if e["type"] == "m.room.member"]


@pytest.mark.parametrize("state_after", [False, True])
def test_filters_hold_for_the_leave_event(database: Database, state_after: bool) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="named")
        since = (await server.sync("bob"))["next_batch"]
        await server.send(room, "alice", "seen")
        await server.leave(room, "bob")
        section = "state_after" if state_after else "state"

        async def told(**timeline: object) -> JsonObject:
            filter: JsonObject = {"room": {"timeline": timeline}}
            return left(await server.sync("bob", since, filter=filter, state_after=state_after), room)

        messages = await told(types=["m.room.message"])
        assert types(messages["timeline"]["events"]) == ["m.room.message"]
        assert memberships(messages, section) == ["leave"]  # so that the client can see why
        assert types((await told(not_senders=[user("bob")]))["timeline"]["events"]) == ["m.room.message"]
        nothing = await told(limit=0)
        assert nothing["timeline"]["events"] == []
        assert nothing["timeline"]["limited"] is True
        assert memberships(nothing, section) == ["leave"]
        short = await told(limit=1)
        assert memberships(short) == ["leave"]
        assert len(short["timeline"]["events"]) == 1
        none: JsonObject = {"room": {"timeline": {"types": []}, "state": {"types": []}}}
        quiet = left(await server.sync("bob", since, filter=none, state_after=state_after), room)
        assert (quiet["timeline"]["events"], quiet[section]["events"]) == ([], [])

    asyncio.run(story())


def test_limit_holds_with_an_event_from_after_the_stay(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"])
        since = (await server.sync("bob"))["next_batch"]
        await server.leave(room, "bob")
        await server.member(room, "alice", "bob", "ban")
        filter: JsonObject = {"room": {"timeline": {"limit": 1}, "include_leave": True}}
        for start in (since, None):
            shown = left(await server.sync("bob", start, filter=filter), room)
            assert memberships(shown) == ["ban"]
            assert len(shown["timeline"]["events"]) == 1
            assert shown["timeline"]["limited"] is True

    asyncio.run(story())


@pytest.mark.parametrize(
    ("end", "membership"),
    [
        (lambda server, room: server.leave(room, "bob"), "leave"),
        (lambda server, room: server.member(room, "alice", "bob", "leave"), "leave"),
        (lambda server, room: server.member(room, "alice", "bob", "ban"), "ban"),
    ],
    ids=["rejected", "revoked", "banned"],
)
def test_ended_invitation_is_archived(database: Database, end: HowItEnds, membership: str) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join_rule="invite")
        await server.invite(room, "alice", "bob")
        since = (await server.sync("bob"))["next_batch"]
        await end(server, room)
        assert memberships(left(await server.sync("bob", since), room)) == [membership]
        archived = left(await server.sync("bob", filter=ARCHIVED), room)
        assert memberships(archived) == [membership]
        assert archived["state"]["events"] == []  # the user was never in the room
        assert "rooms" not in await server.sync("bob")
        await forget(server, room, "bob")
        assert "rooms" not in await server.sync("bob", filter=ARCHIVED)

    asyncio.run(story())


@pytest.mark.parametrize("invited_only", [False, True])
def test_room_left_and_forgotten_is_told_once_to_each_device(database: Database, invited_only: bool) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=[] if invited_only else ["bob"])
        if invited_only:
            await server.invite(room, "alice", "bob")
        phone = (await server.sync("bob", device="PHONE"))["next_batch"]
        desk = (await server.sync("bob", device="DESK"))["next_batch"]
        await server.leave(room, "bob")
        desk = (await server.sync("bob", desk, device="DESK"))["next_batch"]
        await forget(server, room, "bob")
        response = await server.sync("bob", phone, device="PHONE")
        assert memberships(left(response, room)) == ["leave"]
        assert "rooms" not in await server.sync("bob", response["next_batch"], device="PHONE")
        assert "rooms" not in await server.sync("bob", desk, device="DESK")
        assert "rooms" not in await server.sync("bob", filter=ARCHIVED)

    asyncio.run(story())


def test_long_room_that_is_archived_is_not_shown_as_complete(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        short = await server.create_room("alice", join=["bob"])
        await server.leave(short, "bob")
        late = await server.create_room("alice", visibility="joined")
        await server.send(late, "alice", "hidden")
        await server.join(late, "bob")
        await server.leave(late, "bob")
        shown = (await server.sync("bob", filter=ARCHIVED))["rooms"]["leave"]
        assert shown[short]["timeline"]["limited"] is False
        assert types(shown[short]["timeline"]["events"])[0] == "m.room.create"
        assert shown[late]["timeline"]["limited"] is True

    asyncio.run(story())
