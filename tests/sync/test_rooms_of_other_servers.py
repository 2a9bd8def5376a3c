"""Rooms that this server hears of from outside: invitations, their end, knocks, and joins through another server."""

from __future__ import annotations

import asyncio

from homeserver.graph.given_events import GivenRoom
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import Database
from tests.factories.rooms import RoomFactory
from tests.fakes.reading_server import VERSION, ReadingServer, bodies, joined, types, user
from tests.waiting import WAIT_S

BOB = user("bob")
LAZY: JsonObject = {"room": {"state": {"lazy_load_members": True}}}


def remote_room() -> RoomFactory:
    room = RoomFactory(server_name="other.org")
    room.create("mary")
    room.state_event("mary", "m.room.name", {"name": "Far away"})
    return room


def test_invitation_from_outside_and_its_revocation(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        since = (await server.sync("bob"))["next_batch"]
        room = remote_room()
        stripped = [
            {"type": "m.room.name", "state_key": "", "sender": "@mary:other.org", "content": {}, "signatures": {}},
            {"type": "m.room.topic", "content": {}},
            "nonsense",
        ]
        poll = asyncio.create_task(server.sync("bob", since, timeout_ms=30_000))
        await asyncio.sleep(0)
        await server.out_of_band.store(VERSION, room.invite("mary", BOB), stripped)
        response = await asyncio.wait_for(poll, WAIT_S)
        name, invitation = response["rooms"]["invite"][room.room_id]["invite_state"]["events"]
        assert name == {"type": "m.room.name", "state_key": "", "sender": "@mary:other.org", "content": {}}
        assert invitation["content"] == {"membership": "invite"}
        assert list((await server.sync("bob"))["rooms"]) == ["invite"]
        await server.out_of_band.store(VERSION, room.kick("mary", BOB))
        response = await server.sync("bob", response["next_batch"])
        left = response["rooms"]["leave"][room.room_id]
        assert [event["sender"] for event in left["timeline"]["events"]] == ["@mary:other.org"]
        assert left["state"]["events"] == []
        archived = await server.sync("bob", filter={"room": {"include_leave": True}})
        assert archived["rooms"]["leave"][room.room_id] == left
        assert "rooms" not in await server.sync("bob")

    asyncio.run(story())


def test_invitation_of_an_ignored_user(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        await server.set_account_data("bob", "m.ignored_user_list", {"ignored_users": {"@mary:other.org": {}}})
        since = (await server.sync("bob"))["next_batch"]
        await server.out_of_band.store(VERSION, remote_room().invite("mary", BOB), [])
        assert "rooms" not in await server.sync("bob", since)
        assert "rooms" not in await server.sync("bob")

    asyncio.run(story())


def test_knock(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        since = (await server.sync("bob"))["next_batch"]
        room = remote_room()
        await server.out_of_band.store(VERSION, room.knock(BOB), [])
        for start in (since, None):
            response = await server.sync("bob", start)
            (knock,) = response["rooms"]["knock"][room.room_id]["knock_state"]["events"]
            assert knock["content"] == {"membership": "knock"}

    asyncio.run(story())


def test_join_through_another_server_shows_the_whole_room(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = remote_room()
        for n in range(30):
            room.join(f"member{n:02}")
        invite = room.invite("mary", BOB)
        await server.out_of_band.store(VERSION, invite, [])
        since = (await server.sync("bob", filter=LAZY))["next_batch"]
        join = room.join(BOB)
        state = room.state_before(join)
        await server.imports.import_room(VERSION, join, GivenRoom.of(state, room.auth_chain(list(state.values()))))
        for start in (since, None):
            shown = joined(await server.sync("bob", start), room.room_id)
            assert types(shown["timeline"]["events"]) == ["m.room.member"]
            assert shown["timeline"]["limited"] is True
            assert len([t for t in types(shown["state"]["events"]) if t == "m.room.member"]) == 32
            assert shown["summary"]["m.joined_member_count"] == 32
        lazy = joined(await server.sync("bob", since, filter=LAZY), room.room_id)
        # The event in the timeline is the only one whose sender is known, and comes on top of the invitation.
        members = [e for e in lazy["state"]["events"] if e["type"] == "m.room.member"]
        assert [(e["state_key"], e["content"]["membership"]) for e in members] == [(BOB, "invite")]
        after = joined(await server.sync("bob", since, filter=LAZY, state_after=True), room.room_id)
        members = [e for e in after["state_after"]["events"] if e["type"] == "m.room.member"]
        assert [(e["state_key"], e["content"]["membership"]) for e in members] == [(BOB, "join")]
        since = (await server.sync("bob", since))["next_batch"]
        await server.send(room.room_id, "bob", "hello")
        assert bodies(joined(await server.sync("bob", since), room.room_id)) == ["hello"]

    asyncio.run(story())
