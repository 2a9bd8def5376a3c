"""Events of rooms that reached this server outside the room's graph: invitations, knocks, and the events that end them.

They are stored under the room version that came with them (``events.claimed_version``). It may not be the
room's, and they have not been judged by the room's state, so look-ups of the room's events do not find them.
"""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from homeserver.protocol.events import Event
from homeserver.storage.event_graph import Verdict
from homeserver.storage.room_state import intern_state_keys
from homeserver.storage.tables import counters, events, rooms


def store(connection: Connection, room_nid: int, event: Event) -> int:
    """Store an event under the room version that it was parsed with, unless it is stored; returns its numeric ID."""
    known = select(events.c.event_nid).where(
        events.c.event_id == event.event_id,
        events.c.room_nid == room_nid,
        events.c.claimed_version == event.version.identifier,
    )
    if (found := connection.execute(known).scalar_one_or_none()) is not None:
        return int(found)
    nid: int = connection.execute(
        update(counters).values(event=counters.c.event + 1).returning(counters.c.event)
    ).scalar_one()
    connection.execute(
        events.insert(),
        {
            "event_nid": nid,
            "event_id": event.event_id,
            "room_nid": room_nid,
            "claimed_version": event.version.identifier,
            "type": event.type,
            "state_key_nid": intern_state_keys(connection, [event.key])[event.key],
            "depth": event.depth,
            "origin_server_ts": event.origin_server_ts,
            "verdict": int(Verdict.OUTLIER),
            "json": event.json,
        },
    )
    return nid


def is_known(connection: Connection, room_id: str, event_id: str) -> bool:
    """Whether an event reached this server at all, out of band or as part of its room's graph."""
    statement = (
        select(events.c.event_nid)
        .join_from(events, rooms, rooms.c.room_nid == events.c.room_nid)
        .where(events.c.event_id == event_id, rooms.c.room_id == room_id)
    )
    return connection.execute(statement.limit(1)).first() is not None
