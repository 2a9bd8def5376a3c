from __future__ import annotations

import dataclasses

import pytest

from homeserver.protocol.room_versions import ROOM_VERSIONS, EventIdFormat, StateResolution


def having(field: str) -> list[int]:
    return [int(name) for name, version in ROOM_VERSIONS.items() if getattr(version, field)]


def test_the_stable_versions_are_there() -> None:
    assert list(ROOM_VERSIONS) == [str(number) for number in range(1, 13)]
    assert all(version.identifier == name for name, version in ROOM_VERSIONS.items())


# What each page of https://spec.matrix.org/v1.19/rooms/ says.
@pytest.mark.parametrize(
    ("field", "versions"),
    [
        ("references_with_hashes", [1, 2]),
        ("redaction_rule", [1, 2]),
        ("aliases_rule", [1, 2, 3, 4, 5]),
        ("enforce_key_validity", [5, 6, 7, 8, 9, 10, 11, 12]),
        ("strict_canonical_json", [6, 7, 8, 9, 10, 11, 12]),
        ("notifications_need_power", [6, 7, 8, 9, 10, 11, 12]),
        ("knock_join_rule", [7, 8, 9, 10, 11, 12]),
        ("restricted_join_rule", [8, 9, 10, 11, 12]),
        ("knock_restricted_join_rule", [10, 11, 12]),
        ("integer_power_levels", [10, 11, 12]),
        ("creator_is_sender", [11, 12]),
        ("redacts_in_content", [11, 12]),
        ("room_id_is_create_hash", [12]),
        ("creators_have_infinite_power", [12]),
        ("knows_rooms_by_domain", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    ],
)
def test_which_versions_have_what(field: str, versions: list[int]) -> None:
    assert having(field) == versions


def test_event_ids_and_state_resolution() -> None:
    formats = [version.event_id_format for version in ROOM_VERSIONS.values()]
    assert formats == [EventIdFormat.IN_EVENT] * 2 + [EventIdFormat.HASH_BASE64] + [EventIdFormat.HASH_URLSAFE] * 9
    algorithms = [version.state_resolution for version in ROOM_VERSIONS.values()]
    assert algorithms == [StateResolution.V1] + [StateResolution.V2] * 10 + [StateResolution.V2_1]


def test_versions_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ROOM_VERSIONS["11"].identifier = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        ROOM_VERSIONS["13"] = ROOM_VERSIONS["12"]  # type: ignore[index]
