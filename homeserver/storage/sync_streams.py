"""What ``/sync`` reads of the event graph, for many rooms at once: memberships, timelines, states and their changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, literal, select
from sqlalchemy.sql.elements import ColumnElement

from homeserver.protocol.events import StateKey
from homeserver.storage.database import PAIRS_AT_ONCE_MAX, among, in_slices
from homeserver.storage.event_graph import StoredEvent, events_by_nid
from homeserver.storage.tables import (
    current_state,
    current_state_changes,
    events,
    room_members,
    rooms,
    state_keys,
    user_rooms,
)

MEMBERSHIPS_MAX = 20
"""How many membership events of a user are examined to find its membership at an earlier time."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The membership of one of our users in a room."""

    room_id: str
    room_nid: int
    membership: str
    event_nid: int
    """The membership event."""
    sender: str
    position: int
    """The position since which it is this."""
    forgotten: bool


@dataclass(frozen=True, slots=True)
class StateChange:
    """A change of one entry of a room's current state, at a position."""

    room_nid: int
    position: int
    key: StateKey
    event_nid: int | None
    """The new event of the entry; None: it was removed."""


_STANDINGS = select(
    rooms.c.room_id,
    user_rooms.c.room_nid,
    user_rooms.c.membership,
    user_rooms.c.event_nid,
    user_rooms.c.sender,
    user_rooms.c.position,
    user_rooms.c.forgotten,
).join_from(user_rooms, rooms, rooms.c.room_nid == user_rooms.c.room_nid)
_STANDINGS_OF_USER = _STANDINGS.where(user_rooms.c.user_id == bindparam("user_id"))
_STANDINGS_SINCE = _STANDINGS_OF_USER.where(
    user_rooms.c.position > bindparam("after"), user_rooms.c.position <= bindparam("upto")
)
_STANDING_IN_ROOM = _STANDINGS_OF_USER.where(rooms.c.room_id == bindparam("room_id"))


_CHANGES_OF_MEMBER = (
    select(current_state_changes.c.event_nid)
    .join_from(current_state_changes, state_keys, state_keys.c.state_key_nid == current_state_changes.c.state_key_nid)
    .where(
        current_state_changes.c.room_nid == bindparam("room_nid"),
        state_keys.c.type == "m.room.member",
        state_keys.c.state_key == bindparam("user_id"),
    )
)
_MEMBER_AT = (
    _CHANGES_OF_MEMBER.where(current_state_changes.c.position <= bindparam("position"))
    .order_by(current_state_changes.c.position.desc())
    .limit(1)
)
_MEMBER_CHANGES = _CHANGES_OF_MEMBER.where(
    current_state_changes.c.position > bindparam("after"), current_state_changes.c.position <= bindparam("upto")
)


def standings_of(connection: Connection, user_id: str) -> list[Standing]:
    """The memberships of a user of ours in all its rooms."""
    return [Standing(*row) for row in connection.execute(_STANDINGS_OF_USER, {"user_id": user_id})]


def standings_since(connection: Connection, user_id: str, after: int, upto: int) -> list[Standing]:
    """The memberships of a user of ours in the rooms where it changed with ``after`` < position ≤ ``upto``."""
    rows = connection.execute(_STANDINGS_SINCE, {"user_id": user_id, "after": after, "upto": upto})
    return [Standing(*row) for row in rows]


def standing_in(connection: Connection, user_id: str, room_id: str) -> Standing | None:
    """The membership of a user of ours in one room; None if there is none."""
    row = connection.execute(_STANDING_IN_ROOM, {"user_id": user_id, "room_id": room_id}).first()
    return Standing(*row) if row else None


def stripped_states(connection: Connection, user_id: str, room_nids: Sequence[int]) -> dict[int, bytes | None]:
    """The JSON lists that came with invitations and knocks; None where this server has not got any."""
    found: dict[int, bytes | None] = {}
    for part in in_slices(room_nids):
        statement = select(user_rooms.c.room_nid, user_rooms.c.stripped_state).where(
            user_rooms.c.user_id == user_id, user_rooms.c.room_nid.in_(part)
        )
        found.update((row[0], None if row[1] is None else bytes(row[1])) for row in connection.execute(statement))
    return found


def membership_history(connection: Connection, event_nid: int, upto: int) -> list[StoredEvent]:
    """A membership event, the one that it replaced, and so on, newest first.

    Ends with the first one whose position is not after ``upto``, or after ``MEMBERSHIPS_MAX`` events.
    """
    found: list[StoredEvent] = []
    nid: int | None = event_nid
    while nid is not None and len(found) < MEMBERSHIPS_MAX:
        events_found = events_by_nid(connection, [nid])
        if not events_found:
            break
        stored = events_found[0]
        found.append(stored)
        if stored.stream_position is not None and stored.stream_position <= upto:
            break
        nid = stored.replaces_nid
    return found


def membership_at(connection: Connection, standing: Standing, user_id: str, position: int) -> str | None:
    """The membership of one of our users in the current state of a room as of a position; None for none.

    Where branches of a room meet, an older membership event may count again. So this reads the recorded changes of the
    state. Only for the time before they were recorded, which is before the join through which this server came into the
    room, does it follow the events that replaced each other.
    """
    parameters = {"room_nid": standing.room_nid, "user_id": user_id, "position": position}
    row = connection.execute(_MEMBER_AT, parameters).first()
    if row is None:
        for stored in membership_history(connection, standing.event_nid, position):
            if stored.stream_position is not None and stored.stream_position <= position:
                return stored.event.membership
        return None
    return _membership_of(connection, row[0])


def was_joined_all_the_time(connection: Connection, standing: Standing, user_id: str, after: int, upto: int) -> bool:
    """Whether one of our users was in a room at every position from ``after`` to ``upto``."""
    if membership_at(connection, standing, user_id, after) != "join":
        return False
    parameters = {"room_nid": standing.room_nid, "user_id": user_id, "after": after, "upto": upto}
    changes = connection.execute(_MEMBER_CHANGES, parameters).scalars().all()
    return bool(changes) and all(_membership_of(connection, event_nid) == "join" for event_nid in changes)


def _membership_of(connection: Connection, event_nid: int | None) -> str | None:
    found = events_by_nid(connection, [event_nid]) if event_nid is not None else []
    return found[0].event.membership if found else None


# -- timelines ---------------------------------------------------------------------------------------------------------

_inner = events.alias("inner_events")
_NTH_NEWEST = (
    select(_inner.c.stream_position)
    .where(
        _inner.c.room_nid == rooms.c.room_nid,
        _inner.c.verdict == 0,
        _inner.c.stream_position > bindparam("after"),
        _inner.c.stream_position <= bindparam("upto"),
    )
    .order_by(_inner.c.stream_position.desc())
    .limit(1)
    .offset(bindparam("earlier"))
    .scalar_subquery()
)
"""The position of the event that is followed by ``earlier`` visible ones in a room, up to ``upto``."""


def _from_nth_newest(position: ColumnElement[int]) -> ColumnElement[bool]:
    lowest = func.coalesce(_NTH_NEWEST, bindparam("after") + literal(1))
    return and_(position >= lowest, position <= bindparam("upto"))


_NEWEST = (
    select(events.c.room_nid, events.c.event_nid, events.c.stream_position)
    .join_from(rooms, events, events.c.room_nid == rooms.c.room_nid)
    .where(
        rooms.c.room_nid.in_(bindparam("wanted", expanding=True)),
        events.c.verdict == 0,
        _from_nth_newest(events.c.stream_position),
    )
    .order_by(events.c.room_nid, events.c.stream_position.desc())
)


def newest_events(
    connection: Connection, room_nids: Sequence[int], after: int, upto: int, count: int
) -> dict[int, list[tuple[int, int]]]:
    """The newest ``count`` visible events of each room with ``after`` < position ≤ ``upto``, newest first.

    Returns ``(event_nid, position)`` by room; rooms without any are left out.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    for part in in_slices(room_nids):
        rows = connection.execute(
            _NEWEST, {"wanted": list(part), "after": after, "upto": upto, "earlier": max(count - 1, 0)}
        )
        for room_nid, event_nid, position in rows:
            found.setdefault(room_nid, []).append((event_nid, position))
    return found


# -- the current state and its changes ---------------------------------------------------------------------------------

_STATE = select(current_state.c.room_nid, current_state.c.event_nid).where(
    current_state.c.room_nid.in_(bindparam("wanted", expanding=True))
)
_STATE_WITHOUT_MEMBERS = _STATE.join(state_keys, state_keys.c.state_key_nid == current_state.c.state_key_nid).where(
    state_keys.c.type != "m.room.member"
)
_CHANGE_COLUMNS = (
    current_state_changes.c.room_nid,
    current_state_changes.c.position,
    state_keys.c.type,
    state_keys.c.state_key,
    current_state_changes.c.event_nid,
)
_CHANGES = select(*_CHANGE_COLUMNS).join_from(
    current_state_changes, state_keys, state_keys.c.state_key_nid == current_state_changes.c.state_key_nid
)
_CHANGES_BETWEEN = _CHANGES.where(
    current_state_changes.c.room_nid.in_(bindparam("wanted", expanding=True)),
    current_state_changes.c.position > bindparam("after"),
    current_state_changes.c.position <= bindparam("upto"),
).order_by(current_state_changes.c.position)


def state_of_rooms(connection: Connection, room_nids: Sequence[int], *, members: bool) -> dict[int, list[int]]:
    """The events of the current states of rooms, by numeric IDs; without ``members`` m.room.member events are left
    out.
    """
    statement = _STATE if members else _STATE_WITHOUT_MEMBERS
    found: dict[int, list[int]] = {room_nid: [] for room_nid in room_nids}
    for part in in_slices(room_nids):
        for room_nid, event_nid in connection.execute(statement, {"wanted": list(part)}):
            found[room_nid].append(event_nid)
    return found


def state_changes(
    connection: Connection, room_nids: Sequence[int], after: int, upto: int
) -> dict[int, list[StateChange]]:
    """The changes of the current states of rooms with ``after`` < position ≤ ``upto``, oldest first."""
    found: dict[int, list[StateChange]] = {}
    for part in in_slices(room_nids):
        for row in connection.execute(_CHANGES_BETWEEN, {"wanted": list(part), "after": after, "upto": upto}):
            found.setdefault(row[0], []).append(StateChange(row[0], row[1], (row[2], row[3]), row[4]))
    return found


def name_events(connection: Connection, room_nids: Sequence[int]) -> dict[int, list[int]]:
    """The m.room.name and m.room.canonical_alias events of the current states of rooms, by numeric IDs."""
    found: dict[int, list[int]] = {}
    for part in in_slices(room_nids):
        statement = _STATE.join(state_keys, state_keys.c.state_key_nid == current_state.c.state_key_nid).where(
            state_keys.c.type.in_(["m.room.name", "m.room.canonical_alias"]), state_keys.c.state_key == ""
        )
        for room_nid, event_nid in connection.execute(statement, {"wanted": list(part)}):
            found.setdefault(room_nid, []).append(event_nid)
    return found


# -- members -----------------------------------------------------------------------------------------------------------

_COUNTS = (
    select(room_members.c.room_nid, room_members.c.membership, func.count())
    .where(
        room_members.c.room_nid.in_(bindparam("wanted", expanding=True)),
        room_members.c.membership.in_(["join", "invite"]),
    )
    .group_by(room_members.c.room_nid, room_members.c.membership)
)
_HEROES = (
    select(room_members.c.user_id, room_members.c.event_nid)
    .where(
        room_members.c.room_nid == bindparam("room_nid"),
        room_members.c.user_id != bindparam("user_id"),
        room_members.c.membership.in_(bindparam("memberships", expanding=True)),
    )
    .order_by(room_members.c.event_nid)
    .limit(bindparam("count"))
)


def member_events(connection: Connection, users: Mapping[int, Iterable[str]]) -> dict[int, dict[str, int]]:
    """The member events in the current states of rooms, of some users in each: numeric IDs by room and user."""
    found: dict[int, dict[str, int]] = {room_nid: {} for room_nid in users}
    pairs = [(room_nid, user_id) for room_nid, user_ids in users.items() for user_id in user_ids]
    for part in in_slices(pairs, PAIRS_AT_ONCE_MAX):
        statement = select(room_members.c.room_nid, room_members.c.user_id, room_members.c.event_nid).where(
            among((room_members.c.room_nid, room_members.c.user_id), part)
        )
        for room_nid, user_id, event_nid in connection.execute(statement):
            found[room_nid][user_id] = event_nid
    return found


def member_counts(connection: Connection, room_nids: Sequence[int]) -> dict[int, tuple[int, int]]:
    """How many users have joined each room, and how many are invited."""
    counts: dict[int, dict[str, int]] = {room_nid: {} for room_nid in room_nids}
    for part in in_slices(room_nids):
        for room_nid, membership, count in connection.execute(_COUNTS, {"wanted": list(part)}):
            counts[room_nid][membership] = count
    return {nid: (found.get("join", 0), found.get("invite", 0)) for nid, found in counts.items()}


def heroes(connection: Connection, room_nid: int, user_id: str, count: int) -> list[tuple[str, int]]:
    """The first members of a room besides the user, with their member events, from which clients make a name for the
    room.

    "the first 5 members of the room, ordered by stream ordering, which are joined or invited … When no joined or
    invited members are available, this should consist of the banned and left users."
    """
    parameters: dict[str, Any] = {"room_nid": room_nid, "user_id": user_id, "count": count}
    for memberships in (["join", "invite"], ["leave", "ban"]):
        rows = connection.execute(_HEROES, {**parameters, "memberships": memberships}).all()
        if rows:
            return [(row[0], row[1]) for row in rows]
    return []
