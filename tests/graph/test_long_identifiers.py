"""Names of 255 code points, which rooms of versions 1 to 10 hold though they have more than 255 bytes."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from homeserver.protocol import compose
from homeserver.reading.state_and_members import StateAndMembers
from tests.factories.rooms import RoomFactory
from tests.fakes.servers import Servers
from tests.postgresql import PostgresqlServer

OURS, REMOTE = "ours.test:8448", "remote.test:8448"


def incompressible(length: int) -> str:
    """Code points of four bytes each, so mixed that no index can compress them."""
    choose = random.Random(length)
    return "".join(chr(choose.randrange(0x10000, 0xF0000)) for _ in range(length))


def long_story(servers: Servers, **settings: Any) -> None:
    async def story() -> None:
        async with servers:
            ours = await servers.ours(OURS, **settings)
            room = RoomFactory("10", REMOTE)
            room.create("alice")
            remote = servers.remote(REMOTE, room)
            bob = await ours.user("bob")
            await ours.join(bob, room.room_id, REMOTE)
            zoe = f"@{incompressible(253 - len(REMOTE))}:{REMOTE}"
            key = (incompressible(255), incompressible(255)[::-1])
            events = [room.join(zoe), room.state_event("alice", key[0], {}, key[1]), room.send(zoe, "hello")]
            assert len(zoe) == 255
            assert await remote.transaction(OURS, events) == {event.event_id: {} for event in events}
            head = await ours.head(room.room_id)
            assert zoe in head.joined
            assert head.state[key] == events[1].event_id
            shown = await ours.get(StateAndMembers).state_event(bob, room.room_id, key)
            assert shown.event_id == events[1].event_id

    asyncio.run(story())


@pytest.fixture(autouse=True)
def _other_servers_do_not_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "_check_lengths", lambda _: None)


def test_on_sqlite(servers: Servers) -> None:
    long_story(servers)


def test_on_postgresql(servers: Servers, postgresql_server: PostgresqlServer) -> None:
    with postgresql_server.database(postgresql_server.migrated_template()) as url:
        long_story(servers, database={"url": url})
