"""``homeserver db check``: whether the stored data is consistent.

The tables hold some facts twice, for speed (the current state is a state group and a table), and refer to each other
without foreign keys. Each check tests one such invariant; a violation is a ``Problem``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Column, Connection, Select, Table, exists, func, select, text

from homeserver.errors import InvalidEvent
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.storage.event_graph import Verdict
from homeserver.storage.room_state import read_current_state, read_group
from homeserver.storage.server_identity import mismatch, recorded_name
from homeserver.storage.tables import (
    auth_chain_positions,
    backward_extremities,
    counters,
    current_state,
    event_edges,
    events,
    forward_extremities,
    room_members,
    rooms,
    state_group_entries,
    state_groups,
    state_keys,
    user_rooms,
    users,
)

EXAMPLES_MAX = 5
"""How many examples a problem names."""
EVENTS_PER_READ = 1000


@dataclass(frozen=True, slots=True)
class Problem:
    """A violated invariant: which, how often, and the first few examples."""

    what: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.what}: {self.count} (such as {', '.join(self.examples)})"


def find_problems(connection: Connection) -> list[Problem]:
    """Check everything; a consistent database has no problems. Reads all events, so it takes a while."""
    return [
        problem
        for check in _CHECKS
        for what, found in check(connection)
        if (problem := _problem(what, found)) is not None
    ]


def wrong_server_name(connection: Connection, configured: str) -> list[Problem]:
    """A problem if the configuration names another server than the one that the database belongs to."""
    recorded = recorded_name(connection)
    if recorded is None or recorded == configured:
        return []
    return [Problem(mismatch(recorded, configured), 1, (configured,))]


def counts(connection: Connection) -> dict[str, int]:
    """How much data there is to check."""
    return {table.name: connection.scalar(select(func.count()).select_from(table)) or 0 for table in (rooms, events)}


_Found = Iterator[tuple[str, Iterator[str]]]


def _problem(what: str, found: Iterator[str]) -> Problem | None:
    examples: list[str] = []
    count = 0
    for example in found:
        count += 1
        if len(examples) < EXAMPLES_MAX:
            examples.append(example)
    return Problem(what, count, tuple(examples)) if count else None


def _file(connection: Connection) -> _Found:
    if connection.dialect.name == "sqlite":
        answers = (str(answer) for answer in connection.scalars(text("PRAGMA integrity_check")))
        yield "the database file is damaged", (answer for answer in answers if answer != "ok")


def _references(connection: Connection) -> _Found:
    """References to rows that do not exist."""
    targets: Sequence[tuple[Column[int], Column[int]]] = (
        (events.c.room_nid, rooms.c.room_nid),
        (events.c.state_key_nid, state_keys.c.state_key_nid),
        (events.c.state_group, state_groups.c.state_group),
        (event_edges.c.event_nid, events.c.event_nid),
        (event_edges.c.prev_nid, events.c.event_nid),
        (forward_extremities.c.event_nid, events.c.event_nid),
        (backward_extremities.c.event_nid, events.c.event_nid),
        (auth_chain_positions.c.event_nid, events.c.event_nid),
        (state_groups.c.parent, state_groups.c.state_group),
        (state_group_entries.c.state_group, state_groups.c.state_group),
        (state_group_entries.c.state_key_nid, state_keys.c.state_key_nid),
        (state_group_entries.c.event_nid, events.c.event_nid),
        (rooms.c.state_group, state_groups.c.state_group),
        (current_state.c.event_nid, events.c.event_nid),
        (room_members.c.event_nid, events.c.event_nid),
        (user_rooms.c.event_nid, events.c.event_nid),
    )
    for source, target in targets:
        there = target.table.alias()
        dangling = select(source).where(source.is_not(None), ~exists().where(there.c[target.name] == source))
        yield f"{source.table.name}.{source.name} leads to nothing", _texts(connection, dangling)


def _event_graph(connection: Connection) -> _Found:
    in_timeline = events.c.verdict.op("&")(int(Verdict.OUTLIER)) == 0
    usable = events.c.verdict.op("&")(int(Verdict.OUTLIER | Verdict.REJECTED)) == 0
    yield (
        "an event of a timeline has no position",
        _texts(connection, select(events.c.event_id).where(in_timeline, events.c.stream_position.is_(None))),
    )
    yield (
        "an accepted event has no state after it",
        _texts(connection, select(events.c.event_id).where(usable, events.c.state_group.is_(None))),
    )
    yield (
        "a forward extremity is not an accepted event of its room",
        _texts(
            connection,
            select(events.c.event_id)
            .join(forward_extremities, forward_extremities.c.event_nid == events.c.event_nid)
            .where((forward_extremities.c.room_nid != events.c.room_nid) | ~usable),
        ),
    )
    yield (
        "a room with a state has no forward extremity",
        _texts(
            connection,
            select(rooms.c.room_id).where(
                rooms.c.state_group.is_not(None),
                ~exists().where(forward_extremities.c.room_nid == rooms.c.room_nid),
            ),
        ),
    )
    yield (
        "an event that is here counts as missing",
        _texts(
            connection,
            select(events.c.event_id)
            .join(
                backward_extremities,
                (backward_extremities.c.missing_event_id == events.c.event_id)
                & (backward_extremities.c.room_nid == events.c.room_nid),
            )
            .where(in_timeline),
        ),
    )


def _room_borders(connection: Connection) -> _Found:
    """The rows of a room refer only to events of that room."""
    later, earlier = events.alias("later"), events.alias("earlier")
    yield (
        "an event follows one of another room",
        _texts(
            connection,
            select(later.c.event_id)
            .join(event_edges, event_edges.c.event_nid == later.c.event_nid)
            .join(earlier, earlier.c.event_nid == event_edges.c.prev_nid)
            .where(later.c.room_nid != earlier.c.room_nid),
        ),
    )
    yield (
        "a room's state has an event of another room",
        _texts(
            connection,
            select(events.c.event_id)
            .join(current_state, current_state.c.event_nid == events.c.event_nid)
            .where(current_state.c.room_nid != events.c.room_nid),
        ),
    )


def _event_contents(connection: Connection) -> _Found:
    """Every event still matches its ID. (In room versions 1 and 2 the ID does not depend on the content.)"""
    yield "an event cannot be read or is not what its ID says", _broken_events(connection)


def _broken_events(connection: Connection) -> Iterator[str]:
    last = -1
    statement = (
        select(events.c.event_nid, events.c.event_id, events.c.json, rooms.c.version, events.c.claimed_version)
        .join(rooms, rooms.c.room_nid == events.c.room_nid)
        .order_by(events.c.event_nid)
        .limit(EVENTS_PER_READ)
    )
    while rows := connection.execute(statement.where(events.c.event_nid > last)).all():
        for event_nid, event_id, stored, version, claimed in rows:
            last = event_nid
            try:
                event = parse_event(orjson.loads(stored), ROOM_VERSIONS[claimed or version])
            except (InvalidEvent, ValueError, KeyError):
                yield event_id
            else:
                if event.event_id != event_id:
                    yield event_id


def _current_state(connection: Connection) -> _Found:
    yield "the current state differs from its state group", _rooms_with_two_states(connection)
    same_room_and_event = (current_state.c.room_nid == room_members.c.room_nid) & (
        current_state.c.event_nid == room_members.c.event_nid
    )
    is_membership = (current_state.c.state_key_nid == state_keys.c.state_key_nid) & (
        state_keys.c.type == "m.room.member"
    )
    in_state = exists().where(same_room_and_event, is_membership, state_keys.c.state_key == room_members.c.user_id)
    yield "a member is not in the current state", _texts(connection, select(room_members.c.user_id).where(~in_state))
    listed = exists().where(same_room_and_event)
    memberships = select(state_keys.c.state_key).join(current_state, is_membership).where(~listed)
    yield "a membership of the current state is not in the list of members", _texts(connection, memberships)


def _rooms_with_two_states(connection: Connection) -> Iterator[str]:
    known = select(rooms.c.room_nid, rooms.c.room_id, rooms.c.state_group).where(rooms.c.state_group.is_not(None))
    for room_nid, room_id, state_group in connection.execute(known).all():
        current = {key: event_id for key, (event_id, _) in read_current_state(connection, room_nid).items()}
        try:
            is_same = current == read_group(connection, state_group)
        except KeyError:  # the group refers to an event that does not exist
            is_same = False
        if not is_same:
            yield room_id


def _numbers(connection: Connection) -> _Found:
    """A number that was assigned twice would make two things one."""
    given: Sequence[tuple[Column[int], Table, Column[int]]] = (
        (counters.c.event, events, events.c.event_nid),
        (counters.c.stream, events, events.c.stream_position),
        (counters.c.state_group, state_groups, state_groups.c.state_group),
        (counters.c.auth_chain, auth_chain_positions, auth_chain_positions.c.chain),
    )
    for counter, table, column in given:
        last, highest = connection.scalar(select(counter)), connection.scalar(select(func.max(column)))
        behind = last is None or (highest is not None and highest > last)
        yield f"{table.name}.{column.name} is ahead of its counter", iter([f"{highest} > {last}"] if behind else [])


def _accounts(connection: Connection) -> _Found:
    """All accounts belong to the server that the database belongs to."""
    name = recorded_name(connection)
    if name is not None:
        strangers = select(users.c.user_id).where(~users.c.user_id.endswith(f":{name}", autoescape=True))
        yield "an account is of another server", _texts(connection, strangers)


_CHECKS: tuple[Callable[[Connection], _Found], ...] = (
    _file,
    _references,
    _event_graph,
    _room_borders,
    _event_contents,
    _current_state,
    _numbers,
    _accounts,
)


def _texts(connection: Connection, statement: Select[Any]) -> Iterator[str]:
    return (str(value) for value in connection.scalars(statement))
