"""State resolution: computes the state where branches of the event graph meet.

https://spec.matrix.org/v1.19/rooms/v2/#state-resolution (v1.py: room version 1; v2.py: 2.0 for versions 2 to 11, and
2.1 for version 12, which differ by data; ordering.py: the two orders in which v2 goes through events)

Nothing here reads a store. The caller gathers the events that a resolution needs, and if one is missing,
``MissingEvents`` names it: load it, add it, call again.

What ``events`` must hold:

- every event of the *full conflicted set*: the values of ``split_states(…).conflicted``, the auth difference, and for
  version 2.1 the conflicted subgraph;
- the auth events of all those (one step, not the chain);
- the unconflicted events under their ``auth_event_keys`` (power levels, join rules, memberships of senders …), except
  in 2.1, which starts from an empty state; in version 12 the create event, which the room ID names;
- for the mainline: the current m.room.power_levels, and, as far back as the power levels that conflicted events cite,
  its auth events, the power levels among those, their auth events, and so on. ``MissingEvents`` asks for one step at a
  time, so a caller with a store does well to load this chain with one recursive query.

Version 1 needs the conflicted events and the unconflicted ones under their ``auth_event_keys``.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from collections.abc import Set as AbstractSet

from homeserver.protocol.events import Event, StateKey, StateMap
from homeserver.protocol.room_versions import RoomVersion, StateResolution
from homeserver.protocol.state_resolution import v1, v2
from homeserver.protocol.state_resolution.conflict import Conflict, MissingEvents, split_states
from homeserver.protocol.state_resolution.graph import auth_difference_of, conflicted_subgraph_of

__all__ = [
    "Conflict",
    "MissingEvents",
    "auth_difference_of",
    "conflicted_subgraph_of",
    "resolve",
    "resolve_with_events",
    "split_states",
]


def resolve(
    version: RoomVersion,
    state_sets: Sequence[StateMap],
    *,
    events: Mapping[str, Event],
    auth_difference: AbstractSet[str],
    conflicted_subgraph: AbstractSet[str] = frozenset(),
    rejected: Container[str] = frozenset(),
) -> dict[StateKey, str]:
    """Resolve states of one room to one state, the same on every server and for any order of the states.

    ``auth_difference`` is that of the states, ``conflicted_subgraph`` that of the conflicted events (called by 2.1
    only); version 1 calls neither. ``rejected`` holds the IDs of rejected events: as auth events they do not count.
    Note that a rejected event which is itself part of a state is handled as usual and may come out.

    Raises ``MissingEvents`` if ``events`` lacks some that are needed; the module's docstring lists them.
    """
    if version.state_resolution is StateResolution.V1:
        return v1.resolve(state_sets, events)
    return v2.resolve(version, state_sets, events, auth_difference, conflicted_subgraph, rejected)


def resolve_with_events(
    version: RoomVersion,
    state_sets: Sequence[StateMap],
    events: Mapping[str, Event],
    *,
    rejected: Container[str] = frozenset(),
) -> dict[StateKey, str]:
    """Resolve with complete data: ``events`` holds the states' events and their whole auth chains.

    It walks the chains to find the auth difference, so it is for small rooms, imports and tests.

    Raises ``MissingEvents`` if a chain has gaps.
    """
    conflict = split_states(state_sets)
    if not conflict.conflicted:
        return conflict.unconflicted
    difference = subgraph = frozenset[str]()
    if version.state_resolution is not StateResolution.V1:
        difference = frozenset(auth_difference_of(state_sets, events))
    if version.state_resolution is StateResolution.V2_1:
        subgraph = frozenset(conflicted_subgraph_of(conflict.conflicted_ids, events))
    return resolve(
        version,
        state_sets,
        events=events,
        auth_difference=difference,
        conflicted_subgraph=subgraph,
        rejected=rejected,
    )
