"""Storing a room that was joined through another server: in small transactions, then a short one that activates it.

Events, the state group, the current state and its members are written in pieces while no user of ours is in the room,
so that other writers wait for one piece at most. A piece holds some events with everything that follows from them,
because each transaction has its price. Every piece can be written again: an interrupted import leaves rows that nothing
refers to, or that the next import corrects.

A room that this server was in before still shows its old state to users who left it. Its differences are therefore
written in the last transaction; they are as many as have changed since.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from sqlalchemy import Connection, and_, bindparam, delete, exists, or_, select, update

from homeserver.protocol.events import Event, StateKey
from homeserver.storage import graph_writes, invitations, streams, under_way, user_rooms
from homeserver.storage.appends import Appended, EventWrite, GroupRef, NewRoom, RoomAppend, StaleHead
from homeserver.storage.event_graph import Verdict
from homeserver.storage.graph_writes import GraphWriter
from homeserver.storage.prepared import PreparedSelect, prepared, prepared_insert, prepared_upsert
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
_STANDING = PreparedSelect(
    select(rooms.c.generation, rooms.c.state_group).where(rooms.c.room_nid == bindparam("room_nid"))
)
_HAS_ROWS = PreparedSelect(
    select(rooms.c.room_nid).where(
        rooms.c.room_nid == bindparam("room_nid"),
        or_(
            exists().where(current_state.c.room_nid == rooms.c.room_nid),
            exists().where(room_members.c.room_nid == rooms.c.room_nid),
        ),
    )
)
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
    has_leftovers: bool
    """Whether an import that was interrupted has left rows of the room's current state."""
    state_group: int
    """The state after the join, which the import fills."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some events of the room, and what is to be stored with them."""

    events: Sequence[Event]
    """Those that others cite come first, also from piece to piece."""
    in_state: frozenset[str]
    """The IDs of those that belong to the state before the join, and stay in the state after it."""
    known: Mapping[str, Event]
    """All events of the room that came with the join."""
    nids: Mapping[str, int]
    """The numeric IDs of the events of earlier pieces."""


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
    differences: Differences
    """The part of the current state that is still to be written, without the join."""
    generation: int | None
    """The room's generation that they were computed on; None if there was no state that could have changed."""
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
    """Add the room unless it exists, and a state group for it; None if a user of ours is in it already."""
    if not under_way.is_owner(connection, kind, room.room_id, owner):
        raise StaleHead
    if user_rooms.is_anybody_in(connection, room.room_id):
        return None
    room_nid, _ = graph_writes.add_room(connection, room)
    _, group = standing_of(connection, room_nid)
    if group is None:
        # So far the version is the one that an invitation claimed; the room's create event overrides it.
        connection.execute(update(rooms).where(rooms.c.room_nid == room_nid).values(version=room.version))
    has_leftovers = group is None and bool(_HAS_ROWS.rows(connection, room_nid=room_nid))
    number = add_group(connection, room_nid)
    return Importing(room.room_id, room_nid, kind, owner, group is not None, has_leftovers, number)


def standing_of(connection: Connection, room_nid: int) -> tuple[int, int | None]:
    """The room's generation, and its state group; None if no user of ours has been in the room."""
    generation, state_group = _STANDING.rows(connection, room_nid=room_nid)[0]
    return generation, state_group


def add_group(connection: Connection, room_nid: int) -> int:
    """Create a state group without entries."""
    (number,) = streams.take(connection, "state_group")
    _INSERT_GROUPS.run(connection, [{"state_group": number, "room_nid": room_nid, "parent": None, "ordinal": 0}])
    return number


def store_piece(connection: Connection, graph: GraphWriter, importing: Importing, piece: Piece) -> Appended:
    """Store events that are not stored yet, and what follows from them if they belong to the state."""
    _check_lease(connection, importing)
    room_nid = importing.room_nid
    generation, state_group = standing_of(connection, room_nid)
    if state_group is not None and not importing.was_known:
        raise StaleHead
    append = RoomAppend(
        room_nid, generation, events=[EventWrite(event, Verdict.OUTLIER, None) for event in piece.events]
    )
    outcome = graph.append(connection, [append])[0]
    if isinstance(outcome, BaseException):
        raise outcome
    state = [(event, outcome.nids[event.event_id]) for event in piece.events if event.event_id in piece.in_state]
    keys = outcome.state_keys
    store_entries(connection, importing.state_group, [(keys[event.key], nid) for event, nid in state])
    members = [(event, nid) for event, nid in state if event.type == "m.room.member"]
    if not importing.was_known:
        put_current(
            connection,
            [{"room_nid": room_nid, "state_key_nid": keys[event.key], "event_nid": nid} for event, nid in state],
            [graph_writes.member_row(room_nid, event, nid) for event, nid in members],
        )
    nids = ChainMap(dict(outcome.nids), cast("dict[str, int]", piece.nids))
    invitations.take_over(
        connection, invitations.Takeover(room_nid, [event for event, _ in members], piece.known, nids)
    )
    return outcome


def store_entries(connection: Connection, state_group: int, entries: Sequence[tuple[int, int]]) -> None:
    """Add entries to a state group: numeric IDs of state keys and events."""
    rows = [{"state_group": state_group, "state_key_nid": key, "event_nid": nid} for key, nid in entries]
    _INSERT_ENTRIES.run(connection, rows)


def put_current(connection: Connection, rows: Sequence[dict[str, Any]], members: Sequence[dict[str, Any]]) -> None:
    """Write rows of the current state, and of its members."""
    _PUT_STATE.run(connection, rows)
    _PUT_MEMBERS.run(connection, members)


def find_differences(connection: Connection, room_nid: int, wanted: WantedState) -> tuple[int, Differences]:
    """The room's generation, and the differences between the wanted state and the stored current state."""
    generation, _ = standing_of(connection, room_nid)
    table = current_state.c
    rows = connection.execute(select(table.state_key_nid, table.event_nid).where(table.room_nid == room_nid))
    stored = {row[0]: row[1] for row in rows}
    members = connection.execute(select(room_members.c.user_id).where(room_members.c.room_nid == room_nid)).scalars()
    return generation, differences_of(room_nid, stored, members, wanted)


def find_leftovers(connection: Connection, room_nid: int, wanted: WantedState) -> Differences:
    """What an import that was interrupted has left of a current state and is not part of this one."""
    stored = connection.execute(select(current_state.c.state_key_nid).where(current_state.c.room_nid == room_nid))
    kept = {wanted.state_keys[key] for key in wanted.state}
    members = connection.execute(select(room_members.c.user_id).where(room_members.c.room_nid == room_nid))
    return Differences(
        removed=[key for key in stored.scalars() if key not in kept],
        removed_members=[user_id for user_id in members.scalars() if ("m.room.member", user_id) not in wanted.state],
    )


def remove_leftovers(
    connection: Connection, importing: Importing, state_keys: Sequence[int], users: Sequence[str]
) -> None:
    """Remove some of them; only for a room that no user of ours sees yet."""
    _check_lease(connection, importing)
    if standing_of(connection, importing.room_nid)[1] is not None:
        raise StaleHead
    _apply(connection, importing.room_nid, Differences(removed=list(state_keys), removed_members=list(users)))


def switch(connection: Connection, graph: GraphWriter, importing: Importing, new: Switch) -> Switched | None:
    """Make this server a participant of the room, by the join. None if a user of ours is in it already.

    Raises ``StaleHead`` if the room changed after its differences were computed.
    """
    _check_lease(connection, importing)
    room_nid, join = importing.room_nid, new.join
    if user_rooms.is_anybody_in(connection, importing.room_id):
        return None
    generation, state_group = standing_of(connection, room_nid)
    if (state_group is not None) != importing.was_known or new.generation not in (None, generation):
        raise StaleHead
    connection.execute(delete(forward_extremities).where(forward_extremities.c.room_nid == room_nid))
    append = RoomAppend(
        room_nid,
        generation,
        events=[
            EventWrite(
                join, Verdict.ACCEPTED, GroupRef(state_group=importing.state_group), replaces=new.replaces, awaited=True
            )
        ],
        current=GroupRef(state_group=importing.state_group),
        extremities=(frozenset(), frozenset({join.event_id})),
    )
    outcome = graph.append(connection, [append])[0]
    if isinstance(outcome, BaseException):
        raise outcome
    nid, position = outcome.nids[join.event_id], outcome.positions[join.event_id]
    join_key_nid = outcome.state_keys[join.key]
    store_entries(connection, importing.state_group, [(join_key_nid, nid)])
    own = {"room_nid": room_nid, "state_key_nid": join_key_nid, "event_nid": nid}
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
    put_current(connection, part.rows, part.members)
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
