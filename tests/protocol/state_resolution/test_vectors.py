"""The state resolution problems of ``tests/vectors/state_resolution``; its README says what a case holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from homeserver.protocol.events import Event, StateKey, StateMap
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.protocol.state_resolution import resolve_with_events

VECTORS = Path(__file__).parents[2] / "vectors" / "state_resolution"

Events = dict[str, Event]


def cases(kind: str) -> list[Any]:
    found = [json.loads(path.read_text()) for path in sorted(VECTORS.glob("*.json"))]
    assert found
    return [pytest.param(case, id=case["name"]) for case in found if kind in case]


def parse(case: dict[str, Any], pdus: Iterable[dict[str, Any]]) -> Iterator[Event]:
    version = ROOM_VERSIONS[case["room_version"]]
    for pdu in pdus:
        room_id = pdu.get("room_id") or "!" + pdu["event_id"][1:]
        yield Event({"depth": 0, **pdu}, version, pdu["event_id"], room_id)


def expected_state(case: dict[str, Any]) -> dict[StateKey, str]:
    return {(event_type, state_key): event_id for event_type, state_key, event_id in case["resolved_state"]}


def steps(batches: Sequence[Sequence[Event]], size: str) -> list[list[Event]]:
    """The PDUs of all batches, in the portions in which they arrive."""
    flat = [event for batch in batches for event in batch]
    return {"one at a time": [[event] for event in flat], "by batch": [list(b) for b in batches], "at once": [flat]}[
        size
    ]


SIZES = pytest.mark.parametrize("size", ["one at a time", "by batch", "at once"])


@pytest.mark.parametrize("case", cases("state_sets"))
def test_state_sets(case: dict[str, Any]) -> None:
    events = {event.event_id: event for event in parse(case, case["pdus"])}
    sets = [{events[event_id].key: event_id for event_id in state} for state in case["state_sets"]]
    for order in permutations(sets):
        assert resolve_with_events(ROOM_VERSIONS[case["room_version"]], order, events) == expected_state(case)


@SIZES
@pytest.mark.parametrize("case", cases("batches"))
def test_states_of_the_forward_extremities(case: dict[str, Any], size: str) -> None:
    version = ROOM_VERSIONS[case["room_version"]]
    batches = [list(parse(case, batch)) for batch in case["batches"]]
    for order in permutations(batches[1:]):
        try:
            resolved = resolve_extremities(version, steps([batches[0], *order], size))
        except KeyError:
            continue  # in this order a batch comes before one that it extends
        assert resolved == expected_state(case)
    assert resolve_extremities(version, steps(batches, size)) == expected_state(case)


def resolve_extremities(version: RoomVersion, portions: list[list[Event]]) -> dict[StateKey, str]:
    events: Events = {}
    after: dict[str, StateMap] = {}
    extremities: set[str] = set()
    resolved: dict[StateKey, str] = {}
    for portion in portions:
        for event in portion:
            before = resolve_with_events(version, [after[event_id] for event_id in event.prev_events], events)
            events[event.event_id] = event
            after[event.event_id] = {**before, event.key: event.event_id}
            extremities = extremities - set(event.prev_events) | {event.event_id}
        resolved = resolve_with_events(version, [after[event_id] for event_id in extremities], events)
    return resolved


@SIZES
@pytest.mark.parametrize("case", cases("batches"))
def test_each_event_as_a_state_of_its_own(case: dict[str, Any], size: str) -> None:
    """The harder way: no state groups events, what came out before is one more state."""
    version = ROOM_VERSIONS[case["room_version"]]
    events: Events = {}
    resolved: dict[StateKey, str] = {}
    for portion in steps([list(parse(case, batch)) for batch in case["batches"]], size):
        events.update((event.event_id, event) for event in portion)
        states = [{event.key: event.event_id} for event in portion]
        resolved = resolve_with_events(version, [resolved, *states] if resolved else states, events)
    assert resolved == expected_state(case)
