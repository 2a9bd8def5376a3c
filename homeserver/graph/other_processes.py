"""Follows what other processes on the same database do to rooms.

With PostgreSQL several processes may serve one database, and PostgreSQL notifies each when another one has committed.
With SQLite only the command line writes besides the server, so looking from time to time is enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

import structlog

from homeserver.graph.events import Events
from homeserver.graph.state import RoomHeads
from homeserver.notifier import Change, Notifier, StateEffect, Stream
from homeserver.storage import changes, streams
from homeserver.storage.changes import Notice, WrittenChange
from homeserver.storage.database import Database

logger = structlog.get_logger(__name__)

POLL_S = 2.0
"""How often a process looks for changes by others if nothing notifies it."""
RECONNECT_S = 1.0
STOP_AGAIN_S = 0.2


class ChangeListener(Protocol):
    """Is notified of everything that other processes write."""

    def note(self, changes: Iterable[WrittenChange]) -> None:
        """Take note of changes; must not block."""

    async def stop(self) -> None:
        """Stop the background work."""


class NoticeListener(Protocol):
    """Is notified of messages from other processes that are not stored."""

    def hear(self, body: str) -> None:
        """Take note of a notice; must not block."""

    def begin_to_hear(self) -> None:
        """Note that notices arrive from now on; earlier ones were lost."""


class OtherProcesses:
    """Updates caches when other processes write, and wakes the requests that wait for it.

    It is built before the notifier, which gets ``load_changes``, and started with it.
    """

    def __init__(self, database: Database, heads: RoomHeads, events: Events) -> None:
        self._database = database
        self._heads = heads
        self._events = events
        self._relay: ChangeListener | None = None
        self._notices: tuple[NoticeListener, ...] = ()
        self._following: asyncio.Task[None] | None = None

    async def load_changes(self, after: int, upto: int) -> list[Change]:
        """The changes after one position up to and including another; removes outdated entries from the caches."""
        written = await self._database.read(changes.load_changes, after, upto)
        for room_id, generation in written.generations.items():
            self._heads.forget(room_id, generation)
        for event_id in written.redacted:
            self._events.forget(event_id)
        for change in written.changes:
            cached = None
            if change.event_id is not None and change.room_id is not None:
                cached = self._events.cached(change.room_id, change.event_id)
            if cached is not None and cached.stream_position is None:
                self._events.forget(cached.event_id)  # an outlier has got a place in the graph
        if self._relay is not None:
            self._relay.note(written.changes)
        return [
            Change(
                change.position,
                Stream(change.stream),
                change.room_id,
                tuple(sorted(change.users)),
                change.wakes_room,
                change.event_id,
                StateEffect.NONE if change.is_hidden else StateEffect.UNKNOWN,
            )
            for change in written.changes
        ]

    def start(
        self, notifier: Notifier, relay: ChangeListener | None = None, notices: Iterable[NoticeListener] = ()
    ) -> None:
        """Start to follow what is written, and notify the notifier, and the relay of changes for other servers.

        All of ``notices`` are notified of what other processes say without storing it; each knows its own.
        """
        self._relay = relay
        self._notices = tuple(notices)
        self._following = asyncio.get_running_loop().create_task(self._follow(notifier))

    async def stop(self) -> None:
        """Stop the background work."""
        following, self._following = self._following, None
        while following is not None and not following.done():
            # Repeat it if needed: before Python 3.12, asyncio.wait_for, which waits for announcements, may swallow it.
            following.cancel()
            await asyncio.wait([following], timeout=STOP_AGAIN_S)
        relay, self._relay = self._relay, None
        if relay is not None:
            await relay.stop()

    async def _follow(self, notifier: Notifier) -> None:
        while True:
            try:
                if self._database.is_sqlite:
                    await self._look(notifier)
                    await asyncio.sleep(POLL_S)
                else:
                    await self._listen(notifier)
            except Exception as error:
                logger.warning("cannot follow what other processes write", error=str(error))
                await asyncio.sleep(RECONNECT_S)

    async def _look(self, notifier: Notifier) -> None:
        await notifier.catch_up(await self._database.read(streams.current_position))

    async def _listen(self, notifier: Notifier) -> None:
        async with changes.listening(self._database.engine.url) as announcements:
            for listener in self._notices:
                listener.begin_to_hear()
            await self._look(notifier)
            async for said in announcements:
                if said is None:
                    await self._look(notifier)
                elif said.sender == self._database.name:
                    continue
                elif isinstance(said, Notice):
                    self._hear(said)
                else:
                    await notifier.catch_up(said.position)

    def _hear(self, notice: Notice) -> None:
        for listener in self._notices:
            try:
                listener.hear(notice.body)
            except Exception:
                # The next announcement must still be handled.
                logger.exception("internal error while handling a notice of another process")
