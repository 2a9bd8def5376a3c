"""Which part of a room one of our users may read: all, everything until they left, or only what is public."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.errors import Forbidden
from homeserver.graph.events import Events
from homeserver.graph.outdated_heads import refuses_by_newest_state
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.protocol.history_visibility import effective_visibility
from homeserver.reading.visible_events import VISIBILITY_KEY, Viewer
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.sync_streams import Standing, standing_in

STEPS_BACK_MAX = 20
"""How many member events of a user are examined to find the one with which they left the room."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a user may read of a room."""

    head: RoomHead
    viewer: Viewer
    departure: StoredEvent | None = None
    """The event with which the user left: they see the state as of then, unless the room is public."""

    @property
    def is_joined(self) -> bool:
        """Whether the user is in the room now."""
        return self.viewer.joined_until is None


class RoomAccess:
    """Decides who may read a room."""

    def __init__(self, database: Database, heads: RoomHeads, events: Events) -> None:
        self._database = database
        self._heads = heads
        self._events = events

    @refuses_by_newest_state
    async def of(self, user_id: str, room_id: str) -> Access:
        """What a user may read of a room. Raises ``Forbidden`` if that is nothing.

        "If the user is joined to the room then the state is taken from the current state of the room. If the user has
        left the room then the state is taken from the state of the room when they left."
        """
        head = await self._heads.find(room_id)
        if head is not None and user_id in head.joined_local:
            return Access(head, Viewer(user_id, None))
        if head is None:
            raise Forbidden("You are not in this room")
        standing = await self._database.read(standing_in, user_id, room_id)
        if standing is not None and standing.membership == "join":
            # The user has joined since this head was read, maybe through another process.
            head = await self._heads.newest_where(room_id, lambda newest: user_id in newest.joined_local)
            if head is None:
                raise Forbidden("You are not in this room")
            return Access(head, Viewer(user_id, None))
        departure = None
        if standing is not None and not standing.forgotten:
            departure = await self.departure(standing)
        joined_until = departure.stream_position or 0 if departure is not None else 0
        if await self._is_public(head):
            return Access(head, Viewer(user_id, joined_until))
        if departure is None:
            raise Forbidden("You are not in this room")
        return Access(head, Viewer(user_id, joined_until, peeks=False), departure)

    async def departure(self, standing: Standing) -> StoredEvent | None:
        """The event with which the user left the room; None if they never were in it or the event is unknown."""
        later: StoredEvent | None = None
        nid: int | None = standing.event_nid
        for _ in range(STEPS_BACK_MAX):
            if nid is None:
                return None
            stored = (await self._events.by_nid([nid])).get(nid)
            if stored is None:
                return None
            if stored.event.membership == "join":
                return later
            if stored.stream_position is not None:
                later = stored
            nid = stored.replaces_nid
        return None

    async def _is_public(self, head: RoomHead) -> bool:
        event = await self._heads.state_event(head, *VISIBILITY_KEY)
        return event is not None and effective_visibility(event.content.get("history_visibility")) == "world_readable"
