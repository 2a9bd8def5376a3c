"""What comes into the database from outside of the graph: whole rooms, outliers, and memberships out of band."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import orjson
from sqlalchemy import Connection

from homeserver.clock import Clock
from homeserver.graph.append import RoomWriters
from homeserver.graph.events import Events
from homeserver.graph.judgement import auth_events_first
from homeserver.graph.state import RoomHeads
from homeserver.graph.under_way import IMPORT, JOIN, UnderWay
from homeserver.notifier import Change, Notifier, Stream
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import RoomVersion
from homeserver.storage import graph_writes, out_of_band_events, room_imports, room_state, streams, user_rooms
from homeserver.storage.appends import Appended, NewRoom, StaleHead
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.graph_writes import GraphWriter
from homeserver.storage.invitations import Takeover
from homeserver.storage.room_imports import Differences, Importing, Switch

EVENTS_PER_PIECE = 128
"""Events that one transaction of an import stores: whoever else writes waits for no more than that."""
ROWS_PER_PIECE = 800
"""Rows of a state, likewise."""
IMPORT_ATTEMPTS_MAX = 5
"""How often an import is begun anew because another process changed the room."""

T = TypeVar("T")


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
        server_name: str,
    ) -> None:
        self._database = database
        self._heads = heads
        self._events = events
        self._notifier = notifier
        self._writers = writers
        self._graph = graph
        self._clock = clock
        self._under_way = under_way
        self._server_name = server_name

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
        known = {event.event_id: event for event in (*auth_chain, *state.values())}
        known.pop(join.event_id, None)

        async def action() -> StoredEvent | None:
            for _ in range(IMPORT_ATTEMPTS_MAX):
                async with self._under_way.claimed(IMPORT, join.room_id) as owner:
                    try:
                        appended = await self._import(version, join, state, known, owner)
                        break
                    except StaleHead:
                        continue  # another process changed the room, or took the import over
            else:
                raise RuntimeError(f"cannot import {join.room_id}: other processes are always faster")
            self._heads.forget(join.room_id)
            if appended is None:
                return None
            head = await self._heads.get(join.room_id)
            position = appended.positions[join.event_id]
            self._notifier.publish(
                [Change(position, Stream.EVENTS, join.room_id, tuple(head.joined_local), wakes_room=True)]
            )
            stored = await self._events.get(join.room_id, join.event_id)
            assert stored is not None
            return stored

        imported: StoredEvent | None = await self._writers.alone(join.room_id, action)
        return imported

    async def _import(
        self,
        version: RoomVersion,
        join: Event,
        state: Mapping[StateKey, Event],
        known: Mapping[str, Event],
        owner: str,
    ) -> Appended | None:
        """Write everything but the join in small transactions, and then the switch."""
        write = self._database.write
        room = NewRoom(join.room_id, version.identifier, self._clock.now_ms())
        importing = await write(room_imports.begin, room, IMPORT, owner)
        if importing is None:
            return None
        # In a thread: in a large room it takes longer than others should have to wait.
        outliers = await asyncio.to_thread(auth_events_first, known)
        nids: dict[str, int] = {}
        state_keys: dict[StateKey, int] = {}
        for part in _parts(outliers, EVENTS_PER_PIECE):
            appended = await write(room_imports.store_outliers, self._graph, importing, part)
            nids.update(appended.nids)
            state_keys.update(appended.state_keys)
        if join.key not in state_keys:
            state_keys.update(await write(room_state.intern_state_keys, [join.key]))
        group = await self._store_group(importing, join, state, state_keys, nids)
        members = [event for key, event in state.items() if key[0] == "m.room.member" and key != join.key]
        for some in _parts(members, ROWS_PER_PIECE):
            takeover = Takeover(importing.room_nid, some, known, nids)
            await write(room_imports.take_over_invitations, importing, takeover)
        generation, differences = await self._database.read(
            room_imports.find_differences, importing.room_nid, state, state_keys, nids, join.key
        )
        if not importing.was_known:
            for piece in room_imports.parts_of(differences, ROWS_PER_PIECE):
                await write(room_imports.store_current, importing, piece)
            differences = Differences()
        replaced = state.get(join.key)
        new = Switch(
            join=join,
            replaces=replaced.event_id if replaced is not None else None,
            state_group=group,
            join_key_nid=state_keys[join.key],
            generation=generation,
            differences=differences,
            local_members=[(e, nids[e.event_id]) for e in members if self._is_local(e.state_key or "")],
            known=known,
            nids=nids,
        )
        return await write(room_imports.switch, self._graph, importing, new)

    async def _store_group(
        self,
        importing: Importing,
        join: Event,
        state: Mapping[StateKey, Event],
        state_keys: Mapping[StateKey, int],
        nids: Mapping[str, int],
    ) -> int:
        """Store the state group after the join, but for the join itself; returns its number."""
        group = await self._database.write(room_imports.add_group, importing)
        entries = [(state_keys[key], nids[event.event_id]) for key, event in state.items() if key != join.key]
        for part in _parts(entries, ROWS_PER_PIECE):
            await self._database.write(room_imports.store_entries, importing, group, part)
        return group

    def _is_local(self, user_id: str) -> bool:
        return user_id.endswith(f":{self._server_name}")

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
        stored_at = await self._database.write(self._store_out_of_band, version, event, stripped_state, ends)
        if stored_at is None:
            return None
        nid, position = stored_at
        self._notifier.publish([Change(position, Stream.MEMBERSHIP, event.room_id, (user_id,))])
        return (await self._events.by_nid([nid]))[nid]

    def _store_out_of_band(
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
        room = NewRoom(event.room_id, version.identifier, self._clock.now_ms())
        room_nid, _ = graph_writes.add_room(connection, room)
        nid = out_of_band_events.store(connection, room_nid, event)
        position = streams.next_position(connection)
        row: dict[str, Any] = graph_writes.user_room_row(room_nid, event, nid, position)
        if stripped_state is not None:
            row["stripped_state"] = orjson.dumps(list(stripped_state))
        elif event.membership == "leave":
            # What was shown of the room with the invitation stays known when it ends.
            row["stripped_state"] = user_rooms.stripped_state_of(connection, event.state_key or "", room_nid)
        user_rooms.put_standing(connection, row)
        return nid, position


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
