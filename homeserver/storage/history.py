"""Reading a room's history page by page, and its members now and at earlier times. See ``places`` for the order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select

from homeserver.protocol.events import StateKey
from homeserver.storage import room_state
from homeserver.storage.tables import events, room_members, rooms, user_rooms


@dataclass(frozen=True, slots=True)
class PagedEvent:
    """An event on a page."""

    event_nid: int
    place: int


_PAGE = select(events.c.event_nid, events.c.place).where(
    events.c.room_nid == bindparam("room_nid"),
    events.c.verdict == 0,
    events.c.place > bindparam("low"),
    events.c.place <= bindparam("high"),
)
_BACKWARDS = _PAGE.order_by(events.c.place.desc()).limit(bindparam("count"))
_FORWARDS = _PAGE.order_by(events.c.place).limit(bindparam("count"))


def page(
    connection: Connection, room_nid: int, low: int, high: int, *, backwards: bool, count: int
) -> list[PagedEvent]:
    """At most ``count`` accepted events with ``low`` < place ≤ ``high``; newest first when ``backwards``."""
    parameters = {"room_nid": room_nid, "low": low, "high": high, "count": count}
    rows = connection.execute(_BACKWARDS if backwards else _FORWARDS, parameters)
    return [PagedEvent(row[0], row[1]) for row in rows]


def entries_of_groups(
    connection: Connection, groups: Iterable[int], keys: Iterable[StateKey]
) -> dict[int, dict[StateKey, str]]:
    """A few entries of several state groups: event IDs by group and key."""
    return room_state.read_keys_of_groups(connection, list(groups), list(keys))


# -- members -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JoinedMember:
    """A joined user with its display name and avatar."""

    user_id: str
    display_name: str | None
    avatar_url: str | None


def joined_members(connection: Connection, room_nid: int) -> list[JoinedMember]:
    """The users who have joined a room."""
    rows = connection.execute(
        select(room_members.c.user_id, room_members.c.display_name, room_members.c.avatar_url).where(
            room_members.c.room_nid == room_nid, room_members.c.membership == "join"
        )
    )
    return [JoinedMember(*row) for row in rows]


def joined_room_ids(connection: Connection, user_id: str) -> list[str]:
    """The rooms that a user of ours has joined."""
    statement = (
        select(rooms.c.room_id)
        .join_from(user_rooms, rooms, rooms.c.room_nid == user_rooms.c.room_nid)
        .where(user_rooms.c.user_id == user_id, user_rooms.c.membership == "join")
    )
    return list(connection.execute(statement).scalars())
