"""What state resolution is for: well-known ways in which a room could lose its state, each in each version."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

import pytest

from homeserver.protocol.events import StateKey
from homeserver.protocol.room_versions import RoomVersion
from tests.protocol.room_graph import RoomGraph
from tests.protocol.symbolic import ALICE, BOB, CAROL, DAVE, versions

since_version_2 = pytest.mark.parametrize("version", versions(2), ids=lambda version: f"v{version.identifier}")
each_version = pytest.mark.parametrize("version", versions(1), ids=lambda version: f"v{version.identifier}")
until_version_11 = pytest.mark.parametrize("version", versions(2, 11), ids=lambda version: f"v{version.identifier}")


def room_with(version: RoomVersion, users: Mapping[str, int], *members: str) -> RoomGraph:
    """Alice's public room; ``users`` have levels beside hers, and all of them and ``members`` have joined."""
    graph = RoomGraph(version)
    graph.member("join-alice", ALICE, "join")
    graph.levels("levels", ALICE, users if version.creators_have_infinite_power else {ALICE: 100, **users})
    graph.join_rule("public", ALICE, "public")
    for user_id in (*users, *members):
        graph.member(f"join-{user_id[1:].partition(':')[0]}", user_id, "join")
    return graph


def levels_of(version: RoomVersion, users: Mapping[str, int]) -> Mapping[str, int]:
    return users if version.creators_have_infinite_power else {ALICE: 100, **users}


def resolved(graph: RoomGraph, *tips: str) -> dict[StateKey, str]:
    """Resolve the states after the tips in every order: all must come out the same."""
    results = [graph.resolve(*order) for order in permutations(tips)]
    assert all(result == results[0] for result in results)
    return results[0]


@since_version_2
def test_a_ban_stands_against_what_the_banned_did_meanwhile(version: RoomVersion) -> None:
    graph = room_with(version, {BOB: 50}, CAROL)
    fork = graph.last
    ban = graph.member("ban-bob", BOB, "ban", ALICE, prev=fork)
    graph.topic("bobs-topic", BOB, prev=fork)
    graph.member("kick-carol", CAROL, "leave", BOB)
    bobs = graph.levels("bobs-levels", BOB, levels_of(version, {BOB: 50, CAROL: 50}))

    state = resolved(graph, ban, bobs)
    assert graph.name_of(state, "m.room.member", BOB) == "ban-bob"
    assert graph.name_of(state, "m.room.power_levels") == "levels"
    assert graph.name_of(state, "m.room.member", CAROL) == "join-carol"
    assert graph.name_of(state, "m.room.topic") is None


@since_version_2
def test_a_banned_user_cannot_come_back_by_another_branch(version: RoomVersion) -> None:
    graph = room_with(version, {}, BOB)
    fork = graph.last
    ban = graph.member("ban-bob", BOB, "ban", ALICE, prev=fork)
    graph.member("bob-leaves", BOB, "leave", prev=fork)
    back = graph.member("bob-is-back", BOB, "join", ts=1_000)

    assert graph.name_of(resolved(graph, ban, back), "m.room.member", BOB) == "ban-bob"


@since_version_2
def test_nobody_joins_past_a_closed_door(version: RoomVersion) -> None:
    graph = room_with(version, {})
    fork = graph.last
    closed = graph.join_rule("invite-only", ALICE, "invite", prev=fork)
    joined = graph.member("bob-slips-in", BOB, "join", prev=fork)

    state = resolved(graph, closed, joined)
    assert graph.name_of(state, "m.room.join_rules") == "invite-only"
    assert graph.name_of(state, "m.room.member", BOB) is None


@since_version_2
def test_who_is_demoted_cannot_undo_it_from_before(version: RoomVersion) -> None:
    graph = room_with(version, {BOB: 50, CAROL: 0})
    fork = graph.last
    demoted = graph.levels("bob-demoted", ALICE, levels_of(version, {BOB: 0, CAROL: 0}), prev=fork)
    raised = graph.levels("carol-raised", BOB, levels_of(version, {BOB: 50, CAROL: 50}), prev=fork, ts=0)

    assert graph.name_of(resolved(graph, demoted, raised), "m.room.power_levels") == "bob-demoted"


@since_version_2
def test_a_topic_set_with_lost_power_does_not_count(version: RoomVersion) -> None:
    graph = room_with(version, {BOB: 50})
    graph.topic("first", ALICE)
    fork = graph.last
    demoted = graph.levels("bob-demoted", ALICE, levels_of(version, {BOB: 0}), prev=fork)
    topic = graph.topic("bobs", BOB, prev=fork)

    assert graph.name_of(resolved(graph, demoted, topic), "m.room.topic") == "first"


@since_version_2
def test_of_two_topics_the_one_on_newer_power_levels_wins(version: RoomVersion) -> None:
    graph = room_with(version, {BOB: 50})
    fork = graph.last
    old = graph.topic("on-old-levels", BOB, prev=fork, ts=10_000)
    graph.levels("newer-levels", ALICE, levels_of(version, {BOB: 50, CAROL: 10}), prev=fork)
    new = graph.topic("on-new-levels", ALICE, ts=500)

    assert graph.name_of(resolved(graph, old, new), "m.room.topic") == "on-new-levels"


@since_version_2
def test_of_two_equal_topics_the_later_wins_and_then_the_greater_id(version: RoomVersion) -> None:
    graph = room_with(version, {BOB: 50})
    fork = graph.last
    tips = [
        graph.topic("z", ALICE, prev=fork, ts=100),
        graph.topic("a", BOB, prev=fork, ts=200),
        graph.topic("b", BOB, prev=fork, ts=200),
    ]
    assert graph.name_of(resolved(graph, *tips), "m.room.topic") == "b"


@since_version_2
def test_state_is_not_reset_by_a_long_forgotten_branch(version: RoomVersion) -> None:
    graph = room_with(version, {BOB: 50})
    old = graph.topic("old", BOB)
    for number in range(5):
        graph.levels(f"levels-{number}", ALICE, levels_of(version, {BOB: 50, DAVE: number}))
        graph.topic(f"topic-{number}", ALICE)
    new = graph.last
    late = graph.add("late", "m.room.message", BOB, {}, None, prev=old, ts=99_999)

    state = resolved(graph, new, late)
    assert state == graph.after[new]


@each_version
def test_the_mightier_of_two_bans_wins(version: RoomVersion) -> None:
    graph = room_with(version, {BOB: 50, CAROL: 60})
    fork = graph.last
    by_carol = graph.member("ban-bob", BOB, "ban", CAROL, prev=fork)
    by_bob = graph.member("ban-dave", DAVE, "ban", BOB, prev=fork)

    state = resolved(graph, by_carol, by_bob)
    assert graph.name_of(state, "m.room.member", BOB) == "ban-bob"
    # Version 1 sees no conflict where only one branch has the key, one of its known weaknesses.
    assert graph.name_of(state, "m.room.member", DAVE) == (None if version in versions(2) else "ban-dave")


@until_version_11
def test_an_admin_cannot_be_outdone_by_an_older_clock(version: RoomVersion) -> None:
    graph = room_with(version, {BOB: 99})
    fork = graph.last
    alices = graph.levels("alices", ALICE, {ALICE: 100, BOB: 0}, prev=fork, ts=5_000)
    bobs = graph.levels("bobs", BOB, {ALICE: 100, BOB: 99, CAROL: 99}, prev=fork, ts=0)

    assert graph.name_of(resolved(graph, alices, bobs), "m.room.power_levels") == "alices"


def test_a_creator_of_version_12_outranks_every_level() -> None:
    (version,) = versions(12)
    graph = room_with(version, {BOB: 2**53 - 1})
    fork = graph.last
    bobs = graph.levels("bobs", BOB, {BOB: 2**53 - 1, CAROL: 100}, prev=fork, ts=0)
    alices = graph.levels("alices", ALICE, {}, prev=fork, ts=5_000)

    assert graph.name_of(resolved(graph, alices, bobs), "m.room.power_levels") == "alices"


@since_version_2
def test_three_branches(version: RoomVersion) -> None:
    graph = room_with(version, {BOB: 60, CAROL: 50})
    graph.levels("bans-take-60", ALICE, levels_of(version, {BOB: 60, CAROL: 50}), content={"ban": 60})
    fork = graph.last
    tips = [
        graph.member("ban-dave", DAVE, "ban", BOB, prev=fork),
        graph.member("join-dave", DAVE, "join", prev=fork),
        graph.member("kick-dave", DAVE, "leave", CAROL, prev=graph.last),
    ]
    assert graph.name_of(resolved(graph, *tips), "m.room.member", DAVE) == "ban-dave"


@since_version_2
def test_a_merge_is_settled_and_stays_settled(version: RoomVersion) -> None:
    graph = room_with(version, {BOB: 50})
    fork = graph.last
    ban = graph.member("ban-bob", BOB, "ban", ALICE, prev=fork)
    topic = graph.topic("bobs", BOB, prev=fork)
    merge = graph.add("merge", "m.room.message", ALICE, {}, None, prev=[ban, topic])
    after = graph.topic("alices", ALICE)

    state = resolved(graph, after, topic)
    assert graph.name_of(graph.after[merge], "m.room.member", BOB) == "ban-bob"
    assert graph.name_of(state, "m.room.member", BOB) == "ban-bob"
    assert graph.name_of(state, "m.room.topic") == "alices"
