"""What the lists of the governance API read of a room: its joined members, its invitations and its bans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, Select, and_, exists, literal_column, select, tuple_
from sqlalchemy.sql.elements import ColumnElement

from homeserver.storage.tables import events, invitations, redactions, room_members


@dataclass(frozen=True, slots=True)
class Invitation:
    """Where the latest invitation of a user stands."""

    user_id: str
    status: str
    invited_by: str
    invited_ts: int
    updated_ts: int
    reason: str | None
    event_nid: int


@dataclass(frozen=True, slots=True)
class Ban:
    """A user who is banned."""

    user_id: str
    banned_by: str
    banned_ts: int
    reason: str | None
    event_nid: int


Place = tuple[int, int]
"""Where an entry stands in a list that goes from new to old: time and numeric ID of its event."""


def joined_members(connection: Connection, room_nid: int) -> list[tuple[str, str | None, str | None]]:
    """``(user_id, display_name, avatar_url)`` of the joined members of a room, in no particular order."""
    rows = connection.execute(
        select(room_members.c.user_id, room_members.c.display_name, room_members.c.avatar_url).where(
            room_members.c.room_nid == room_nid, room_members.c.membership == "join"
        )
    )
    return [(row[0], row[1], row[2]) for row in rows]


def invitations_of(
    connection: Connection, room_nid: int, limit: int | None = None, after: Place | None = None
) -> list[Invitation]:
    """The latest invitation of each user, newest first; from the one that follows ``after``."""
    statement = select(
        invitations.c.user_id,
        invitations.c.status,
        invitations.c.invited_by,
        invitations.c.invited_ts,
        invitations.c.updated_ts,
        invitations.c.reason,
        invitations.c.event_nid,
    ).where(invitations.c.room_nid == room_nid)
    statement = _newest_first(statement, invitations.c.invited_ts, invitations.c.event_nid, limit, after)
    return [Invitation(*row) for row in connection.execute(statement)]


def bans_of(connection: Connection, room_nid: int, limit: int | None = None, after: Place | None = None) -> list[Ban]:
    """Who is banned, newest first; from the one that follows ``after``. The reason of a redacted ban is not shown."""
    is_redacted = exists().where(and_(redactions.c.redacted_event_id == events.c.event_id, redactions.c.applied))
    statement = (
        select(
            room_members.c.user_id,
            events.c.origin_server_ts,
            events.c.event_nid,
            events.c.json,
            is_redacted.label("is_redacted"),
        )
        .join_from(room_members, events, events.c.event_nid == room_members.c.event_nid)
        .where(room_members.c.room_nid == room_nid, room_members.c.membership == "ban")
    )
    statement = _newest_first(statement, events.c.origin_server_ts, events.c.event_nid, limit, after)
    found: list[Ban] = []
    for user_id, ts, nid, json, redacted in connection.execute(statement):
        pdu = orjson.loads(json)
        reason = None if redacted else pdu["content"].get("reason")
        found.append(Ban(user_id, pdu["sender"], ts, reason if isinstance(reason, str) else None, nid))
    return found


def _newest_first(
    statement: Select[Any], ts: ColumnElement[int], nid: ColumnElement[int], limit: int | None, after: Place | None
) -> Select[Any]:
    if after is not None:
        statement = statement.where(tuple_(ts, nid) < tuple_(*(literal_column(str(int(part))) for part in after)))
    return statement.order_by(ts.desc(), nid.desc()).limit(limit)
