"""Who has which level, and what each act takes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from homeserver.errors import BadJson
from homeserver.protocol.power_levels import PowerLevels, check_levels, creators_of, parse_level, power_levels_of
from homeserver.protocol.room_versions import RoomVersion
from tests.protocol.symbolic import ALICE, BOB, CAROL, VERSIONS, create_event, event, versions

each_version = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: f"v{version.identifier}")


def levels(version: RoomVersion, content: dict[str, Any] | None, **create: Any) -> PowerLevels:
    power_levels = None
    if content is not None:
        power_levels = event(version, "m.room.power_levels", ALICE, content, state_key="")
    return power_levels_of(version, create_event(version, **create), power_levels)


@each_version
def test_defaults_with_and_without_an_event(version: RoomVersion) -> None:
    for content in (None, {}):
        power = levels(version, content)
        assert (power.invite, power.kick, power.ban, power.redact) == (0, 50, 50, 50)
        assert (power.users_default, power.events_default, power.state_default) == (0, 0, 50)
        assert power.notification("room") == 50
        assert (power.to_send("m.room.message", False), power.to_send("m.room.topic", True)) == (0, 50)
        assert power.of_user(BOB) == 0


@each_version
def test_what_is_said_counts(version: RoomVersion) -> None:
    content = {
        "invite": 1,
        "kick": 2,
        "ban": 3,
        "redact": 4,
        "users_default": 5,
        "events_default": 6,
        "state_default": 7,
        "notifications": {"room": 8},
        "events": {"m.x": -9},
        "users": {BOB: 10},
    }
    power = levels(version, content)
    assert (power.invite, power.kick, power.ban, power.redact) == (1, 2, 3, 4)
    assert (power.users_default, power.events_default, power.state_default) == (5, 6, 7)
    assert (power.notification("room"), power.notification("x")) == (8, 50)
    assert (power.to_send("m.x", True), power.to_send("m.x", False)) == (-9, -9)
    assert (power.to_send("m.y", True), power.to_send("m.y", False)) == (7, 6)
    assert (power.of_user(BOB), power.of_user(CAROL)) == (10, 5)


def test_creators() -> None:
    for version in VERSIONS:
        additional = version in versions(12)
        power = levels(version, None, additional_creators=[BOB, 5])
        assert power.creators == ({ALICE, BOB} if additional else {ALICE})
        assert power.of_user(ALICE) == (math.inf if additional else 100)
        assert power.of_user(BOB) == (math.inf if additional else 0)
        listed = levels(version, {"users": {ALICE: 7}})
        assert listed.of_user(ALICE) == (math.inf if additional else 7)
        assert levels(version, {}).of_user(ALICE) == (math.inf if additional else 0)


def test_the_creator_is_content_creator_before_version_11() -> None:
    for version in VERSIONS:
        create = event(version, "m.room.create", ALICE, {"creator": BOB, "additional_creators": {}}, state_key="")
        assert creators_of(version, create) == ({BOB} if version in versions(1, 10) else {ALICE})
        assert creators_of(version, None) == frozenset()
    odd = event(VERSIONS[0], "m.room.create", ALICE, {"creator": [BOB]}, state_key="")
    assert creators_of(VERSIONS[0], odd) == frozenset()


@pytest.mark.parametrize(
    ("value", "level", "in_versions"),
    [
        (50, 50, VERSIONS),
        (-(2**53) + 1, -(2**53) + 1, VERSIONS),
        ("50", 50, versions(1, 9)),
        (" +50 ", 50, versions(1, 9)),
        ("\t-00100\n", -100, versions(1, 9)),
        ("0" * 60_000 + "7", 7, versions(1, 9)),
        ("000", 0, versions(1, 9)),
        (50.57, 50, versions(1, 5)),
        (5.114698e4, 51146, versions(1, 5)),
        (-50.57, -50, versions(1, 5)),
        (1e300, int(1e300), versions(1, 5)),
        (math.inf, None, []),
        (math.nan, None, []),
        ("9" * 310, None, []),
        ("", None, []),
        ("+", None, []),
        ("- 5", None, []),
        ("--5", None, []),
        ("5.0", None, []),
        ("1e3", None, []),
        ("1_0", None, []),
        ("٣", None, []),
        (True, None, []),
        (None, None, []),
        ([50], None, []),
        ({}, None, []),
    ],
)
def test_what_counts_as_a_level(value: Any, level: int | None, in_versions: list[RoomVersion]) -> None:
    for version in VERSIONS:
        assert parse_level(value, version) == (level if version in in_versions else None)


@each_version
@pytest.mark.parametrize("odd", [None, [], "x", 5, {"room": "x", BOB: "x", "m.x": []}])
def test_what_cannot_be_read_counts_as_absent(version: RoomVersion, odd: Any) -> None:
    power = levels(version, {"users": odd, "events": odd, "notifications": odd, "ban": odd if odd != 5 else None})
    assert power.of_user(BOB) == 0
    assert power.to_send("m.x", False) == 0
    assert power.notification("room") == 50
    assert power.ban == 50


@pytest.mark.parametrize("wrong", ["50", 50.0, True, None, [], {}])
def test_clients_write_integers(wrong: Any) -> None:
    whole = {
        "ban": 50, "events_default": 0, "invite": 0, "kick": 50, "redact": 50, "state_default": 50, "users_default": -1,
        "users": {ALICE: 100}, "events": {"m.room.name": 50}, "notifications": {"room": 50}, "org.example": "anything",
    }  # fmt: skip
    check_levels(whole)
    check_levels({})
    for name, value in whole.items():
        if isinstance(value, dict):
            with pytest.raises(BadJson, match=name):
                check_levels({**whole, name: {"x": wrong}})
        if name != "org.example" and not (isinstance(value, dict) and wrong == {}):
            with pytest.raises(BadJson, match=name):
                check_levels({**whole, name: wrong})
