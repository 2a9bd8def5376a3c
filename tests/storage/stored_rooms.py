"""Puts rooms of ``RoomFactory`` into a database, as an append of all their events at once."""

from __future__ import annotations

from homeserver.storage.appends import CurrentChange, EventWrite, GroupRef, GroupWrite, NewRoom, RoomAppend
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict
from homeserver.storage.graph_writes import GraphWriter
from tests.factories.rooms import RoomFactory


def store_room(database: Database, room: RoomFactory) -> None:
    """Store a room without forks."""
    append = RoomAppend(0, 0, new_room=NewRoom(room.room_id, room.version.identifier, 1_700_000_000_000))
    for event in room.events.values():
        replaces = None
        if event.state_key is not None:
            key = (event.type, event.state_key)
            replaces = next((c.event.event_id for c in reversed(append.changes) if c.key == key and c.event), None)
            predecessor = GroupRef(index=len(append.groups) - 1) if append.groups else None
            append.groups.append(GroupWrite(predecessor, {key: event.event_id}))
            append.changes.append(CurrentChange(key, event, event.event_id))
        group = GroupRef(index=len(append.groups) - 1)
        append.events.append(EventWrite(event, Verdict.ACCEPTED, group, replaces))
    append.current = GroupRef(index=len(append.groups) - 1)
    append.extremities = (frozenset(), frozenset(room.extremities))
    writer = GraphWriter(lambda user_id: user_id.endswith(f":{room.server_name}"))
    with database.begin() as connection:
        (outcome,) = writer.append(connection, [append])
    if isinstance(outcome, BaseException):
        raise outcome
