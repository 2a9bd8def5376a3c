"""Replacing a stored copy of an event without its content by the intact event."""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from homeserver.protocol.events import Event
from homeserver.storage.database import in_slices, upsert
from homeserver.storage.graph_writes import member_row
from homeserver.storage.tables import events, redactions, room_members


def restore(connection: Connection, event_nid: int, event: Event, is_accepted: bool, redacted: str | None) -> None:
    """Store an event completely that is stored redacted, and what follows from its content.

    ``redacted`` is the ID of the event that it redacts, if it is a redaction.
    """
    connection.execute(update(events).where(events.c.event_nid == event_nid).values(json=event.json))
    room_nid = connection.execute(select(events.c.room_nid).where(events.c.event_nid == event_nid)).scalar_one()
    if event.type == "m.room.member":
        row = member_row(room_nid, event, event_nid)
        shown = {name: row[name] for name in ("display_name", "sort_name", "avatar_url")}
        connection.execute(update(room_members).where(room_members.c.event_nid == event_nid).values(**shown))
    if event.redacts is not None and is_accepted:
        row = {
            "redacted_event_id": event.redacts,
            "room_nid": room_nid,
            "redaction_nid": event_nid,
            "applied": redacted is not None,
        }
        upsert(connection, redactions, [row], ["redacted_event_id", "room_nid", "redaction_nid"])


def differing(connection: Connection, room_nid: int, given: dict[str, Event]) -> list[str]:
    """Those of the events of a room that are stored with other bytes."""
    found: list[str] = []
    for part in in_slices(list(given)):
        rows = connection.execute(
            select(events.c.event_id, events.c.json).where(events.c.event_id.in_(part), events.c.room_nid == room_nid)
        )
        found.extend(row[0] for row in rows if bytes(row[1]) != given[row[0]].json)
    return found
