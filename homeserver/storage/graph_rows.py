"""The rows that one transaction writes to the event graph: collected for all its rooms, one statement per table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection, and_, bindparam, delete, insert, select, update

from homeserver.storage import auth_chains, invitations, room_state
from homeserver.storage.database import in_slices, upsert
from homeserver.storage.database import insert as insert_or
from homeserver.storage.tables import (
    backward_extremities,
    client_transactions,
    current_state,
    current_state_changes,
    event_edges,
    events,
    forward_extremities,
    redactions,
    rejections,
    room_members,
    rooms,
    state_keys,
    user_rooms,
)

_INSERT_EVENTS = insert(events)
_INSERT_TRANSACTION = insert(client_transactions)
_PLACE_OUTLIER = (
    update(events)
    .where(events.c.event_nid == bindparam("b_event_nid"))
    .values(
        stream_position=bindparam("b_stream_position"),
        state_group=bindparam("b_state_group"),
        replaces_nid=bindparam("b_replaces_nid"),
        verdict=bindparam("b_verdict"),
        json=bindparam("b_json"),
    )
)
_MOVE_EXTREMITY = (
    update(forward_extremities)
    .where(
        and_(
            forward_extremities.c.room_nid == bindparam("b_room_nid"),
            forward_extremities.c.event_nid == bindparam("b_old"),
        )
    )
    .values(event_nid=bindparam("b_new"))
)
_DROP_EXTREMITY = delete(forward_extremities).where(
    and_(
        forward_extremities.c.room_nid == bindparam("b_room_nid"),
        forward_extremities.c.event_nid == bindparam("b_old"),
    )
)
_LEFT = (
    update(user_rooms)
    .where(and_(user_rooms.c.user_id == bindparam("b_user_id"), user_rooms.c.room_nid == bindparam("b_room_nid")))
    .values(membership="leave", position=bindparam("b_position"))
)
_HIDE_PROFILE = (
    update(room_members)
    .where(
        and_(
            room_members.c.room_nid == bindparam("b_room_nid"),
            room_members.c.user_id == bindparam("b_user_id"),
            room_members.c.event_nid == bindparam("b_event_nid"),
        )
    )
    .values(display_name=None, avatar_url=None)
)
_NEXT_GENERATION = (
    update(rooms).where(rooms.c.room_nid == bindparam("b_room_nid")).values(generation=bindparam("b_generation"))
)
_NEXT_STATE = (
    update(rooms)
    .where(rooms.c.room_nid == bindparam("b_room_nid"))
    .values(generation=bindparam("b_generation"), state_group=bindparam("b_state_group"))
)


class GraphRows:
    """The rows of one transaction, by table."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.placed: list[dict[str, Any]] = []
        self.edges: list[dict[str, Any]] = []
        self.missing: list[dict[str, Any]] = []
        self.awaited: list[int] = []
        self.moved: list[dict[str, Any]] = []
        self.dropped_extremities: list[dict[str, Any]] = []
        self.new_extremities: list[dict[str, Any]] = []
        self.groups: list[room_state.NewGroup] = []
        self.auth: list[tuple[int, list[int]]] = []
        self.current: list[dict[str, Any]] = []
        self.removed: list[tuple[int, int]] = []
        self.changes: list[dict[str, Any]] = []
        self.members: list[dict[str, Any]] = []
        self.removed_members: list[tuple[int, str]] = []
        self.user_rooms: list[dict[str, Any]] = []
        self.invitations: list[invitations.Step] = []
        self.taken_over: list[invitations.Takeover] = []
        self.removed_standings: list[dict[str, Any]] = []
        self.redactions: list[dict[str, Any]] = []
        self.reasons: list[dict[str, Any]] = []
        self.txns: list[dict[str, Any]] = []
        self.generations: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = []


def clear_state(connection: Connection, room_nid: int) -> None:
    """Drop the current state of a room, which is written anew in the same transaction."""
    for table in (current_state, room_members, forward_extremities):
        connection.execute(delete(table).where(table.c.room_nid == room_nid))


def write_rows(connection: Connection, rows: GraphRows, new_chains: Iterator[int]) -> None:
    """Write everything; ``new_chains`` gives out numbers for new auth chains."""
    _many(connection, _INSERT_EVENTS, rows.events)
    _many(connection, _PLACE_OUTLIER, rows.placed)
    if rows.auth:
        auth_chains.assign_positions(connection, rows.auth, new_chains)
    room_state.store_groups(connection, rows.groups)
    _many(connection, insert_or(connection, event_edges).on_conflict_do_nothing(), rows.edges)
    _many(connection, insert_or(connection, backward_extremities).on_conflict_do_nothing(), rows.missing)
    _link_those_who_waited(connection, rows.awaited)
    _many(connection, _MOVE_EXTREMITY, rows.moved)
    _many(connection, _DROP_EXTREMITY, rows.dropped_extremities)
    _many(connection, insert_or(connection, forward_extremities).on_conflict_do_nothing(), rows.new_extremities)
    upsert(connection, current_state, rows.current, ["room_nid", "state_key_nid"])
    upsert(connection, room_members, rows.members, ["room_nid", "user_id"])
    upsert(connection, user_rooms, rows.user_rooms, ["user_id", "room_nid"])
    invitations.follow(connection, rows.invitations)
    for takeover in rows.taken_over:
        invitations.take_over(connection, takeover)
    _many(connection, _LEFT, rows.removed_standings)
    for room_nid, key in rows.removed:
        connection.execute(
            delete(current_state).where(
                and_(current_state.c.room_nid == room_nid, current_state.c.state_key_nid == key)
            )
        )
    for room_nid, user_id in rows.removed_members:
        connection.execute(
            delete(room_members).where(and_(room_members.c.room_nid == room_nid, room_members.c.user_id == user_id))
        )
    upsert(connection, current_state_changes, rows.changes, ["room_nid", "position", "state_key_nid"])
    upsert(connection, redactions, rows.redactions, ["redacted_event_id", "redaction_nid"])
    _redact_members(connection, [row["redacted_event_id"] for row in rows.redactions if row["applied"]])
    upsert(connection, rejections, rows.reasons, ["event_nid"])
    _many(connection, _INSERT_TRANSACTION, rows.txns)
    _many(connection, _NEXT_GENERATION, rows.generations)
    _many(connection, _NEXT_STATE, rows.states)


def _redact_members(connection: Connection, redacted: Sequence[str]) -> None:
    """A redacted member event shows no name, no picture and no reason any longer."""
    for part in in_slices(redacted):
        statement = (
            select(events.c.room_nid, state_keys.c.state_key, events.c.event_nid, events.c.json)
            .join_from(events, state_keys, state_keys.c.state_key_nid == events.c.state_key_nid)
            .where(events.c.event_id.in_(part), state_keys.c.type == "m.room.member")
        )
        found = connection.execute(statement).all()
        _many(connection, _HIDE_PROFILE, [{"b_room_nid": r, "b_user_id": u, "b_event_nid": e} for r, u, e, _ in found])
        for room_nid, user_id, _, json in found:
            invitations.forget_reason(connection, room_nid, user_id, orjson.loads(json)["content"])


def _many(connection: Connection, statement: Any, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(statement, rows)


def _link_those_who_waited(connection: Connection, new_nids: Sequence[int]) -> None:
    """Where a new event is the missing one of others, their edges can be drawn now."""
    for part in in_slices(new_nids):
        statement = (
            select(backward_extremities.c.missing_event_id, backward_extremities.c.event_nid, events.c.event_nid)
            .join_from(backward_extremities, events, events.c.event_id == backward_extremities.c.missing_event_id)
            .where(events.c.event_nid.in_(part))
        )
        found = connection.execute(statement).all()
        if not found:
            continue
        connection.execute(
            insert_or(connection, event_edges).on_conflict_do_nothing(),
            [{"event_nid": waiting, "prev_nid": nid} for _, waiting, nid in found],
        )
        ids = list({row[0] for row in found})
        for some in in_slices(ids):
            connection.execute(delete(backward_extremities).where(backward_extremities.c.missing_event_id.in_(some)))
