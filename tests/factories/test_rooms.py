from __future__ import annotations

import pytest

from homeserver.protocol.authorization.auth_events import auth_event_keys
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.hashes import has_intact_content
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.signatures import required_signers, verify_event_signature
from tests.factories.rooms import RoomFactory

ALL = list(ROOM_VERSIONS)
BOB = "@bob:other.org"
MEMBER_BOB = ("m.room.member", BOB)


@pytest.mark.parametrize("version", ALL)
def test_every_event_passes_the_first_three_checks(version: str) -> None:
    room = RoomFactory(version)
    room.create(history_visibility="shared")
    room.invite("alice", BOB)
    room.join(BOB)
    room.set_power_levels("alice", {BOB: 50}, events={"m.room.name": 50})
    room.redact(BOB, room.send(BOB))
    room.ban("alice", BOB)
    room.unban("alice", BOB)
    room.knock(BOB)
    assert len({event.event_id for event in room.events.values()}) == len(room.events)
    for event in room.events.values():
        assert parse_event(event.pdu, room.version, room_id=room.room_id).event_id == event.event_id
        assert has_intact_content(event)
        for server in required_signers(event):
            verify_event_signature(event, server, room.keys(server))


def test_the_same_story_makes_the_same_events() -> None:
    rooms = [RoomFactory(), RoomFactory()]
    for room in rooms:
        room.create()
        room.send("alice")
    assert list(rooms[0].events) == list(rooms[1].events)


def test_state_and_history_follow_the_graph() -> None:
    room = RoomFactory()
    room.create()
    joined = room.join(BOB)
    message = room.send(BOB)
    banned = room.ban("alice", BOB)
    assert message.prev_events == (joined.event_id,)
    assert message.depth == joined.depth + 1
    assert MEMBER_BOB not in room.state_before(joined)
    assert room.state_after(joined)[MEMBER_BOB] is joined
    assert room.state_before(banned)[MEMBER_BOB] is joined
    assert room.state[MEMBER_BOB] is banned
    assert room.extremities == [banned.event_id]


def test_forks_and_merges() -> None:
    room = RoomFactory()
    room.create()
    start = room.send("alice", "start")
    left = room.join(BOB, prev_events=[start])
    right = room.state_event("alice", "m.room.name", {"name": "x"}, prev_events=[start])
    assert room.extremities == [left.event_id, right.event_id]
    assert MEMBER_BOB not in room.state_after(right)
    merged = room.send(BOB)
    assert set(merged.prev_events) == {left.event_id, right.event_id}
    state = room.state_before(merged)
    assert state[MEMBER_BOB] is left
    assert state[("m.room.name", "")] is right
    assert room.extremities == [merged.event_id]


def test_where_branches_differ_the_newer_event_counts() -> None:
    room = RoomFactory()
    start = room.create()
    old = room.state_event("alice", "m.room.name", {"name": "old"}, prev_events=[start])
    new = room.state_event("alice", "m.room.name", {"name": "new"}, prev_events=[start])
    assert room.state[("m.room.name", "")] is new
    merged = room.send("alice", prev_events=[new, old])
    assert room.state_before(merged)[("m.room.name", "")] is new


@pytest.mark.parametrize("version", ALL)
def test_auth_events_are_those_of_the_selection(version: str) -> None:
    room = RoomFactory(version)
    room.create()
    join = room.join(BOB)
    cited = {room.events[event_id].key for event_id in join.auth_events}
    keys = auth_event_keys(join.type, join.sender, join.state_key, join.content, room.version)
    assert cited == set(keys) - {MEMBER_BOB}
    chain = room.auth_chain([join])
    if version != "12":
        assert room.create_event in chain
    assert join not in chain


def test_invitations_and_vouched_joins_bear_both_signatures() -> None:
    room = RoomFactory()
    room.create()
    assert sorted(room.invite("alice", BOB).pdu["signatures"]) == ["example.org", "other.org"]
    join = room.join(BOB, content={"join_authorised_via_users_server": "@alice:example.org"})
    assert sorted(join.pdu["signatures"]) == ["example.org", "other.org"]
    assert room.events[join.event_id] is join


def test_power_levels_keep_what_is_not_changed() -> None:
    room = RoomFactory()
    room.create()
    room.set_power_levels("alice", {BOB: 50})
    changed = room.set_power_levels("alice", {"@carol:third.org": 10}, ban=60)
    assert changed.content["users"] == {"@alice:example.org": 100, BOB: 50, "@carol:third.org": 10}
    assert changed.content["ban"] == 60
    assert changed.content["kick"] == 50


def test_a_room_may_begin_bare() -> None:
    room = RoomFactory("12")
    create = room.create(bare=True, content={"m.federate": False})
    assert list(room.events) == [create.event_id]
    assert create.content["m.federate"] is False
    assert room.room_id == "!" + create.event_id[1:]
