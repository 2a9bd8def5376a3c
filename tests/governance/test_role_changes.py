from __future__ import annotations

from typing import Any

import pytest

from homeserver.errors import Forbidden, LosingPrivileges, NotFound
from homeserver.governance.role_changes import is_change, with_role
from homeserver.governance.roles import Role
from homeserver.protocol.power_levels import power_levels_of
from homeserver.protocol.room_versions import ROOM_VERSIONS
from tests.governance.test_roles import ALICE, BOB, CAROL, power_levels

JOINED = (ALICE, BOB, CAROL)


def asked(
    sender: str,
    target: str,
    role: Role,
    *,
    version: str = "11",
    confirm: bool = False,
    joined: tuple[str, ...] = JOINED,
    **content: Any,
) -> bool:
    create, event = power_levels(version, **(content or {"users": {ALICE: 100, BOB: 50}}))
    levels = power_levels_of(event.version, create, event)
    return is_change(event.version, levels, joined, sender=sender, target=target, role=role, is_confirmed=confirm)


def test_what_an_owner_does() -> None:
    assert asked(ALICE, BOB, Role.OWNER)
    assert asked(ALICE, BOB, Role.MEMBER)
    assert asked(ALICE, CAROL, Role.MODERATOR)
    assert not asked(ALICE, BOB, Role.MODERATOR)
    assert not asked(ALICE, ALICE, Role.OWNER)


def test_who_is_not_joined_gets_no_role() -> None:
    with pytest.raises(NotFound):
        asked(ALICE, BOB, Role.MEMBER, joined=(ALICE,))


@pytest.mark.parametrize(
    ("sender", "target", "role", "reason"),
    [
        (BOB, CAROL, Role.MODERATOR, "not_owner"),
        (BOB, BOB, Role.OWNER, "not_owner"),
        (BOB, BOB, Role.MEMBER, "not_owner"),
        (BOB, ALICE, Role.MEMBER, "not_owner"),
        (CAROL, CAROL, Role.MEMBER, "not_owner"),
    ],
)
def test_only_owners_change_roles(sender: str, target: str, role: Role, reason: str) -> None:
    with pytest.raises(Forbidden) as refused:
        asked(sender, target, role, confirm=True)
    assert refused.value.extra == {"reason": reason}


def test_equals_are_untouchable() -> None:
    with pytest.raises(Forbidden) as refused:
        asked(ALICE, BOB, Role.MEMBER, users={ALICE: 150, BOB: 100})
    assert refused.value.extra == {"reason": "equal_role"}


def test_lowering_oneself_is_to_be_confirmed() -> None:
    with pytest.raises(LosingPrivileges):
        asked(ALICE, ALICE, Role.MODERATOR)
    assert asked(ALICE, ALICE, Role.MODERATOR, confirm=True)


def test_a_creator_cannot_be_lowered_in_version_12() -> None:
    for sender in (ALICE, BOB):
        with pytest.raises(Forbidden) as refused:
            asked(sender, ALICE, Role.MEMBER, version="12", confirm=True, users={BOB: 100})
        assert refused.value.extra == {"reason": "creator"}
    assert not asked(BOB, ALICE, Role.OWNER, version="12", users={BOB: 100})


def test_all_else_stays_as_it_is() -> None:
    content = {"users": {ALICE: "100", BOB: 75}, "users_default": "5", "org.example": [1.5, None], "events": {"x": 3}}
    create, event = power_levels("9", **{**content, "org.example": [1, None]})
    levels = power_levels_of(event.version, create, event)
    changed = with_role(event.version, levels, event, CAROL, Role.MODERATOR)
    assert changed == {**event.content, "users": {ALICE: "100", BOB: 75, CAROL: 50}}
    assert event.content["users"] == {ALICE: "100", BOB: 75}


@pytest.mark.parametrize(("version", "users"), [("11", {ALICE: 100, BOB: 50}), ("12", {BOB: 50})])
def test_the_first_power_levels_of_a_room_keep_its_creator_in_charge(version: str, users: dict[str, int]) -> None:
    create, _ = power_levels(version)
    levels = power_levels_of(create.version, create, None)
    assert with_role(ROOM_VERSIONS[version], levels, None, BOB, Role.MODERATOR) == {"users": users}
