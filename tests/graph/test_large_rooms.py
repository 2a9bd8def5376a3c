"""What a membership event costs must not depend on how many members the room has: neither memory nor time."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from immutables import Map

from homeserver.graph.events import Events
from homeserver.graph.state import Extremity, RoomHead, StateReader, StateSnapshot
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.notifier import Change, Notifier, Stream
from homeserver.protocol.events import Event
from homeserver.storage.database import Database
from homeserver.sync.recent_changes import RecentChanges
from tests.factories.rooms import RoomFactory
from tests.fakes.homeserver import is_local

MEMBERS = 20_000
RENAMES = 10_000
GROWTH_BYTES_MAX = 40 * 2**20


def user(number: int) -> str:
    return f"@user{number}:example.org"


def large_head(event: Event, members: int) -> RoomHead:
    """The head of a room of so many local members, made up in memory."""
    state = Map({("m.room.member", user(number)): f"${number:043}" for number in range(members)})
    local = Map(dict.fromkeys(map(user, range(members)), True))
    snapshot = StateSnapshot(state, 1)
    return RoomHead(
        room_id=event.room_id,
        room_nid=1,
        version=event.version,
        generation=1,
        extremities=(Extremity(event.event_id, 1, 1, snapshot),),
        snapshot=snapshot,
        joined=local,
        joined_local=local,
        joined_servers=Map({"example.org": members}),
        invited=Map(),
    )


class Renamer:
    """Renames members as a room's writer does it, up to the transaction, and publishes what changed."""

    def __init__(self, database: Database, members: int) -> None:
        room = RoomFactory()
        first = room.create("alice")
        self._events = Events(database)
        self._states = StateReader(database, self._events)
        self._pdus = [room.join(user(number), content={"displayname": "another name"}).pdu for number in range(20)]
        self._version = room.version
        self.head = large_head(first, members)
        self._position = 0
        self._notifier = Notifier(0, self._load)
        self._recent = RecentChanges(self._notifier)

    @staticmethod
    async def _load(after: int, upto: int) -> Sequence[Change]:
        raise AssertionError("no other process has written")

    async def rename(self) -> Change:
        head, self._position = self.head, self._position + 1
        pdu = self._pdus[self._position % len(self._pdus)]
        pdu = {**pdu, "prev_events": [extremity.event_id for extremity in head.extremities]}
        event = Event(pdu, self._version, f"$new{self._position:039}", head.room_id)
        working = WorkingHead(head, self._events, self._states, is_local)

        async def job(_: WorkingHead) -> Sequence[NewEvent]:
            return [NewEvent(event, head.snapshot)]

        await working.run(job)
        (written,) = working.written
        self.head = replace(working.head, generation=head.generation + 1)
        self.head.snapshot.stored_as(self._position + 1)
        self._states.keep(self.head.snapshot)
        change = Change(self._position, Stream.EVENTS, head.room_id, written.users, True, event.event_id)
        self._notifier.publish([change])
        self._recent.advance()
        return change


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Database]:
    """A database without tables: nothing must be asked of it."""
    database = Database(f"sqlite:///{tmp_path}/empty.db")
    yield database
    database.close()


def test_ten_thousand_renames_among_twenty_thousand_members(empty: Database) -> None:
    """A change names the one member that it concerns, and what is kept of all of them is a few kilobytes each."""

    async def story() -> None:
        renamer = Renamer(empty, MEMBERS)
        before = renamer.head
        tracemalloc.start()
        try:
            start = tracemalloc.get_traced_memory()[0]
            for _ in range(RENAMES):
                change = await renamer.rename()
                assert change.weight < 1024
            grown = tracemalloc.get_traced_memory()[0] - start
        finally:
            tracemalloc.stop()
        assert grown < GROWTH_BYTES_MAX, f"{grown / 2**20:.0f} MiB"
        # Nobody came or went: the lists of members are the same objects as before.
        assert renamer.head.snapshot is not before.snapshot
        assert renamer.head.joined_local is before.joined_local
        assert renamer.head.joined is before.joined
        assert renamer.head.invited is before.invited

    asyncio.run(story())


def test_a_rename_takes_no_longer_where_there_are_more_members(empty: Database) -> None:
    async def seconds(members: int) -> float:
        renamer = Renamer(empty, members)
        best = float("inf")
        for _ in range(5):
            began = time.process_time()
            for _ in range(100):
                await renamer.rename()
            best = min(best, time.process_time() - began)
        return best

    async def story() -> None:
        small, large = await seconds(20), await seconds(MEMBERS)
        # A copy of the members would take ten times as long.
        assert large < 4 * small

    asyncio.run(story())
