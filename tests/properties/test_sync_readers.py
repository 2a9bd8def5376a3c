"""What a client is told does not depend on whether its news come from memory or from the database."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import orjson
import pytest

from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import Database
from homeserver.sync.loaded_events import LoadedEvents
from homeserver.sync.quick import NotCached
from homeserver.sync.updates import SyncRequest
from tests.fakes.clock import FakeClock
from tests.fakes.reading_server import ReadingServer
from tests.properties.random_history import USERS, RandomHistory

STEPS = 40
LAZY: JsonObject = {"lazy_load_members": True}
FILTERS: dict[str, JsonObject] = {
    "everything": {},
    "lazy": {"room": {"state": LAZY}},
    "lazy, short": {"room": {"state": LAZY, "timeline": {"limit": 2}}},
    "lazy, redundant": {"room": {"state": {**LAZY, "include_redundant_members": True}}},
    "no timeline": {"room": {"timeline": {"limit": 0}}},
    "no timeline types": {"room": {"timeline": {"types": []}, "state": LAZY}},
    "messages": {"room": {"timeline": {"types": ["m.room.message"], "limit": 3}}},
    "not alice": {"room": {"timeline": {"not_senders": ["@alice:example.org"]}, "state": {"types": ["m.room.topic"]}}},
    "one room": {"room": {"rooms": ["!room1:example.org"], "ephemeral": {"types": ["m.receipt"]}}},
    "timeline of one room": {"room": {"timeline": {"not_rooms": ["!room1:example.org"]}, "include_leave": True}},
    "little": {"account_data": {"types": []}, "room": {"ephemeral": {"types": []}, "account_data": {"types": []}}},
}


async def rendered(server: ReadingServer, request: SyncRequest, *, from_memory: bool) -> Any:
    """What a client is told. None where memory does not know."""
    sync, loaded = server.sync_service, LoadedEvents(server.events)
    # Typing is told by no reader of news; and a process that has just started knows of none.
    sync._composer._add_typing = lambda *_: None  # type: ignore[method-assign]
    if from_memory:
        assert request.since is not None
        window = sync._quick.look(request.user_id, request.since)
        if window is None:
            return None
        try:
            news = await sync._quick.read(request, window, loaded)
        except NotCached:
            return None
    else:
        news = await sync._gathering.read(request)
    update = await sync._composer.compose(request, news, {}, loaded)
    await sync._rendering.prepare(update)
    return in_any_order(orjson.loads(sync._rendering.render(request, update)))


def in_any_order(answer: Any) -> Any:
    """Leave out the order of what has none: states, ephemeral events and account data."""
    for section in answer.get("rooms", {}).values():
        for room in section.values():
            for name in ("state", "state_after", "ephemeral", "account_data", "invite_state", "knock_state"):
                if name in room:
                    room[name]["events"].sort(key=lambda event: orjson.dumps(event, option=orjson.OPT_SORT_KEYS))
    return answer


@pytest.mark.parametrize("seed", range(6))
def test_memory_and_database_say_the_same(sqlite_url: str, seed: int) -> None:
    async def story() -> None:
        chance = random.Random(seed)
        servers = [ReadingServer(database, clock), ReadingServer(database, clock)]
        history = RandomHistory(servers, chance, forks=True)
        await history.begin()
        for server in servers:
            for name in USERS:
                await server.sync(name)
        positions = [servers[0].notifier.position]
        compared = 0
        for step in range(STEPS):
            await history.step()
            positions.append(servers[0].notifier.position)
            if step % 4 == 3:
                compared += await compare(servers, chance, positions)
        assert compared > 100, "memory did not know enough for this to prove anything"
        for server in servers:
            await server.typing.stop()

    async def compare(servers: list[ReadingServer], chance: random.Random, positions: list[int]) -> int:
        compared = 0
        for who in USERS:
            for since in {positions[-2], chance.choice(positions[-8:]), chance.choice(positions)}:
                name = chance.choice(list(FILTERS))
                request = servers[0].request(
                    who, filter=FILTERS[name], state_after=chance.random() < 0.5, full_state=chance.random() < 0.1
                )
                request = replace(request, since=since)
                # A process that has just started has nothing in memory.
                told = await rendered(ReadingServer(database, clock), request, from_memory=False)
                for number, server in enumerate(servers):
                    assert await rendered(server, request, from_memory=False) == told, (who, since, name, number)
                    known = None if request.full_state else await rendered(server, request, from_memory=True)
                    if known is not None:
                        assert known == told, (who, since, name, number)
                        compared += 1
        return compared

    database, clock = Database(sqlite_url), FakeClock()
    try:
        asyncio.run(story())
    finally:
        database.close()
