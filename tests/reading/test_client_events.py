"""homeserver/reading/client_events.py: events as clients get them."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from homeserver.protocol.events import EventDraft
from homeserver.reading.client_events import ClientEvents, dumps, stripped_event
from homeserver.storage.appends import TransactionKey
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from tests.factories.rooms import RoomFactory
from tests.fakes.homeserver import ALICE, BOB, ZOE, CoreServer, add_users

NAMES = (f"rendered{number}" for number in itertools.count())


@dataclass(frozen=True)
class Reader:
    user_id: str
    device_id: str


@pytest.fixture
def server(shared_database: Database) -> CoreServer:
    add_users(shared_database, ALICE, BOB)
    return CoreServer(shared_database)


async def render(server: CoreServer, event_id: str, after_ms: int = 5, **options: Any) -> Any:
    (stored,) = await server.events.in_any_room(event_id)
    await server.client_events.prepare([stored])
    options.setdefault("with_room_id", True)
    now = stored.event.origin_server_ts + after_ms
    return orjson.loads(server.client_events.render(stored, now_ms=now, **options))


def test_a_message(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        sent = await server.send(room_id)
        plain = {
            "content": {"body": "hello"},
            "event_id": sent.event_id,
            "origin_server_ts": sent.event.origin_server_ts,
            "sender": ALICE,
            "type": "m.room.message",
            "unsigned": {"age": 5},
        }
        assert await render(server, sent.event_id) == {**plain, "room_id": room_id}
        assert await render(server, sent.event_id, with_room_id=False) == plain
        aged = await render(server, sent.event_id, after_ms=77, membership="join")
        assert aged["unsigned"] == {"age": 77, "membership": "join"}

    asyncio.run(story())


def test_only_the_device_that_sent_it_sees_the_transaction_id(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        sent = await server.send(room_id, txn=TransactionKey(ALICE, "PHONE", "send/" + room_id, 'odd "id"\0', 0))
        seen = {
            (reader.user_id, reader.device_id): (await render(server, sent.event_id, requester=reader))["unsigned"]
            for reader in (Reader(ALICE, "PHONE"), Reader(ALICE, "LAPTOP"), Reader(BOB, "PHONE"))
        }
        assert seen == {
            (ALICE, "PHONE"): {"age": 5, "transaction_id": 'odd "id"\0'},
            (ALICE, "LAPTOP"): {"age": 5},
            (BOB, "PHONE"): {"age": 5},
        }

    asyncio.run(story())


def test_state_says_what_it_replaced(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        first = await server.set_state(room_id, "m.room.topic", {"topic": "old"})
        assert "prev_content" not in (await render(server, first.event_id))["unsigned"]
        second = await server.set_state(room_id, "m.room.topic", {"topic": "new"})
        expected = {
            "age": 5,
            "prev_content": {"topic": "old"},
            "prev_sender": ALICE,
            "replaces_state": first.event_id,
        }
        seen = await render(server, second.event_id)
        assert (seen["state_key"], seen["unsigned"]) == ("", expected)
        # A process that has nothing at hand says the same.
        other = CoreServer(server.database)
        assert (await render(other, second.event_id))["unsigned"] == expected
        # And so does one that has to read the event again.
        server.events.forget(first.event_id)
        server.events.forget(second.event_id)
        assert (await render(server, second.event_id))["unsigned"] == expected

    asyncio.run(story())


@pytest.mark.parametrize("version", ["10", "11"])
def test_a_redacted_event(server: CoreServer, version: str) -> None:
    async def story() -> None:
        room_id = await server.create_room(version=version)
        message = await server.send(room_id)
        assert (await render(server, message.event_id))["content"] == {"body": "hello"}
        redaction = await server.redact(room_id, message.event_id)
        for process in (server, CoreServer(server.database)):
            seen = await render(process, message.event_id)
            assert seen["content"] == {}
            because = seen["unsigned"]["redacted_because"]
            assert (because["event_id"], because["sender"]) == (redaction.event_id, ALICE)
        # Clients look for the target in either place.
        shown = await render(server, redaction.event_id)
        assert shown["redacts"] == shown["content"]["redacts"] == message.event_id
        assert because["redacts"] == because["content"]["redacts"] == message.event_id

    asyncio.run(story())


@pytest.mark.parametrize("is_at_hand", [True, False])
def test_what_was_redacted_is_not_shown_as_replaced_content(server: CoreServer, is_at_hand: bool) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        first = await server.set_state(room_id, "m.room.topic", {"topic": "rude"})
        second = await server.set_state(room_id, "m.room.topic", {"topic": "polite"})
        assert (await render(server, second.event_id))["unsigned"]["prev_content"] == {"topic": "rude"}
        if not is_at_hand:
            server.events._cache.drop(first.event_id)
        await server.redact(room_id, first.event_id)
        assert (await render(server, second.event_id))["unsigned"]["prev_content"] == {}

    asyncio.run(story())


def test_state_keys_and_types_may_hold_any_character(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        odd = "a\0b\ufdd0c\ufdd00"
        await server.set_state(room_id, f"org.example.{odd}", {"n": 1}, odd)
        sent = await server.set_state(room_id, f"org.example.{odd}", {"n": odd}, odd)
        for process in (server, CoreServer(server.database)):
            seen = await render(process, sent.event_id)
            assert (seen["type"], seen["state_key"], seen["content"]) == (f"org.example.{odd}", odd, {"n": odd})
            assert seen["unsigned"]["prev_content"] == {"n": 1}
            head = await process.heads.get(room_id)
            assert head.state[f"org.example.{odd}", odd] == sent.event_id
        other = CoreServer(server.database)
        assert sent.state_group is not None
        key = (f"org.example.{odd}", odd)
        assert await other.states.lookup(sent.state_group, [key]) == {key: sent.event_id}

    asyncio.run(story())


def test_members_may_have_any_name(server: CoreServer) -> None:
    async def story() -> None:
        room = RoomFactory(room_localpart=next(NAMES))
        room.create("alice")
        joined = room.join(ZOE, content={"displayname": "Z\0e", "avatar_url": "\0"})
        await server.adopt(room)
        assert (await render(CoreServer(server.database), joined.event_id))["content"]["displayname"] == "Z\0e"

    asyncio.run(story())


def test_rendered_once_for_everybody(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        sent = await server.set_state(room_id, "m.room.topic", {"topic": "new"})
        renderer = ClientEvents(server.events)
        stored = await server.events.get(room_id, sent.event_id)
        assert stored is not None
        renderer.render(stored, now_ms=0, with_room_id=True)
        first = renderer._rendered.peek(sent.event_id)
        renderer.render(stored, now_ms=1, with_room_id=False, requester=Reader(ALICE, "D"))
        assert renderer._rendered.peek(sent.event_id) is first

    asyncio.run(story())


def test_without_what_it_replaced_nothing_wrong_is_kept(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        await server.set_state(room_id, "m.room.topic", {"topic": "old"})
        sent = await server.set_state(room_id, "m.room.topic", {"topic": "new"})
        other = CoreServer(server.database)
        stored: StoredEvent | None = await other.events.get(room_id, sent.event_id)
        assert stored is not None
        unprepared = orjson.loads(other.client_events.render(stored, now_ms=0, with_room_id=True))
        assert "prev_content" not in unprepared["unsigned"]
        assert (await render(other, sent.event_id))["unsigned"]["prev_content"] == {"topic": "old"}

    asyncio.run(story())


def test_a_draft_may_choose_its_time_and_the_age_follows(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        draft = EventDraft("m.room.message", ALICE, {"body": "old"}, origin_server_ts=1_000)
        sent = await server.sender.send(room_id, draft)
        assert (await render(server, sent.event_id, after_ms=-3))["unsigned"] == {"age": -3}

    asyncio.run(story())


def test_stripped_state() -> None:
    room = RoomFactory()
    room.create("alice")
    topic = room.state_event("alice", "m.room.topic", {"topic": "t"})
    assert stripped_event(topic) == {
        "content": {"topic": "t"},
        "sender": ALICE,
        "state_key": "",
        "type": "m.room.topic",
    }


def test_json_beyond_what_the_fast_encoder_takes() -> None:
    assert dumps({"n": 10**30}) == b'{"n":%d}' % 10**30
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    assert dumps(deep) == b"[" * 401 + b"]" * 401
