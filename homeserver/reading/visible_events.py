"""Which events of a room one of our users may see, by the state of the room at each of them.

https://spec.matrix.org/v1.19/client-server-api/#room-history-visibility
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from homeserver.caches import WeightedCache
from homeserver.graph.events import Events
from homeserver.graph.state import RoomHeads
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.history_visibility import may_see_event
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.history import entries_of_groups

VISIBILITY_KEY: StateKey = ("m.room.history_visibility", "")
VISIBILITY_BYTES_MAX = 16 * 2**20
"""How much memory the cached entries of states at events may use, for all users together."""
ENTRIES_BYTES = 250
"""The approximate memory of two event IDs and a user ID."""
MEMBERSHIPS = frozenset({"join", "invite", "leave", "ban", "knock"})

_Entries = tuple[str, str]
"""The IDs of the history visibility event and of the user's member event in a state; '' if it has none."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """A user who reads a room's history."""

    user_id: str
    joined_until: int | None = 0
    """The position of the event with which the user left; None if in the room now, 0 if never in it."""
    peeks: bool = True
    """Whether the user sees world-readable events, even from after they left."""

    def joined_after(self, stored: StoredEvent) -> bool:
        """Whether the user was in the room at any time after the event."""
        return self.joined_until is None or (stored.stream_position or 0) < self.joined_until


@dataclass(frozen=True, slots=True)
class SeenEvent:
    """An event that the user may see."""

    stored: StoredEvent
    membership: str
    """The user's membership right after the event."""


class VisibleEvents:
    """Looks up history visibility and membership in the states at events, and caches them."""

    def __init__(self, database: Database, events: Events, heads: RoomHeads) -> None:
        self._database = database
        self._events = events
        self._heads = heads
        self._entries: WeightedCache[tuple[int, str], _Entries] = WeightedCache(
            "visibility", VISIBILITY_BYTES_MAX, lambda _: ENTRIES_BYTES
        )

    async def of(self, stored: Sequence[StoredEvent], viewer: Viewer) -> list[SeenEvent]:
        """The events that the viewer may see, out of ``stored`` (all of one room) and in the same order."""
        stored = [event for event in stored if event.is_for_clients and event.state_group is not None]
        if not stored:
            return []
        user_id = viewer.user_id
        head = self._heads.cached(stored[0].event.room_id)
        if head is not None and user_id in head.joined and _are_messages_at(head.snapshot.group, stored):
            # Whoever is in the room sees what is said there, whatever its history visibility.
            return [SeenEvent(event, "join") for event in stored]
        entries = await self._entries_at(stored, user_id)
        named = await self._named(stored, entries, user_id)
        seen: list[SeenEvent] = []
        for event in stored:
            visibility_id, member_id = entries[event.state_group or 0]
            if self._may_see(event, visibility_id, member_id, viewer, named):
                seen.append(SeenEvent(event, _known(_membership(named.get(member_id)))))
        return seen

    def _may_see(
        self, stored: StoredEvent, visibility_id: str, member_id: str, viewer: Viewer, named: Mapping[str, Event]
    ) -> bool:
        event = stored.event
        # The states are those after the events: if the event itself set an entry, use the one that it replaced.
        if visibility_id == event.event_id:
            visibility_id = self._replaced_by(stored)
        if member_id == event.event_id:
            member_id = self._replaced_by(stored)
        visibility = _visibility(visibility_id, named.get(visibility_id))
        if visibility == "world_readable" and not viewer.peeks:
            visibility = "shared"
        return may_see_event(
            event,
            viewer.user_id,
            visibility,
            _membership(named.get(member_id)),
            joined_later=viewer.joined_after(stored),
        )

    def _replaced_by(self, stored: StoredEvent) -> str:
        replaced = self._events.cached_by_nid(stored.replaces_nid) if stored.replaces_nid is not None else None
        return replaced.event_id if replaced is not None else ""

    async def _entries_at(self, stored: Sequence[StoredEvent], user_id: str) -> dict[int, _Entries]:
        keys = (VISIBILITY_KEY, ("m.room.member", user_id))
        found: dict[int, _Entries] = {}
        missing: list[int] = []
        head = self._heads.cached(stored[0].event.room_id)
        now = head.snapshot.group if head is not None else None
        for group in {event.state_group or 0 for event in stored}:
            known = self._entries.get((group, user_id))
            if known is None and head is not None and group == now:
                known = (head.state.get(keys[0], ""), head.state.get(keys[1], ""))
                self._entries.put((group, user_id), known)
            if known is not None:
                found[group] = known
            else:
                missing.append(group)
        if missing:
            for group, entries in (await self._database.read(entries_of_groups, missing, keys)).items():
                found[group] = (entries.get(keys[0], ""), entries.get(keys[1], ""))
                self._entries.put((group, user_id), found[group])
        return found

    async def _named(
        self, stored: Sequence[StoredEvent], entries: Mapping[int, _Entries], user_id: str
    ) -> dict[str, Event]:
        """The events that decide about visibility, by ID: those in the states, and those that these replaced."""
        wanted = {event_id for pair in entries.values() for event_id in pair if event_id}
        room_id = stored[0].event.room_id
        found = {i: named.event for i, named in (await self._events.by_id(room_id, wanted)).items()}
        replaced = [
            event.replaces_nid
            for event in stored
            if event.replaces_nid is not None and event.event.key in (VISIBILITY_KEY, ("m.room.member", user_id))
        ]
        if replaced:
            found.update((e.event_id, e.event) for e in (await self._events.by_nid(replaced)).values())
        return found


def _are_messages_at(group: int | None, stored: Sequence[StoredEvent]) -> bool:
    """Whether the state at all of these events is that of a state group, and none of them is a state event."""
    others = [event for event in stored if event.state_group != group or event.event.is_state]
    return not others


def _visibility(event_id: str, event: Event | None) -> str | None:
    if event is None:
        # An event that is named but cannot be read: show no more than is safe.
        return "joined" if event_id else None
    value = event.content.get("history_visibility")
    return value if isinstance(value, str) else None


def _membership(event: Event | None) -> str | None:
    return event.membership if event is not None else None


def _known(membership: str | None) -> str:
    # "If the user had yet to join the room at the time of the event …, this property is set to leave."
    return membership if membership in MEMBERSHIPS else "leave"
