"""homeserver/graph/events.py: a cache that is never behind the database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection

from homeserver.graph.events import Events
from homeserver.storage import event_graph
from homeserver.storage.database import Database
from tests.fakes.homeserver import ALICE, CoreServer, add_users


@pytest.fixture
def server(shared_database: Database) -> CoreServer:
    add_users(shared_database, ALICE)
    return CoreServer(shared_database)


class SlowDatabase:
    """A database whose reads take until they are let go; what they read is from before."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.read_done = asyncio.Event()
        self.go_on = asyncio.Event()

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        found = await self._database.read(function, *args)
        self.read_done.set()
        await self.go_on.wait()
        return found


def test_events_are_found_by_either_name_and_kept(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        sent = [await server.send(room_id, body=str(number)) for number in range(3)]
        events = Events(server.database)
        ids, nids = [e.event_id for e in sent], [e.event_nid for e in sent]
        assert events.cached(room_id, ids[0]) is None
        assert events.cached_by_nid(nids[0]) is None
        found = await events.by_id(room_id, [*ids[:2], "$unheard"])
        assert found.keys() == set(ids[:2])
        assert found[ids[0]].event.json == sent[0].event.json
        assert (await events.by_nid([*nids, 10**9])).keys() == set(nids)
        assert events.cached(room_id, ids[0]) is found[ids[0]]
        assert events.cached_by_nid(nids[0]) is found[ids[0]]
        assert await events.get(room_id, ids[2]) is events.cached(room_id, ids[2])
        assert await events.get(room_id, "$unheard") is None

    asyncio.run(story())


def test_what_is_read_back_is_what_was_stored(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        await server.set_state(room_id, "m.room.topic", {"topic": "old"})
        sent = await server.set_state(room_id, "m.room.topic", {"topic": "a\0\ufdd0b"})
        (read,) = server.database.read_now(event_graph.events_by_id, room_id, [sent.event_id])
        assert read.event.pdu == sent.event.pdu
        fields = ("event_nid", "room_nid", "verdict", "stream_position", "state_group", "replaces_nid", "txn")
        assert [getattr(read, name) for name in fields] == [getattr(sent, name) for name in fields]
        assert sent.replaces_nid is not None

    asyncio.run(story())


def test_the_cache_is_bounded(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        sent = [await server.send(room_id, body="x" * 1000) for _ in range(30)]
        events = Events(server.database, cache_bytes=100_000)
        for event in sent:
            await events.get(room_id, event.event_id)
        kept = [e for e in sent if events.cached(room_id, e.event_id)]
        assert 5 < len(kept) < 25
        assert kept == sent[-len(kept) :]

    asyncio.run(story())


def test_a_read_that_was_overtaken_by_a_redaction_is_not_kept(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        message = await server.send(room_id)
        slow = SlowDatabase(server.database)
        events = Events(slow)  # type: ignore[arg-type]
        reading = asyncio.create_task(events.get(room_id, message.event_id))
        await slow.read_done.wait()
        redaction = await server.redact(room_id, message.event_id)
        events.redacted(message.event_id, redaction.event)
        slow.go_on.set()
        await reading
        stored = await events.get(room_id, message.event_id)
        assert stored is not None
        assert stored.redacted_by is not None
        assert stored.redacted_by.event_id == redaction.event_id

    asyncio.run(story())


def test_what_was_forgotten_is_read_again(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        message = await server.send(room_id)
        events = Events(server.database)
        changed: list[str] = []
        events.watch(changed.append)
        await events.get(room_id, message.event_id)
        await server.redact(room_id, message.event_id)
        stale = await events.get(room_id, message.event_id)
        assert stale is not None
        assert stale.redacted_by is None  # nobody told it
        events.forget(message.event_id)
        fresh = await events.get(room_id, message.event_id)
        assert fresh is not None
        assert fresh.redacted_by is not None
        assert changed == [message.event_id]

    asyncio.run(story())


def test_many_events_at_once(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room()
        sent = await asyncio.gather(*(server.send(room_id, body=str(number)) for number in range(600)))

        def read(connection: Connection) -> set[str]:
            return {e.event_id for e in event_graph.events_by_id(connection, room_id, [e.event_id for e in sent])}

        assert server.database.read_now(read) == {e.event_id for e in sent}

    asyncio.run(story())
