"""Putting events of other servers into their place in the graph: judged, and with all that they build on.

https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

import structlog

from homeserver.errors import HomeserverError
from homeserver.protocol.events import Event
from homeserver.rooms.ancestors import Ancestors
from homeserver.rooms.append import RoomWriters
from homeserver.rooms.events import Events
from homeserver.rooms.judgement import Judge, MissingAncestors, follows_all
from homeserver.rooms.state import RoomHeads, StateSnapshot
from homeserver.rooms.working_head import NewEvent, WorkingHead
from homeserver.storage import federation_queries
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent, Verdict

logger = structlog.get_logger(__name__)

STATES_FETCHED_MAX = 4
"""States that are asked for while one batch of events is placed."""

Outcome: TypeAlias = StoredEvent | HomeserverError | None
"""The event as it was stored, why it could not be, or None where it was there already."""


class Placer:
    """Places events that have passed checks 1 to 3."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        events: Events,
        writers: RoomWriters,
        judge: Judge,
        ancestors: Ancestors,
    ) -> None:
        self._database = database
        self._heads = heads
        self._events = events
        self._writers = writers
        self._judge = judge
        self._ancestors = ancestors

    async def place(
        self, origin: str, room_id: str, events: Sequence[Event], *, is_past: bool = False
    ) -> dict[str, Outcome]:
        """Judge and append events, ancestors first; what is missing is asked of the origin.

        All that can be appended as it is shares a transaction. ``is_past``: they are from before what we have.
        """
        outcomes: dict[str, Outcome] = {}
        given: dict[str, StateSnapshot] = {}
        auth_fetched: set[str] = set()
        placed = await self._ancestors.placed(event.event_id for event in events) if is_past else ()
        todo = [event for event in events if event.event_id not in placed]
        while todo:
            jobs = (self._append(event, given.get(event.event_id), is_past) for event in todo)
            results = await asyncio.gather(*jobs, return_exceptions=True)
            waiting: list[tuple[Event, MissingAncestors]] = []
            for event, result in zip(todo, results, strict=True):
                if isinstance(result, MissingAncestors):
                    waiting.append((event, result))
                elif isinstance(result, BaseException) and not isinstance(result, HomeserverError):
                    raise result
                else:
                    outcomes[event.event_id] = result
            todo = [event for event, _ in waiting]
            if waiting:
                event, missing = waiting[0]
                try:
                    await self._help(origin, event, missing, given, auth_fetched)
                except HomeserverError as error:
                    logger.info("event not placed", room_id=room_id, event_id=event.event_id, reason=str(error))
                    outcomes[event.event_id] = error
                    del todo[0]
        return outcomes

    async def _help(
        self,
        origin: str,
        event: Event,
        missing: MissingAncestors,
        given: dict[str, StateSnapshot],
        auth_fetched: set[str],
    ) -> None:
        """Get what an event lacks. Raises ``MissingAncestors`` or ``RemoteError`` where that is not possible."""
        head = await self._heads.get(event.room_id)
        if missing.auth:
            if event.event_id in auth_fetched:
                raise missing
            auth_fetched.add(event.event_id)
            await self._ancestors.fetch_auth_chain(origin, head, event)
            return
        if event.event_id in given or len(given) >= STATES_FETCHED_MAX:
            raise missing
        given[event.event_id] = await self._ancestors.fetch_state_before(origin, head, event)

    async def _append(self, event: Event, before: StateSnapshot | None, is_past: bool) -> StoredEvent | None:
        runs = 0

        async def job(working: WorkingHead) -> Sequence[NewEvent]:
            nonlocal runs
            runs += 1
            if await self.is_placed(working, event, ask_database=runs > 1):
                return ()
            return (await self.compose(working, event, before, is_past),)

        stored = await self._writers.submit(event.room_id, job)
        return stored[0] if stored else None

    async def is_placed(self, working: WorkingHead, event: Event, *, ask_database: bool) -> bool:
        """Whether an event stands in the graph already, as far as that is at hand, or by the database's word."""
        if working.knows(event.event_id):
            return True
        if ask_database:  # another request was faster with this event
            return bool(await self._ancestors.placed([event.event_id]))
        stored = self._events.cached(event.event_id)
        return stored is not None and not stored.verdict & Verdict.OUTLIER

    async def compose(
        self, working: WorkingHead, event: Event, before: StateSnapshot | None = None, is_past: bool = False
    ) -> NewEvent:
        """Judge an event on the head that it will be appended to. ``before`` is the state before it, if it was given.

        Raises ``MissingAncestors``.
        """
        if before is None:
            before = await self._judge.state_before(working, event)
        ruling = await self._judge.judge(working, event, before, is_past=is_past)
        extends = False
        if ruling.verdict == Verdict.ACCEPTED and not is_past:
            extends = follows_all(working.head, event) or not await self._is_followed(working, event)
        return NewEvent(event, before, ruling.verdict, ruling.reason, extends=extends, backfilled=is_past)

    async def _is_followed(self, working: WorkingHead, event: Event) -> bool:
        """Whether an accepted event that is here already follows this one."""
        if any(
            written.new.verdict == Verdict.ACCEPTED and event.event_id in written.new.event.prev_events
            for written in working.written
        ):
            return True
        return await self._database.read(federation_queries.is_followed_by_accepted, event.event_id)
