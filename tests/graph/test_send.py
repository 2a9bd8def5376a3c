"""homeserver/graph/send.py: drafts of our users become events."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from homeserver.errors import BadJson, Forbidden, InvalidParam, TooLarge
from homeserver.graph.state import RESOLVED_TOGETHER_MAX
from homeserver.protocol.events import EventDraft
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.signatures import verify_event_signature
from homeserver.storage.database import Database
from tests.factories.rooms import RoomFactory, server_key
from tests.fakes.homeserver import ALICE, BOB, SERVER_NAME, ZOE, CoreServer, add_users

NAMES = (f"sent{number}" for number in itertools.count())


@pytest.fixture
def server(shared_database: Database) -> CoreServer:
    add_users(shared_database, ALICE, BOB)
    return CoreServer(shared_database)


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_an_event_is_signed_and_in_its_place(server: CoreServer, version: str) -> None:
    async def story() -> None:
        room_id = await server.create_room(version=version)
        first, second = await server.send(room_id), await server.send(room_id)
        verify_event_signature(first.event, SERVER_NAME, server_key(SERVER_NAME).keys())
        assert second.event.prev_events == (first.event_id,)
        assert second.event.depth == first.event.depth + 1
        state = await server.state(room_id)
        cited = {state[key].event_id for key in (("m.room.power_levels", ""), ("m.room.member", ALICE))}
        if not ROOM_VERSIONS[version].room_id_is_create_hash:
            cited.add(state["m.room.create", ""].event_id)
        assert set(second.event.auth_events) == cited
        assert second.event.origin_server_ts == server.clock.now_ms()

    asyncio.run(story())


def test_what_the_rules_forbid_is_not_sent(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room(preset="public_chat")
        for sender in (BOB, ZOE):
            with pytest.raises(Forbidden):
                await server.send(room_id, sender)
        await server.memberships.join(BOB, room_id)
        with pytest.raises(Forbidden, match=r"^[A-Z]"):
            await server.set_state(room_id, "m.room.topic", {"topic": "mine"}, sender=BOB)
        with pytest.raises(Forbidden, match="not in this room"):
            await server.send("!unheard:of.org")

    asyncio.run(story())


def test_the_same_state_is_not_sent_again(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        first = await server.set_state(room_id, "m.room.topic", {"topic": "t"})
        assert (await server.set_state(room_id, "m.room.topic", {"topic": "t"})).event_id == first.event_id
        both = await asyncio.gather(*(server.set_state(room_id, "m.room.topic", {"topic": "u"}) for _ in range(2)))
        assert both[0].event_id == both[1].event_id != first.event_id
        # Back to what it was is a change.
        assert (await server.set_state(room_id, "m.room.topic", {"topic": "t"})).event_id != first.event_id

    asyncio.run(story())


@pytest.mark.parametrize("version", ["1", "11"])
def test_size_limits(server: CoreServer, version: str) -> None:
    async def story() -> None:
        room_id = await server.create_room(version=version)
        assert (await server.send(room_id, body="x" * 64_000)).stream_position
        too_large = [
            EventDraft("m.room.message", ALICE, {"body": "x" * 65_536}),
            EventDraft("m.room.message", ALICE, {"body": "é" * 33_000}),
            EventDraft("m" * 256, ALICE, {}),
            EventDraft("org.example.note", ALICE, {}, "é" * 128),
        ]
        for draft in too_large:
            with pytest.raises(TooLarge):
                await server.sender.send(room_id, draft)
        for impossible in (1.5, 2**53, -(2**60)):
            with pytest.raises(BadJson):
                await server.sender.send(room_id, EventDraft("m.room.message", ALICE, {"n": [impossible]}))
        assert (await server.sender.send(room_id, EventDraft("m" * 255, ALICE, {}, "é" * 127))).stream_position

    asyncio.run(story())


def test_several_events_are_sent_all_or_none(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        topic = EventDraft("m.room.topic", ALICE, {"topic": "t"}, "")
        name = EventDraft("m.room.name", ALICE, {"name": "n"}, "")
        with pytest.raises(Forbidden):
            await server.sender.send_all(room_id, [topic, EventDraft("m.room.name", BOB, {"name": "mine"}, "")])
        assert ("m.room.topic", "") not in await server.state(room_id)
        stored = await server.sender.send_all(room_id, [topic, name])
        assert [event.event.type for event in stored] == ["m.room.topic", "m.room.name"]
        assert {("m.room.topic", ""), ("m.room.name", "")} <= (await server.state(room_id)).keys()

    asyncio.run(story())


def test_many_branches_are_brought_together_some_at_a_time(server: CoreServer) -> None:
    async def story() -> None:
        room = RoomFactory(room_localpart=next(NAMES))
        room.create("alice")
        room.join(ZOE)
        await server.adopt(room)
        start = room.extremities
        branches = [room.send(ZOE, str(number), prev_events=start) for number in range(RESOLVED_TOGETHER_MAX + 3)]
        await server.receive(*branches)
        sent = await server.send(room.room_id)
        assert len(sent.event.prev_events) == RESOLVED_TOGETHER_MAX
        assert len((await server.heads.get(room.room_id)).extremities) == 4
        await server.send(room.room_id)
        assert len((await server.heads.get(room.room_id)).extremities) == 1

    asyncio.run(story())


def test_users_redact_their_own_and_moderators_everything(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room(preset="public_chat")
        await server.memberships.join(BOB, room_id)
        mine, theirs = await server.send(room_id, BOB), await server.send(room_id, ALICE)

        async def redact(sender: str, target: str) -> str:
            draft = EventDraft("m.room.redaction", sender, {}, redacts=target)
            return (await server.sender.redact(room_id, draft)).event_id

        assert await redact(BOB, mine.event_id)
        for target in (theirs.event_id, "$unheard"):
            with pytest.raises(Forbidden, match="own messages"):
                await redact(BOB, target)
        elsewhere = await server.send(await server.create_room())
        with pytest.raises(InvalidParam, match="not one of this room"):
            await redact(BOB, elsewhere.event_id)
        assert await redact(ALICE, theirs.event_id)
        assert await redact(ALICE, mine.event_id)

    asyncio.run(story())


def test_a_server_acl_that_shuts_out_this_server_is_refused_however_it_is_sent(server: CoreServer) -> None:
    async def story() -> None:
        kind = "m.room.server_acl"
        room_id = await server.create_room()
        good = await server.set_state(room_id, kind, {"allow": ["*"], "deny": ["evil.com"]})
        for content, error in (({"deny": ["evil.com"]}, InvalidParam), ({"allow": "*"}, BadJson)):
            with pytest.raises(error):
                await server.set_state(room_id, kind, content)
            with pytest.raises(error):
                await server.create_room(initial_state=[(kind, "", content)])
        # Redacted, it would shut out everybody.
        with pytest.raises(Forbidden, match="ACL"):
            await server.sender.redact(room_id, EventDraft("m.room.redaction", ALICE, {}, redacts=good.event_id))
        assert (await server.state(room_id))[kind, ""].event_id == good.event_id
        # With a state key it is not the room's server ACL.
        await server.sender.send(room_id, EventDraft(kind, ALICE, {}, "elsewhere"))

    asyncio.run(story())
