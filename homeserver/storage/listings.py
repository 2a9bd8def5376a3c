"""The lists of the governance API: the joined members of a room, its invitations and its bans.

Each page is read from an index in the order of the list, from where the previous page ended, so that its cost depends
on the page and not on the room.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import orjson
from sqlalchemy import (
    Connection,
    Select,
    Text,
    and_,
    bindparam,
    exists,
    literal_column,
    select,
    tuple_,
    type_coerce,
)
from sqlalchemy.sql.elements import ColumnElement

from homeserver.storage.database import in_slices
from homeserver.storage.tables import Name, Nid, events, invitations, redactions, room_members

# -- joined members, by name -------------------------------------------------------------------------------------------

JoinedMember: TypeAlias = tuple[str, str | None, str | None, str]
"""User ID, display name, picture, and the name to sort by, as it is stored."""
NamePlace: TypeAlias = tuple[str, str]
"""The position of a member in a list by name: the name to sort by, and the user ID."""
FIRST: NamePlace = ("", "")
"""Before all members."""

_JOINED = select(
    room_members.c.user_id,
    room_members.c.display_name,
    room_members.c.avatar_url,
    type_coerce(room_members.c.sort_name, Text),
).where(
    room_members.c.room_nid == bindparam("room_nid"),
    # Exactly the condition of the partial index.
    room_members.c.membership == literal_column("'join'"),
)
_ALL_JOINED = _JOINED.order_by(room_members.c.user_id)
_JOINED_AMONG = _JOINED.where(room_members.c.user_id.in_(bindparam("user_ids", expanding=True)))
_JOINED_AFTER = (
    _JOINED.where(
        tuple_(room_members.c.sort_name, room_members.c.user_id)
        > tuple_(bindparam("after_name", type_=Name), bindparam("after_user", type_=Name)),
        room_members.c.user_id.not_in(bindparam("others", expanding=True)),
    )
    .order_by(room_members.c.sort_name, room_members.c.user_id)
    .limit(bindparam("most", type_=Nid))
)


def joined_members(connection: Connection, room_nid: int) -> list[JoinedMember]:
    """The joined members of a room, by name, then by user ID."""
    rows = connection.execute(_ALL_JOINED, {"room_nid": room_nid}).all()
    # The rows come ordered by user ID at no cost, and sorting keeps that order among equal names.
    return sorted(rows, key=_sort_name)


def joined_among(connection: Connection, room_nid: int, user_ids: Collection[str]) -> list[JoinedMember]:
    """The joined members among some users, by name, then by user ID."""
    found: list[JoinedMember] = []
    for part in in_slices(list(user_ids)):
        found.extend(connection.execute(_JOINED_AMONG, {"room_nid": room_nid, "user_ids": part}).all())
    return sorted(found, key=name_place)


def joined_after(
    connection: Connection, room_nid: int, place: NamePlace, most: int, others: Iterable[str]
) -> Sequence[JoinedMember]:
    """The joined members after a position, by name, then by user ID, without ``others``."""
    name, user_id = place
    values = {"room_nid": room_nid, "after_name": name, "after_user": user_id, "most": most, "others": list(others)}
    return connection.execute(_JOINED_AFTER, values).all()


def name_place(member: JoinedMember) -> NamePlace:
    """The position of a member in a list by name."""
    return member[3], member[0]


def _sort_name(member: JoinedMember) -> str:
    return member[3]


# -- from new to old ---------------------------------------------------------------------------------------------------

TimePlace: TypeAlias = tuple[int, int]
"""The position of an entry in a list from new to old: time and numeric ID of its event."""


class Invitation(NamedTuple):
    """The status of a user's latest invitation."""

    user_id: str
    status: str
    invited_by: str
    invited_ts: int
    updated_ts: int
    reason: str | None
    event_nid: int

    @property
    def place(self) -> TimePlace:
        """Its position in the list."""
        return self.invited_ts, self.event_nid


class Ban(NamedTuple):
    """A user who is banned."""

    user_id: str
    banned_by: str
    banned_ts: int
    reason: str | None
    event_nid: int

    @property
    def place(self) -> TimePlace:
        """Its position in the list."""
        return self.banned_ts, self.event_nid


_INVITATIONS = select(*(invitations.c[name] for name in Invitation._fields)).where(
    invitations.c.room_nid == bindparam("room_nid")
)
_IS_REDACTED = exists().where(
    and_(
        redactions.c.redacted_event_id == events.c.event_id,
        redactions.c.room_nid == events.c.room_nid,
        redactions.c.applied,
    )
)
_BANS = (
    select(
        room_members.c.user_id,
        room_members.c.event_ts,
        room_members.c.event_nid,
        events.c.json,
        _IS_REDACTED.label("is_redacted"),
    )
    .join_from(room_members, events, events.c.event_nid == room_members.c.event_nid)
    # Exactly the condition of the partial index.
    .where(room_members.c.room_nid == bindparam("room_nid"), room_members.c.membership == literal_column("'ban'"))
)


def invitations_of(
    connection: Connection, room_nid: int, most: int | None = None, after: TimePlace | None = None
) -> list[Invitation]:
    """The latest invitation of each user, newest first; at most ``most`` of those after a position."""
    place = (invitations.c.invited_ts, invitations.c.event_nid)
    statement = _newest_first(_INVITATIONS, place, most, after)
    return list(map(Invitation._make, connection.execute(statement, {"room_nid": room_nid}).all()))


def bans_of(
    connection: Connection, room_nid: int, most: int | None = None, after: TimePlace | None = None
) -> list[Ban]:
    """The banned users, newest ban first; at most ``most`` of those after a position.

    The reason of a redacted ban is left out.
    """
    statement = _newest_first(_BANS, (room_members.c.event_ts, room_members.c.event_nid), most, after)
    found: list[Ban] = []
    for user_id, ts, nid, json, redacted in connection.execute(statement, {"room_nid": room_nid}).all():
        pdu = orjson.loads(json)
        reason = None if redacted else pdu["content"].get("reason")
        found.append(Ban(user_id, pdu["sender"], ts, reason if isinstance(reason, str) else None, nid))
    return found


def _newest_first(
    statement: Select[Any],
    place: tuple[ColumnElement[int], ColumnElement[int]],
    most: int | None,
    after: TimePlace | None,
) -> Select[Any]:
    if after is not None:
        statement = statement.where(tuple_(*place) < tuple_(*(bindparam(None, part, type_=Nid) for part in after)))
    return statement.order_by(*(column.desc() for column in place)).limit(most)
