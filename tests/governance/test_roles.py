from __future__ import annotations

import pytest

from homeserver.governance.roles import Role, changed_roles, joined_owners, listed_users, role_of
from homeserver.protocol.events import Event
from homeserver.protocol.power_levels import INFINITE, power_levels_of
from tests.factories.rooms import RoomFactory

ALICE, BOB, CAROL = (f"@{name}:example.org" for name in ("alice", "bob", "carol"))


@pytest.mark.parametrize(
    ("level", "role"),
    [
        (-1, Role.MEMBER),
        (0, Role.MEMBER),
        (49, Role.MEMBER),
        (50, Role.MODERATOR),
        (75, Role.MODERATOR),
        (99, Role.MODERATOR),
        (100, Role.OWNER),
        (101, Role.OWNER),
        (INFINITE, Role.OWNER),
    ],
)
def test_levels_fall_into_roles(level: float, role: Role) -> None:
    assert role_of(level) is role


def test_the_level_of_a_role_falls_into_it() -> None:
    assert [role_of(role.level) for role in Role] == list(Role)
    assert sorted(Role, key=lambda role: role.rank) == [Role.MEMBER, Role.MODERATOR, Role.OWNER]


def power_levels(version: str = "11", **content: object) -> tuple[Event, Event]:
    """The create event of a room of alice's, and its power levels."""
    room = RoomFactory(version)
    create = room.event("alice", "m.room.create", {"room_version": version, "creator": ALICE}, "")
    room.member("alice", "alice", "join")
    return create, room.event("alice", "m.room.power_levels", dict(content), "")


def test_owners_are_joined() -> None:
    create, event = power_levels(users={ALICE: 100, BOB: 100, CAROL: 99})
    levels = power_levels_of(event.version, create, event)
    assert joined_owners(levels, listed_users(event), {BOB, CAROL}) == {BOB}
    assert joined_owners(levels, listed_users(event), {CAROL}) == set()


def test_everybody_may_be_an_owner_by_default() -> None:
    create, event = power_levels(users={ALICE: 50}, users_default=100)
    levels = power_levels_of(event.version, create, event)
    assert joined_owners(levels, listed_users(event), {ALICE, BOB, CAROL}) == {BOB, CAROL}


@pytest.mark.parametrize(("version", "owners"), [("11", set[str]()), ("12", {ALICE})])
def test_creators_of_version_12_are_owners_for_ever(version: str, owners: set[str]) -> None:
    create, event = power_levels(version, users={})
    levels = power_levels_of(event.version, create, event)
    assert joined_owners(levels, listed_users(event), {ALICE, BOB}) == owners


def test_without_the_event_the_creator_is_owner() -> None:
    create, _ = power_levels()
    assert joined_owners(power_levels_of(create.version, create, None), [], {ALICE, BOB}) == {ALICE}


def test_odd_lists_of_users() -> None:
    for users in (None, [], "x"):
        assert listed_users(power_levels(users=users)[1]) == []
    assert listed_users(None) == []


def changes(old: dict[str, object], new: dict[str, object], *joined: str) -> dict[str, tuple[Role, Role]]:
    create, before = power_levels(**old)
    return changed_roles(create, before, power_levels(**new)[1], joined)


def test_changed_roles() -> None:
    users = {ALICE: 100, BOB: 75}
    assert changes({"users": users}, {"users": {ALICE: 150, BOB: 50}}) == {}
    assert changes({"users": users}, {"users": {ALICE: 100}}) == {BOB: (Role.MODERATOR, Role.MEMBER)}
    assert changes({"users": users}, {"users": {**users, CAROL: 100}}) == {CAROL: (Role.MEMBER, Role.OWNER)}


def test_the_default_changes_the_roles_of_those_who_are_there_and_of_those_who_come() -> None:
    assert changes({"users": {ALICE: 100}}, {"users": {ALICE: 100}, "users_default": 50}, ALICE, BOB) == {
        BOB: (Role.MEMBER, Role.MODERATOR),
        "": (Role.MEMBER, Role.MODERATOR),
    }
    assert changes({"users_default": 10}, {"users_default": 20}, ALICE, BOB) == {}
