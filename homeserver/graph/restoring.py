"""Restores the content of events of which only an altered copy was known.

An event whose content does not match its hash is stored redacted. A server that passes on an altered copy first must
not keep the real event out.

https://spec.matrix.org/v1.19/server-server-api/#validating-hashes-and-signatures-on-received-events
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import structlog

from homeserver.graph.append import RoomWriters
from homeserver.graph.events import Events
from homeserver.graph.state import StateReader, stored_events_of
from homeserver.graph.working_head import LEVEL_KEYS
from homeserver.protocol.authorization import redaction_applies
from homeserver.protocol.events import Event
from homeserver.protocol.hashes import has_intact_content
from homeserver.protocol.power_levels import power_levels_of
from homeserver.storage import restored_events
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent, Verdict

logger = structlog.get_logger(__name__)


class Restorer:
    """Replaces redacted copies by intact events."""

    def __init__(self, database: Database, events: Events, states: StateReader, writers: RoomWriters) -> None:
        self._database = database
        self._events = events
        self._states = states
        self._writers = writers

    async def restore(self, given: Iterable[Event]) -> None:
        """Examine received events of one room that are stored already, and restore missing content.

        They have passed checks 1 to 3. The event ID guarantees that everything else in the event is the same.
        """
        by_id = {event.event_id: event for event in given}
        room_id = next((event.room_id for event in by_id.values()), "")
        for event_id, stored in (await self._events.by_id(room_id, by_id)).items():
            intact = by_id[event_id]
            if is_restored_by(stored.original, intact):
                await self._writers.alone(intact.room_id, partial(self._put, stored, intact))

    async def _put(self, stored: StoredEvent, intact: Event) -> None:
        redacted = intact.redacts if await self._redaction_applies(stored, intact) else None
        logger.info("event restored", room_id=intact.room_id, event_id=intact.event_id)
        await self._database.write(restored_events.restore, stored.event_nid, intact, stored.visible, redacted)
        self._events.forget(intact.event_id)
        if redacted is not None:
            self._events.redacted(redacted, intact)

    async def _redaction_applies(self, stored: StoredEvent, intact: Event) -> bool:
        if intact.redacts is None or not stored.visible or stored.state_group is None:
            return False
        target = await self._events.get(intact.room_id, intact.redacts)
        if target is None:
            return False
        before = await self._states.before(stored)
        found = await stored_events_of(self._events, intact.room_id, before.state, LEVEL_KEYS)
        levels = {key: level.original for key, level in found.items()}
        return redaction_applies(
            intact, target.original, power_levels_of(intact.version, *(levels.get(key) for key in LEVEL_KEYS))
        )


def is_restored_by(known: Event, given: Event) -> bool:
    """Whether a copy of an event is intact and the stored one is not."""
    if known is given or known.pdu == given.pdu:
        return False
    return not has_intact_content(known) and has_intact_content(given)


def better_copy(stored: StoredEvent | None, given: Event) -> Event:
    """The copy of an event to place: the stored outlier if only that one is intact."""
    if stored is not None and stored.verdict & Verdict.OUTLIER and is_restored_by(given, stored.original):
        return stored.original
    return given
