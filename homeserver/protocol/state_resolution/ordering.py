"""The two orders of state resolution v2: by power, and by the mainline of power levels events.

Both are iterative: an auth chain may be tens of thousands of events deep, and in room versions 1 and 2, where servers
choose event IDs freely, a hostile one may even contain a cycle. https://spec.matrix.org/v1.19/rooms/v2/#definitions
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from homeserver.protocol.events import CREATE, POWER_LEVELS, Event, StateKey
from homeserver.protocol.power_levels import Level, power_levels_of
from homeserver.protocol.state_resolution.conflict import require


def auth_event_under(event: Event, key: StateKey, events: Mapping[str, Event]) -> Event | None:
    """The auth event of ``event`` with this type and state key. Raises ``MissingEvents``."""
    require(events, event.auth_events)
    event_type, state_key = key
    for event_id in event.auth_events:
        cited = events[event_id]
        if cited.type == event_type and cited.state_key == state_key:
            return cited
    return None


def reverse_topological_power_ordering(
    event_ids: AbstractSet[str], events: Mapping[str, Event], create: Event | None
) -> list[str]:
    """The *reverse topological power ordering*: an event comes after its auth events; otherwise higher power levels
    come first.

    ``create`` is the room's create event if events do not cite it (version 12). Raises ``MissingEvents``.
    """
    cited_by: dict[str, list[str]] = {event_id: [] for event_id in event_ids}
    open_citations: dict[str, int] = {}
    for event_id in event_ids:
        cited_here = {auth_id for auth_id in events[event_id].auth_events if auth_id in event_ids}
        open_citations[event_id] = len(cited_here)
        for auth_id in cited_here:
            cited_by[auth_id].append(event_id)

    def rank(event_id: str) -> tuple[Level, int, str]:
        # 1. x's sender has greater power level than y's sender, when looking at their respective auth_events; or
        # 2. … x's origin_server_ts is less than y's origin_server_ts; or
        # 3. … x's event_id is less than y's event_id.
        event = events[event_id]
        return (-_level_of_sender(event, events, create), event.origin_server_ts, event_id)

    # Kahn's algorithm: at each step select, among all the candidate vertices, the smallest.
    candidates = [rank(event_id) for event_id, count in open_citations.items() if count == 0]
    heapq.heapify(candidates)
    ordered = []
    while candidates:
        event_id = heapq.heappop(candidates)[2]
        ordered.append(event_id)
        for follower in cited_by[event_id]:
            open_citations[follower] -= 1
            if open_citations[follower] == 0:
                heapq.heappush(candidates, rank(follower))
    return ordered


def _level_of_sender(event: Event, events: Mapping[str, Event], create: Event | None) -> Level:
    power_levels = auth_event_under(event, POWER_LEVELS, events)
    create = create or auth_event_under(event, CREATE, events)
    return power_levels_of(event.version, create, power_levels).of_user(event.sender)


def mainline_ordering(event_ids: Iterable[str], events: Mapping[str, Event], power_levels: Event | None) -> list[str]:
    """The *mainline ordering based on* ``power_levels``: events that cite older power levels come first.

    Raises ``MissingEvents``.
    """
    mainline = _Mainline(power_levels, events)

    def rank(event_id: str) -> tuple[Level, int, str]:
        # 1. the mainline position of x is greater than the mainline position of y …; or
        # 2. … x's origin_server_ts is less than y's origin_server_ts; or
        # 3. … x's event_id is less than y's event_id.
        event = events[event_id]
        return (-mainline.position(event), event.origin_server_ts, event_id)

    return sorted(event_ids, key=rank)


class _Mainline:
    """The mainline of P₀, walked back only as far as needed."""

    def __init__(self, power_levels: Event | None, events: Mapping[str, Event]) -> None:
        self._events = events
        self._end = power_levels
        """The last known event of the mainline; ``None`` once its beginning is reached."""
        self._length = 0 if power_levels is None else 1
        self._positions: dict[str, float] = {} if power_levels is None else {power_levels.event_id: 0}
        """The positions of power levels events: those on the mainline, and those that are known to lead to it."""

    def position(self, event: Event) -> float:
        """The *mainline position* of an event: of the first event on the mainline that its power levels lead to."""
        passed: dict[str, None] = {}
        # Find the smallest index j ≥ 1 for which eⱼ belongs to the mainline of P.
        found = float("inf")
        current = auth_event_under(event, POWER_LEVELS, self._events)
        while current is not None and current.event_id not in passed:
            known = self._known(current.event_id)
            if known is not None:
                found = known
                break
            passed[current.event_id] = None
            current = auth_event_under(current, POWER_LEVELS, self._events)
        for event_id in passed:
            self._positions[event_id] = found
        return found

    def _known(self, event_id: str) -> float | None:
        """The position of a power levels event, if it is on the mainline or was found before."""
        while event_id not in self._positions and self._end is not None:
            # Repeatedly fetch Pᵢ₊₁, the m.room.power_levels event in the auth_events of Pᵢ.
            self._end = auth_event_under(self._end, POWER_LEVELS, self._events)
            if self._end is not None and self._end.event_id in self._positions:
                self._end = None  # a cycle
            elif self._end is not None:
                self._positions[self._end.event_id] = self._length
                self._length += 1
        return self._positions.get(event_id)
