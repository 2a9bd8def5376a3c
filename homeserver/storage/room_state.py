"""State groups: the state after an event, stored as its changes against another group.

The groups of a lineage are numbered from its root. Group *n* is a delta against *n − 1*; every 32nd against the last
multiple of 32 before it, every 1024th against the last multiple of 1024, and so on. From any group, at most 31 steps on
each level lead to the root, and a change of state is stored once for each level.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, literal, select

from homeserver.protocol.events import StateKey
from homeserver.storage.prepared import PreparedSelect, prepared_insert
from homeserver.storage.tables import (
    current_state,
    events,
    room_members,
    rooms,
    state_group_entries,
    state_groups,
    state_keys,
)

LEVEL_WIDTH = 32


def step_of(ordinal: int) -> int:
    """The distance from the group with this number to its parent: the largest power of 32 that divides the number."""
    step = 1
    while ordinal % (step * LEVEL_WIDTH) == 0:
        step *= LEVEL_WIDTH
    return step


@dataclass(frozen=True, slots=True)
class NewGroup:
    """A state group to store: its changes against its predecessor, by numeric IDs."""

    state_group: int
    room_nid: int
    predecessor: int | None
    """The group that the delta refers to; None for a root, whose delta is the whole state."""
    delta: Mapping[int, int | None]


_LINEAGE_START = select(
    state_groups.c.state_group, state_groups.c.parent, state_groups.c.ordinal, literal(0).label("step")
).where(state_groups.c.state_group == bindparam("state_group"))
_lineage = _LINEAGE_START.cte("lineage", recursive=True)
_parent = state_groups.alias("parent")
_LINEAGE = _lineage.union_all(
    select(_parent.c.state_group, _parent.c.parent, _parent.c.ordinal, _lineage.c.step + 1).where(
        _parent.c.state_group == _lineage.c.parent
    )
)
_ENTRIES = (
    select(state_group_entries.c.state_key_nid, state_group_entries.c.event_nid)
    .select_from(_LINEAGE.join(state_group_entries, state_group_entries.c.state_group == _LINEAGE.c.state_group))
    .order_by(_LINEAGE.c.step)
)
_lineages = (
    select(state_groups.c.state_group, state_groups.c.parent)
    .where(state_groups.c.state_group.in_(bindparam("wanted", expanding=True)))
    .cte("lineages", recursive=True)
)
_LINEAGES = _lineages.union(  # UNION drops the common ancestors of several groups
    select(_parent.c.state_group, _parent.c.parent).where(_parent.c.state_group == _lineages.c.parent)
)
_ENTRIES_OF_LINEAGES = PreparedSelect(
    select(
        _LINEAGES.c.state_group,
        _LINEAGES.c.parent,
        state_group_entries.c.state_key_nid,
        state_group_entries.c.event_nid,
    ).select_from(
        _LINEAGES.outerjoin(
            state_group_entries,
            and_(
                state_group_entries.c.state_group == _LINEAGES.c.state_group,
                state_group_entries.c.state_key_nid.in_(bindparam("keys", expanding=True)),
            ),
        )
    )
)
_EVENT_IDS = PreparedSelect(
    select(events.c.event_nid, events.c.event_id).where(events.c.event_nid.in_(bindparam("wanted", expanding=True)))
)
_KEY_NAMES = PreparedSelect(
    select(state_keys.c.state_key_nid, state_keys.c.type, state_keys.c.state_key).where(
        state_keys.c.state_key_nid.in_(bindparam("wanted", expanding=True))
    )
)
_NIDS_OF_KEYS = PreparedSelect(
    select(state_keys.c.state_key, state_keys.c.state_key_nid).where(
        state_keys.c.type == bindparam("type"), state_keys.c.state_key.in_(bindparam("wanted", expanding=True))
    )
)
_ORDINALS = PreparedSelect(
    select(state_groups.c.state_group, state_groups.c.ordinal).where(
        state_groups.c.state_group.in_(bindparam("wanted", expanding=True))
    )
)
_CURRENT_STATES = PreparedSelect(
    select(current_state.c.room_nid, state_keys.c.type, state_keys.c.state_key, events.c.event_id)
    .select_from(
        current_state.join(state_keys, state_keys.c.state_key_nid == current_state.c.state_key_nid).join(
            events, events.c.event_nid == current_state.c.event_nid
        )
    )
    .where(current_state.c.room_nid.in_(bindparam("wanted", expanding=True)))
)
_MEMBERS = PreparedSelect(
    select(room_members.c.room_nid, room_members.c.user_id, room_members.c.membership).where(
        room_members.c.room_nid.in_(bindparam("wanted", expanding=True)),
        room_members.c.membership.in_(bindparam("memberships", expanding=True)),
    )
)
_ROOMS = PreparedSelect(
    select(rooms.c.room_id, rooms.c.room_nid, rooms.c.version, rooms.c.generation, rooms.c.state_group).where(
        rooms.c.room_id.in_(bindparam("wanted", expanding=True))
    )
)
_INSERT_GROUPS = prepared_insert(state_groups)
_INSERT_ENTRIES = prepared_insert(state_group_entries)
_INSERT_KEYS = prepared_insert(state_keys, or_ignore=True)
_WALK = select(_LINEAGE.c.state_group, _LINEAGE.c.ordinal).order_by(_LINEAGE.c.step)


def store_groups(connection: Connection, groups: Sequence[NewGroup]) -> None:
    """Store groups; a group's predecessor must be stored already or come before it in the list."""
    if not groups:
        return
    mine = {group.state_group for group in groups}
    ordinals = _ordinals(connection, [g.predecessor for g in groups if g.predecessor not in mine])
    rows: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []

    def flush() -> None:
        _INSERT_GROUPS.run(connection, rows)
        _INSERT_ENTRIES.run(connection, entries)
        rows.clear()
        entries.clear()

    for group in groups:
        parent, delta = group.predecessor, group.delta
        ordinal = 0 if parent is None else ordinals[parent] + 1
        ordinals[group.state_group] = ordinal
        if parent is not None and (step := step_of(ordinal)) > 1:
            flush()  # the code below reads back from the database what it composes
            parent, delta = _delta_since(connection, parent, ordinal - step, delta)
        rows.append(
            {"state_group": group.state_group, "room_nid": group.room_nid, "parent": parent, "ordinal": ordinal}
        )
        entries.extend(
            {"state_group": group.state_group, "state_key_nid": key, "event_nid": event} for key, event in delta.items()
        )
    flush()


def _ordinals(connection: Connection, group_ids: Iterable[int | None]) -> dict[int, int]:
    wanted = [group for group in group_ids if group is not None]
    if not wanted:
        return {}
    return {row[0]: row[1] for row in _ORDINALS.rows(connection, wanted=wanted)}


def _delta_since(
    connection: Connection, predecessor: int, ordinal: int, delta: Mapping[int, int | None]
) -> tuple[int, dict[int, int | None]]:
    """The ancestor of a group with this number, and the changes since then, including ``delta``."""
    between: list[int] = []
    ancestor = predecessor
    for group, number in connection.execute(_WALK, {"state_group": predecessor}):
        if number <= ordinal:
            ancestor = group
            break
        between.append(group)
    composed: dict[int, int | None] = {}
    order = {group: index for index, group in enumerate(between)}
    statement = select(
        state_group_entries.c.state_group, state_group_entries.c.state_key_nid, state_group_entries.c.event_nid
    ).where(state_group_entries.c.state_group.in_(between))
    rows = sorted(connection.execute(statement), key=lambda row: order[row[0]]) if between else []
    for _, key, event in rows:
        composed.setdefault(key, event)
    composed.update(delta)
    return ancestor, composed


def read_group(connection: Connection, state_group: int) -> dict[StateKey, str]:
    """A whole state: ``(type, state_key)`` to event ID."""
    newest: dict[int, int | None] = {}
    for key, event in connection.execute(_ENTRIES, {"state_group": state_group}):
        newest.setdefault(key, event)
    return name_state(connection, {key: event for key, event in newest.items() if event is not None})


def read_group_since(
    connection: Connection, state_group: int, known: AbstractSet[int]
) -> tuple[int | None, dict[StateKey, str | None]]:
    """A state as changes against one of the ``known`` groups: that group, and event IDs by key.

    It is the nearest of them among the ancestors of the state's group. If there is none, the group is None, and the
    changes are the whole state.
    """
    between: dict[int, int] = {}
    ancestor: int | None = None
    for group, _ in connection.execute(_WALK, {"state_group": state_group}):
        if group in known:
            ancestor = group
            break
        between[group] = len(between)
    if ancestor is None:
        return None, dict(read_group(connection, state_group))
    statement = select(
        state_group_entries.c.state_group, state_group_entries.c.state_key_nid, state_group_entries.c.event_nid
    ).where(state_group_entries.c.state_group.in_(list(between)))
    rows = sorted(connection.execute(statement), key=lambda row: between[row[0]]) if between else []
    newest: dict[int, int | None] = {}
    for _, key, event in rows:
        newest.setdefault(key, event)
    event_ids = event_ids_of(connection, [event for event in newest.values() if event is not None])
    names = _state_key_names(connection, newest)
    return ancestor, {names[key]: None if event is None else event_ids[event] for key, event in newest.items()}


def read_group_keys(connection: Connection, state_group: int, keys: Iterable[StateKey]) -> dict[StateKey, str]:
    """A few entries of a state, without reading the rest."""
    nids = state_key_nids(connection, keys)
    if not nids:
        return {}
    newest: dict[int, int | None] = {}
    statement = _ENTRIES.where(state_group_entries.c.state_key_nid.in_(list(nids.values())))
    for key, event in connection.execute(statement, {"state_group": state_group}):
        newest.setdefault(key, event)
    wanted = {key: event for key, event in newest.items() if event is not None}
    if not wanted:
        return {}
    event_ids = event_ids_of(connection, wanted.values())
    return {name: event_ids[wanted[nid]] for name, nid in nids.items() if nid in wanted}


def read_keys_of_groups(
    connection: Connection, state_groups: Sequence[int], keys: Sequence[StateKey]
) -> dict[int, dict[StateKey, str]]:
    """A few entries of several states, by state group. States of one room mostly build on the same groups."""
    nids = state_key_nids(connection, keys)
    found: dict[int, dict[int, int]] = {group: {} for group in state_groups}
    parents: dict[int, int | None] = {}
    entries: dict[tuple[int, int], int | None] = {}
    rows = _ENTRIES_OF_LINEAGES.rows(connection, wanted=state_groups, keys=nids.values())
    for group, parent, key, event in rows:
        parents[group] = parent
        if key is not None:
            entries[group, key] = event
    for key in nids.values():
        for group in state_groups:
            if (event := _entry_of(group, key, parents, entries)) is not None:
                found[group][key] = event
    event_ids = event_ids_of(connection, {event for state in found.values() for event in state.values()})
    return {
        group: {name: event_ids[state[nid]] for name, nid in nids.items() if nid in state}
        for group, state in found.items()
    }


def _entry_of(
    group: int, key: int, parents: Mapping[int, int | None], entries: dict[tuple[int, int], int | None]
) -> int | None:
    """The entry of a state under a key; stores in ``entries`` the results for its ancestors too, which other groups
    share.
    """
    passed: list[int] = []
    step: int | None = group
    while step is not None and (step, key) not in entries:
        passed.append(step)
        step = parents.get(step)
    event = entries[step, key] if step is not None else None
    entries.update({(each, key): event for each in passed})
    return event


def name_state(connection: Connection, state: Mapping[int, int]) -> dict[StateKey, str]:
    """Translate a state of numeric IDs to state keys and event IDs."""
    event_ids = event_ids_of(connection, state.values())
    names = _state_key_names(connection, state.keys())
    return {names[key]: event_ids[event] for key, event in state.items()}


def event_ids_of(connection: Connection, nids: Iterable[int]) -> dict[int, str]:
    """The event IDs of numeric IDs."""
    return {row[0]: row[1] for row in _EVENT_IDS.rows(connection, wanted=nids)}


def _state_key_names(connection: Connection, nids: Iterable[int]) -> dict[int, StateKey]:
    return {row[0]: (row[1], row[2]) for row in _KEY_NAMES.rows(connection, wanted=nids)}


def state_key_nids(connection: Connection, keys: Iterable[StateKey]) -> dict[StateKey, int]:
    """The numeric IDs of those state keys that have one."""
    found: dict[StateKey, int] = {}
    for event_type, names in _grouped_by_type(keys):
        rows = _NIDS_OF_KEYS.rows(connection, type=event_type, wanted=names)
        found.update(((event_type, row[0]), row[1]) for row in rows)
    return found


def _grouped_by_type(keys: Iterable[StateKey]) -> Iterator[tuple[str, list[str]]]:
    grouped: dict[str, list[str]] = {}
    for event_type, state_key in keys:
        grouped.setdefault(event_type, []).append(state_key)
    yield from grouped.items()


def intern_state_keys(connection: Connection, keys: Iterable[StateKey]) -> dict[StateKey, int]:
    """The numeric IDs of state keys; assigns new ones to those without."""
    wanted = list(dict.fromkeys(keys))
    found = state_key_nids(connection, wanted)
    missing = [key for key in wanted if key not in found]
    if missing:
        _INSERT_KEYS.run(connection, [{"type": key[0], "state_key": key[1]} for key in sorted(missing)])
        found.update(state_key_nids(connection, missing))
    return found


def read_current_state(connection: Connection, room_nid: int) -> dict[StateKey, tuple[str, int]]:
    """The current state of a room: ``(type, state_key)`` to event ID and its numeric ID."""
    statement = (
        select(state_keys.c.type, state_keys.c.state_key, events.c.event_id, events.c.event_nid)
        .select_from(
            current_state.join(state_keys, state_keys.c.state_key_nid == current_state.c.state_key_nid).join(
                events, events.c.event_nid == current_state.c.event_nid
            )
        )
        .where(current_state.c.room_nid == room_nid)
    )
    return {(row[0], row[1]): (row[2], row[3]) for row in connection.execute(statement)}


def read_current_state_of_many(connection: Connection, room_nids: Sequence[int]) -> dict[int, dict[StateKey, str]]:
    """The current states of several rooms."""
    found: dict[int, dict[StateKey, str]] = {room_nid: {} for room_nid in room_nids}
    for room_nid, event_type, state_key, event_id in _CURRENT_STATES.rows(connection, wanted=room_nids):
        found[room_nid][event_type, state_key] = event_id
    return found


def members_of_many(
    connection: Connection, room_nids: Sequence[int], memberships: Sequence[str]
) -> dict[int, list[tuple[str, str]]]:
    """``(user_id, membership)`` of the members of several rooms, by room."""
    found: dict[int, list[tuple[str, str]]] = {room_nid: [] for room_nid in room_nids}
    for room_nid, user_id, membership in _MEMBERS.rows(connection, wanted=room_nids, memberships=memberships):
        found[room_nid].append((user_id, membership))
    return found


def room_row(connection: Connection, room_id: str) -> tuple[int, str, int, int | None] | None:
    """``(room_nid, version, generation, state_group)`` of a room; None if it is unknown."""
    return room_rows(connection, [room_id]).get(room_id)


def room_rows(connection: Connection, room_ids: Sequence[str]) -> dict[str, tuple[int, str, int, int | None]]:
    """``room_row`` of several rooms, by room ID."""
    return {row[0]: (row[1], row[2], row[3], row[4]) for row in _ROOMS.rows(connection, wanted=room_ids)}
