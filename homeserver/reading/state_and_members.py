"""What clients read of a room's state: all of it, single entries, and its members.

https://spec.matrix.org/v1.19/client-server-api/#getting-events-for-a-room
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from homeserver.clock import Clock
from homeserver.errors import Forbidden, NotFound
from homeserver.graph.events import Events
from homeserver.graph.outdated_heads import refuses_by_newest_state
from homeserver.graph.state import RoomHeads, StateReader
from homeserver.protocol.events import StateKey
from homeserver.reading.client_events import ClientEvents, dumps
from homeserver.reading.large_answers import LargeAnswers
from homeserver.reading.room_access import Access, RoomAccess
from homeserver.storage import history as store
from homeserver.storage import past_states
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.history import JoinedMember


class StateAndMembers:
    """Reads the state and the members of rooms for clients."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        events: Events,
        states: StateReader,
        client_events: ClientEvents,
        access: RoomAccess,
        clock: Clock,
    ) -> None:
        self._database = database
        self._heads = heads
        self._events = events
        self._states = states
        self._client_events = client_events
        self._access = access
        self._clock = clock
        self._large = LargeAnswers(events, client_events, clock)

    async def state(self, user_id: str, room_id: str) -> bytes:
        """All state events of a room as a JSON list: as of now, or when the user left. Raises ``Forbidden``."""
        access = await self._access.of(user_id, room_id)
        state = access.head.state
        if access.departure is not None and access.departure.state_group is not None:
            state = (await self._states.snapshot(access.departure.state_group)).state
        async with self._large.turn(user_id, len(state)):
            return await self._large.by_id(room_id, list(state.values()))

    async def state_event(self, user_id: str, room_id: str, key: StateKey) -> StoredEvent:
        """One state event of a room: as of now, or when the user left. Raises ``Forbidden``, ``NotFound``."""
        access = await self._access.of(user_id, room_id)
        if access.departure is not None and access.departure.state_group is not None:
            event_id = (await self._states.lookup(access.departure.state_group, [key])).get(key)
        else:
            event_id = access.head.state.get(key)
        stored = await self._events.get(room_id, event_id) if event_id is not None else None
        if stored is None:
            raise NotFound("The room has no such state")
        return stored

    async def render_event(self, stored: StoredEvent) -> bytes:
        """An event as JSON in the format for clients."""
        await self._client_events.prepare([stored])
        return self._client_events.render(stored, now_ms=self._clock.now_ms(), with_room_id=True)

    def render_content(self, stored: StoredEvent) -> bytes:
        """The content of an event as JSON, redacted if the event was."""
        return dumps(stored.event.content)

    # -- members -------------------------------------------------------------------------------------------------------

    async def members(
        self,
        user_id: str,
        room_id: str,
        *,
        at: int | None = None,
        membership: str | None = None,
        not_membership: str | None = None,
    ) -> bytes:
        """The m.room.member events of a room as a JSON list: now, at a place, or when the user left.

        Raises ``Forbidden``.
        """
        access = await self._access.of(user_id, room_id)

        def is_chosen(stored: StoredEvent) -> bool:
            return _is_chosen(stored.event.membership, membership, not_membership)

        async with self._large.turn(user_id, len(access.head.state)):
            members = await self._members_at(access, at)
            if isinstance(members, _ByNid):
                return await self._large.by_nid(members.nids, is_chosen)
            return await self._large.by_id(room_id, members, is_chosen)

    async def _members_at(self, access: Access, at: int | None) -> list[str] | _ByNid:
        """The member events at a place, by ID or by numeric ID."""
        departure = access.departure
        if departure is not None and (at is None or departure.place is None or at >= departure.place):
            return await self._members_of_group(departure.state_group)
        if at is None:
            return _members_in(access.head.state)
        point = await self._database.read(past_states.point_at, access.head.room_nid, at)
        if isinstance(point, past_states.StreamPoint):
            return _ByNid(await self._database.read(past_states.members_at, access.head.room_nid, point.position))
        members = await self._members_of_group(point.state_group)
        if not point.is_before:
            return members
        event = (await self._events.by_nid([point.event_nid]))[point.event_nid]
        replaced = [event.replaces_nid] if event.event.type == "m.room.member" and event.replaces_nid else []
        before = (await self._events.by_nid(replaced)).values()
        return [*(i for i in members if i != event.event_id), *(stored.event_id for stored in before)]

    async def _members_of_group(self, state_group: int | None) -> list[str]:
        if state_group is None:
            return []
        return _members_in((await self._states.snapshot(state_group)).state)

    @refuses_by_newest_state
    async def joined_members(self, user_id: str, room_id: str) -> list[JoinedMember]:
        """The joined members of a room that the user is in. Raises ``Forbidden``."""
        head = await self._heads.find(room_id)
        if head is None or user_id not in head.joined_local:
            raise Forbidden("You are not in this room")
        async with self._large.turn(user_id, len(head.joined)):
            return await self._database.read(store.joined_members, head.room_nid)

    async def joined_rooms(self, user_id: str) -> list[str]:
        """The IDs of the rooms that the user is in."""
        return await self._database.read(store.joined_room_ids, user_id)


@dataclass(frozen=True, slots=True)
class _ByNid:
    """Events by numeric ID."""

    nids: Sequence[int]


def _members_in(state: Mapping[StateKey, str]) -> list[str]:
    return [event_id for key, event_id in state.items() if key[0] == "m.room.member"]


def _is_chosen(value: str | None, membership: str | None, not_membership: str | None) -> bool:
    """ "the two parameters create an 'or' condition: either the membership is the same as membership or is not the
    same as not_membership."
    """
    if membership is None and not_membership is None:
        return True
    return (membership is not None and value == membership) or (not_membership is not None and value != not_membership)
