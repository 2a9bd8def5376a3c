from __future__ import annotations

from homeserver.governance.last_owner import leaves_ownerless, may_remove_owner, removes_owner
from homeserver.protocol.events import CREATE, POWER_LEVELS, Event
from tests.factories.rooms import RoomFactory

ALICE, BOB, CAROL = (f"@{name}:example.org" for name in ("alice", "bob", "carol"))


def room_of(*owners: str, version: str = "11", **levels: object) -> RoomFactory:
    room = RoomFactory(version)
    room.create("alice")
    room.event("alice", "m.room.power_levels", {"users": dict.fromkeys(owners, 100), **levels}, "")
    return room


def member(room: RoomFactory, sender: str, target: str, membership: str) -> Event:
    return room.event(sender, "m.room.member", {"membership": membership}, target)


def test_which_events_are_looked_at() -> None:
    room = room_of(ALICE)
    for membership in ("leave", "ban", "invite", "knock"):
        assert may_remove_owner(member(room, ALICE, BOB, membership))
    assert not may_remove_owner(member(room, BOB, BOB, "join"))
    assert may_remove_owner(room.event("alice", "m.room.power_levels", {}, ""))
    assert not may_remove_owner(room.event("alice", "m.room.power_levels", {}, "key"))
    assert not may_remove_owner(room.send("alice"))


def test_departures() -> None:
    room = room_of(ALICE, BOB)
    state = dict(room.state)
    leave = member(room, ALICE, ALICE, "leave")
    assert not leaves_ownerless(leave, state, {ALICE, BOB, CAROL})
    assert leaves_ownerless(leave, state, {ALICE, CAROL})
    assert not leaves_ownerless(leave, state, {ALICE})
    assert not leaves_ownerless(member(room, CAROL, CAROL, "leave"), state, {ALICE, CAROL})
    assert removes_owner(leave, state, {ALICE, BOB})
    assert not removes_owner(member(room, CAROL, CAROL, "leave"), state, {ALICE, CAROL})


def test_new_power_levels() -> None:
    room = room_of(ALICE)
    state = dict(room.state)

    def ownerless(joined: set[str], **content: object) -> bool:
        event = room.event("alice", "m.room.power_levels", dict(content), "")
        return leaves_ownerless(event, state, joined)

    assert removes_owner(room.event("alice", "m.room.power_levels", {"users": {CAROL: 100}}, ""), state, {ALICE})
    assert not removes_owner(room.event("alice", "m.room.power_levels", {"users": {ALICE: 150}}, ""), state, {ALICE})
    assert ownerless({ALICE, CAROL}, users={})
    assert ownerless({ALICE, CAROL}, users={BOB: 100})
    assert not ownerless({ALICE, CAROL}, users={CAROL: 100})
    assert not ownerless({ALICE}, users={})
    assert not ownerless({ALICE, CAROL}, users={}, users_default=100)
    assert ownerless({ALICE, CAROL}, users={CAROL: 99, ALICE: 0}, users_default=99)
    assert not ownerless({ALICE, CAROL}, users={ALICE: 100})


def test_a_room_that_has_none_already() -> None:
    room = room_of(BOB)
    leave = member(room, ALICE, ALICE, "leave")
    assert not leaves_ownerless(leave, room.state, {ALICE, CAROL})


def test_closed_accounts_count_neither_as_owners_nor_as_others() -> None:
    room = room_of(ALICE, BOB)
    leave = member(room, ALICE, ALICE, "leave")
    assert leaves_ownerless(leave, room.state, {ALICE, BOB, CAROL}, closed={BOB})
    assert not leaves_ownerless(leave, room.state, {ALICE, BOB}, closed={BOB})
    levels = room.event("alice", "m.room.power_levels", {"users": {BOB: 100}}, "")
    state = {key: event for key, event in room.state.items() if key in (CREATE, POWER_LEVELS)}
    state[POWER_LEVELS] = room_of(ALICE, BOB).state[POWER_LEVELS]
    assert leaves_ownerless(levels, state, {ALICE, BOB, CAROL}, closed={BOB})
    assert not leaves_ownerless(levels, state, {ALICE, BOB, CAROL})


def test_creators_of_version_12() -> None:
    room = room_of(BOB, version="12")
    leave = member(room, ALICE, ALICE, "leave")
    assert not leaves_ownerless(leave, room.state, {ALICE, BOB})
    assert leaves_ownerless(leave, room.state, {ALICE, CAROL})
