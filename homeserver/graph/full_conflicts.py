"""The events that a state resolution has to consider, found by the index of auth chains.

https://spec.matrix.org/v1.19/rooms/v2/#definitions
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from sqlalchemy import Connection

from homeserver.protocol.authorization import auth_event_keys
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.room_versions import RoomVersion, StateResolution
from homeserver.storage import auth_chains, event_graph, room_state
from homeserver.storage.database import Database


async def full_conflict(
    database: Database,
    room_nid: int,
    version: RoomVersion,
    states: Sequence[Mapping[StateKey, str]],
    conflicted_ids: set[str],
    likely_keys: Iterable[StateKey],
    unstored: Mapping[str, Event],
) -> tuple[set[str], set[str]]:
    """The auth difference, possibly with additional conflicted events, and the conflicted subgraph.

    ``likely_keys`` are the state keys of the conflicted events' auth events. The index of auth chains covers committed
    events. An uncommitted event stands for its auth events and itself: no committed event can have it in its auth
    chain.
    """
    shared = frozenset(states[0].values()) - conflicted_ids
    own = [frozenset(state.values()) - shared for state in states]
    fringes = [_stored_fringe(ids, unstored) for ids in own]
    wants_subgraph = version.state_resolution is StateResolution.V2_1
    starts, _ = _stored_fringe(conflicted_ids & unstored.keys(), unstored)
    shared_stored, shared_waiting = _stored_fringe(shared, unstored) if unstored else (shared, set[str]())
    likely = {event_id for key in likely_keys if (event_id := states[0].get(key)) is not None}
    difference, subgraph = await database.read(
        _conflict_by_index,
        room_nid,
        _Fringes(shared_stored, likely & shared_stored, [fringe for fringe, _ in fringes], conflicted_ids),
        (conflicted_ids - unstored.keys(), starts) if wants_subgraph else None,
    )
    waiting = [pending for _, pending in fringes]
    difference |= set().union(*waiting) - set(waiting[0]).intersection(*waiting[1:]) - shared_waiting
    if wants_subgraph:
        subgraph |= _unstored_subgraph(conflicted_ids, subgraph, unstored)
    return difference, subgraph


def _stored_fringe(ids: Iterable[str], unstored: Mapping[str, Event]) -> tuple[set[str], set[str]]:
    """The committed events that these events are or cite, directly or through uncommitted events, and those uncommitted
    ones."""
    fringe: set[str] = set()
    pending: set[str] = set()
    todo = list(ids)
    while todo:
        event_id = todo.pop()
        event = unstored.get(event_id)
        if event is None:
            fringe.add(event_id)
        elif event_id not in pending:
            pending.add(event_id)
            todo.extend(event.auth_events)
    return fringe, pending


def _unstored_subgraph(conflicted_ids: set[str], subgraph: set[str], unstored: Mapping[str, Event]) -> set[str]:
    """Uncommitted events that have a conflicted event in their auth chain, and are in that of a conflicted event.

    ``subgraph`` holds the committed ones.
    """
    ends = conflicted_ids | subgraph
    _, reached = _stored_fringe(conflicted_ids & unstored.keys(), unstored)
    leads: set[str] = set()
    for event_id in reached:
        fringe, pending = _stored_fringe([event_id], unstored)
        if (fringe | pending) & ends:
            leads.add(event_id)
    return leads


@dataclass(frozen=True, slots=True)
class _Fringes:
    """States whose auth difference is to be found, as committed events."""

    shared: AbstractSet[str]
    """The events that all states have."""
    likely: AbstractSet[str]
    """The events among these that reach most of the auth chains."""
    own: Sequence[AbstractSet[str]]
    """The other events of each state."""
    conflicted: AbstractSet[str]
    """Events that may or may not be in the difference."""


def cited_keys(events: Iterable[Event]) -> set[StateKey]:
    """The state keys of the auth events of some events."""
    return {
        key
        for event in events
        for key in auth_event_keys(event.type, event.sender, event.state_key, event.content, event.version)
    }


def _conflict_by_index(
    connection: Connection,
    room_nid: int,
    fringes: _Fringes,
    subgraph_ends: tuple[AbstractSet[str], set[str]] | None,
) -> tuple[set[str], set[str]]:
    subgraph: set[int] = set()
    if subgraph_ends is not None:
        conflicted, starts = (event_graph.nids_of(connection, room_nid, ids).values() for ids in subgraph_ends)
        subgraph = auth_chains.conflicted_subgraph(connection, conflicted, starts)
    return _auth_difference(connection, room_nid, fringes), set(room_state.event_ids_of(connection, subgraph).values())


def _auth_difference(connection: Connection, room_nid: int, fringes: _Fringes) -> set[str]:
    # The common part of a large room's states is large too. Usually a small part of it shows that there is no
    # difference.
    found = _difference_beyond(connection, room_nid, fringes.likely, fringes.own) - fringes.shared
    if found <= fringes.conflicted:
        return found
    return _difference_beyond(connection, room_nid, fringes.shared, fringes.own)


def _difference_beyond(
    connection: Connection, room_nid: int, shared: AbstractSet[str], own: Sequence[AbstractSet[str]]
) -> set[str]:
    nids = event_graph.nids_of(connection, room_nid, set(shared).union(*own))
    common, *sets = ({nids[event_id] for event_id in ids if event_id in nids} for ids in (shared, *own))
    difference = auth_chains.difference_beyond(connection, common, sets)
    return set(room_state.event_ids_of(connection, difference).values())
