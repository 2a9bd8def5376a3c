"""The members of a room at an earlier point of its history."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, select

from homeserver.storage import room_state
from homeserver.storage.database import in_slices
from homeserver.storage.event_graph import nids_of
from homeserver.storage.places import LANE_SIZE, floor_of_lane, lane_of, place_of, position_at
from homeserver.storage.tables import current_state, current_state_changes, events, history_lanes, state_keys

_CHANGES = current_state_changes.c
MEMBER = "m.room.member"


@dataclass(frozen=True, slots=True)
class StreamPoint:
    """A point in the stream: the state there is the room's current state as of that position."""

    position: int


@dataclass(frozen=True, slots=True)
class EventPoint:
    """A point next to an event where history is missing, or was backfilled."""

    event_nid: int
    state_group: int | None
    """The state after the event."""
    is_before: bool
    """The point is before the event."""


def point_at(connection: Connection, room_nid: int, place: int) -> StreamPoint | EventPoint:
    """The point in a room's history right after a place.

    Inside a lane, where events were backfilled, the state is that after the last event up to the place; before all of
    them, it is the state before the first.
    """
    lane = lane_of(place)
    statement = select(history_lanes.c.position).where(
        history_lanes.c.room_nid == room_nid, history_lanes.c.position == lane
    )
    if place % LANE_SIZE == 0 or connection.execute(statement).first() is None:
        return StreamPoint(position_at(place))
    accepted = select(events.c.event_nid, events.c.state_group).where(
        events.c.room_nid == room_nid, events.c.verdict == 0
    )
    before = accepted.where(events.c.place > floor_of_lane(lane), events.c.place <= place)
    row = connection.execute(before.order_by(events.c.place.desc()).limit(1)).first()
    if row is not None:
        return EventPoint(row[0], row[1], False)
    after = accepted.where(events.c.place > place, events.c.place <= place_of(lane))
    row = connection.execute(after.order_by(events.c.place).limit(1)).first()
    return StreamPoint(position_at(place)) if row is None else EventPoint(row[0], row[1], True)


def members_at(connection: Connection, room_nid: int, position: int) -> list[int]:
    """The m.room.member events, by numeric ID, of the current state as it was at a position in the stream.

    Empty before the first event of the room that is stored here. Later changes are reverted: to the value of the
    previous change or, if there was none since this server came into the room, to the state at the last event up to the
    position.
    """
    last = connection.execute(
        select(events.c.state_group)
        .where(
            events.c.room_nid == room_nid,
            events.c.verdict == 0,
            events.c.stream_position > 0,
            events.c.stream_position <= position,
        )
        .order_by(events.c.stream_position.desc())
        .limit(1)
    ).scalar()
    if last is None:
        return []
    members = dict(_current_members(connection, room_nid))
    changed = _changed_since(connection, room_nid, position)
    earlier = _values_at(connection, room_nid, position, changed)
    unknown = [(MEMBER, user_id) for key_nid, user_id in changed.items() if key_nid not in earlier]
    in_group = room_state.read_group_keys(connection, last, unknown) if unknown else {}
    nids = nids_of(connection, room_nid, in_group.values())
    for key_nid, user_id in changed.items():
        value = earlier[key_nid] if key_nid in earlier else nids.get(in_group.get((MEMBER, user_id), ""))
        members.pop(key_nid, None)
        if value is not None:
            members[key_nid] = value
    return list(members.values())


def _current_members(connection: Connection, room_nid: int) -> Iterable[tuple[int, int]]:
    statement = (
        select(current_state.c.state_key_nid, current_state.c.event_nid)
        .join_from(current_state, state_keys, state_keys.c.state_key_nid == current_state.c.state_key_nid)
        .where(current_state.c.room_nid == room_nid, state_keys.c.type == MEMBER)
    )
    return ((row[0], row[1]) for row in connection.execute(statement))


def _changed_since(connection: Connection, room_nid: int, position: int) -> dict[int, str]:
    """The users whose membership changed after a position, by the numeric ID of the state key."""
    statement = (
        select(_CHANGES.state_key_nid, state_keys.c.state_key)
        .distinct()
        .join_from(current_state_changes, state_keys, state_keys.c.state_key_nid == _CHANGES.state_key_nid)
        .where(_CHANGES.room_nid == room_nid, _CHANGES.position > position, state_keys.c.type == MEMBER)
    )
    return {row[0]: row[1] for row in connection.execute(statement)}


def _values_at(connection: Connection, room_nid: int, position: int, key_nids: Iterable[int]) -> dict[int, int | None]:
    """The values of the last changes of these entries up to a position; entries without a change are left out."""
    found: dict[int, int | None] = {}
    for part in in_slices(list(key_nids)):
        newest = (
            select(_CHANGES.state_key_nid, func.max(_CHANGES.position).label("position"))
            .where(_CHANGES.room_nid == room_nid, _CHANGES.position <= position, _CHANGES.state_key_nid.in_(part))
            .group_by(_CHANGES.state_key_nid)
            .subquery()
        )
        statement = select(_CHANGES.state_key_nid, _CHANGES.event_nid).join_from(
            current_state_changes,
            newest,
            and_(
                _CHANGES.room_nid == room_nid,
                _CHANGES.position == newest.c.position,
                _CHANGES.state_key_nid == newest.c.state_key_nid,
            ),
        )
        found.update((row[0], row[1]) for row in connection.execute(statement))
    return found
