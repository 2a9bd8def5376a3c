"""Imports rooms: the state and its auth chain as another server gives them when one of our users joins."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

from homeserver.clock import Clock
from homeserver.graph.append import RoomWriters
from homeserver.graph.events import Events
from homeserver.graph.given_events import GivenRoom, parts
from homeserver.graph.state import RoomHeads
from homeserver.graph.under_way import IMPORT, JOIN, UnderWay
from homeserver.graph.waiting_events import WaitingEvents
from homeserver.notifier import Change, Notifier, Stream
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.room_versions import RoomVersion
from homeserver.storage import room_imports, room_state
from homeserver.storage.appends import NewRoom, StaleHead
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.graph_writes import GraphWriter
from homeserver.storage.room_imports import Differences, Importing, Piece, Switch, Switched, WantedState

PIECE_S = 0.03
"""About how long one transaction of an import may take: other writers wait no longer than that."""
EVENTS_PER_PIECE = 192
"""How many events the first transaction of an import stores. The next ones store more or fewer, by the time it took."""
EVENTS_PER_PIECE_MIN = 128
EVENTS_PER_PIECE_MAX = 512
ROWS_PER_PIECE = 800
"""How many rows of a state one transaction of an import stores."""
IMPORT_ATTEMPTS_MAX = 5
"""How often an import starts again because another process has changed the room."""


class ImportWrites:
    """Writes an imported room to the database, in pieces."""

    def __init__(self, database: Database, graph: GraphWriter, clock: Clock, server_name: str) -> None:
        self._database = database
        self._graph = graph
        self._clock = clock
        self._server_name = server_name

    async def write(
        self,
        version: RoomVersion,
        join: Event,
        room: GivenRoom,
        owner: str,
    ) -> Switched | None:
        """Write everything except the join in small transactions, then the switch; None if we are in it by now."""
        write, known = self._database.write, room.events
        new_room = NewRoom(join.room_id, version.identifier, self._clock.now_ms())
        importing = await write(room_imports.begin, new_room, IMPORT, owner)
        if importing is None:
            return None
        nids, state_keys = await self._store_pieces(importing, join, room)
        if importing.was_known and join.key not in state_keys:
            state_keys.update(await write(room_state.intern_state_keys, [join.key]))
        wanted = WantedState(room.state, known, state_keys, nids, besides=join.key)
        generation, differences = None, Differences()
        if importing.was_known:
            generation, differences = await self._database.read(
                room_imports.find_differences, importing.room_nid, wanted
            )
        elif importing.has_leftovers:
            await self._remove_leftovers(importing, wanted)
        local = [key[1] for key in room.state if key[0] == "m.room.member" and self._is_local(key[1])]
        replaces = room.state.get(join.key)
        new = Switch(
            join=join,
            replaces=replaces,
            differences=differences,
            generation=generation,
            local_members=[
                (known[event_id], nids[event_id])
                for user_id in local
                if (event_id := room.state["m.room.member", user_id]) != replaces
            ],
            known=known,
            nids=nids,
        )
        return await write(room_imports.switch, self._graph, importing, new)

    async def _store_pieces(
        self, importing: Importing, join: Event, room: GivenRoom
    ) -> tuple[dict[str, int], dict[StateKey, int]]:
        """Store all events but the join; returns the numeric IDs of events and state keys."""
        loop = asyncio.get_running_loop()
        in_state = frozenset(event_id for key, event_id in room.state.items() if key != join.key)
        nids: dict[str, int] = {}
        state_keys: dict[StateKey, int] = {}
        size, start = EVENTS_PER_PIECE, 0
        while start < len(room.order):
            events = [room.events[event_id] for event_id in room.order[start : start + size]]
            piece = Piece(events, in_state, room.events, nids)
            began = loop.time()
            appended = await self._database.write(room_imports.store_piece, self._graph, importing, piece)
            nids.update(appended.nids)
            state_keys.update(appended.state_keys)
            start += size
            size = _next_size(size, loop.time() - began)
        return nids, state_keys

    async def _remove_leftovers(self, importing: Importing, wanted: WantedState) -> None:
        """Remove what an interrupted import has left of the current state and is not part of this one."""
        write = self._database.write
        left = await self._database.read(room_imports.find_leftovers, importing.room_nid, wanted)
        for keys in parts(left.removed, ROWS_PER_PIECE):
            await write(room_imports.remove_leftovers, importing, keys, ())
        for users in parts(left.removed_members, ROWS_PER_PIECE):
            await write(room_imports.remove_leftovers, importing, (), users)

    def _is_local(self, user_id: str) -> bool:
        return user_id.endswith(f":{self._server_name}")


class RoomImports:
    """Imports rooms that this server joins through other servers."""

    def __init__(
        self,
        heads: RoomHeads,
        events: Events,
        notifier: Notifier,
        writers: RoomWriters,
        under_way: UnderWay,
        writes: ImportWrites,
        waiting: WaitingEvents,
    ) -> None:
        self._heads = heads
        self._events = events
        self._waiting = waiting
        self._notifier = notifier
        self._writers = writers
        self._under_way = under_way
        self._writes = writes

    def joining(self, room_id: str, user_id: str, version: RoomVersion) -> AbstractAsyncContextManager[str]:
        """A context during which events that arrive for the room have to wait (see ``receive``)."""
        return self._under_way.marked(JOIN, room_id, user_id, version.identifier)

    async def import_room(self, version: RoomVersion, join: Event, room: GivenRoom) -> StoredEvent | None:
        """Take part in a room from our user's ``join`` on; returns the stored join.

        ``room`` is the state before the join and the auth chain of both; all events are checked already. The state that
        this server knew before is replaced. If another process has brought one of our users into the room meanwhile,
        nothing is stored and None is returned.
        """

        async def action() -> StoredEvent | None:
            for _ in range(IMPORT_ATTEMPTS_MAX):
                async with self._under_way.claimed(IMPORT, join.room_id) as owner:
                    try:
                        switched = await self._writes.write(version, join, room, owner)
                        break
                    except StaleHead:
                        continue  # another process has changed the room, or has taken over the import
            else:
                raise RuntimeError(f"cannot import {join.room_id}: other processes are always faster")
            self._heads.forget(join.room_id)
            self._waiting.room_came(join.room_id)
            if switched is None:
                return None
            # A user of ours whose invitation came with the room's state is not in the room: name all who are concerned.
            self._notifier.publish(
                [Change(switched.position, Stream.EVENTS, join.room_id, switched.users, wakes_room=True)]
            )
            stored = await self._events.get(join.room_id, join.event_id)
            assert stored is not None
            return stored

        imported: StoredEvent | None = await self._writers.alone(join.room_id, action)
        return imported


def _next_size(size: int, seconds: float) -> int:
    """How many events the next transaction should store, after one with ``size`` events took so long."""
    fitting = int(size * PIECE_S / seconds) if seconds > 0 else EVENTS_PER_PIECE_MAX
    return max(min(size, EVENTS_PER_PIECE_MIN), min(fitting, 2 * size, EVENTS_PER_PIECE_MAX))
