"""The rule for m.room.power_levels, clause by clause."""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.protocol.room_versions import RoomVersion
from tests.protocol.symbolic import ALICE, BOB, CAROL, VERSIONS, event, refusal, room, versions

each_version = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: f"v{version.identifier}")

NAMED = ["users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"]
JOINED = {ALICE: "join", BOB: "join", CAROL: "join"}
NO_LEVEL = "holds something that is not a power level"


def judge(version: RoomVersion, old: dict[str, Any] | None, new: dict[str, Any], sender: str = BOB) -> str | None:
    """Bob has level 50, Carol 40; whoever sends must be able to send at all."""
    if old is not None:
        old = {"users": {BOB: 50, CAROL: 40}, "events": {"m.room.power_levels": 0}, **old}
        new = {"users": {BOB: 50, CAROL: 40}, "events": {"m.room.power_levels": 0}, **new}
    state = room(version, JOINED, power_levels=old)
    return refusal(event(version, "m.room.power_levels", sender, new, state_key=""), state)


@each_version
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("value", [None, True, "abc", "5.5", "", [], {}, "+-5", "1_000", "0x10", "٣"])
def test_levels_are_numbers(version: RoomVersion, name: str, value: Any) -> None:
    for sender, old in ((ALICE, None), (BOB, {})):
        assert judge(version, old, {name: value}, sender) == f"{name} {NO_LEVEL}"


@each_version
@pytest.mark.parametrize("value", ["50", " +50 ", "-7", "00050"])
def test_strings_are_levels_before_version_10(version: RoomVersion, value: str) -> None:
    reason = None if version in versions(1, 9) else f"ban {NO_LEVEL}"
    assert judge(version, {}, {"ban": value}) == reason
    reason = None if version in versions(1, 9) else f"users {NO_LEVEL}"
    assert judge(version, {}, {"users": {BOB: 50, CAROL: 40, "@new:a.example": value}}) == reason


@each_version
@pytest.mark.parametrize("value", [50.9, 1.5e1, -0.5])
def test_floats_are_levels_before_version_6(version: RoomVersion, value: float) -> None:
    assert judge(version, {}, {"ban": value}) == (None if version in versions(1, 5) else f"ban {NO_LEVEL}")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_infinity_is_no_level(value: float) -> None:
    for version in VERSIONS:
        assert judge(version, {}, {"ban": value}) == f"ban {NO_LEVEL}"


@each_version
def test_events_and_notifications_are_objects_of_levels(version: RoomVersion) -> None:
    for value, reason in (([], "is not an object"), (None, "is not an object"), ({"x": "y"}, NO_LEVEL)):
        assert judge(version, None, {"events": value}, ALICE) == f"events {reason}"
        expected = f"notifications {reason}" if version in versions(6) else None
        assert judge(version, None, {"notifications": value}, ALICE) == expected


@each_version
@pytest.mark.parametrize("users", [[], None, "x", {"bob": 1}, {"@bob": 1}, {"": 1}, {BOB: None}, {BOB: "x"}])
def test_users_is_an_object_of_user_ids_and_levels(version: RoomVersion, users: Any) -> None:
    for sender, old in ((ALICE, None), (BOB, {})):
        reason = judge(version, old, {"users": users}, sender)
        assert reason is not None
        assert reason.startswith("users ")


@each_version
def test_users_may_be_missing(version: RoomVersion) -> None:
    assert judge(version, None, {}, ALICE) is None


@each_version
def test_creators_are_not_listed_since_version_12(version: RoomVersion) -> None:
    state = room(version, JOINED, create={"additional_creators": [CAROL]})
    for user_id in (ALICE, CAROL, BOB):
        levels = event(version, "m.room.power_levels", ALICE, {"users": {user_id: 100}}, state_key="")
        refused = version in versions(12) and user_id != BOB
        assert refusal(levels, state) == ("users must not list a creator of the room" if refused else None)


@each_version
def test_the_first_power_levels_are_free(version: RoomVersion) -> None:
    content = {"users": {BOB: 1_000}, "ban": 1_000, "events": {"m.room.name": 1_000}}
    assert judge(version, None, content, ALICE) is None


@each_version
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        (50, 0, True),
        (0, 50, True),
        (None, 50, True),
        (50, None, True),
        (51, 51, True),
        (51, 50, False),
        (51, None, False),
        (50, 51, False),
        (None, 51, False),
    ],
)
def test_changes_of_named_levels(
    version: RoomVersion, name: str, old: int | None, new: int | None, allowed: bool
) -> None:
    before = {} if old is None else {name: old}
    after = {} if new is None else {name: new}
    reason = judge(version, before, after)
    assert (reason is None) is allowed
    if not allowed:
        assert name in str(reason)


@each_version
@pytest.mark.parametrize("name", ["events", "notifications"])
@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        ({"x": 50}, {"x": 0}, True),
        ({"x": 50}, {}, True),
        ({}, {"x": 50}, True),
        ({"x": 51}, {"x": 51, "y": 1}, True),
        ({"x": 51}, {"x": 50}, False),
        ({"x": 51}, {}, False),
        ({"x": 50}, {"x": 51}, False),
        ({}, {"x": 51}, False),
    ],
)
def test_changes_of_events_and_notifications(
    version: RoomVersion, name: str, old: dict[str, int], new: dict[str, int], allowed: bool
) -> None:
    own = {"m.room.power_levels": 0}
    if name == "notifications" and version in versions(1, 5):
        allowed = True
    reason = judge(version, {name: {**own, **old}}, {name: {**own, **new}})
    assert (reason is None) is allowed


@each_version
@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        # other than the sender's own entry: if the current value is greater than or equal to the sender's, reject
        ({CAROL: 49}, {CAROL: 0}, True),
        ({CAROL: 49}, {}, True),
        ({CAROL: 50}, {CAROL: 50}, True),
        ({CAROL: 50}, {CAROL: 49}, False),
        ({CAROL: 50}, {}, False),
        ({CAROL: 51}, {CAROL: 50}, False),
        # if the new value is greater than the sender's current power level, reject
        ({CAROL: 40}, {CAROL: 50}, True),
        ({CAROL: 40}, {CAROL: 51}, False),
        ({}, {CAROL: 50}, True),
        ({}, {CAROL: 51}, False),
        # the sender's own entry
        ({}, {BOB: 49}, True),
        ({}, {BOB: None}, True),
        ({}, {BOB: 51}, False),
    ],
)
def test_changes_of_users(version: RoomVersion, old: dict[str, int], new: dict[str, Any], allowed: bool) -> None:
    after = {user_id: level for user_id, level in {BOB: 50, **new}.items() if level is not None}
    reason = judge(version, {"users": {BOB: 50, **old}}, {"users": after})
    assert (reason is None) is allowed


def test_the_same_level_spelled_otherwise_is_no_change() -> None:
    for version in versions(1, 9):
        assert judge(version, {"ban": 100, "users": {BOB: "50"}}, {"ban": " +100", "users": {BOB: 50}}) is None


def test_creators_may_do_anything_in_version_12() -> None:
    (version,) = versions(12)
    huge = 2**53 - 1
    old = {"users": {BOB: huge}, "ban": huge, "events": {"m.room.power_levels": huge}}
    state = room(version, JOINED, power_levels=old)
    for new in ({}, {"users": {CAROL: huge}, "kick": huge}):
        assert refusal(event(version, "m.room.power_levels", ALICE, new, state_key=""), state) is None
    lower = event(version, "m.room.power_levels", BOB, {"users": {BOB: 0}}, state_key="")
    assert refusal(lower, state) is None


@each_version
def test_unreadable_levels_of_the_past_count_as_absent(version: RoomVersion) -> None:
    old = {"ban": "abc", "notifications": 5, "invite": None}
    assert judge(version, old, {"ban": 50, "notifications": {"room": 50}, "invite": 0}) is None
