"""State resolution of room version 1."""

from __future__ import annotations

import hashlib
from itertools import permutations

import pytest

from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.state_resolution import MissingEvents, resolve, resolve_with_events
from tests.protocol.symbolic import ALICE, BOB, CAROL, event, member, room

V1 = ROOM_VERSIONS["1"]
JOINED = {ALICE: "join", BOB: "join", CAROL: "leave"}
LEVELS = {"users": {ALICE: 100, BOB: 50}}

State = dict[StateKey, Event]


def resolved(*states: State) -> dict[StateKey, str]:
    events = {one.event_id: one for state in states for one in state.values()}
    sets = [{key: one.event_id for key, one in state.items()} for state in states]
    results = [resolve_with_events(V1, order, events) for order in permutations(sets)]
    assert all(result == results[0] for result in results)
    return results[0]


def base() -> State:
    return room(V1, JOINED, power_levels=LEVELS, join_rule="public")


def topic(event_id: str, depth: int, sender: str = ALICE) -> Event:
    return event(V1, "m.room.topic", sender, {}, state_key="", event_id=event_id, depth=depth)


def with_(state: State, *events: Event) -> State:
    return {**state, **{one.key: one for one in events}}


def test_a_key_that_some_states_lack_is_no_conflict() -> None:
    extra = topic("$topic", 20)
    assert resolved(base(), with_(base(), extra))[extra.key] == "$topic"


def test_of_other_events_the_deepest_that_is_allowed_wins() -> None:
    allowed, deeper, not_allowed = topic("$1", 20), topic("$2", 21), topic("$3", 22, CAROL)
    assert resolved(*(with_(base(), one) for one in (allowed, deeper, not_allowed)))[allowed.key] == "$2"


def test_at_equal_depth_the_lowest_hash_wins() -> None:
    ids = ["$a:a.example", "$b:a.example", "$c:a.example"]
    expected = min(ids, key=lambda event_id: hashlib.sha1(event_id.encode()).hexdigest())
    states = [with_(base(), topic(event_id, 20)) for event_id in ids]
    assert resolved(*states)["m.room.topic", ""] == expected


def test_if_none_is_allowed_the_oldest_stays() -> None:
    states = [with_(base(), topic(event_id, depth, CAROL)) for event_id, depth in (("$new", 21), ("$old", 20))]
    assert resolved(*states)["m.room.topic", ""] == "$old"


def test_power_levels_build_on_each_other_until_one_is_not_allowed() -> None:
    def levels(event_id: str, depth: int, sender: str, users: dict[str, int]) -> Event:
        return event(V1, "m.room.power_levels", sender, {"users": users}, state_key="", event_id=event_id, depth=depth)

    first = levels("$first", 20, ALICE, {ALICE: 100, BOB: 50})
    second = levels("$second", 21, BOB, {ALICE: 100, BOB: 40})
    third = levels("$third", 22, BOB, {ALICE: 100, BOB: 50})  # Bob has lowered himself by then
    fourth = levels("$fourth", 23, ALICE, {ALICE: 100})
    key = first.key
    assert resolved(*(with_(base(), one) for one in (first, second)))[key] == "$second"
    assert resolved(*(with_(base(), one) for one in (first, second, third)))[key] == "$second"
    # Not the fourth: the list ends where an event is not allowed.
    assert resolved(*(with_(base(), one) for one in (first, second, third, fourth)))[key] == "$second"


def test_power_levels_come_before_join_rules_before_members_before_the_rest() -> None:
    """Each newer event is allowed only by the newer event of the pass before it."""
    users = {ALICE: 100, BOB: 50, CAROL: 50}
    higher = event(V1, "m.room.power_levels", ALICE, {"users": users}, state_key="", event_id="$higher", depth=20)
    lower = event(V1, "m.room.power_levels", ALICE, {"users": {ALICE: 100}}, state_key="", event_id="$lower", depth=19)
    rules = [
        event(V1, "m.room.join_rules", sender, {"join_rule": rule}, state_key="", event_id=f"${rule}", depth=depth)
        for sender, rule, depth in ((ALICE, "invite", 21), (BOB, "public", 22))
    ]
    carols = [member(V1, CAROL, "leave", depth=23, event_id="$out"), member(V1, CAROL, "join", depth=24)]
    topics = [topic("$alices", 25), topic("$carols", 26, CAROL)]
    state = resolved(
        with_(base(), lower, rules[0], carols[0], topics[0]), with_(base(), higher, rules[1], carols[1], topics[1])
    )
    assert state["m.room.power_levels", ""] == "$higher"
    assert state["m.room.join_rules", ""] == "$public"
    assert state["m.room.member", CAROL] == f"$join-{CAROL}"
    assert state["m.room.topic", ""] == "$carols"


def test_what_is_missing_is_named() -> None:
    states = [with_(base(), topic("$1", 20)), with_(base(), topic("$2", 21))]
    events = {one.event_id: one for one in base().values()}
    sets = [{key: one.event_id for key, one in state.items()} for state in states]
    with pytest.raises(MissingEvents) as caught:
        resolve(V1, sets, events=events, auth_difference=frozenset())
    assert caught.value.event_ids == {"$1", "$2"}
    events |= {"$1": topic("$1", 20), "$2": topic("$2", 21)}
    del events["$power_levels"]
    with pytest.raises(MissingEvents) as caught:
        resolve(V1, sets, events=events, auth_difference=frozenset())
    assert caught.value.event_ids == {"$power_levels"}
