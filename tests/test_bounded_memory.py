"""Whatever a process keeps in memory is bounded in bytes, appears in ``cache_uses``, and takes about what it says."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import orjson
import pytest

from homeserver.accounts.access_tokens import AccessTokens
from homeserver.caches import Measured, cache_uses
from homeserver.graph.events import Events
from homeserver.notifier import Change, Notifier, Stream
from homeserver.protocol.compose import compose_event
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.events import EventDraft
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent, Verdict
from homeserver.storage.graph_writes import GraphWriter
from homeserver.storage.sync_streams import Standing
from homeserver.sync.recent_changes import RecentChanges
from homeserver.sync.sent_members import SentMembers
from homeserver.sync.views import Views
from tests.factories.rooms import server_key
from tests.fakes.clock import FakeClock
from tests.fakes.reading_server import ReadingServer

BYTES_MAX = 2**20
ROUNDS = 12_000
Step = Callable[[int], object]


def long_id(number: int) -> str:
    return f"@{number}{'x' * 60}:example.org"


def grown(step: Step, rounds: int = ROUNDS) -> int:
    """How many bytes many steps add to the memory in use."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(rounds):
            step(number)
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def sent_members() -> tuple[Measured, Step]:
    sent = SentMembers(BYTES_MAX)

    def step(number: int) -> None:
        members = {long_id(number * 10 + i): number * 10 + i + 10**6 for i in range(number % 10)}
        sent.sending(long_id(number), f"DEVICE{number}", None, 1, {f"!{number}:example.org": members})

    return sent, step


def views_of_users() -> tuple[Measured, Step]:
    views = Views()
    views._views.bytes_max = BYTES_MAX

    def step(number: int) -> None:
        rooms = [f"!{number}-{i}{'x' * 30}:example.org" for i in range(number % 10)]
        standings = [Standing(room_id, number, "join", number, number, long_id(number), False) for room_id in rooms]
        views.put(long_id(number), number, standings, frozenset([long_id(-number)]))

    return views._views, step


async def nothing(after: int, upto: int) -> list[Change]:
    return []


def change(number: int) -> Change:
    users = (long_id(number),) if number % 2 else ()
    return Change(number, Stream.EVENTS, f"!{number}:example.org", users, True, f"${number:043}")


def changes() -> tuple[Measured, Step]:
    notifier = Notifier(0, nothing)
    notifier.bytes_max = BYTES_MAX
    return notifier, lambda number: notifier.publish([change(number + 1)])


def index_of_changes() -> tuple[Measured, Step]:
    notifier = Notifier(0, nothing)
    notifier.bytes_max = 1000
    recent = RecentChanges(notifier, BYTES_MAX)

    def step(number: int) -> None:
        notifier.publish([change(number + 1)])
        recent.advance()

    return recent, step


def state_keys() -> tuple[Measured, Step]:
    writer = GraphWriter(lambda _: True)
    writer._state_keys.bytes_max = BYTES_MAX
    return writer._state_keys, lambda number: writer.remember({("m.room.member", long_id(number)): number + 10**6})


@pytest.mark.parametrize("make", [sent_members, views_of_users, changes, index_of_changes, state_keys])
def test_memory_in_use_is_about_what_is_said(make: Callable[[], tuple[Measured, Step]]) -> None:
    cache, step = make()
    taken = grown(step)
    assert BYTES_MAX / 2 < cache.bytes <= BYTES_MAX + 1000
    assert len(cache) < ROUNDS
    # It may be less, but not much more.
    assert taken < 1.3 * BYTES_MAX, f"{taken} of {BYTES_MAX}"


EVENTS = 600
"""More than the cache holds."""


@pytest.mark.parametrize("is_ours", [True, False])
def test_cached_events_take_about_what_is_said(sqlite_url: str, is_ours: bool) -> None:
    database = Database(sqlite_url)
    events = Events(database, BYTES_MAX)
    version, signer = ROOM_VERSIONS["11"], server_key("example.org")

    def step(number: int) -> None:
        draft = EventDraft("m.room.message", long_id(number % 10), {"msgtype": "m.text", "body": f"message {number}"})
        before = [(f"${number + i:043}", "") for i in range(4)]
        event = compose_event(
            draft,
            version,
            room_id="!memory:example.org",
            prev_events=before[:1],
            auth_events=before[1:],
            depth=number + 1000,
            origin_server_ts=number + 10**12,
            signer=signer,
        )
        if not is_ours:
            event = parse_event(orjson.loads(event.json), version)
        events.keep(StoredEvent(event, number, 1, Verdict.ACCEPTED, number, 1, number))

    taken = grown(step, EVENTS)
    cache = events._cache  # not by cache_uses, which adds those of other tests in this process
    assert len(cache) < EVENTS
    assert taken < 1.2 * cache.bytes, f"{taken} for {len(cache)} events, not {cache.bytes}"
    database.close()


def test_changed_events_and_successors_are_bounded(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    events = Events(database)
    events._changed.bytes_max = 50_000
    server = ReadingServer(database)
    for number in range(3_000):
        events.forget(f"${number}")
        # One state event after the other that shows the same earlier one, and of each another one.
        server.client_events._note_successor("$first", f"${number}")
        server.client_events._note_successor(f"${number}", "$last")
    assert len(events._changed) == 100
    assert sum(map(len, server.client_events._successors.values())) <= 1_000
    database.close()


NAMES: Iterable[str] = (
    "access tokens", "changed events", "changed rooms", "changes", "events", "index of changes",
    "members that devices know", "receipts", "rendered events", "rendered timelines", "rooms", "state keys", "typing",
    "views of users",
)  # fmt: skip


def test_all_are_listed(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    kept: list[Any] = [ReadingServer(database), AccessTokens(database, FakeClock())]
    uses = {use.name: use for use in cache_uses()}
    assert set(NAMES) <= uses.keys(), kept
    assert all(0 <= use.bytes <= use.bytes_max for use in uses.values())
    database.close()
