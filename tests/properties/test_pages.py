"""Pages of /messages and timelines of /sync together show every event exactly once, whatever happened to the room.

A room of a remote server goes through forks, lost and late events, outages, and times when our server is not in it. A
device syncs now and then, and pages into what its timelines leave out. In the end everything that it saw is compared
with the whole history, and every token that it was given splits that history in two.
"""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeserver.membership.membership import Memberships
from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from tests.factories.rooms import RoomFactory
from tests.fakes.reader import Reader, ids
from tests.fakes.servers import Servers
from tests.graph.test_receive import ALICE, EVE, OURS, REMOTE, Scene
from tests.reading.test_gaps import send_junk

STEPS = 14


class History:
    """What happens to the room, decided by a seed."""

    def __init__(self, at: Scene, seed: int) -> None:
        self.at = at
        self.random = Random(seed)
        self.device = Device(Reader(at.ours, at.bob), at)
        self.kept_back: list[Event] = []
        """Events of the remote server that were not sent to us."""
        self.has_junk = False

    async def run(self) -> None:
        actions = (
            self.remote_speaks,
            self.remote_speaks,
            self.events_are_lost,
            self.branch_comes_late,
            self.bob_speaks,
            self.bob_goes_and_comes_back,
            self.junk_comes,
            self.device_syncs,
            self.device_syncs,
        )
        await self.device.sync(limit=self.random.randint(1, 6))
        for _ in range(STEPS):
            await self.random.choice(actions)()
        await self.device.sync(limit=self.random.randint(1, 6))

    async def remote_speaks(self) -> None:
        await self.at.send(*[self.at.room.send(ALICE, "said") for _ in range(self.random.randint(1, 4))])

    async def events_are_lost(self) -> None:
        """More than a server fetches before it takes in what follows: nobody gives them to /get_missing_events."""
        self.kept_back += [self.at.room.send(ALICE, "lost") for _ in range(self.random.randint(1, 12))]
        following = self.at.room.send(ALICE, "after the gap")
        self.at.remote.replaced["missing_events"] = _nothing
        assert await self.at.send(following) == {following.event_id: {}}
        del self.at.remote.replaced["missing_events"]

    async def branch_comes_late(self) -> None:
        known = [e for e in list(self.at.room.events.values())[-12:] if e not in self.kept_back]
        prev = self.random.choice(known)
        branch = [self.at.room.send(EVE, "branch", prev_events=[prev])]
        branch += [self.at.room.send(EVE, "branch", prev_events=[branch[0]])]
        merge = self.at.room.send(ALICE, "merge")
        self.random.shuffle(branch)
        await self.at.send(*branch, merge)

    async def bob_speaks(self) -> None:
        event_id = await self.at.ours.send(self.at.bob, self.at.room.room_id)
        await self._tell_remote(event_id)

    async def bob_goes_and_comes_back(self) -> None:
        await self.at.ours.get(Memberships).leave(self.at.bob, self.at.room.room_id)
        head = await self.at.ours.head(self.at.room.room_id)
        await self._tell_remote(head.state["m.room.member", self.at.bob])
        self.kept_back += [self.at.room.send(ALICE, "missed") for _ in range(self.random.randint(0, 8))]
        await self.at.ours.join(self.at.bob, self.at.room.room_id, REMOTE)

    async def junk_comes(self) -> None:
        if not self.has_junk:
            self.has_junk = True
            self.device.junk = await send_junk(self.at, 3)

    async def device_syncs(self) -> None:
        if self.random.random() < 0.3:
            self.at.servers.network.split(OURS, REMOTE)
        await self.device.sync(limit=self.random.randint(1, 6))
        self.at.servers.network.heal(OURS, REMOTE)

    async def _tell_remote(self, event_id: str) -> None:
        stored = await self.at.ours.event(event_id)
        assert stored is not None
        known = [prev for prev in stored.event.prev_events if prev in self.at.room.events]
        self.at.room._add(stored.event, known, self.at.room._merged(known))


async def _nothing(_: Request) -> Response:
    return JSONResponse({"events": []})


class Device:
    """Keeps all that it is shown of the room, in the room's order."""

    def __init__(self, reader: Reader, at: Scene) -> None:
        self.reader = reader
        self.at = at
        self.shown: list[str] = []
        self.tokens: list[str] = []
        self.junk: list[str] = []
        self._since: str | None = None

    async def sync(self, limit: int) -> None:
        """Sync, and page through what the timeline leaves out."""
        answer = await self.reader.sync(self._since, limit=limit)
        room = answer.get("rooms", {}).get("join", {}).get(self.at.room.room_id)
        if room is not None:
            timeline = room["timeline"]
            if timeline["limited"]:
                self.tokens.append(timeline["prev_batch"])
                self.shown += ids(await self._between(timeline["prev_batch"]))
            self.shown += ids(timeline["events"])
        self._since = answer["next_batch"]
        self.tokens.append(self._since)

    async def _between(self, prev_batch: str) -> list[JsonObject]:
        found: list[JsonObject] = []
        start = prev_batch
        while True:
            page = await self.reader.page(self.at.room.room_id, start, end=self._since, limit=4)
            found += page["chunk"]
            if "end" not in page:
                return list(reversed(found))
            if page["end"] == start:
                self.at.servers.network.heal(OURS, REMOTE)  # nobody could be asked
            start = page["end"]
            self.tokens.append(start)


async def check(at: Scene, device: Device) -> None:
    room_id = at.room.room_id
    backwards = ids(await device.reader.pages(room_id, limit=7))
    whole = list(reversed(backwards))
    assert sorted(whole) == sorted([*at.room.events, *device.junk]), "every event exactly once"
    assert ids(await device.reader.pages(room_id, dir="f", limit=9)) == whole
    assert device.shown == whole, "timelines, and the pages between them"
    for token in device.tokens:
        before = ids(await device.reader.pages(room_id, token, limit=20))
        after = ids(await device.reader.pages(room_id, token, dir="f", limit=20))
        assert [*reversed(before), *after] == whole, token
    index = {event_id: number for number, event_id in enumerate(whole)}
    for event_id, event in at.room.events.items():
        for prev in event.prev_events:
            stored = await at.ours.event(prev)
            assert stored is not None
            assert stored.stream_position is not None
            # What arrived by /send after an event that follows it is news, and stands where it arrived.
            is_late = stored.stream_position > 0
            assert prev not in index or is_late or index[prev] < index[event_id], "an event before its ancestor"


async def play(servers: Servers, seed: int, **settings: object) -> None:
    async with servers:
        ours = await servers.ours(OURS, **settings)
        room = RoomFactory("11", REMOTE)
        room.create("alice")
        room.join(EVE)
        for _ in range(12):
            room.send(ALICE, "before")
        remote = servers.remote(REMOTE, room)
        bob = await ours.user("bob")
        await ours.join(bob, room.room_id, REMOTE)
        history = History(Scene(servers, ours, remote, room, bob), seed)
        await history.run()
        await check(history.at, history.device)


@pytest.mark.parametrize("seed", range(12))
def test_every_event_is_shown_exactly_once(servers: Servers, seed: int) -> None:
    asyncio.run(play(servers, seed))


@pytest.mark.parametrize("seed", [100, 101])
def test_every_event_is_shown_exactly_once_on_postgresql(servers: Servers, seed: int, postgresql_url: str) -> None:
    asyncio.run(play(servers, seed, database={"url": postgresql_url}))
