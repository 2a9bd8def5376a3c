"""The answers of the malicious server once it is honest: faults of its own would look like faults of ours."""

from __future__ import annotations

import random
from urllib.parse import quote

import orjson

from homeserver.protocol.event_format import parse_event
from homeserver.protocol.room_versions import ROOM_VERSIONS
from tests.simulation.malice import HISTORY_MAX, NAME, V1, Mallory, Room
from tests.simulation.network import Network
from tests.simulation.trace import Trace
from tests.simulation.virtual_loop import VirtualLoop
from tests.simulation.world import World

ROOM_ID = "!" + "r" * 43
VERSION = ROOM_VERSIONS["12"]


def test_a_page_of_history_begins_with_the_event_that_was_asked_for() -> None:
    """A server that lacks one event of a long history would never get it, and build on what nobody has."""
    chance, trace = random.Random(1), Trace()
    network = Network(chance, trace)
    mallory = Mallory(World(1, "12", chance, trace, network), strict=False)
    mallory.reform()
    room = mallory.rooms[ROOM_ID] = Room(VERSION, ROOM_ID)

    async def backfill() -> list[str]:
        for _ in range(HISTORY_MAX + 10):
            await mallory.do_talk(room)
        asked = list(room.events)[-2]
        path = f"{V1}/backfill/{quote(ROOM_ID)}?v={quote(asked)}&limit=100"
        answer = await network.ask(NAME, "GET", path, [], b"")
        return [parse_event(pdu, VERSION, room_id=ROOM_ID).event_id for pdu in orjson.loads(answer.body)["pdus"]]

    loop = VirtualLoop(random.Random(1))
    try:
        given = loop.run_until_complete(backfill())
    finally:
        loop.close()
    newest_first = list(room.events)[-2::-1]
    assert given == newest_first[:HISTORY_MAX]
