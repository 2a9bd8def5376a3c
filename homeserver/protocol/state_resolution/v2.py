"""State resolution v2: 2.0 (room versions 2 to 11), and 2.1 (version 12).

https://spec.matrix.org/v1.19/rooms/v2/#state-resolution, https://spec.matrix.org/v1.19/rooms/v12/#state-resolution
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from types import MappingProxyType

from homeserver.errors import NotAuthorized
from homeserver.protocol.authorization import auth_event_keys, authorize
from homeserver.protocol.events import JOIN_RULES, POWER_LEVELS, Event, StateKey, StateMap
from homeserver.protocol.room_versions import RoomVersion, StateResolution
from homeserver.protocol.state_resolution.conflict import require, split_states
from homeserver.protocol.state_resolution.ordering import mainline_ordering, reverse_topological_power_ordering


@dataclass(frozen=True, slots=True)
class _Algorithm:
    """The differences between 2.0 and 2.1."""

    starts_empty: bool
    """The iterative auth checks start from an empty state map, not from the unconflicted one."""
    takes_subgraph: bool
    """The conflicted state subgraph belongs to the full conflicted set."""


_ALGORITHMS: Mapping[StateResolution, _Algorithm] = MappingProxyType(
    {
        StateResolution.V2: _Algorithm(starts_empty=False, takes_subgraph=False),
        StateResolution.V2_1: _Algorithm(starts_empty=True, takes_subgraph=True),
    }
)


def resolve(
    version: RoomVersion,
    state_sets: Sequence[StateMap],
    events: Mapping[str, Event],
    auth_difference: AbstractSet[str],
    conflicted_subgraph: AbstractSet[str],
    rejected: Container[str],
) -> dict[StateKey, str]:
    """The resolution of a set of states; see ``homeserver.protocol.state_resolution``. Raises ``MissingEvents``."""
    algorithm = _ALGORITHMS[version.state_resolution]
    unconflicted, conflicted = conflict = split_states(state_sets)
    if not conflicted:
        return unconflicted
    # The full conflicted set is the union of the conflicted state set, (2.1: the conflicted state subgraph,) and the
    # auth difference.
    full_conflicted = conflict.conflicted_ids | auth_difference
    if algorithm.takes_subgraph:
        full_conflicted |= conflicted_subgraph
    start: StateMap = {} if algorithm.starts_empty else unconflicted
    _require_gathered(full_conflicted, start, events)
    create = _create_event_by_room_id(full_conflicted, events) if version.room_id_is_create_hash else None

    # 1. Select the set X of all power events that appear in the full conflicted set. For each such power event P,
    #    enlarge X by adding the events in the auth chain of P which also belong to the full conflicted set. Sort X
    #    into a list using the reverse topological power ordering.
    chosen = _power_events_and_their_chains(full_conflicted, events)
    by_power = reverse_topological_power_ordering(chosen, events, create)
    # 2. Apply the iterative auth checks algorithm, starting from the unconflicted state map (2.1: from an empty state
    #    map), to the list of events from the previous step to get a partially resolved state.
    checks = _IterativeAuthChecks(start, events, rejected, create)
    checks.apply(by_power)
    # 3. Take all remaining events that weren't picked in step 1 and order them by the mainline ordering based on the
    #    power level in the partially resolved state obtained in step 2.
    by_mainline = mainline_ordering(full_conflicted - chosen, events, checks.event_under(POWER_LEVELS))
    # 4. Apply the iterative auth checks algorithm on the partial resolved state and the list of events from the
    #    previous step.
    checks.apply(by_mainline)
    # 5. Update the result by replacing any event with the event with the same key from the unconflicted state map, if
    #    such an event exists, to get the final resolved state.
    return {**checks.decided, **unconflicted}


def _require_gathered(full_conflicted: AbstractSet[str], start: StateMap, events: Mapping[str, Event]) -> None:
    """Raise ``MissingEvents`` with as many of the needed events as are known now, so that the caller loads them all at
    once.
    """
    require(events, full_conflicted)
    needed: set[str] = set()
    for event_id in full_conflicted:
        event = events[event_id]
        needed.update(event.auth_events)
        needed.update(start[key] for key in _auth_keys(event) if key in start)
    if POWER_LEVELS in start:
        needed.add(start[POWER_LEVELS])
    require(events, needed)


def _create_event_by_room_id(full_conflicted: AbstractSet[str], events: Mapping[str, Event]) -> Event:
    # The room ID is the event ID of the create event with sigil ! instead of $.
    room_id = events[next(iter(full_conflicted))].room_id
    event_id = "$" + room_id[1:]
    require(events, (event_id,))
    return events[event_id]


def _auth_keys(event: Event) -> list[StateKey]:
    return auth_event_keys(event.type, event.sender, event.state_key, event.content, event.version)


def is_power_event(event: Event) -> bool:
    """Whether this is a *power event*: one that might remove someone's ability to do something in the room."""
    if event.state_key is None:
        return False
    # A power event is a state event with type m.room.power_levels or m.room.join_rules, or a state event with type
    # m.room.member where the membership is leave or ban and the sender does not match the state_key.
    if event.type == "m.room.member":
        return event.membership in ("leave", "ban") and event.sender != event.state_key
    # NOTSPEC: with a state key other than the empty one they have no power, and servers do not count them.
    return event.key in (POWER_LEVELS, JOIN_RULES)


def _power_events_and_their_chains(full_conflicted: AbstractSet[str], events: Mapping[str, Event]) -> set[str]:
    # NOTSPEC: of the auth chain, take only what is reached without leaving the full conflicted set. Other servers do
    # so, and the result must be the same on all of them.
    chosen = {event_id for event_id in full_conflicted if is_power_event(events[event_id])}
    waiting = list(chosen)
    while waiting:
        for cited in events[waiting.pop()].auth_events:
            if cited in full_conflicted and cited not in chosen:
                chosen.add(cited)
                waiting.append(cited)
    return chosen


class _IterativeAuthChecks:
    """The *iterative auth checks algorithm*: a room state that grows by each event it allows."""

    def __init__(
        self, start: StateMap, events: Mapping[str, Event], rejected: Container[str], create: Event | None
    ) -> None:
        self._start = start
        self._events = events
        self._rejected = rejected
        self._create = create
        self.decided: dict[StateKey, str] = {}
        """The entries allowed so far; they take precedence over the start state, which is never changed."""

    def event_under(self, key: StateKey) -> Event | None:
        """The event that the state has under the key so far."""
        event_id = self.decided.get(key) or self._start.get(key)
        return None if event_id is None else self._events[event_id]

    def apply(self, event_ids: Iterable[str]) -> None:
        """Apply the events to the state in this order; those that are not allowed are ignored."""
        for event_id in event_ids:
            event = self._events[event_id]
            if event.state_key is not None and self._allows(event):
                self.decided[event.key] = event_id

    def _allows(self, event: Event) -> bool:
        try:
            authorize(event, self._state_for(event), create=self._create)
        except NotAuthorized:
            return False
        return True

    def _state_for(self, event: Event) -> dict[StateKey, Event]:
        # If a (event_type, state_key) key that is required for checking the authorisation rules is not present in the
        # state, then the appropriate state event from the event's auth_events is used if the auth event is not
        # rejected.
        state: dict[StateKey, Event] = {}
        for event_id in event.auth_events:
            cited = self._events[event_id]
            if cited.state_key is not None and event_id not in self._rejected:
                state[cited.key] = cited
        for key in _auth_keys(event):
            current = self.event_under(key)
            if current is not None:
                state[key] = current
        return state
