"""Rooms for operators: for ``homeserver rooms`` and reports."""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from sqlalchemy import Connection, Table, exists, func, select

from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.redaction import redact
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.storage.tables import (
    current_state,
    events,
    forward_extremities,
    redactions,
    room_members,
    rooms,
    state_keys,
)


@dataclass(frozen=True, slots=True)
class RoomSummary:
    """The data of a room in a list."""

    room_id: str
    version: str
    name: str | None
    canonical_alias: str | None
    joined_members: int
    created_ts: int


@dataclass(frozen=True, slots=True)
class RoomDetails:
    """The details of one room."""

    summary: RoomSummary
    creator: str | None
    topic: str | None
    join_rule: str | None
    history_visibility: str | None
    encrypted: bool
    members: dict[str, list[str]]
    """Membership to user IDs, sorted."""
    events: int
    state_events: int
    forward_extremities: int


def list_rooms(connection: Connection) -> list[RoomSummary]:
    """All rooms that this server is or was in, oldest first."""
    known = (
        select(rooms.c.room_nid, rooms.c.room_id, rooms.c.version, rooms.c.created_ts)
        .where(rooms.c.state_group.is_not(None))
        .order_by(rooms.c.room_nid)
    )
    joined = (
        select(room_members.c.room_nid, func.count())
        .where(room_members.c.membership == "join")
        .group_by(room_members.c.room_nid)
    )
    joined_members = {row[0]: row[1] for row in connection.execute(joined)}
    names = _state_events(connection, "m.room.name")
    aliases = _state_events(connection, "m.room.canonical_alias")
    return [
        RoomSummary(
            room_id,
            version,
            _text(names.get(room_nid), "name"),
            _text(aliases.get(room_nid), "alias"),
            joined_members.get(room_nid, 0),
            created_ts,
        )
        for room_nid, room_id, version, created_ts in connection.execute(known)
    ]


def show_room(connection: Connection, room_id_or_alias: str) -> RoomDetails | None:
    """A room by its ID or its canonical alias; None if this server does not know it."""
    matching = (s for s in list_rooms(connection) if room_id_or_alias in (s.room_id, s.canonical_alias))
    summary = next(matching, None)
    if summary is None:
        return None
    room_nid = connection.scalar(select(rooms.c.room_nid).where(rooms.c.room_id == summary.room_id))
    assert room_nid is not None

    def state_event(event_type: str) -> JsonObject | None:
        return _state_events(connection, event_type, room_nid).get(room_nid)

    create = state_event("m.room.create")
    return RoomDetails(
        summary=summary,
        creator=create["sender"] if create else None,
        topic=_text(state_event("m.room.topic"), "topic"),
        join_rule=_text(state_event("m.room.join_rules"), "join_rule"),
        history_visibility=_text(state_event("m.room.history_visibility"), "history_visibility"),
        encrypted=_text(state_event("m.room.encryption"), "algorithm") is not None,
        members=_members(connection, room_nid),
        events=_count(connection, events, room_nid),
        state_events=_count(connection, current_state, room_nid),
        forward_extremities=_count(connection, forward_extremities, room_nid),
    )


def _members(connection: Connection, room_nid: int) -> dict[str, list[str]]:
    statement = (
        select(room_members.c.membership, room_members.c.user_id)
        .where(room_members.c.room_nid == room_nid)
        .order_by(room_members.c.user_id)
    )
    members: dict[str, list[str]] = {}
    for membership, user_id in connection.execute(statement):
        members.setdefault(membership, []).append(user_id)
    return members


def _state_events(connection: Connection, event_type: str, room_nid: int | None = None) -> dict[int, JsonObject]:
    """The current state event of a type (with an empty state key) of each room, or of one room, as it is shown."""
    is_redacted = exists().where(
        redactions.c.redacted_event_id == events.c.event_id,
        redactions.c.room_nid == events.c.room_nid,
        redactions.c.applied,
    )
    statement = (
        select(current_state.c.room_nid, events.c.json, rooms.c.version, is_redacted)
        .join(rooms, rooms.c.room_nid == current_state.c.room_nid)
        .join(state_keys, state_keys.c.state_key_nid == current_state.c.state_key_nid)
        .join(events, events.c.event_nid == current_state.c.event_nid)
        .where(state_keys.c.type == event_type, state_keys.c.state_key == "")
    )
    if room_nid is not None:
        statement = statement.where(current_state.c.room_nid == room_nid)
    shown: dict[int, JsonObject] = {}
    for found, json, version, redacted in connection.execute(statement):
        pdu: JsonObject = orjson.loads(json)
        shown[found] = redact(pdu, ROOM_VERSIONS[version]) if redacted else pdu
    return shown


def _text(event: JsonObject | None, field: str) -> str | None:
    value = event["content"].get(field) if event else None
    return value if isinstance(value, str) else None


def _count(connection: Connection, table: Table, room_nid: int) -> int:
    return connection.scalar(select(func.count()).select_from(table).where(table.c.room_nid == room_nid)) or 0
