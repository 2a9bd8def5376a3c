from __future__ import annotations

import pytest

from homeserver.protocol.events import Event
from homeserver.protocol.history_visibility import (
    effective_visibility,
    may_see,
    may_see_event,
    server_may_see,
    server_may_see_event,
)
from tests.factories.rooms import RoomFactory

ALICE = "@alice:example.org"
BOB = "@bob:other.org"
MEMBERSHIPS = [None, "leave", "invite", "knock", "join", "ban"]

# visibility -> the memberships that see an event: if the user never joined afterwards, if it did
SEEN_BY: dict[str, tuple[set[str | None], set[str | None]]] = {
    "world_readable": (set(MEMBERSHIPS), set(MEMBERSHIPS)),
    "shared": ({"join"}, set(MEMBERSHIPS)),
    "invited": ({"join", "invite"}, {"join", "invite"}),
    "joined": ({"join"}, {"join"}),
}


@pytest.mark.parametrize("visibility", SEEN_BY)
@pytest.mark.parametrize("joined_later", [False, True])
def test_the_table(visibility: str, joined_later: bool) -> None:
    seen_by = {name for name in MEMBERSHIPS if may_see(visibility, name, joined_later=joined_later)}
    assert seen_by == SEEN_BY[visibility][joined_later]


@pytest.mark.parametrize("value", [None, "", "private", 5, ["joined"], {}])
def test_what_is_not_understood_is_shared(value: object) -> None:
    assert effective_visibility(value) == "shared"
    assert may_see(value, None, joined_later=True)  # type: ignore[arg-type]
    assert not may_see(value, None, joined_later=False)  # type: ignore[arg-type]


@pytest.fixture
def room() -> RoomFactory:
    factory = RoomFactory()
    factory.create()
    return factory


def sees(event: Event, visibility: str, membership: str | None, user: str = BOB) -> bool:
    return may_see_event(event, user, visibility, membership, joined_later=False)


def test_ordinary_events_follow_the_state_before_them(room: RoomFactory) -> None:
    message = room.send("alice")
    assert sees(message, "joined", "join")
    assert not sees(message, "joined", "invite")
    assert sees(message, "invited", "invite")
    assert may_see_event(message, BOB, "shared", None, joined_later=True)
    assert not sees(message, "shared", "leave")


@pytest.mark.parametrize("visibility", ["joined", "invited", "shared", "world_readable"])
def test_users_see_their_own_joins_and_whatever_ends_them(room: RoomFactory, visibility: str) -> None:
    assert sees(room.join(BOB), visibility, "invite")
    assert sees(room.leave(BOB), visibility, "join")
    assert sees(room.ban("alice", BOB), visibility, "join")


def test_users_see_their_own_invitations_where_invited_users_see_anything(room: RoomFactory) -> None:
    invite = room.invite("alice", BOB)
    assert sees(invite, "invited", None)
    assert not sees(invite, "joined", None)
    rejection = room.leave(BOB)
    assert sees(rejection, "invited", "invite")
    assert not sees(rejection, "joined", "invite")


def test_other_peoples_member_events_are_ordinary(room: RoomFactory) -> None:
    join = room.join("@carol:third.org")
    assert not sees(join, "joined", None)
    assert sees(join, "joined", "join")


@pytest.mark.parametrize(("before", "after"), [("world_readable", "joined"), ("joined", "world_readable")])
def test_changes_of_visibility_are_seen_if_before_or_after_allows_it(
    room: RoomFactory, before: str, after: str
) -> None:
    change = room.state_event("alice", "m.room.history_visibility", {"history_visibility": after})
    assert sees(change, before, None)
    assert not sees(room.send("alice"), "joined", None)


def test_only_the_room_wide_visibility_is_one(room: RoomFactory) -> None:
    other = room.state_event("alice", "m.room.history_visibility", {"history_visibility": "world_readable"}, "x")
    assert not sees(other, "joined", None)


@pytest.mark.parametrize(
    ("visibility", "memberships", "allowed"),
    [
        ("world_readable", [], True),
        ("shared", [], True),
        (None, [], True),
        ("invited", [], False),
        ("invited", [None, "leave", "ban"], False),
        ("invited", ["leave", "invite"], True),
        ("invited", ["join"], True),
        ("joined", ["invite", "leave"], False),
        ("joined", ["leave", "join"], True),
    ],
)
def test_servers(room: RoomFactory, visibility: str | None, memberships: list[str | None], allowed: bool) -> None:
    assert server_may_see(visibility, memberships) is allowed
    assert server_may_see_event(room.send("alice"), "other.org", visibility, memberships) is allowed


def test_servers_see_what_is_theirs(room: RoomFactory) -> None:
    for event in (room.invite("alice", BOB), room.join(BOB), room.send(BOB), room.ban("alice", BOB)):
        assert server_may_see_event(event, "other.org", "joined", [])
        assert not server_may_see_event(event, "third.org", "joined", [])
    change = room.state_event("alice", "m.room.history_visibility", {"history_visibility": "shared"})
    assert server_may_see_event(change, "other.org", "joined", [])
