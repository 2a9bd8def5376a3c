"""State resolution of room version 1.

https://spec.matrix.org/v1.19/rooms/v1/#state-resolution
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from homeserver.errors import NotAuthorized
from homeserver.protocol.authorization import auth_event_keys, authorize
from homeserver.protocol.events import Event, StateKey, StateMap
from homeserver.protocol.state_resolution.conflict import require

_AUTH_TYPES = ("m.room.power_levels", "m.room.join_rules", "m.room.member")
"""In the order in which their conflicts are resolved."""


def resolve(state_sets: Sequence[StateMap], events: Mapping[str, Event]) -> dict[StateKey, str]:
    """The resolution of a set of states. Raises ``MissingEvents``."""
    # Start by setting R to the union of the states to be resolved, excluding any conflicting events.
    resolved, conflicting = _divide(state_sets)
    require(events, (event_id for event_ids in conflicting.values() for event_id in event_ids))
    conflicts = {key: [events[event_id] for event_id in event_ids] for key, event_ids in conflicting.items()}
    _require_auth_events(resolved, conflicts, events)
    # First we resolve conflicts between m.room.power_levels events. …
    # Repeat the above process for conflicts between m.room.join_rules events.
    # Repeat the above process for conflicts between m.room.member events.
    #   Each pass sees what the passes before it settled, so that the order within a pass does not matter.
    for event_type in _AUTH_TYPES:
        keys = [key for key in conflicts if key[0] == event_type]
        resolved |= {key: _resolve_auth_events(conflicts.pop(key), resolved, events) for key in keys}
    # No other events affect the authorisation rules, so for all other conflicts, …
    resolved |= {key: _resolve_others(candidates, resolved, events) for key, candidates in conflicts.items()}
    return resolved


def _divide(state_sets: Sequence[StateMap]) -> tuple[dict[StateKey, str], dict[StateKey, set[str]]]:
    # A conflict occurs between states where those states have different event_ids for the same (event_type, state_key).
    found: dict[StateKey, set[str]] = {}
    for state in state_sets:
        for key, event_id in state.items():
            found.setdefault(key, set()).add(event_id)
    conflicting = {key: event_ids for key, event_ids in found.items() if len(event_ids) > 1}
    return {key: next(iter(event_ids)) for key, event_ids in found.items() if len(event_ids) == 1}, conflicting


def _require_auth_events(
    resolved: StateMap, conflicts: Mapping[StateKey, list[Event]], events: Mapping[str, Event]
) -> None:
    keys = {key for candidates in conflicts.values() for event in candidates for key in _auth_keys(event)}
    require(events, {resolved[key] for key in keys if key in resolved})


def _auth_keys(event: Event) -> list[StateKey]:
    return auth_event_keys(event.type, event.sender, event.state_key, event.content, event.version)


def _newest_first(candidates: Iterable[Event]) -> list[Event]:
    # … the highest depth and lowest sha1(event_id) …
    return sorted(candidates, key=lambda event: (-event.depth, _sha1(event.event_id)))


def _sha1(event_id: str) -> bytes:
    return hashlib.sha1(event_id.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()


def _resolve_auth_events(candidates: list[Event], resolved: StateMap, events: Mapping[str, Event]) -> str:
    # Sort the list by ascending depth then descending sha1(event_id).
    ordered = _newest_first(candidates)[::-1]
    # Add the first event in the list to R.
    chosen = ordered[0]
    # For each subsequent event in the list, check that the event would be allowed by the authorisation rules for a
    # room in state R. If the event would be allowed, then update R with the event and continue with the next event in
    # the list. If it would not be allowed, stop.
    for event in ordered[1:]:
        if not _allowed(event, resolved, events, chosen):
            break
        chosen = event
    return chosen.event_id


def _resolve_others(candidates: list[Event], resolved: StateMap, events: Mapping[str, Event]) -> str:
    # … just pick the event with the highest depth and lowest sha1(event_id) that passes authentication in R.
    ordered = _newest_first(candidates)
    for event in ordered:
        if _allowed(event, resolved, events):
            return event.event_id
    # NOTSPEC: if none passes, the specification says nothing, and servers take the oldest.
    return ordered[-1].event_id


def _allowed(event: Event, resolved: StateMap, events: Mapping[str, Event], chosen: Event | None = None) -> bool:
    state = {key: events[resolved[key]] for key in _auth_keys(event) if key in resolved}
    if chosen is not None:
        state[chosen.key] = chosen
    try:
        authorize(event, state)
    except NotAuthorized:
        return False
    return True
