"""Events that cannot be judged yet: kept, and retried when the events that they lack arrive, and from time to time.

The server that sent such an event was told that it was accepted, and will not send it again. So it is kept in the
database until it can be placed, across restarts, or until it is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from typing import TypeAlias

import structlog

from homeserver.clock import Clock
from homeserver.protocol.events import Event
from homeserver.storage import waiting_events as store
from homeserver.storage.database import Database
from homeserver.storage.waiting_events import WaitingEvent

logger = structlog.get_logger(__name__)

EVENTS_OF_ORIGIN_MAX = 100
"""How many events of one room and one server may wait; all servers outside of the room count as one."""
EVENTS_OF_ROOM_MAX = 500
RETRY_MS_MIN = 3_000
"""Longer than the pause after a server did not help; see ``unhelpful_servers``."""
RETRY_MS_MAX = 6 * 3600 * 1000
GIVE_UP_AFTER_MS = 14 * 24 * 3600 * 1000
CLAIM_MS = 10 * 60 * 1000
"""How long a process that retries an event has it for itself."""
EVENTS_AT_ONCE = 100
SLEEP_S_MAX = 300.0
REFRESH_MS = 300_000
"""How often this process looks for events that other processes keep."""
PATIENT_ATTEMPTS = 11
"""The number of attempts, over about two hours, after which an event is judged without those parts of a given state
that cannot be verified."""

Retry: TypeAlias = Callable[[str, str, Sequence[WaitingEvent], bool], Awaitable[Mapping[str, frozenset[str]]]]
"""Retries events of a room and a server: ``(room_id, origin, events, is_last_resort)``. Returns what each event that
still has to wait lacks."""


class WaitingEvents:
    """Keeps events until they can be judged."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._retry: Retry | None = None
        self._lacks: dict[str, dict[str, frozenset[str]]] = {}
        """What waiting events lack, by room and event ID. The database has all of them."""
        self._refresh_at_ts = 0
        self._helped: dict[str, set[str]] = {}
        """The IDs of events, by room, for which a missing event has arrived."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self, retry: Retry) -> None:
        """Start to retry waiting events."""
        self._retry = retry
        await self._refresh()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stop; waiting events are retried after the next start."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def keep(
        self, origin: str, events: Iterable[tuple[Event, frozenset[str]]], members: Container[str]
    ) -> set[str]:
        """Keep events of one room, each with the IDs of the events that it lacks.

        ``members`` are the servers in the room. Returns the IDs of the events that are kept; the others are too many.
        """
        now = self._clock.now_ms()
        waiting = [
            WaitingEvent(event.room_id, event.event_id, origin, event.json, lacks, 0, now + RETRY_MS_MIN, now)
            for event, lacks in events
        ]
        kept = await self._database.write(store.keep, waiting, members, EVENTS_OF_ORIGIN_MAX, EVENTS_OF_ROOM_MAX)
        for event in waiting:
            if event.event_id in kept:
                self._lacks.setdefault(event.room_id, {})[event.event_id] = event.lacks
        self._wake.set()
        return set(kept)

    def arrived(self, room_id: str, events: Iterable[Event]) -> None:
        """Note that events were stored: events that wait for one of them, or come before one, are retried.

        Called for everything that is written, so it must be cheap if nothing waits.
        """
        room = self._lacks.get(room_id)
        if room is None:
            return
        come: set[str] = set()
        followed: set[str] = set()
        for event in events:
            come.add(event.event_id)
            followed.update(event.prev_events)
        helped = {
            event_id
            for event_id, lacks in room.items()
            if event_id in come or event_id in followed or not come.isdisjoint(lacks)
        }
        if helped:
            self._helped.setdefault(room_id, set()).update(helped)
            self._wake.set()

    def room_came(self, room_id: str) -> None:
        """Note that a room was joined: the events that came while it was being joined are retried."""
        if (room := self._lacks.get(room_id)) is not None:
            self._helped.setdefault(room_id, set()).update(room)
            self._wake.set()

    async def _run(self) -> None:
        while True:
            try:
                self._wake.clear()
                wait_s = await self.work()
            except Exception:
                logger.exception("internal error while retrying waiting events")
                wait_s = SLEEP_S_MAX
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def work(self) -> float:
        """Retry what is due. Returns in how many seconds there is more to do."""
        now = self._clock.now_ms()
        if now >= self._refresh_at_ts:
            await self._refresh()
            self._refresh_at_ts = now + REFRESH_MS
        helped, self._helped = self._helped, {}
        for room_id, event_ids in helped.items():
            await self._database.write(store.make_due, room_id, event_ids, now)
        next_ts = await self._database.read(store.next_ts)
        if next_ts is not None and next_ts <= now:
            due = await self._database.write(store.claim_due, now, now + CLAIM_MS, EVENTS_AT_ONCE)
            groups: dict[tuple[str, str], list[WaitingEvent]] = {}
            for event in due:
                groups.setdefault((event.room_id, event.origin), []).append(event)
            await asyncio.gather(*(self._try(room_id, origin, group) for (room_id, origin), group in groups.items()))
            next_ts = await self._database.read(store.next_ts)
        return SLEEP_S_MAX if next_ts is None else min(SLEEP_S_MAX, max(0.0, (next_ts - now) / 1000))

    async def _refresh(self) -> None:
        """Read the waiting events: other processes keep events too."""
        rooms: dict[str, dict[str, frozenset[str]]] = {}
        for room_id, event_id, lacks in await self._database.read(store.all_lacking):
            rooms.setdefault(room_id, {})[event_id] = lacks
        self._lacks = rooms

    async def _try(self, room_id: str, origin: str, group: Sequence[WaitingEvent]) -> None:
        """Retry events of one room and origin. An internal error in one room does not affect others."""
        assert self._retry is not None
        now = self._clock.now_ms()
        is_last_resort = any(event.attempts >= PATIENT_ATTEMPTS for event in group)
        try:
            lacking = await self._retry(room_id, origin, group, is_last_resort)
        except Exception:
            logger.exception("internal error while retrying waiting events", room_id=room_id, origin=origin)
            lacking = {event.event_id: event.lacks for event in group}
        done: list[str] = []
        for event in group:
            lacks = lacking.get(event.event_id)
            if lacks is None:
                done.append(event.event_id)
            elif now - event.received_ts > GIVE_UP_AFTER_MS:
                logger.info("waiting event given up", room_id=room_id, event_id=event.event_id)
                done.append(event.event_id)
            else:
                wait_ms = min(RETRY_MS_MIN * 2 ** min(event.attempts + 1, 20), RETRY_MS_MAX)
                await self._database.write(store.postpone, event, lacks, now + wait_ms)
                self._lacks.setdefault(room_id, {})[event.event_id] = lacks
        if done:
            await self._database.write(store.remove, room_id, done)
            room = self._lacks.get(room_id, {})
            for event_id in done:
                room.pop(event_id, None)
            if not room:
                self._lacks.pop(room_id, None)
