"""Walks over auth chains that are wholly in memory: for small rooms, imports and tests.

For large rooms, the store computes the same from an index.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from homeserver.protocol.events import Event, StateMap
from homeserver.protocol.state_resolution.conflict import require, split_states


def auth_difference_of(state_sets: Sequence[StateMap], events: Mapping[str, Event]) -> set[str]:
    """The *auth difference* of states: ∪ Cᵢ − ∩ Cᵢ, where Cᵢ is the full auth chain of the state Sᵢ.

    https://spec.matrix.org/v1.19/rooms/v2/#definitions

    NOTSPEC: an event counts as part of its own auth chain. By the letter it does not, and in rare cases that gives
    another state. But other servers count it so, and resolution must give the same result on all servers.

    ``events`` must hold the states' events and their auth chains, otherwise it raises ``MissingEvents``.
    """
    conflict = split_states(state_sets)
    if not conflict.conflicted:
        return set()
    # The chain of what all states share is in every Cᵢ, so it adds nothing and the walks skip it.
    unconflicted = set(conflict.unconflicted.values())
    shared = _auth_chain(unconflicted, events, frozenset()) | unconflicted
    chains = []
    for state in state_sets:
        own = {state[key] for key in conflict.conflicted if key in state} - shared
        chains.append(_auth_chain(own, events, shared) | own)
    return set().union(*chains) - set(chains[0]).intersection(*chains)


def conflicted_subgraph_of(conflicted_ids: AbstractSet[str], events: Mapping[str, Event]) -> set[str]:
    """The *conflicted state subgraph*: all events on auth paths from one conflicted event to another.

    The conflicted events themselves are part of the result.

    https://spec.matrix.org/v1.19/rooms/v12/#definitions

    ``events`` must hold the conflicted events and their auth chains, otherwise it raises ``MissingEvents``.
    """
    reachable = _auth_chain(conflicted_ids, events, frozenset()) | conflicted_ids
    citing: dict[str, list[str]] = {event_id: [] for event_id in reachable}
    for event_id in reachable:
        for cited in events[event_id].auth_events:
            citing[cited].append(event_id)
    # Of the events that can be reached from a conflicted event, those from which one can be reached.
    subgraph = set(conflicted_ids)
    waiting = list(conflicted_ids)
    while waiting:
        for event_id in citing[waiting.pop()]:
            if event_id not in subgraph:
                subgraph.add(event_id)
                waiting.append(event_id)
    return subgraph


def _auth_chain(event_ids: Iterable[str], events: Mapping[str, Event], closed: AbstractSet[str]) -> set[str]:
    """The union of the events' auth chains; the walk stops at events in ``closed``, which it leaves out."""
    chain: set[str] = set()
    frontier = set(event_ids)
    while frontier:
        require(events, frontier)
        cited = {auth_id for event_id in frontier for auth_id in events[event_id].auth_events}
        frontier = cited - chain - closed
        chain |= frontier
    return chain
