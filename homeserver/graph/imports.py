"""Imports rooms: the state and its auth chain as another server gives them when one of our users joins."""

from __future__ import annotations

from collections.abc import Mapping
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
from homeserver.storage.invitations import Takeover
from homeserver.storage.room_imports import Differences, Importing, Switch, Switched, WantedState

EVENTS_PER_PIECE = 128
"""How many events one transaction of an import stores: other writers wait no longer than that."""
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
        nids: dict[str, int] = {}
        state_keys: dict[StateKey, int] = {}
        for part in parts(room.order, EVENTS_PER_PIECE):
            events = [known[event_id] for event_id in part]
            appended = await write(room_imports.store_outliers, self._graph, importing, events)
            nids.update(appended.nids)
            state_keys.update(appended.state_keys)
        if join.key not in state_keys:
            state_keys.update(await write(room_state.intern_state_keys, [join.key]))
        group = await self._store_group(importing, join, room, state_keys, nids)
        members = [event_id for key, event_id in room.state.items() if key[0] == "m.room.member" and key != join.key]
        for some in parts(members, ROWS_PER_PIECE):
            takeover = Takeover(importing.room_nid, [known[event_id] for event_id in some], known, nids)
            await write(room_imports.take_over_invitations, importing, takeover)
        wanted = WantedState(room.state, known, state_keys, nids, besides=join.key)
        if importing.was_known:
            generation, differences = await self._database.read(
                room_imports.find_differences, importing.room_nid, wanted
            )
        else:
            generation = await self._store_current(importing, wanted)
            differences = Differences()
        local = [key[1] for key in room.state if key[0] == "m.room.member" and self._is_local(key[1])]
        replaces = room.state.get(join.key)
        new = Switch(
            join=join,
            replaces=replaces,
            state_group=group,
            join_key_nid=state_keys[join.key],
            generation=generation,
            differences=differences,
            local_members=[
                (known[event_id], nids[event_id])
                for user_id in local
                if (event_id := room.state["m.room.member", user_id]) != replaces
            ],
            known=known,
            nids=nids,
        )
        return await write(room_imports.switch, self._graph, importing, new)

    async def _store_group(
        self,
        importing: Importing,
        join: Event,
        room: GivenRoom,
        state_keys: Mapping[StateKey, int],
        nids: Mapping[str, int],
    ) -> int:
        """Store the state group after the join, without the join itself; returns its number."""
        group = await self._database.write(room_imports.add_group, importing)
        keys = [key for key in room.state if key != join.key]
        for part in parts(keys, ROWS_PER_PIECE):
            entries = [(state_keys[key], nids[room.state[key]]) for key in part]
            await self._database.write(room_imports.store_entries, importing, group, entries)
        return group

    async def _store_current(self, importing: Importing, wanted: WantedState) -> int:
        """Store the current state of a room that no user of ours sees yet; returns the room's generation."""
        write = self._database.write
        generation, left = await self._database.read(room_imports.find_leftovers, importing.room_nid, wanted)
        for keys in parts(left.removed, ROWS_PER_PIECE):
            await write(room_imports.remove_leftovers, importing, keys, ())
        for users in parts(left.removed_members, ROWS_PER_PIECE):
            await write(room_imports.remove_leftovers, importing, (), users)
        for some in parts(list(wanted.state), ROWS_PER_PIECE):
            await write(room_imports.store_current, importing, wanted, some)
        return generation

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
