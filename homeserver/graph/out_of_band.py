"""Memberships of our users in rooms that this server is not in; their events are stored beside the rooms' graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import Connection

from homeserver.clock import Clock
from homeserver.graph.events import Events
from homeserver.notifier import Change, Notifier, Stream
from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import RoomVersion
from homeserver.storage import graph_writes, out_of_band_events, streams, user_rooms
from homeserver.storage.appends import NewRoom
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent


class OutOfBandMemberships:
    """Stores memberships in rooms that this server is not in."""

    def __init__(self, database: Database, events: Events, notifier: Notifier, clock: Clock) -> None:
        self._database = database
        self._events = events
        self._notifier = notifier
        self._clock = clock

    async def store(
        self,
        version: RoomVersion,
        event: Event,
        stripped_state: Sequence[JsonObject] | None = None,
        *,
        ends: str | None = None,
    ) -> StoredEvent | None:
        """Store a member event of our user in a room that this server is not in (an invitation, a knock, a leave).

        ``stripped_state`` is the state that the user's clients are shown. ``ends`` is the event ID of the membership
        that the event ends: if the user has another one by now, nothing is stored and None is returned.
        """
        user_id = event.state_key
        assert user_id is not None
        stored_at = await self._database.write(self._store, version, event, stripped_state, ends)
        if stored_at is None:
            return None
        nid, position = stored_at
        self._notifier.publish([Change(position, Stream.MEMBERSHIP, event.room_id, (user_id,))])
        return (await self._events.by_nid([nid]))[nid]

    def _store(
        self,
        connection: Connection,
        version: RoomVersion,
        event: Event,
        stripped_state: Sequence[JsonObject] | None,
        ends: str | None,
    ) -> tuple[int, int] | None:
        """Returns the event's numeric ID, and the position of the change."""
        if ends is not None:
            standing = user_rooms.standing_of(connection, event.state_key or "", event.room_id)
            if standing is None or standing.event_id != ends:
                return None
        now = self._clock.now_ms()
        room = NewRoom(event.room_id, version.identifier, now)
        room_nid, _ = graph_writes.add_room(connection, room)
        nid = out_of_band_events.store(connection, room_nid, event)
        position = streams.next_position(connection)
        row: dict[str, Any] = graph_writes.user_room_row(room_nid, event, nid, position)
        row["received_ts"] = now
        if stripped_state is not None:
            row["stripped_state"] = orjson.dumps(list(stripped_state))
        elif event.membership == "leave":
            # Keep the state that came with the invitation.
            row["stripped_state"] = user_rooms.stripped_state_of(connection, event.state_key or "", room_nid)
        user_rooms.put_standing(connection, row)
        return nid, position
