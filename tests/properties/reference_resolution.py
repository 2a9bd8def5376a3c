"""State resolution as a slow and literal reading of the specification, to hold the real one against.

https://spec.matrix.org/v1.19/rooms/v12/#state-resolution
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

from homeserver.errors import NotAuthorized
from homeserver.protocol.authorization import auth_event_keys, authorize
from homeserver.protocol.events import Event, StateKey, StateMap
from homeserver.protocol.power_levels import power_levels_of
from homeserver.protocol.room_versions import RoomVersion, StateResolution

Events = Mapping[str, Event]
POWER_LEVELS = ("m.room.power_levels", "")


def resolve_by_the_book(
    version: RoomVersion, sets: Sequence[StateMap], events: Events, create: Event
) -> dict[StateKey, str]:
    is_2_1 = version.state_resolution is StateResolution.V2_1
    keys = {key for state in sets for key in state}
    unconflicted = {key: sets[0][key] for key in keys if len({state.get(key) for state in sets}) == 1}
    conflicted = {state[key] for state in sets for key in keys - unconflicted.keys() if key in state}
    # As other servers do, an event counts as part of its own chain.
    chains = [set().union(*({event_id} | chain(event_id, events) for event_id in state.values())) for state in sets]
    full = conflicted | (set().union(*chains) - chains[0].intersection(*chains))
    if is_2_1:
        full |= {
            middle for start in conflicted for middle in chain(start, events) if chain(middle, events) & conflicted
        }

    chosen = {event_id for event_id in full if is_power_event(events[event_id])}
    while more := {auth for event_id in chosen for auth in events[event_id].auth_events if auth in full} - chosen:
        chosen |= more
    partial = iterate({} if is_2_1 else dict(unconflicted), by_power(chosen, events, create), events, create)
    rest = sorted(full - chosen, key=lambda event_id: mainline_rank(event_id, partial, events))
    return {**iterate(partial, rest, events, create), **unconflicted}


def chain(event_id: str, events: Events) -> set[str]:
    found: set[str] = set()
    todo = list(events[event_id].auth_events)
    while todo:
        auth = todo.pop()
        if auth not in found:
            found.add(auth)
            todo += events[auth].auth_events
    return found


def is_power_event(event: Event) -> bool:
    if event.type in ("m.room.power_levels", "m.room.join_rules"):
        return True
    is_removal = event.type == "m.room.member" and event.content["membership"] in ("leave", "ban")
    return is_removal and event.sender != event.state_key


def cited(event: Event, event_type: str, events: Events) -> Event | None:
    return next((events[auth] for auth in event.auth_events if events[auth].type == event_type), None)


def by_power(chosen: set[str], events: Events, create: Event) -> list[str]:
    def rank(event_id: str) -> tuple[float, int, str]:
        event = events[event_id]
        levels = power_levels_of(event.version, create, cited(event, "m.room.power_levels", events))
        # The create event alone cites nothing at all before version 12, and is the first in any case.
        return (-levels.of_user(event.sender), event.origin_server_ts, event_id)

    ordered: list[str] = []
    while len(ordered) < len(chosen):
        free = [
            event_id
            for event_id in chosen - set(ordered)
            if all(auth in ordered for auth in events[event_id].auth_events if auth in chosen)
        ]
        ordered.append(min(free, key=rank))
    return ordered


def line(event: Event | None, events: Events) -> list[str]:
    found = []
    while event is not None:
        found.append(event.event_id)
        event = cited(event, "m.room.power_levels", events)
    return found


def mainline_rank(event_id: str, partial: StateMap, events: Events) -> tuple[float, int, str]:
    start = partial.get(POWER_LEVELS)
    mainline = line(events[start] if start else None, events)
    event = events[event_id]
    own = line(cited(event, "m.room.power_levels", events), events)
    position = next((mainline.index(link) for link in own if link in mainline), math.inf)
    return (-position, event.origin_server_ts, event_id)


def iterate(state: dict[StateKey, str], order: Sequence[str], events: Events, create: Event) -> dict[StateKey, str]:
    for event_id in order:
        event = events[event_id]
        view = {events[auth].key: events[auth] for auth in event.auth_events}
        for key in auth_event_keys(event.type, event.sender, event.state_key, event.content, event.version):
            if key in state:
                view[key] = events[state[key]]
        try:
            authorize(event, view, create=create)
        except NotAuthorized:
            continue
        state = {**state, event.key: event_id}
    return state


# -- room version 1 ----------------------------------------------------------------------------------------------------


def resolve_version_1_by_the_book(sets: Sequence[StateMap], events: Events) -> dict[StateKey, str]:
    """https://spec.matrix.org/v1.19/rooms/v1/#state-resolution"""
    candidates: dict[StateKey, set[str]] = {}
    for state in sets:
        for key, event_id in state.items():
            candidates.setdefault(key, set()).add(event_id)
    resolved = {key: min(ids) for key, ids in candidates.items() if len(ids) == 1}
    conflicts = {key: ids for key, ids in candidates.items() if len(ids) > 1}
    for event_type in ("m.room.power_levels", "m.room.join_rules", "m.room.member"):
        settled = {}
        for key, ids in conflicts.items():
            if key[0] == event_type:
                oldest_first = sorted(ids, key=lambda event_id: newest(event_id, events), reverse=True)
                settled[key] = oldest_first[0]
                for event_id in oldest_first[1:]:
                    if not allowed({**resolved, key: settled[key]}, event_id, events):
                        break
                    settled[key] = event_id
        resolved |= settled
    for key, ids in conflicts.items():
        if key not in resolved:
            newest_first = sorted(ids, key=lambda event_id: newest(event_id, events))
            passing = [event_id for event_id in newest_first if allowed(resolved, event_id, events)]
            resolved[key] = (passing or newest_first[-1:])[0]
    return resolved


def newest(event_id: str, events: Events) -> tuple[int, str]:
    return (-events[event_id].depth, hashlib.sha1(event_id.encode(), usedforsecurity=False).hexdigest())


def allowed(state: StateMap, event_id: str, events: Events) -> bool:
    event = events[event_id]
    keys = auth_event_keys(event.type, event.sender, event.state_key, event.content, event.version)
    try:
        authorize(event, {key: events[state[key]] for key in keys if key in state})
    except NotAuthorized:
        return False
    return True
