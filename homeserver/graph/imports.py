"""What comes into the database from outside of the graph: whole rooms, outliers, and memberships out of band."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson
from sqlalchemy import Connection

from homeserver.clock import Clock
from homeserver.graph.append import RoomWriters
from homeserver.graph.events import Events
from homeserver.graph.judgement import auth_events_first
from homeserver.graph.state import RoomHeads
from homeserver.graph.under_way import JOIN, UnderWay
from homeserver.notifier import Change, Notifier, Stream
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import RoomVersion
from homeserver.storage import graph_writes, streams, user_rooms
from homeserver.storage.appends import Appended, CurrentChange, EventWrite, GroupRef, GroupWrite, NewRoom, RoomAppend
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent, Verdict, events_by_id
from homeserver.storage.graph_writes import GraphWriter


class RoomImports:
    """Brings in rooms through other servers, and memberships in rooms that this server is not in."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        events: Events,
        notifier: Notifier,
        writers: RoomWriters,
        graph: GraphWriter,
        clock: Clock,
        under_way: UnderWay,
    ) -> None:
        self._database = database
        self._heads = heads
        self._events = events
        self._notifier = notifier
        self._writers = writers
        self._graph = graph
        self._clock = clock
        self._under_way = under_way

    def joining(self, room_id: str, user_id: str) -> AbstractAsyncContextManager[str]:
        """While this is entered, events that come for the room wait for it (see ``receive``)."""
        return self._under_way.marked(JOIN, room_id, user_id)

    async def import_room(
        self, version: RoomVersion, join: Event, state: Mapping[StateKey, Event], auth_chain: Iterable[Event]
    ) -> StoredEvent | None:
        """Take part in a room from our user's ``join`` on; returns the stored join.

        ``state`` is the state before the join, ``auth_chain`` what it builds on; all of it is checked already. What
        this server knew of the room's state before is replaced, unless a user of ours is in the room by now, through
        another process: then nothing is stored, and None returned.
        """
        outliers = auth_events_first({e.event_id: e for e in (*auth_chain, *state.values())})
        after = {**state, join.key: join}

        async def action() -> StoredEvent | None:
            appended = await self._database.write(self._import, version, join, state, after, outliers)
            self._heads.forget(join.room_id)
            if appended is None:
                return None
            head = await self._heads.get(join.room_id)
            position = appended.positions[join.event_id]
            self._notifier.publish(
                [Change(position, Stream.EVENTS, join.room_id, tuple(head.joined_local), wakes_room=True)]
            )
            stored = await self._events.get(join.event_id)
            assert stored is not None
            return stored

        imported: StoredEvent | None = await self._writers.alone(join.room_id, action)
        return imported

    def _import(
        self,
        connection: Connection,
        version: RoomVersion,
        join: Event,
        before: Mapping[StateKey, Event],
        after: Mapping[StateKey, Event],
        outliers: Sequence[Event],
    ) -> Appended | None:
        if user_rooms.is_anybody_in(connection, join.room_id):
            return None
        replaced = before.get(join.key)
        append = RoomAppend(
            room_nid=0,
            generation=0,
            new_room=NewRoom(join.room_id, version.identifier, self._clock.now_ms()),
            replace_state=True,
            events=[
                *(EventWrite(event, Verdict.OUTLIER, None) for event in outliers if event.event_id != join.event_id),
                EventWrite(
                    join,
                    Verdict.ACCEPTED,
                    GroupRef(index=0),
                    replaces=replaced.event_id if replaced else None,
                    awaited=True,
                ),
            ],
            groups=[GroupWrite(None, {key: event.event_id for key, event in after.items()})],
            changes=[CurrentChange(key, event, join.event_id) for key, event in after.items()],
            current=GroupRef(index=0),
            extremities=(frozenset(), frozenset({join.event_id})),
        )
        outcome = self._graph.append(connection, [append])[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def out_of_band(
        self,
        version: RoomVersion,
        event: Event,
        stripped_state: Sequence[JsonObject] | None = None,
        *,
        ends: str | None = None,
    ) -> StoredEvent | None:
        """Store a membership of our user in a room that this server is not in (an invitation, a knock, a departure).

        ``stripped_state`` is what the user's clients are shown of the room. ``ends`` is the event ID of the membership
        whose end this is: where it is another one by now, nothing is stored, and None returned.
        """
        user_id = event.state_key
        assert user_id is not None
        position = await self._database.write(self._store_out_of_band, version, event, stripped_state, ends)
        if position is None:
            return None
        self._notifier.publish([Change(position, Stream.MEMBERSHIP, event.room_id, (user_id,))])
        stored = await self._events.get(event.event_id)
        assert stored is not None
        return stored

    def _store_out_of_band(
        self,
        connection: Connection,
        version: RoomVersion,
        event: Event,
        stripped_state: Sequence[JsonObject] | None,
        ends: str | None,
    ) -> int | None:
        if ends is not None:
            standing = user_rooms.standing_of(connection, event.state_key or "", event.room_id)
            if standing is None or standing.event_id != ends:
                return None
        room = NewRoom(event.room_id, version.identifier, self._clock.now_ms())
        room_nid, generation = graph_writes.add_room(connection, room)
        known = events_by_id(connection, [event.event_id])
        if known:
            nid = known[0].event_nid
        else:
            append = RoomAppend(room_nid, generation, events=[EventWrite(event, Verdict.OUTLIER, None)])
            outcome = self._graph.append(connection, [append])[0]
            if isinstance(outcome, BaseException):
                raise outcome
            nid = outcome.nids[event.event_id]
        position = streams.next_position(connection)
        row: dict[str, Any] = graph_writes.user_room_row(room_nid, event, nid, position)
        if stripped_state is not None:
            row["stripped_state"] = orjson.dumps(list(stripped_state))
        elif event.membership == "leave":
            # What was shown of the room with the invitation stays known when it ends.
            row["stripped_state"] = user_rooms.stripped_state_of(connection, event.state_key or "", room_nid)
        user_rooms.put_standing(connection, row)
        return position
