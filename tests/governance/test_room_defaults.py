"""homeserver/governance/room_defaults.py: rule 6 of the governance API, to the number."""

from __future__ import annotations

import pytest

from homeserver.governance.room_defaults import default_power_levels
from homeserver.protocol.room_versions import ROOM_VERSIONS

ALICE = "@alice:example.org"


@pytest.mark.parametrize("version", [str(number) for number in range(1, 12)])
def test_the_levels_of_a_new_room(version: str) -> None:
    assert default_power_levels(ROOM_VERSIONS[version], [ALICE], None) == {
        "users": {ALICE: 100},
        "users_default": 0,
        "events": {
            "m.room.name": 50,
            "m.room.topic": 50,
            "m.room.avatar": 50,
            "m.room.canonical_alias": 50,
            "m.room.power_levels": 100,
            "m.room.join_rules": 100,
            "m.room.history_visibility": 100,
            "m.room.guest_access": 100,
            "m.room.encryption": 100,
            "m.room.server_acl": 100,
            "m.room.tombstone": 100,
        },
        "events_default": 0,
        "state_default": 50,
        "invite": 50,
        "kick": 50,
        "ban": 50,
        "redact": 50,
    }


def test_version_12_keeps_the_end_of_a_room_to_its_creators() -> None:
    levels = default_power_levels(ROOM_VERSIONS["12"], [], None)
    assert levels["users"] == {}
    older = default_power_levels(ROOM_VERSIONS["11"], [], None)
    assert levels == {**older, "events": {**older["events"], "m.room.tombstone": 150}}
    assert levels["events"]["m.room.tombstone"] > levels["state_default"]


def test_what_the_client_says_wins_key_by_key() -> None:
    override = {"invite": 0, "users": {"@bob:example.org": 7}, "org.example.new": True}
    levels = default_power_levels(ROOM_VERSIONS["11"], [ALICE], override)
    assert levels == {**default_power_levels(ROOM_VERSIONS["11"], [ALICE], None), **override}


def test_no_two_rooms_share_what_can_be_changed() -> None:
    default_power_levels(ROOM_VERSIONS["11"], [ALICE], None)["events"]["m.room.name"] = 0
    assert default_power_levels(ROOM_VERSIONS["11"], [ALICE], None)["events"]["m.room.name"] == 50
