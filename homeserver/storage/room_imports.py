"""Storing a room that was joined through another server: in small transactions, then a short one that activates it.

Events, the state group, the current state and its members are written in parts while no user of ours is in the room, so
that other writers wait for one part at most. Every part can be written again: an interrupted import leaves rows that
nothing refers to, or that the next import corrects.

A room that this server was in before still shows its old state to users who left it. Its differences are therefore
written in the last transaction; they are as many as have changed since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, select, update

from homeserver.protocol.events import Event, StateKey
from homeserver.storage import graph_writes, invitations, streams, under_way, user_rooms
from homeserver.storage.appends import Appended, EventWrite, GroupRef, NewRoom, RoomAppend, StaleHead
from homeserver.storage.event_graph import Verdict
from homeserver.storage.graph_writes import GraphWriter
from homeserver.storage.prepared import prepared, prepared_insert, prepared_upsert
from homeserver.storage.tables import (
    current_state,
    current_state_changes,
    forward_extremities,
    room_members,
    rooms,
    state_group_entries,
    state_groups,
)
from homeserver.storage.tables import user_rooms as user_rooms_table

_INSERT_GROUPS = prepared_insert(state_groups)
_INSERT_ENTRIES = prepared_insert(state_group_entries)
_PUT_STATE = prepared_upsert(current_state, "room_nid", "state_key_nid")
_PUT_MEMBERS = prepared_upsert(room_members, "room_nid", "user_id")
_PUT_USER_ROOMS = prepared_upsert(user_rooms_table, "user_id", "room_nid")
_PUT_CHANGES = prepared_upsert(current_state_changes, "room_nid", "position", "state_key_nid")
_REMOVE_STATE = prepared(
    delete(current_state).where(
        and_(
            current_state.c.room_nid == bindparam("b_room_nid"),
            current_state.c.state_key_nid == bindparam("b_state_key_nid"),
        )
    )
)
_REMOVE_MEMBERS = prepared(
    delete(room_members).where(
        and_(room_members.c.room_nid == bindparam("b_room_nid"), room_members.c.user_id == bindparam("b_user_id"))
    )
)


@dataclass(frozen=True, slots=True)
class Importing:
    """A room that is being imported."""

    room_id: str
    room_nid: int
    kind: str
    """The kind of the lease, see ``under_way``."""
    owner: str
    """The owner of the lease."""
    was_known: bool
    """Whether this server was in the room before and has a state of it."""


@dataclass(frozen=True, slots=True)
class WantedState:
    """The state that a room shall have."""

    state: Mapping[StateKey, str]
    """Event IDs."""
    events: Mapping[str, Event]
    state_keys: Mapping[StateKey, int]
    """The numeric IDs of the state keys, ..."""
    nids: Mapping[str, int]
    """... and of the events."""
    besides: StateKey
    """The member event that is stored at the end."""


@dataclass(slots=True)
class Differences:
    """The changes that turn the stored current state of a room into the new one."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """Rows of ``current_state``."""
    members: list[dict[str, Any]] = field(default_factory=list)
    """Rows of ``room_members``."""
    removed: list[int] = field(default_factory=list)
    """Numeric IDs of removed state keys."""
    removed_members: list[str] = field(default_factory=list)

    def put(self, room_nid: int, key: StateKey, wanted: WantedState) -> None:
        """Add one event of the wanted state."""
        event_id = wanted.state[key]
        nid = wanted.nids[event_id]
        self.rows.append({"room_nid": room_nid, "state_key_nid": wanted.state_keys[key], "event_nid": nid})
        if key[0] == "m.room.member":
            self.members.append(graph_writes.member_row(room_nid, wanted.events[event_id], nid))


@dataclass(frozen=True, slots=True)
class Switch:
    """What makes this server a participant of an imported room."""

    join: Event
    replaces: str | None
    """The event ID of the member event that the join replaces."""
    state_group: int
    """The state after the join, without the join itself."""
    join_key_nid: int
    generation: int
    differences: Differences
    """The part of the current state that is still to be written, without the join."""
    local_members: Sequence[tuple[Event, int]]
    """The other member events of our users in the new state, with their numeric IDs."""
    known: Mapping[str, Event]
    nids: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Switched:
    """What the switch has done."""

    position: int
    """The position of the join."""
    users: tuple[str, ...]
    """Our users whose membership it has changed: who joined, and those whose invitation came with the state."""


def begin(connection: Connection, room: NewRoom, kind: str, owner: str) -> Importing | None:
    """Add the room unless it exists; None if a user of ours is in it already."""
    if user_rooms.is_anybody_in(connection, room.room_id):
        return None
    room_nid, _ = graph_writes.add_room(connection, room)
    group = connection.execute(select(rooms.c.state_group).where(rooms.c.room_nid == room_nid)).scalar_one()
    if group is None:
        # So far the version is the one that an invitation claimed; the room's create event overrides it.
        connection.execute(update(rooms).where(rooms.c.room_nid == room_nid).values(version=room.version))
    return Importing(room.room_id, room_nid, kind, owner, group is not None)


def generation_of(connection: Connection, room_nid: int) -> int:
    """The room's current generation."""
    return int(connection.execute(select(rooms.c.generation).where(rooms.c.room_nid == room_nid)).scalar_one())


def store_outliers(
    connection: Connection, graph: GraphWriter, importing: Importing, events: Sequence[Event]
) -> Appended:
    """Store some events, cited ones first; those that are stored already are skipped."""
    _check_lease(connection, importing)
    append = RoomAppend(
        importing.room_nid,
        generation_of(connection, importing.room_nid),
        events=[EventWrite(event, Verdict.OUTLIER, None) for event in events],
    )
    outcome = graph.append(connection, [append])[0]
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def add_group(connection: Connection, importing: Importing) -> int:
    """Create a state group without entries."""
    _check_lease(connection, importing)
    (number,) = streams.take(connection, "state_group")
    row = {"state_group": number, "room_nid": importing.room_nid, "parent": None, "ordinal": 0}
    _INSERT_GROUPS.run(connection, [row])
    return number


def store_entries(
    connection: Connection, importing: Importing, state_group: int, entries: Sequence[tuple[int, int]]
) -> None:
    """Add entries to a state group: numeric IDs of state keys and events."""
    _check_lease(connection, importing)
    rows = [{"state_group": state_group, "state_key_nid": key, "event_nid": nid} for key, nid in entries]
    _INSERT_ENTRIES.run(connection, rows)


def find_differences(connection: Connection, room_nid: int, wanted: WantedState) -> tuple[int, Differences]:
    """The room's generation, and the differences between the wanted state and the stored current state."""
    generation = generation_of(connection, room_nid)
    table = current_state.c
    rows = connection.execute(select(table.state_key_nid, table.event_nid).where(table.room_nid == room_nid))
    stored = {row[0]: row[1] for row in rows}
    members = connection.execute(select(room_members.c.user_id).where(room_members.c.room_nid == room_nid)).scalars()
    return generation, differences_of(room_nid, stored, members, wanted)


def find_leftovers(connection: Connection, room_nid: int, wanted: WantedState) -> tuple[int, Differences]:
    """The room's generation, and what an import that broke off has left of a state and is not part of this one."""
    generation = generation_of(connection, room_nid)
    found = Differences()
    stored = connection.execute(select(current_state.c.state_key_nid).where(current_state.c.room_nid == room_nid))
    if left := stored.scalars().all():
        kept = {wanted.state_keys[key] for key in wanted.state}
        found.removed = [key for key in left if key not in kept]
        members = connection.execute(select(room_members.c.user_id).where(room_members.c.room_nid == room_nid))
        users = members.scalars()
        found.removed_members = [user_id for user_id in users if ("m.room.member", user_id) not in wanted.state]
    return generation, found


def remove_leftovers(
    connection: Connection, importing: Importing, state_keys: Sequence[int], users: Sequence[str]
) -> None:
    """Remove some of them."""
    _check_lease(connection, importing)
    _apply(connection, importing.room_nid, Differences(removed=list(state_keys), removed_members=list(users)))


def store_current(connection: Connection, importing: Importing, wanted: WantedState, keys: Sequence[StateKey]) -> None:
    """Write a part of the current state; only for a room that no user of ours sees yet."""
    _check_lease(connection, importing)
    group = connection.execute(select(rooms.c.state_group).where(rooms.c.room_nid == importing.room_nid)).scalar_one()
    if group is not None:
        raise StaleHead
    part = Differences()
    for key in keys:
        if key != wanted.besides:
            part.put(importing.room_nid, key, wanted)
    _apply(connection, importing.room_nid, part)


def take_over_invitations(connection: Connection, importing: Importing, takeover: invitations.Takeover) -> None:
    """Store the status of some users' invitations."""
    _check_lease(connection, importing)
    invitations.take_over(connection, takeover)


def switch(connection: Connection, graph: GraphWriter, importing: Importing, new: Switch) -> Switched | None:
    """Make this server a participant of the room, by the join. None if a user of ours is in it already.

    Raises ``StaleHead`` if the room changed after its differences were computed.
    """
    _check_lease(connection, importing)
    room_nid, join = importing.room_nid, new.join
    if user_rooms.is_anybody_in(connection, importing.room_id):
        return None
    if generation_of(connection, room_nid) != new.generation:
        raise StaleHead
    connection.execute(delete(forward_extremities).where(forward_extremities.c.room_nid == room_nid))
    append = RoomAppend(
        room_nid,
        new.generation,
        events=[
            EventWrite(
                join, Verdict.ACCEPTED, GroupRef(state_group=new.state_group), replaces=new.replaces, awaited=True
            )
        ],
        current=GroupRef(state_group=new.state_group),
        extremities=(frozenset(), frozenset({join.event_id})),
    )
    outcome = graph.append(connection, [append])[0]
    if isinstance(outcome, BaseException):
        raise outcome
    nid, position = outcome.nids[join.event_id], outcome.positions[join.event_id]
    store_entries(connection, importing, new.state_group, [(new.join_key_nid, nid)])
    own = {"room_nid": room_nid, "state_key_nid": new.join_key_nid, "event_nid": nid}
    differences = Differences(
        [*new.differences.rows, own],
        [*new.differences.members, graph_writes.member_row(room_nid, join, nid)],
        new.differences.removed,
        new.differences.removed_members,
    )
    if importing.was_known:
        _record(connection, room_nid, position, differences)
    _apply(connection, room_nid, differences)
    standings = _standings(connection, room_nid)
    news = [(join, nid), *(m for m in new.local_members if _is_news(m[0], standings.get(m[0].state_key or "")))]
    rows = [graph_writes.user_room_row(room_nid, member, member_nid, position) for member, member_nid in news]
    _PUT_USER_ROOMS.run(connection, rows)
    nids = {**new.nids, join.event_id: nid}
    invitations.take_over(connection, invitations.Takeover(room_nid, [join], new.known, nids))
    return Switched(position, tuple(row["user_id"] for row in rows))


def _check_lease(connection: Connection, importing: Importing) -> None:
    """Check that no other process has begun to import the same room: both would write different states of it."""
    if not under_way.is_owner(connection, importing.kind, importing.room_id, importing.owner):
        raise StaleHead


def _apply(connection: Connection, room_nid: int, part: Differences) -> None:
    _PUT_STATE.run(connection, part.rows)
    _PUT_MEMBERS.run(connection, part.members)
    _REMOVE_STATE.run(connection, [{"b_room_nid": room_nid, "b_state_key_nid": key} for key in part.removed])
    _REMOVE_MEMBERS.run(connection, [{"b_room_nid": room_nid, "b_user_id": name} for name in part.removed_members])


def _record(connection: Connection, room_nid: int, position: int, differences: Differences) -> None:
    """Write the differences to the last known state of the room into ``current_state_changes``.

    The changes get the ``position`` of the join that brought the new state. Clients with tokens from before our server
    left the room learn the state from these changes, as if they had happened at the join.

    A room of which no state was known gets no changes: no client has a token from an earlier stay in it, and a client
    that newly sees a room gets the whole state.
    """
    changes = [(row["state_key_nid"], row["event_nid"]) for row in differences.rows]
    changes += [(key, None) for key in differences.removed]
    _PUT_CHANGES.run(
        connection,
        [{"room_nid": room_nid, "position": position, "state_key_nid": key, "event_nid": nid} for key, nid in changes],
    )


def _is_news(member: Event, standing: str | None) -> bool:
    """Whether a membership in the state of a room joined through another server is news for a user of ours.

    Such a state includes old departures, which are no news to the users who left.
    """
    return member.membership in ("join", "invite", "knock") or standing not in (None, member.membership)


def _standings(connection: Connection, room_nid: int) -> dict[str, str]:
    """The memberships of our users in a room."""
    table = user_rooms_table.c
    rows = connection.execute(select(table.user_id, table.membership).where(table.room_nid == room_nid))
    return {row[0]: row[1] for row in rows}


def differences_of(
    room_nid: int, stored: Mapping[int, int], stored_members: Iterable[str], wanted: WantedState
) -> Differences:
    """The changes that turn the stored state into the wanted one, without the member event ``besides``."""
    found = Differences()
    members = {wanted.besides[1]}
    for key, event_id in wanted.state.items():
        if key[0] == "m.room.member":
            members.add(key[1])
        if key != wanted.besides and stored.get(wanted.state_keys[key]) != wanted.nids[event_id]:
            found.put(room_nid, key, wanted)
    kept = {wanted.state_keys[key] for key in wanted.state} | {wanted.state_keys[wanted.besides]}
    found.removed = [key for key in stored if key not in kept]
    found.removed_members = [user_id for user_id in stored_members if user_id not in members]
    return found
