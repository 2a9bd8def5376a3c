"""Which servers an event goes to: those that were in the room when it happened.

The room may have moved on by the time an event is delivered. Who has been removed since must still get what came
before, or else cannot place its removal; who has joined since must not get what it may not see.

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
"""Entries of a state that are looked through for every event."""


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
        """The room, or None where it is not known."""

    def cached(self, room_id: str) -> Room | None:
        """The room, if it is at hand."""


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
        """The servers that an event goes to, if it is for us to send it."""
        event = stored.event
        if event.sender_domain != self._server_name and not self._was_accepted_for_others(event):
            return set()
        destinations = await self._servers_before(stored)
        # Whoever is removed must hear of it, though its server need not have been in the room: it may have been
        # invited only. (An invitation has been there already, to be signed.)
        if event.type == "m.room.member" and event.membership in ("leave", "ban"):
            destinations.add((event.state_key or "").partition(":")[2])
        return destinations - {self._server_name, event.sender_domain, ""}

    async def of_room(self, room_id: str) -> set[str]:
        """The other servers that are in a room now."""
        room = await self._rooms.find(room_id)
        return set(room.joined_servers) - {self._server_name} if room is not None else set()

    def may_have_some(self, room_id: str) -> bool:
        """Whether a room that did not change its members may have other servers in it."""
        room = self._rooms.cached(room_id)
        return room is None or any(name != self._server_name for name in room.joined_servers)

    def _was_accepted_for_others(self, event: Event) -> bool:
        """Whether we, as a resident server, took this into the room by send_join, send_leave or send_knock.

        "The resident server must also send the event to other servers participating in the room." Only such member
        events bear our signature beside that of the user's own server.
        """
        return (
            event.type == "m.room.member"
            and event.state_key == event.sender
            and self._server_name in event.pdu["signatures"]
        )

    async def _servers_before(self, stored: StoredEvent) -> set[str]:
        """The servers with joined users in the state before an event: those of now, corrected by what changed since."""
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
        # An event never goes to ourselves, so our own members make no difference, however many there are.
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
        """Whether nobody of another server ever had a membership in a room, as far as that can be told at a glance.

        Then there is no need to ask who has left since. Whoever once had a membership has one in the state for good.
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
