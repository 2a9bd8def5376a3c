"""Reading a room's history page by page, and its members then and now.

History is ordered by ``(depth, stream_position)``: what was backfilled, at negative positions, finds its place by its
depth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, select, tuple_

from homeserver.protocol.events import StateKey
from homeserver.storage import room_state
from homeserver.storage.tables import backward_extremities, events, room_members, rooms, user_rooms

RECENT_EVENTS = 100
"""How many events before a stream position are looked at for the greatest depth."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A place in the history of a room: right after the event with this depth and position."""

    depth: int
    position: int


@dataclass(frozen=True, slots=True)
class PagedEvent:
    """An event on a page."""

    event_nid: int
    place: Place


_PLACES = select(events.c.depth, events.c.stream_position).where(
    events.c.room_nid == bindparam("room_nid"), events.c.verdict == 0, events.c.stream_position.is_not(None)
)
_RECENT = (
    _PLACES.where(events.c.stream_position <= bindparam("upto"))
    .order_by(events.c.stream_position.desc())
    .limit(RECENT_EVENTS)
)
_PAGE = select(events.c.event_nid, events.c.depth, events.c.stream_position).where(
    events.c.room_nid == bindparam("room_nid"),
    events.c.verdict == 0,
    events.c.stream_position.is_not(None),
    events.c.stream_position <= bindparam("upto"),
    events.c.stream_position > bindparam("after"),
)
_PLACE = tuple_(events.c.depth, events.c.stream_position)
_LOW = tuple_(bindparam("low_depth", type_=events.c.depth.type), bindparam("low_position", type_=events.c.depth.type))
_HIGH = tuple_(
    bindparam("high_depth", type_=events.c.depth.type), bindparam("high_position", type_=events.c.depth.type)
)
_BETWEEN = _PAGE.where(_PLACE > _LOW, _PLACE <= _HIGH)
_BACKWARDS = _BETWEEN.order_by(events.c.depth.desc(), events.c.stream_position.desc()).limit(bindparam("count"))
_FORWARDS = _BETWEEN.order_by(events.c.depth, events.c.stream_position).limit(bindparam("count"))
_STREAM_BACKWARDS = _PAGE.order_by(events.c.stream_position.desc()).limit(bindparam("count"))
_STREAM_FORWARDS = _PAGE.order_by(events.c.stream_position).limit(bindparam("count"))

LOWEST = Place(-(2**62), -(2**62))
HIGHEST = Place(2**62, 2**62)


def place_in_history(connection: Connection, room_nid: int, position: int) -> Place | None:
    """The place in the history that a position in the stream stands for: after all that had come by then.

    None when nothing had. Events come roughly in the order of their depths, so the recent ones settle it.
    """
    rows = connection.execute(_RECENT, {"room_nid": room_nid, "upto": position}).all()
    return max((Place(row[0], row[1]) for row in rows), default=None)


def page(
    connection: Connection,
    room_nid: int,
    low: Place,
    high: Place,
    *,
    backwards: bool,
    count: int,
    upto: int,
) -> list[PagedEvent]:
    """At most ``count`` visible events after ``low`` and not after ``high``, with positions up to ``upto``.

    Newest first when ``backwards``, else oldest first.
    """
    parameters: dict[str, Any] = {
        "room_nid": room_nid,
        "low_depth": low.depth,
        "low_position": low.position,
        "high_depth": high.depth,
        "high_position": high.position,
        "after": LOWEST.position,
        "upto": upto,
        "count": count,
    }
    rows = connection.execute(_BACKWARDS if backwards else _FORWARDS, parameters)
    return [PagedEvent(row[0], Place(row[1], row[2])) for row in rows]


def page_of_stream(
    connection: Connection, room_nid: int, after: int, upto: int, *, backwards: bool, count: int
) -> list[PagedEvent]:
    """As ``page``, in the order in which this server got the events: for the gap between two positions."""
    parameters: dict[str, Any] = {"room_nid": room_nid, "after": after, "upto": upto, "count": count}
    rows = connection.execute(_STREAM_BACKWARDS if backwards else _STREAM_FORWARDS, parameters)
    return [PagedEvent(row[0], Place(row[1], row[2])) for row in rows]


def deepest_gap(connection: Connection, room_nid: int, from_depth: int, to_depth: int) -> int | None:
    """The greatest depth of an event between two depths whose prev_events are not all here; None without any."""
    statement = (
        select(func.max(events.c.depth))
        .join_from(backward_extremities, events, events.c.event_nid == backward_extremities.c.event_nid)
        .where(
            backward_extremities.c.room_nid == room_nid, and_(events.c.depth >= from_depth, events.c.depth <= to_depth)
        )
    )
    found: int | None = connection.execute(statement).scalar_one()
    return found


def entries_of_groups(
    connection: Connection, groups: Iterable[int], keys: Iterable[StateKey]
) -> dict[int, dict[StateKey, str]]:
    """A few entries of several state groups: event IDs by group and key."""
    return room_state.read_keys_of_groups(connection, list(groups), list(keys))


def state_group_at(connection: Connection, room_nid: int, place: Place) -> int | None:
    """The state after the last event up to a place in the history."""
    found = page(connection, room_nid, LOWEST, place, backwards=True, count=1, upto=HIGHEST.position)
    if not found:
        return None
    statement = select(events.c.state_group).where(events.c.event_nid == found[0].event_nid)
    group: int | None = connection.execute(statement).scalar_one()
    return group


# -- members -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JoinedMember:
    """A joined user and how it is shown."""

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
