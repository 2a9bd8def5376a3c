"""Stored events, read through a cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from homeserver.caches import WeightedCache
from homeserver.notifier import Change
from homeserver.protocol.events import Event
from homeserver.storage import event_graph
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent

CACHE_BYTES = 24 * 1024 * 1024
PARSED_FACTOR = 5
"""A parsed event uses about this many times the memory of its JSON."""
ENTRY_BYTES = 400
"""The memory of an entry besides its event."""
CHANGED_BYTES_MAX = 4 * 2**20
"""How much memory the record of changed events may use, which protects reads that are still running."""
LONG_KEY_BYTES = 500
"""The memory of a cache entry with a long ID as its key, and a number."""


def _weigh(stored: StoredEvent) -> int:
    return ENTRY_BYTES + PARSED_FACTOR * len(stored.original.json)


def _is_of(stored: StoredEvent, room_id: str) -> bool:
    return stored.event.room_id == room_id and not stored.is_out_of_band


class Events:
    """The events that this server has, by room and event ID, and by numeric ID.

    An event ID alone does not identify an event: in room versions 1 and 2 servers choose the IDs of their events, and a
    user who may name an event of one room must not reach an event of another room. The cache holds one event per ID; if
    two rooms have the same ID, their events displace each other.
    """

    def __init__(self, database: Database, cache_bytes: int = CACHE_BYTES) -> None:
        self._database = database
        self._cache: WeightedCache[str, StoredEvent] = WeightedCache("events", cache_bytes, _weigh)
        self._ids: dict[int, str] = {}
        """Event IDs by numeric ID; at most two for each cached event and 1,000 more. They share the cache's strings."""
        self._changed: WeightedCache[str, int] = WeightedCache(
            "changed events", CHANGED_BYTES_MAX, lambda _: 0, entry_bytes=LONG_KEY_BYTES
        )
        """The IDs of events that changed in the database, with the number of the change."""
        self._changes = 0
        self._watchers: list[Callable[[str], None]] = []

    def watch(self, watcher: Callable[[str], None]) -> None:
        """Register a function that is called with the ID of each changed event, for example a redacted one."""
        self._watchers.append(watcher)

    def cached(self, room_id: str, event_id: str) -> StoredEvent | None:
        """An event of a room if it is in the cache."""
        stored = self._cache.get(event_id)
        return stored if stored is not None and _is_of(stored, room_id) else None

    def cached_by_nid(self, event_nid: int) -> StoredEvent | None:
        """An event by numeric ID if it is in the cache."""
        event_id = self._ids.get(event_nid)
        stored = self._cache.get(event_id) if event_id is not None else None
        return stored if stored is not None and stored.event_nid == event_nid else None

    def cached_of(self, change: Change) -> StoredEvent | None:
        """The event of a change, if it has one and that is in the cache."""
        if change.event_id is None or change.room_id is None:
            return None
        return self.cached(change.room_id, change.event_id)

    async def get(self, room_id: str, event_id: str) -> StoredEvent | None:
        """An event of a room; None if this server does not have it in that room."""
        return self.cached(room_id, event_id) or (await self.by_id(room_id, [event_id])).get(event_id)

    async def in_any_room(self, event_id: str) -> list[StoredEvent]:
        """The events with an ID in all rooms. Only for requests that do not name the room."""
        began = self._changes
        found = await self._database.read(event_graph.events_in_any_room, event_id)
        return [self._keep_read(stored, began) for stored in found]

    async def by_id(self, room_id: str, event_ids: Iterable[str]) -> dict[str, StoredEvent]:
        """Events of a room by ID; those that this server does not have in that room are left out."""
        found: dict[str, StoredEvent] = {}
        missing: list[str] = []
        for event_id in event_ids:
            stored = self._cache.get(event_id)
            if stored is not None and _is_of(stored, room_id):
                found[event_id] = stored
            else:
                missing.append(event_id)
        if missing:
            began = self._changes
            for stored in await self._database.read(event_graph.events_by_id, room_id, missing):
                found[stored.event_id] = self._keep_read(stored, began)
        return found

    async def by_nid(self, nids: Iterable[int]) -> dict[int, StoredEvent]:
        """Events by numeric ID."""
        found: dict[int, StoredEvent] = {}
        missing: list[int] = []
        for nid in nids:
            stored = self.cached_by_nid(nid)
            if stored is not None:
                found[nid] = stored
            else:
                missing.append(nid)
        if missing:
            began = self._changes
            for stored in await self._database.read(event_graph.events_by_nid, missing):
                found[stored.event_nid] = self._keep_read(stored, began)
        return found

    async def ancestors_among(self, room_nid: int, start: Iterable[str], wanted: Collection[str]) -> set[str]:
        """Those of the ``wanted`` events, by ID, that are near ancestors of the ``start`` events, or among them."""
        return await self._database.read(event_graph.ancestors_among, room_nid, list(start), set(wanted))

    async def by_nid_anew(self, outdated: Iterable[StoredEvent]) -> dict[int, StoredEvent]:
        """Read events from the database again: another process may have given them places."""
        nids: list[int] = []
        for stored in outdated:
            nids.append(stored.event_nid)
            self.forget(stored.event_id)
        return await self.by_nid(nids)

    def _keep_read(self, stored: StoredEvent, began: int) -> StoredEvent:
        """Cache the result of a read that ``began`` after so many changes, unless it may be outdated by now."""
        known = self._cache.peek(stored.event_id)
        if known is not None and known.event_nid == stored.event_nid:
            return known
        if (self._changed.peek(stored.event_id) or 0) > began:
            return stored
        return self.keep(stored)

    def keep(self, stored: StoredEvent) -> StoredEvent:
        """Cache an event that was written; returns the cached one."""
        known = self._cache.peek(stored.event_id)
        redacted_by = known.redacted_by if known is not None and known.event_nid == stored.event_nid else None
        if redacted_by is not None and stored.redacted_by is None:
            # A redaction was committed after this copy was read.
            stored = replace(stored, redacted_by=redacted_by)
        if stored.is_idle_redaction and stored.visible:
            # Whether it has taken effect by now is asked anew each time: another process may have received its target.
            self._cache.drop(stored.event_id)
            return stored
        self._cache.put(stored.event_id, stored)
        self._ids[stored.event_nid] = stored.event_id
        if len(self._ids) > 2 * len(self._cache) + 1000:
            self._ids = {nid: eid for nid, eid in self._ids.items() if self._cache.peek(eid) is not None}
        return stored

    def forget(self, event_id: str) -> None:
        """Remove an event from the cache, because it has changed in the database."""
        self._cache.drop(event_id)
        self._note_change(event_id)

    def redacted(self, event_id: str, redaction: Event) -> None:
        """Note that a redaction of the event was applied."""
        known = self._cache.peek(event_id)
        if known is not None and known.event.room_id == redaction.room_id:
            if known.redacted_by is None or known.redacted_by.event_id == redaction.event_id:
                self._cache.put(event_id, replace(known, redacted_by=redaction))
            else:
                # It is shown with one of its redactions, always the same: the database knows with which.
                self._cache.drop(event_id)
        self._note_change(event_id)

    def _note_change(self, event_id: str) -> None:
        self._changes += 1
        self._changed.put(event_id, self._changes)
        for watcher in self._watchers:
            watcher(event_id)
