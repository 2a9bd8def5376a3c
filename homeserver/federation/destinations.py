"""The servers that an event is sent to: those that were in the room before it.

The room may have changed by the time an event is delivered. A server that has been removed since must still get the
events before its removal, or else it cannot place the removal in the graph. A server that has joined since must not get
events that it may not see.

https://spec.matrix.org/v1.19/server-server-api/#pdus
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.identifiers import server_of
from homeserver.storage.database import Database
from homeserver.storage.delivery import members_changed_since
from homeserver.storage.event_graph import StoredEvent

MEMBER = "m.room.member"
GLANCE_ENTRIES_MAX = 100
"""How many entries of a state are looked through for every event."""


class Snapshot(Protocol):
    """A state of a room."""

    @property
    def state(self) -> Mapping[StateKey, str]:
        """Event IDs by key."""

    @property
    def group(self) -> int | None:
        """Its state group."""


class Room(Protocol):
    """A room as it is now."""

    @property
    def joined(self) -> Mapping[str, bool]:
        """The joined users of all servers."""

    @property
    def joined_servers(self) -> Mapping[str, int]:
        """The servers with joined users, ours included, and how many each has."""

    @property
    def snapshot(self) -> Snapshot:
        """The room's current state."""


class Rooms(Protocol):
    """Finds rooms."""

    async def find(self, room_id: str) -> Room | None:
        """The room, or None if it is unknown."""

    def cached(self, room_id: str) -> Room | None:
        """The room, if it is cached."""


class States(Protocol):
    """Reads historic states."""

    async def lookup(self, state_group: int, keys: Iterable[StateKey]) -> dict[StateKey, str]:
        """Some entries of a state: event IDs by key."""


class Events(Protocol):
    """Reads stored events."""

    async def by_id(self, room_id: str, event_ids: Iterable[str]) -> Mapping[str, StoredEvent]:
        """Events of a room by ID; missing ones are left out."""

    async def by_nid(self, nids: Iterable[int]) -> Mapping[int, StoredEvent]:
        """The same by numeric ID."""


class Destinations:
    """Works out the destinations of events."""

    def __init__(self, server_name: str, database: Database, rooms: Rooms, states: States, events: Events) -> None:
        self._server_name = server_name
        self._database = database
        self._rooms = rooms
        self._states = states
        self._events = events

    async def of_event(self, stored: StoredEvent) -> set[str]:
        """The servers to send an event to; empty if this server is not the one to send it."""
        event = stored.event
        if event.sender_domain != self._server_name and not self._was_accepted_for_others(event):
            return set()
        destinations = await self._servers_before(stored)
        # A user who is removed must get the event, though its server may not be in the room: the user may only have
        # been invited. (An invitation has been sent to the user's server already, to be signed.)
        if event.type == "m.room.member" and event.membership in ("leave", "ban"):
            destinations.add((event.state_key or "").partition(":")[2])
        return destinations - {self._server_name, event.sender_domain, ""}

    async def of_room(self, room_id: str) -> set[str]:
        """The other servers that are in a room now."""
        room = await self._rooms.find(room_id)
        return set(room.joined_servers) - {self._server_name} if room is not None else set()

    def may_have_some(self, room_id: str) -> bool:
        """Whether other servers may be in a room; for events that changed no membership."""
        room = self._rooms.cached(room_id)
        return room is None or any(name != self._server_name for name in room.joined_servers)

    def _was_accepted_for_others(self, event: Event) -> bool:
        """Whether this server, as the resident server, accepted the event by send_join, send_leave or send_knock.

        "The resident server must also send the event to other servers participating in the room." Only such member
        events bear our signature beside that of the user's own server.
        """
        return (
            event.type == "m.room.member"
            and event.state_key == event.sender
            and self._server_name in event.pdu["signatures"]
        )

    async def _servers_before(self, stored: StoredEvent) -> set[str]:
        """The servers with joined users in the state before an event: the current ones, corrected by the changes
        since.
        """
        event = stored.event
        room = await self._rooms.find(event.room_id)
        if room is None or self._has_only_been_ours(room):
            return set()
        if stored.state_group is None or stored.stream_position is None:
            return set(room.joined_servers)
        if stored.state_group == room.snapshot.group:
            changed = {event.state_key} if event.type == "m.room.member" and event.state_key else set()
        else:
            changed = await self._database.read(
                members_changed_since, stored.room_nid, stored.stream_position, self._server_name
            )
        # An event is never sent to ourselves, so our own members do not matter, however many there are.
        changed = {user_id for user_id in changed if user_id.partition(":")[2] != self._server_name}
        if not changed:
            return set(room.joined_servers)
        counts = dict(room.joined_servers)
        joined_before = await self._joined_before(stored, changed)
        for user_id in changed:
            difference = (user_id in joined_before) - (user_id in room.joined)
            if difference:
                counts[server_of(user_id)] = counts.get(server_of(user_id), 0) + difference
        return {name for name, count in counts.items() if count > 0}

    def _has_only_been_ours(self, room: Room) -> bool:
        """Whether no user of another server ever had a membership in a room, as far as a cheap check can tell.

        Then no query for members who have left since is needed: a membership stays in the state for ever.
        """
        state = room.snapshot.state
        return len(state) <= GLANCE_ENTRIES_MAX and all(
            user_id.partition(":")[2] == self._server_name for event_type, user_id in state if event_type == MEMBER
        )

    async def _joined_before(self, stored: StoredEvent, user_ids: Iterable[str]) -> set[str]:
        """Those of the users who are joined in the state before an event."""
        assert stored.state_group is not None
        keys = [("m.room.member", user_id) for user_id in user_ids]
        members = await self._states.lookup(stored.state_group, keys)
        before = [event_id for event_id in members.values() if event_id != stored.event.event_id]
        found = list((await self._events.by_id(stored.event.room_id, before)).values())
        if stored.replaces_nid is not None and stored.event.type == "m.room.member":
            found.extend((await self._events.by_nid([stored.replaces_nid])).values())
        return {member.event.state_key or "" for member in found if member.event.membership == "join"}
