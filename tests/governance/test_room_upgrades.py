from __future__ import annotations

import pytest

from homeserver.governance.room_upgrades import refusal_of_upgrade
from homeserver.protocol.room_versions import ROOM_VERSIONS

ALICE, BOB, CAROL = "alice", "bob", "carol"
EVERYBODY = {ALICE, BOB, CAROL}


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_owners_may(version: str) -> None:
    for owners in ({ALICE}, {ALICE, BOB}):
        assert refusal_of_upgrade(ROOM_VERSIONS[version], ALICE, owners, EVERYBODY) is None


@pytest.mark.parametrize(("version", "reason"), [("1", "last_owner"), ("11", "last_owner"), ("12", "not_owner")])
def test_others_may_not(version: str, reason: str) -> None:
    assert refusal_of_upgrade(ROOM_VERSIONS[version], BOB, {ALICE}, EVERYBODY) == reason
    assert refusal_of_upgrade(ROOM_VERSIONS[version], BOB, {ALICE}, EVERYBODY, {CAROL}) == reason


@pytest.mark.parametrize("version", ["11", "12"])
def test_who_is_alone_may_and_so_may_anybody_where_nobody_is_in_charge(version: str) -> None:
    room_version = ROOM_VERSIONS[version]
    assert refusal_of_upgrade(room_version, BOB, set(), {BOB}) is None
    assert refusal_of_upgrade(room_version, BOB, set(), EVERYBODY) is None
    # Closed accounts can act for nobody.
    assert refusal_of_upgrade(room_version, BOB, {ALICE}, EVERYBODY, {ALICE}) is None
    assert refusal_of_upgrade(room_version, BOB, {ALICE}, {ALICE, BOB}, {ALICE}) is None
