"""State resolution v2: what it asks for, how it orders, and where 2.1 differs from 2.0."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from homeserver.protocol.events import Event, StateMap
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.state_resolution import (
    MissingEvents,
    auth_difference_of,
    conflicted_subgraph_of,
    resolve,
    resolve_with_events,
    split_states,
)
from homeserver.protocol.state_resolution.ordering import mainline_ordering, reverse_topological_power_ordering
from homeserver.protocol.state_resolution.v2 import is_power_event
from tests.protocol.room_graph import RoomGraph
from tests.protocol.symbolic import ALICE, BOB, CAROL, create_event, event, member, versions

V11 = ROOM_VERSIONS["11"]
V12 = ROOM_VERSIONS["12"]
A, B, C = ("a", ""), ("b", ""), ("c", "")


def simple(event_id: str, auth: Iterable[str] = (), ts: int = 0, event_type: str = "m.room.topic") -> Event:
    return event(V11, event_type, ALICE, {}, state_key="", event_id=event_id, auth=auth, ts=ts)


def by_id(*events: Event) -> dict[str, Event]:
    return {one.event_id: one for one in events}


# -- dividing states


def test_dividing_states() -> None:
    assert split_states([]) == ({}, {})
    assert split_states([{A: "$1"}]) == ({A: "$1"}, {})
    assert split_states([{A: "$1"}, {A: "$1"}]) == ({A: "$1"}, {})
    conflict = split_states([{A: "$1", B: "$2"}, {A: "$1", B: "$3", C: "$4"}, {B: "$2", A: "$1"}])
    assert conflict == ({A: "$1"}, {B: {"$2", "$3"}, C: {"$4"}})
    assert conflict.conflicted_ids == {"$2", "$3", "$4"}
    assert split_states([{}, {A: "$1"}]) == ({}, {A: {"$1"}})
    assert split_states([{A: "$1"}, {}]) == ({}, {A: {"$1"}})
    assert split_states([{A: "$1", B: "$2"}, {A: "$1", C: "$3"}]) == ({A: "$1"}, {B: {"$2"}, C: {"$3"}})


# -- walks


def test_the_auth_difference_is_what_not_every_chain_has() -> None:
    events = by_id(
        simple("$0"),
        simple("$1", ["$0"]),
        simple("$2", ["$1"]),
        simple("$3", ["$0"]),
        simple("$x", ["$2"]),
        simple("$y", ["$3"]),
        simple("$shared", ["$3"]),
    )
    sets: list[StateMap] = [{A: "$x"}, {A: "$y"}]
    # An event counts as part of its own chain.
    assert auth_difference_of(sets, events) == {"$1", "$2", "$3", "$x", "$y"}
    assert auth_difference_of([{A: "$x", B: "$shared"}, {A: "$y", B: "$shared"}], events) == {"$1", "$2", "$x", "$y"}
    assert auth_difference_of([{A: "$x"}, {A: "$y"}, {A: "$2"}], events) == {"$1", "$2", "$3", "$x", "$y"}
    assert auth_difference_of([{A: "$x"}, {A: "$2"}], events) == {"$x"}
    assert auth_difference_of([{A: "$x"}, {A: "$x"}], events) == set()
    del events["$2"]
    with pytest.raises(MissingEvents) as caught:
        auth_difference_of(sets, events)
    assert caught.value.event_ids == {"$2"}


def test_the_conflicted_subgraph_is_all_paths_between_conflicted_events() -> None:
    events = by_id(
        simple("$root"),
        simple("$old", ["$root"]),
        simple("$left", ["$old"]),
        simple("$right", ["$old"]),
        simple("$middle", ["$left", "$right"]),
        simple("$aside", ["$root"]),
        simple("$new", ["$middle", "$aside"]),
        simple("$alone", ["$root"]),
    )
    assert conflicted_subgraph_of({"$new", "$old"}, events) == {"$new", "$middle", "$left", "$right", "$old"}
    assert conflicted_subgraph_of({"$new", "$alone"}, events) == {"$new", "$alone"}
    assert conflicted_subgraph_of(set(), events) == set()
    del events["$left"]
    with pytest.raises(MissingEvents):
        conflicted_subgraph_of({"$new", "$old"}, events)


# -- orders


def test_power_events() -> None:
    for version in versions(2):
        assert is_power_event(event(version, "m.room.power_levels", ALICE, {}, state_key=""))
        assert is_power_event(event(version, "m.room.join_rules", ALICE, {}, state_key=""))
        assert is_power_event(member(version, BOB, "leave", ALICE))
        assert is_power_event(member(version, BOB, "ban", ALICE))
        assert not is_power_event(member(version, BOB, "leave"))
        assert not is_power_event(member(version, BOB, "invite", ALICE))
        assert not is_power_event(member(version, BOB, "join"))
        assert not is_power_event(event(version, "m.room.topic", ALICE, {}, state_key=""))
        assert not is_power_event(event(version, "m.room.power_levels", ALICE, {}))
        assert not is_power_event(event(version, "m.room.power_levels", ALICE, {}, state_key="x"))


def test_auth_events_come_first_then_power_then_time_then_id() -> None:
    create = create_event(V11)
    content = {"users": {ALICE: 100, BOB: 50}}
    levels = event(V11, "m.room.power_levels", ALICE, content, state_key="", event_id="$levels")

    def by(sender: str, event_id: str, ts: int, *auth: str) -> Event:
        return event(V11, "m.x", sender, {}, state_key="", event_id=event_id, ts=ts, auth=["$create", *auth])

    events = by_id(
        create,
        levels,
        by(CAROL, "$carol", 0, "$levels"),
        by(BOB, "$bob-late", 9, "$levels"),
        by(BOB, "$bob-b", 5, "$levels"),
        by(BOB, "$bob-a", 5, "$levels"),
        by(ALICE, "$alice-after-carol", 0, "$levels", "$carol"),
        by(ALICE, "$alice", 99, "$levels"),
        by(CAROL, "$carol-without-levels", 1),
    )
    chosen = events.keys() - {"$create", "$levels"}
    assert reverse_topological_power_ordering(chosen, events, None) == [
        "$alice",
        "$bob-a",
        "$bob-b",
        "$bob-late",
        "$carol",
        "$alice-after-carol",
        "$carol-without-levels",
    ]


def test_a_creator_comes_first_without_citing_the_create_event() -> None:
    create = create_event(V12)
    levels = event(V12, "m.room.power_levels", ALICE, {"users": {BOB: 9_999}}, state_key="", event_id="$levels")
    events = by_id(
        create,
        levels,
        event(V12, "m.x", BOB, {}, state_key="", event_id="$bob", ts=0, auth=["$levels"]),
        event(V12, "m.x", ALICE, {}, state_key="", event_id="$alice", ts=5, auth=["$levels"]),
    )
    assert reverse_topological_power_ordering({"$bob", "$alice"}, events, create) == ["$alice", "$bob"]


def power(event_id: str, *auth: str) -> Event:
    return simple(event_id, auth, event_type="m.room.power_levels")


def test_the_mainline_orders_what_rests_on_older_power_levels_first() -> None:
    events = by_id(
        power("$p3"),
        power("$p2", "$p3"),
        power("$p1", "$p2"),
        power("$p0", "$p1"),
        power("$fork", "$p2"),
        power("$fork-of-fork", "$fork"),
        power("$stray"),
        simple("$on-p0", ["$p0"], ts=0),
        simple("$on-p1", ["$p1"], ts=1),
        simple("$on-fork", ["$fork-of-fork"], ts=2),
        simple("$on-p2", ["$p2"], ts=3),
        simple("$on-p3", ["$p3"], ts=4),
        simple("$on-nothing", [], ts=6),
        simple("$on-stray", ["$stray"], ts=5),
    )
    names = [event_id for event_id in events if event_id.startswith("$on-")]
    expected = ["$on-stray", "$on-nothing", "$on-p3", "$on-fork", "$on-p2", "$on-p1", "$on-p0"]
    for order in (names, names[::-1], sorted(names)):
        assert mainline_ordering(order, events, events["$p0"]) == expected
    assert mainline_ordering(names, events, None) == sorted(names, key=lambda name: events[name].origin_server_ts)


def test_the_mainline_is_walked_no_further_than_asked() -> None:
    events = by_id(power("$p1", "$p2"), power("$p0", "$p1"), simple("$x", ["$p0"]), simple("$y", ["$p1"]))
    assert mainline_ordering(["$x", "$y"], events, events["$p0"]) == ["$y", "$x"]
    events |= by_id(simple("$z", ["$q"]), power("$q"))
    with pytest.raises(MissingEvents) as caught:
        mainline_ordering(["$x", "$z"], events, events["$p0"])
    assert caught.value.event_ids == {"$p2"}


def test_circles_of_auth_events_end() -> None:
    # Event IDs of versions 1 and 2 are chosen by their servers.
    events = by_id(power("$p0", "$p1"), power("$p1", "$p0"), power("$q0", "$q1"), power("$q1", "$q0"))
    events |= by_id(simple("$x", ["$p1"]), simple("$y", ["$q0"]))
    assert mainline_ordering(["$x", "$y"], events, events["$p0"]) == ["$y", "$x"]
    assert reverse_topological_power_ordering({"$p0", "$p1"}, events, create_event(V11)) == []
    assert auth_difference_of([{A: "$x"}, {A: "$y"}], events) == {"$p0", "$p1", "$q0", "$q1", "$x", "$y"}


def test_long_chains_are_no_recursion() -> None:
    count = 20_000
    events = by_id(power("$0"), *(power(f"${i}", f"${i - 1}") for i in range(1, count)))
    ordered = reverse_topological_power_ordering(events.keys(), events, create_event(V11))
    assert ordered == [f"${i}" for i in range(count)]
    events["$x"] = simple("$x", ["$0"])
    assert mainline_ordering(["$x"], events, events[f"${count - 1}"]) == ["$x"]


# -- what it asks for


def forked_room() -> tuple[RoomGraph, list[StateMap]]:
    graph = RoomGraph(V11)
    graph.member("join-alice", ALICE, "join")
    graph.levels("levels", ALICE, {ALICE: 100, BOB: 50})
    graph.join_rule("public", ALICE, "public")
    graph.member("join-bob", BOB, "join")
    graph.levels("levels-2", ALICE, {ALICE: 100, BOB: 50, CAROL: 1})
    fork = graph.last
    tips = [graph.member("ban-bob", BOB, "ban", ALICE, prev=fork), graph.topic("bobs", BOB, prev=fork)]
    return graph, [graph.after[tip] for tip in tips]


def test_the_loop_of_gathering_ends_with_the_same_state() -> None:
    graph, sets = forked_room()
    difference = auth_difference_of(sets, graph.events)
    events: dict[str, Event] = {}
    rounds = []
    while True:
        assert len(rounds) < 10
        try:
            state = resolve(V11, sets, events=events, auth_difference=difference)
            break
        except MissingEvents as missing:
            rounds.append(missing.event_ids - events.keys())
            events |= {event_id: graph.events[event_id] for event_id in missing.event_ids}
    assert state == resolve_with_events(V11, sets, graph.events)
    assert rounds[0] == {"$ban-bob", "$bobs", "$join-bob"}
    assert len(rounds) == 2
    assert all(rounds)


def test_version_12_asks_for_the_create_event() -> None:
    graph = RoomGraph(V12)
    graph.member("join-alice", ALICE, "join")
    fork = graph.last
    sets = [graph.after[graph.topic(name, ALICE, prev=fork)] for name in ("a", "b")]
    events = dict(graph.events)
    del events["$create"]
    with pytest.raises(MissingEvents) as caught:
        resolve(V12, sets, events=events, auth_difference=frozenset())
    assert caught.value.event_ids == {"$create"}
    assert resolve_with_events(V12, sets, graph.events)["m.room.topic", ""] == "$b"


def test_without_a_conflict_nothing_is_asked_for() -> None:
    state: StateMap = {A: "$1"}
    for version in versions(1):
        assert resolve(version, [state, state], events={}, auth_difference=frozenset()) == state
        assert resolve(version, [state], events={}, auth_difference=frozenset()) == state
        assert resolve(version, [], events={}, auth_difference=frozenset()) == {}
        assert resolve_with_events(version, [state], {}) == state


def test_rejected_auth_events_do_not_count() -> None:
    graph = RoomGraph(V11)
    graph.member("join-alice", ALICE, "join")
    fork = graph.last
    topic = graph.topic("topic", ALICE, prev=fork)
    # A state that lacks Alice's membership: her join comes from the auth events of her topic, if at all.
    bare: StateMap = {("m.room.create", ""): "$create"}
    sets: list[StateMap] = [bare, {**bare, ("m.room.topic", ""): topic}]

    def resolved(rejected: frozenset[str]) -> StateMap:
        return resolve(V11, sets, events=graph.events, auth_difference=frozenset(), rejected=rejected)

    assert resolved(frozenset()) == {**bare, ("m.room.topic", ""): topic}
    assert resolved(frozenset({"$join-alice"})) == bare


def test_what_all_states_agree_on_is_never_replaced() -> None:
    for version in versions(2):
        graph = RoomGraph(version)
        graph.member("join-alice", ALICE, "join")
        old = graph.topic("old", ALICE)
        fork = graph.topic("agreed", ALICE)
        sets = [graph.after[graph.add(name, "m.room.name", ALICE, {}, prev=fork)] for name in ("name-a", "name-b")]
        state = resolve(version, sets, events=graph.events, auth_difference={old})
        assert graph.name_of(state, "m.room.topic") == "agreed"


def test_conflicted_events_that_are_no_state_are_passed_over() -> None:
    graph, sets = forked_room()
    events = {**graph.events, "$message": event(V11, "m.room.message", ALICE, {}, event_id="$message")}
    difference = auth_difference_of(sets, graph.events)
    expected = resolve(V11, sets, events=events, auth_difference=difference)
    assert resolve(V11, sets, events=events, auth_difference=difference | {"$message"}) == expected


# -- 2.0 and 2.1


def test_only_2_1_replays_what_lies_between_conflicted_events() -> None:
    """One server's state fell back to the first power levels. What led to the newest is in every auth chain already,
    so that only the conflicted subgraph brings it back into the resolution."""
    outcomes = {}
    for version in (V11, V12):
        graph = RoomGraph(version)
        own = {} if version.creators_have_infinite_power else {ALICE: 100}
        graph.member("join-alice", ALICE, "join")
        first = graph.levels("first", ALICE, own)
        graph.join_rule("public", ALICE, "public")
        graph.member("join-bob", BOB, "join")
        graph.levels("bob-promoted", ALICE, {**own, BOB: 100})
        graph.member("join-carol", CAROL, "join")
        newest = graph.levels("bobs", BOB, {**own, BOB: 100, CAROL: 50})
        sets = [graph.after[newest], {**graph.after[newest], ("m.room.power_levels", ""): first}]

        ids = split_states(sets).conflicted_ids
        assert ids == {first, newest}
        assert "$bob-promoted" not in auth_difference_of(sets, graph.events)
        assert "$bob-promoted" in conflicted_subgraph_of(ids, graph.events)
        state = resolve_with_events(version, sets, graph.events)
        outcomes[version.identifier] = state["m.room.power_levels", ""]
    assert outcomes == {"11": "$first", "12": "$bobs"}
