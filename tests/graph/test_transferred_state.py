"""homeserver/graph/transferred_state.py: what old rooms hold that new ones refuse."""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.graph.transferred_state import (
    creation_content,
    muted_power_levels,
    power_levels,
    predecessor_of,
    sayable,
    split_aliases,
)
from homeserver.protocol.authorization import authorize
from homeserver.protocol.canonical_json import INTEGER_MAX, INTEGER_MIN, check_strict
from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.power_levels import check_levels, power_levels_of
from homeserver.protocol.room_versions import ROOM_VERSIONS
from tests.factories.rooms import RoomFactory

ALICE, BOB, CAROL = (f"@{name}:example.org" for name in ("alice", "bob", "carol"))


def event(version: str, event_type: str, content: JsonObject, sender: str = ALICE) -> Event:
    """An event as it can stand in a room's state, however it came there."""
    pdu: JsonObject = {"type": event_type, "sender": sender, "state_key": "", "content": content}
    pdu |= {"depth": 1, "origin_server_ts": 1, "prev_events": [], "auth_events": []}
    return Event(pdu, ROOM_VERSIONS[version], "$event", "!room:example.org")


def create(version: str, **content: Any) -> Event:
    return event(version, "m.room.create", {"creator": ALICE, **content})


def transferred(old: str, new: str, content: JsonObject, *creators: str, **created: Any) -> JsonObject:
    levels = event(old, "m.room.power_levels", content)
    return power_levels(create(old, **created), levels, ROOM_VERSIONS[new], ALICE, creators)


ODD: JsonObject = {
    "users": {ALICE: "100", BOB: " +050 ", CAROL: 7.9, "nobody": 100, "@low:example.org": -(10**30), "@x:y.z": None},
    "users_default": "1",
    "events": {"m.room.name": "60", "m.room.topic": [], "m.room.avatar": 10**300, "a\0b": 1},
    "events_default": True,
    "state_default": 50.5,
    "notifications": {"room": "20", "other": {}},
    "ban": "fifty",
    "kick": None,
    "invite": 1e300,
    "future": {"keep": "this"},
    "past": 1.5,
}
"""Every value that some room version lets pass."""


@pytest.mark.parametrize("new", ROOM_VERSIONS)
def test_levels_that_are_no_integers(new: str) -> None:
    content = transferred("1", new, ODD)
    check_strict(content)
    check_levels(content)
    users = {ALICE: 100, BOB: 50, CAROL: 7, "@low:example.org": INTEGER_MIN}
    if new == "12":
        users.pop(ALICE)
    assert content["users"] == users
    assert (content["users_default"], content["state_default"]) == (1, 50)
    assert {"events_default", "ban", "kick", "past"}.isdisjoint(content)
    assert (content["notifications"], content["future"]) == ({"room": 20}, {"keep": "this"})
    assert content["invite"] == INTEGER_MAX
    assert content["events"]["m.room.name"] == 60
    assert content["events"]["m.room.avatar"] == INTEGER_MAX
    assert_allowed(new, content)


def assert_allowed(version: str, content: JsonObject) -> None:
    """The new room takes it as its first m.room.power_levels."""
    room = RoomFactory(version)
    made = room.create("alice", bare=True)
    state = {made.key: made}
    joined = room.join("alice")
    state[joined.key] = joined
    authorize(room.event("alice", "m.room.power_levels", content, ""), state, create=made)


@pytest.mark.parametrize("new", ["1", "11", "12"])
@pytest.mark.parametrize("content", [{}, {"users": 1, "events": "x", "notifications": []}, {"users": {}}])
def test_levels_that_hardly_say_anything(new: str, content: JsonObject) -> None:
    found = transferred("11", new, content)
    assert found["users"] == {}
    check_levels(found)
    assert_allowed(new, found)


def test_the_same_levels_for_everybody() -> None:
    """Whoever is in neither room's list of creators has exactly the power that they had."""
    content = {"users": {ALICE: 100, BOB: 60, CAROL: 100}, "users_default": 5, "events": {"m.room.tombstone": 70}}
    for old in ("6", "11"):
        for new in ("6", "11", "12"):
            before = power_levels_of(ROOM_VERSIONS[old], create(old), event(old, "m.room.power_levels", content))
            levels = event(new, "m.room.power_levels", transferred(old, new, content))
            after = power_levels_of(ROOM_VERSIONS[new], create(new), levels)
            for user in (BOB, CAROL, "@new:example.org"):
                assert after.of_user(user) == before.of_user(user)
            assert after.of_user(ALICE) >= before.of_user(ALICE)
            assert after.to_send("m.room.tombstone", True) == (150 if new == "12" else 70)


@pytest.mark.parametrize(
    ("content", "level"),
    [
        ({"events": {"m.room.tombstone": 200}}, 200),
        ({"state_default": 300}, 301),
        ({"state_default": INTEGER_MAX}, INTEGER_MAX),
        ({}, 150),
    ],
)
def test_the_next_upgrade_is_for_creators(content: JsonObject, level: int) -> None:
    assert transferred("11", "12", content)["events"]["m.room.tombstone"] == level


def test_between_rooms_of_version_12_it_stays_as_the_room_has_it() -> None:
    content = {"users": {BOB: 100}, "events": {"m.room.tombstone": 100}}
    assert transferred("12", "12", content) == content


@pytest.mark.parametrize(
    ("content", "level"),
    [
        ({}, 100),
        ({"events": {"a": 120}}, 120),
        ({"users": {BOB: 170}, "events": {"a": 120}}, 170),
        ({"notifications": {"room": 180}, "users": {BOB: 170}}, 180),
        ({"ban": 190, "users": {BOB: 170}}, 190),
    ],
)
def test_creators_who_are_none_any_more_are_below_nobody(content: JsonObject, level: int) -> None:
    for new in ("3", "11"):
        found = transferred("12", new, content, additional_creators=[CAROL])
        assert found["users"] == {**content.get("users", {}), ALICE: level, CAROL: level}
    assert transferred("12", "12", content, additional_creators=[CAROL])["users"][CAROL] == level
    kept = transferred("12", "12", content, CAROL, additional_creators=[CAROL])["users"]
    assert kept == content.get("users", {})


def test_what_the_create_event_keeps() -> None:
    predecessor = {"room_id": "!old:example.org"}
    odd = create("11", type=1, **{"m.federate": "no", "additional_creators": [BOB], "predecessor": {"room_id": "!x"}})
    assert creation_content(odd, predecessor, []) == {"predecessor": predecessor}
    space = create("11", type="m.space", **{"m.federate": True})
    assert creation_content(space, predecessor, [CAROL]) == {
        "predecessor": predecessor,
        "type": "m.space",
        "m.federate": True,
        "additional_creators": [CAROL],
    }


def test_predecessors() -> None:
    assert predecessor_of(create("11", predecessor={"room_id": "!old:example.org"})) == "!old:example.org"
    for predecessor in (None, "!old:example.org", [], {}, {"room_id": None}, {"room_id": ["!a:b.c"]}):
        assert predecessor_of(create("11", predecessor=predecessor)) is None
    assert predecessor_of(create("11")) is None


def test_what_can_be_said_everywhere() -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    assert sayable({"a": 1, "b": 1.5, "c": {"d": [2.5]}, "e": 2**60, "f": deep, "g": "x"}) == {"a": 1, "g": "x"}


def test_muting_levels_that_are_strings() -> None:
    content = {"users": {ALICE: "100"}, "users_default": "70", "invite": "90"}
    muted = muted_power_levels(create("9"), event("9", "m.room.power_levels", content))
    assert muted == {**content, "events_default": 71, "invite": 90}


@pytest.mark.parametrize(
    "content", [{}, {"alias": 1, "alt_aliases": "x"}, {"alt_aliases": [1, {}, None, "#other:b.c"]}]
)
def test_aliases_that_do_not_move(content: JsonObject) -> None:
    assert split_aliases(event("11", "m.room.canonical_alias", content), ["#a:b.c"]) is None
    assert split_aliases(None, ["#a:b.c"]) is None
