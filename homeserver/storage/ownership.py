"""Who governs rooms, for operators: which rooms have no Owner, and which users could change that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import orjson
from sqlalchemy import Connection, select

from homeserver.governance.roles import joined_owners, listed_users
from homeserver.governance.room_defaults import OWNER
from homeserver.protocol.events import Event
from homeserver.protocol.power_levels import Level, PowerLevels, power_levels_of
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.storage.tables import current_state, events, room_members, rooms, state_keys, users

POWER_LEVELS_LOOKED_AT_MAX = 1_000
"""How many of a room's earlier power levels events are examined to find former Owners."""


@dataclass(frozen=True, slots=True)
class OwnerlessRoom:
    """A room with joined users, but no Owner."""

    room_id: str
    joined_members: int
    local_members: int
    """0: this server is not in the room any more, and reports the last known state."""


@dataclass(frozen=True, slots=True)
class FormerOwner:
    """A user of ours who was an Owner or still has an Owner's power level, and is not a joined Owner now."""

    user_id: str
    membership: str
    """The current membership; ``none`` for a user who never was in the room."""
    is_owner_on_return: bool
    """Whether the power levels still list the user, who then becomes an Owner again by joining."""
    is_closed: bool
    """The account was closed."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who governs a room, and which of our users can change that."""

    ownerless: bool
    owners: list[str]
    """Joined Owners of all servers whose accounts are not closed, as far as this server knows."""
    could_have_prevented: list[FormerOwner]
    """Our users who were Owners: each could have stayed, or made another user an Owner before."""
    may_give_owner: list[str]
    """Our joined users who may make a user an Owner by the room's rules."""
    may_invite: list[str]
    """Our joined users who may invite, for instance a former Owner, who is one again after joining."""
    may_replace: list[str]
    """Our joined users who may upgrade the room to a new one."""


@dataclass(slots=True)
class _Governing:
    """The part of a room's state that decides who governs it."""

    room_nid: int
    room_id: str
    version: str
    create: Event | None = None
    power_levels: Event | None = None

    @property
    def levels(self) -> PowerLevels:
        return power_levels_of(ROOM_VERSIONS[self.version], self.create, self.power_levels)


def ownerless_rooms(connection: Connection, server_name: str) -> list[OwnerlessRoom]:
    """The rooms that this server knows, where users have joined but no Owner; oldest first.

    Our users with closed accounts do not count, even before they have left.
    """
    closed = _closed_accounts(connection)
    found: list[OwnerlessRoom] = []
    for room in _governing(connection):
        listed = listed_users(room.power_levels)
        candidates = [*listed, *room.levels.creators]
        if room.levels.users_default < OWNER and _any_owner(connection, room, candidates, closed):
            continue
        joined = _joined(connection, room.room_nid).difference(closed)
        if joined and not joined_owners(room.levels, listed, joined):
            local = sum(_is_of(user_id, server_name) for user_id in joined)
            found.append(OwnerlessRoom(room.room_id, len(joined), local))
    return found


def ownership_of(connection: Connection, room_id: str, server_name: str) -> Ownership | None:
    """Who governs a room; None if this server does not know the room."""
    room = next(iter(_governing(connection, room_id)), None)
    if room is None:
        return None
    closed = _closed_accounts(connection)
    joined = _joined(connection, room.room_nid).difference(closed)
    levels = room.levels
    owners = joined_owners(levels, listed_users(room.power_levels), joined)
    local = sorted(user_id for user_id in joined if _is_of(user_id, server_name))

    def of_level(needed: Level) -> list[str]:
        return [user_id for user_id in local if levels.of_user(user_id) >= needed]

    return Ownership(
        ownerless=bool(joined) and not owners,
        owners=sorted(owners),
        could_have_prevented=_former_owners(connection, room, owners, closed, server_name),
        may_give_owner=of_level(max(OWNER, levels.to_send("m.room.power_levels", is_state=True))),
        may_invite=of_level(levels.invite),
        may_replace=of_level(levels.to_send("m.room.tombstone", is_state=True)),
    )


def _former_owners(
    connection: Connection, room: _Governing, owners: set[str], closed: set[str], server_name: str
) -> list[FormerOwner]:
    """Our users who had an Owner's power level at any time, and are not Owners now."""
    levels = room.levels
    named = {*listed_users(room.power_levels), *levels.creators}
    once = {user_id for user_id in named if levels.of_user(user_id) >= OWNER}
    for earlier in _earlier_power_levels(connection, room):
        then = power_levels_of(ROOM_VERSIONS[room.version], room.create, earlier)
        once.update(user_id for user_id in listed_users(earlier) if then.of_user(user_id) >= OWNER)
    ours = sorted(user_id for user_id in once - owners if _is_of(user_id, server_name))
    memberships = _memberships(connection, room.room_nid, ours)
    return [
        FormerOwner(
            user_id, memberships.get(user_id, "none"), levels.of_user(user_id) >= OWNER, is_closed=user_id in closed
        )
        for user_id in ours
    ]


def _earlier_power_levels(connection: Connection, room: _Governing) -> list[Event]:
    """The power levels events before the current one, newest first."""
    if room.power_levels is None:
        return []
    statement = select(events.c.replaces_nid, events.c.event_id, events.c.json)
    found: list[Event] = []
    nid = connection.scalar(
        select(events.c.replaces_nid).where(
            events.c.event_id == room.power_levels.event_id, events.c.room_nid == room.room_nid
        )
    )
    while nid is not None and len(found) < POWER_LEVELS_LOOKED_AT_MAX:
        row = connection.execute(statement.where(events.c.event_nid == nid)).first()
        if row is None:
            break
        nid = row[0]
        found.append(_event(row[2], room, row[1]))
    return found


def _governing(connection: Connection, room_id: str | None = None) -> list[_Governing]:
    """The rooms that this server is or was in, oldest first, or the one with this ID."""
    known = (
        select(rooms.c.room_nid, rooms.c.room_id, rooms.c.version)
        .where(rooms.c.state_group.is_not(None))
        .order_by(rooms.c.room_nid)
    )
    state = (
        select(current_state.c.room_nid, state_keys.c.type, events.c.event_id, events.c.json)
        .join(state_keys, state_keys.c.state_key_nid == current_state.c.state_key_nid)
        .join(events, events.c.event_nid == current_state.c.event_nid)
        .where(state_keys.c.type.in_(("m.room.create", "m.room.power_levels")), state_keys.c.state_key == "")
    )
    if room_id is not None:
        known = known.where(rooms.c.room_id == room_id)
        state = state.join(rooms, rooms.c.room_nid == current_state.c.room_nid).where(rooms.c.room_id == room_id)
    found = {row[0]: _Governing(*row) for row in connection.execute(known)}
    for room_nid, event_type, event_id, json in connection.execute(state):
        room = found.get(room_nid)
        if room is None:
            continue
        event = _event(json, room, event_id)
        if event_type == "m.room.create":
            room.create = event
        else:
            room.power_levels = event
    return list(found.values())


def _event(json: bytes, room: _Governing, event_id: str) -> Event:
    return Event(orjson.loads(json), ROOM_VERSIONS[room.version], event_id, room.room_id, bytes(json))


def _any_owner(connection: Connection, room: _Governing, candidates: Iterable[str], closed: set[str]) -> bool:
    levels = room.levels
    owners = [user_id for user_id in candidates if levels.of_user(user_id) >= OWNER and user_id not in closed]
    return "join" in _memberships(connection, room.room_nid, owners).values()


def _joined(connection: Connection, room_nid: int) -> set[str]:
    statement = select(room_members.c.user_id).where(
        room_members.c.room_nid == room_nid, room_members.c.membership == "join"
    )
    return set(connection.scalars(statement))


def _memberships(connection: Connection, room_nid: int, user_ids: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for user_id in user_ids:
        statement = select(room_members.c.membership).where(
            room_members.c.room_nid == room_nid, room_members.c.user_id == user_id
        )
        membership = connection.scalar(statement)
        if membership is not None:
            found[user_id] = membership
    return found


def _closed_accounts(connection: Connection) -> set[str]:
    return set(connection.scalars(select(users.c.user_id).where(users.c.deactivated_ts.is_not(None))))


def _is_of(user_id: str, server_name: str) -> bool:
    return user_id.endswith(f":{server_name}")
