"""What holds of every state resolution, on random rooms that fork and merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from homeserver.protocol.authorization import authorize, check_auth_events
from homeserver.protocol.events import Event, StateKey, StateMap
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion, StateResolution
from homeserver.protocol.state_resolution import (
    auth_difference_of,
    conflicted_subgraph_of,
    resolve,
    resolve_with_events,
    split_states,
)
from tests.properties.reference_resolution import resolve_by_the_book
from tests.protocol.room_graph import RoomGraph
from tests.protocol.symbolic import ALICE, BOB, CAROL, DAVE

USERS = [ALICE, BOB, CAROL, DAVE]
VERSIONS = [ROOM_VERSIONS[identifier] for identifier in ("1", "2", "6", "11", "12")]
STEPS_MAX = 25
SET_UP = 4
"""Events before which nothing forks."""

quick = settings(max_examples=80, deadline=None, database=None)

# What somebody does: kind of act, who, to whom, a number, after which events, when.
acts = st.tuples(
    st.sampled_from(["join", "leave", "invite", "kick", "ban", "levels", "join rule", "topic", "message"]),
    st.sampled_from(USERS),
    st.sampled_from(USERS),
    st.sampled_from([0, 50, 100]),
    st.lists(st.integers(0, 8), min_size=1, max_size=2),
    st.integers(0, 50),
)


@st.composite
def rooms(draw: st.DrawFn) -> tuple[RoomGraph, list[str]]:
    """A room, and the events after which its states are to be resolved."""
    graph = RoomGraph(draw(st.sampled_from(VERSIONS)))
    graph.member("join-alice", ALICE, "join")
    graph.levels("levels", ALICE, {BOB: 50} if graph.version.creators_have_infinite_power else {ALICE: 100, BOB: 50})
    graph.join_rule("join-rule", ALICE, "public")
    graph.member("join-bob", BOB, "join")
    for number, act in enumerate(draw(st.lists(acts, min_size=6, max_size=STEPS_MAX))):
        _carry_out(graph, number, *act)
    recent = list(graph.events)[-8:]
    tips = draw(st.lists(st.sampled_from(recent), min_size=2, max_size=4, unique=True))
    return graph, tips


def _carry_out(
    graph: RoomGraph, number: int, act: str, sender: str, target: str, value: int, parents: list[int], ts: int
) -> None:
    """Add the event if it is allowed where it stands; most are, and the others are tried in vain."""
    known = list(graph.events)[SET_UP:]
    prev = sorted({known[-1 - parent % len(known)] for parent in parents})
    content: dict[str, Any] = {}
    state_key: str | None = ""
    if act in ("join", "leave"):
        event_type, content, state_key = "m.room.member", {"membership": act}, sender
    elif act in ("invite", "kick", "ban"):
        event_type, content, state_key = "m.room.member", {"membership": {"kick": "leave"}.get(act, act)}, target
    elif act == "levels":
        key = ("m.room.power_levels", "")
        users = dict(graph.events[graph.state_before(prev)[key]].content["users"])
        event_type, content = "m.room.power_levels", {"users": {**users, target: value}}
    elif act == "join rule":
        event_type, content = "m.room.join_rules", {"join_rule": "public" if value else "invite"}
    else:
        event_type, state_key = f"m.room.{act}", None if act == "message" else ""
    graph.try_add(f"{number}-{act.replace(' ', '-')}", event_type, sender, content, state_key, prev=prev, ts=ts)


def states(graph: RoomGraph, tips: Sequence[str]) -> list[StateMap]:
    return [graph.after[tip] for tip in tips]


@quick
@given(rooms(), st.randoms(use_true_random=False))
def test_the_order_of_the_inputs_does_not_matter(room: tuple[RoomGraph, list[str]], random: Random) -> None:
    graph, tips = room
    sets = states(graph, tips)
    expected = resolve_with_events(graph.version, sets, graph.events)
    for _ in range(3):
        shuffled_sets = [_shuffled(state, random) for state in random.sample(sets, len(sets))]
        assert resolve_with_events(graph.version, shuffled_sets, _shuffled(graph.events, random)) == expected


def _shuffled(mapping: Mapping[Any, Any], random: Random) -> dict[Any, Any]:
    return {key: mapping[key] for key in random.sample(list(mapping), len(mapping))}


@quick
@given(rooms())
def test_one_state_and_equal_states_stay_as_they_are(room: tuple[RoomGraph, list[str]]) -> None:
    graph, tips = room
    for state in states(graph, tips):
        for times in (1, 2, 3):
            assert resolve_with_events(graph.version, [state] * times, graph.events) == state
    resolved = graph.resolve(*tips)
    assert resolve_with_events(graph.version, [resolved], graph.events) == resolved


@quick
@given(rooms())
def test_a_state_that_is_there_already_adds_nothing(room: tuple[RoomGraph, list[str]]) -> None:
    graph, tips = room
    assert graph.resolve(*tips, tips[0]) == graph.resolve(*tips)
    assert graph.resolve(tips[-1], *tips) == graph.resolve(*tips)


@quick
@given(rooms())
def test_the_result_is_of_valid_events_from_the_inputs(room: tuple[RoomGraph, list[str]]) -> None:
    graph, tips = room
    sets = states(graph, tips)
    resolved = resolve_with_events(graph.version, sets, graph.events)
    conflict = split_states(sets)
    inputs = conflict.conflicted_ids | set(conflict.unconflicted.values()) | auth_difference_of(sets, graph.events)
    inputs |= conflicted_subgraph_of(conflict.conflicted_ids, graph.events)
    assert conflict.unconflicted.items() <= resolved.items()
    assert resolved["m.room.create", ""] == "$create"
    for key, event_id in resolved.items():
        event = graph.events[event_id]
        assert event.key == key
        assert event_id in inputs
        if event is graph.create:
            continue
        cited = [graph.events[auth_id] for auth_id in event.auth_events]
        check_auth_events(event, cited, frozenset(), create=graph.create)
        authorize(event, {one.key: one for one in cited}, create=graph.create)


@quick
@given(rooms())
def test_it_comes_out_as_the_book_says(room: tuple[RoomGraph, list[str]]) -> None:
    graph, tips = room
    assume(graph.version.state_resolution is not StateResolution.V1)
    sets = states(graph, tips)
    assert resolve_with_events(graph.version, sets, graph.events) == resolve_by_the_book(
        graph.version, sets, graph.events, graph.create
    )


@quick
@given(rooms())
def test_more_events_in_hand_change_nothing(room: tuple[RoomGraph, list[str]]) -> None:
    """What is gathered by ``MissingEvents`` alone gives what the whole graph gives."""
    graph, tips = room
    sets = states(graph, tips)
    difference = auth_difference_of(sets, graph.events)
    subgraph = conflicted_subgraph_of(split_states(sets).conflicted_ids, graph.events)

    def run(version: RoomVersion, events: Mapping[str, Event]) -> dict[StateKey, str]:
        return resolve(version, sets, events=events, auth_difference=difference, conflicted_subgraph=subgraph)

    assert run(graph.version, _Gathered(graph.events)) == run(graph.version, graph.events)


class _Gathered(dict[str, Event]):
    """Fetches each event when it is first asked for, which is what a caller does between two calls."""

    def __init__(self, graph: Mapping[str, Event]) -> None:
        super().__init__()
        self._graph = graph

    def __contains__(self, event_id: object) -> bool:
        if isinstance(event_id, str) and event_id in self._graph:
            self[event_id] = self._graph[event_id]
        return super().__contains__(event_id)
