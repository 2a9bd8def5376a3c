"""The rows that one transaction writes to the event graph: collected for all its rooms, one statement per table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection, and_, bindparam, delete, select, update

from homeserver.storage import auth_chains, invitations, room_state
from homeserver.storage.database import in_slices
from homeserver.storage.event_graph import IN_GRAPH
from homeserver.storage.history_lanes import close_lanes
from homeserver.storage.prepared import prepared, prepared_insert, prepared_upsert
from homeserver.storage.tables import (
    backward_extremities,
    current_state,
    current_state_changes,
    event_edges,
    events,
    forward_extremities,
    history_lanes,
    redactions,
    rejections,
    room_members,
    rooms,
    state_keys,
    user_rooms,
)

_INSERT_EVENTS = prepared_insert(events)
_INSERT_EDGES = prepared_insert(event_edges, or_ignore=True)
_INSERT_MISSING = prepared_insert(backward_extremities, or_ignore=True)
_INSERT_LANES = prepared_insert(history_lanes, or_ignore=True)
_INSERT_EXTREMITIES = prepared_insert(forward_extremities, or_ignore=True)
_PUT_STATE = prepared_upsert(current_state, "room_nid", "state_key_nid")
_PUT_MEMBERS = prepared_upsert(room_members, "room_nid", "user_id")
_PUT_USER_ROOMS = prepared_upsert(user_rooms, "user_id", "room_nid")
_PUT_CHANGES = prepared_upsert(current_state_changes, "room_nid", "position", "state_key_nid")
_PUT_REDACTIONS = prepared_upsert(redactions, "redacted_event_id", "room_nid", "redaction_nid")
_PUT_REASONS = prepared_upsert(rejections, "event_nid")
_PLACE_OUTLIER = prepared(
    update(events)
    .where(events.c.event_nid == bindparam("b_event_nid"))
    .values(
        stream_position=bindparam("b_stream_position"),
        place=bindparam("b_place"),
        state_group=bindparam("b_state_group"),
        replaces_nid=bindparam("b_replaces_nid"),
        verdict=bindparam("b_verdict"),
        json=bindparam("b_json"),
    )
)
_MOVE_EXTREMITY = prepared(
    update(forward_extremities)
    .where(
        and_(
            forward_extremities.c.room_nid == bindparam("b_room_nid"),
            forward_extremities.c.event_nid == bindparam("b_old"),
        )
    )
    .values(event_nid=bindparam("b_new"))
)
_DROP_EXTREMITY = prepared(
    delete(forward_extremities).where(
        and_(
            forward_extremities.c.room_nid == bindparam("b_room_nid"),
            forward_extremities.c.event_nid == bindparam("b_old"),
        )
    )
)
_LEFT = prepared(
    update(user_rooms)
    .where(and_(user_rooms.c.user_id == bindparam("b_user_id"), user_rooms.c.room_nid == bindparam("b_room_nid")))
    .values(membership="leave", position=bindparam("b_position"))
)
_HIDE_PROFILE = prepared(
    update(room_members)
    .where(
        and_(
            room_members.c.room_nid == bindparam("b_room_nid"),
            room_members.c.user_id == bindparam("b_user_id"),
            room_members.c.event_nid == bindparam("b_event_nid"),
        )
    )
    .values(display_name=None, sort_name="", avatar_url=None)
)
_FOUND = prepared(
    delete(backward_extremities).where(
        and_(
            backward_extremities.c.missing_event_id == bindparam("b_missing"),
            backward_extremities.c.room_nid == bindparam("b_room_nid"),
        )
    )
)
_NEXT_GENERATION = prepared(
    update(rooms).where(rooms.c.room_nid == bindparam("b_room_nid")).values(generation=bindparam("b_generation"))
)
_NEXT_STATE = prepared(
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
        self.lanes: list[dict[str, Any]] = []
        self.seen_through: list[int] = []
        """Hidden events that are now followed by an event that clients see."""
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
        self.removed_standings: list[dict[str, Any]] = []
        self.redactions: list[dict[str, Any]] = []
        self.reasons: list[dict[str, Any]] = []
        self.txns: list[dict[str, Any]] = []
        self.generations: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = []


def write_rows(connection: Connection, rows: GraphRows, new_chains: Iterator[int]) -> None:
    """Write everything; ``new_chains`` yields numbers for new auth chains."""
    _INSERT_EVENTS.run(connection, rows.events)
    _PLACE_OUTLIER.run(connection, rows.placed)
    if rows.auth:
        auth_chains.assign_positions(connection, rows.auth, new_chains)
    room_state.store_groups(connection, rows.groups)
    _INSERT_EDGES.run(connection, rows.edges)
    _INSERT_MISSING.run(connection, rows.missing)
    _INSERT_LANES.run(connection, rows.lanes)
    _show_gaps_of(connection, rows.seen_through)
    _link_waiting_events(connection, rows.awaited)
    _MOVE_EXTREMITY.run(connection, rows.moved)
    _DROP_EXTREMITY.run(connection, rows.dropped_extremities)
    _INSERT_EXTREMITIES.run(connection, rows.new_extremities)
    _PUT_STATE.run(connection, rows.current)
    _PUT_MEMBERS.run(connection, rows.members)
    _PUT_USER_ROOMS.run(connection, rows.user_rooms)
    invitations.follow(connection, rows.invitations)
    _LEFT.run(connection, rows.removed_standings)
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
    _PUT_CHANGES.run(connection, rows.changes)
    _PUT_REDACTIONS.run(connection, rows.redactions)
    applied = [row for row in rows.redactions if row["applied"]]
    for room_nid in {row["room_nid"] for row in applied}:
        _redact_members(connection, room_nid, [r["redacted_event_id"] for r in applied if r["room_nid"] == room_nid])
    _PUT_REASONS.run(connection, rows.reasons)
    _NEXT_GENERATION.run(connection, rows.generations)
    _NEXT_STATE.run(connection, rows.states)


def _show_gaps_of(connection: Connection, nids: Sequence[int]) -> None:
    """Count what is missing before these hidden events as missing history, because visible events follow them now."""
    for part in in_slices(nids):
        statement = (
            select(events.c.room_nid, events.c.place, events.c.stream_position, events.c.event_nid)
            .join_from(backward_extremities, events, events.c.event_nid == backward_extremities.c.event_nid)
            .where(events.c.event_nid.in_(part), backward_extremities.c.place.is_(None))
        )
        for room_nid, place, position, nid in connection.execute(statement).all():
            connection.execute(
                update(backward_extremities).where(backward_extremities.c.event_nid == nid).values(place=place)
            )
            if position > 0:
                _INSERT_LANES.run(connection, [{"room_nid": room_nid, "position": position, "lowest": place}])


def _redact_members(connection: Connection, room_nid: int, redacted: Sequence[str]) -> None:
    """Remove name, avatar and reason from the rows of redacted member events."""
    for part in in_slices(redacted):
        statement = (
            select(state_keys.c.state_key, events.c.event_nid, events.c.json)
            .join_from(events, state_keys, state_keys.c.state_key_nid == events.c.state_key_nid)
            .where(
                events.c.room_nid == room_nid,
                events.c.event_id.in_(part),
                IN_GRAPH,
                state_keys.c.type == "m.room.member",
            )
        )
        found = connection.execute(statement).all()
        _HIDE_PROFILE.run(
            connection, [{"b_room_nid": room_nid, "b_user_id": u, "b_event_nid": nid} for u, nid, _ in found]
        )
        for user_id, _, json in found:
            invitations.forget_reason(connection, room_nid, user_id, orjson.loads(json)["content"])


def _link_waiting_events(connection: Connection, new_nids: Sequence[int]) -> None:
    """Add the edges from events of the same room that named a new event before it arrived."""
    for part in in_slices(new_nids):
        statement = (
            select(
                backward_extremities.c.room_nid,
                backward_extremities.c.missing_event_id,
                backward_extremities.c.event_nid,
                events.c.event_nid,
            )
            .join_from(
                backward_extremities,
                events,
                and_(
                    events.c.event_id == backward_extremities.c.missing_event_id,
                    events.c.room_nid == backward_extremities.c.room_nid,
                    IN_GRAPH,
                ),
            )
            .where(events.c.event_nid.in_(part))
        )
        found = connection.execute(statement).all()
        if not found:
            continue
        _INSERT_EDGES.run(connection, [{"event_nid": waiting, "prev_nid": nid} for _, _, waiting, nid in found])
        _FOUND.run(connection, [{"b_room_nid": r, "b_missing": m} for r, m in {(row[0], row[1]) for row in found}])
        for room_nid in {row[0] for row in found}:
            close_lanes(connection, room_nid, [row[2] for row in found if row[0] == room_nid])
