"""homeserver/storage/integrity.py: a sound database has no problems, and each kind of damage is one."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from homeserver.storage import accounts, server_identity
from homeserver.storage.database import Database
from homeserver.storage.integrity import counts, find_problems, wrong_server_name
from tests.factories.rooms import RoomFactory
from tests.storage.stored_rooms import store_room


@pytest.fixture
def stored(database: Database) -> Database:
    for number, version in enumerate(("1", "11", "12")):
        room = RoomFactory(version, room_localpart=f"room{number}")
        room.create("alice")
        room.state_event("alice", "m.room.name", {"name": "A room"})
        room.send("alice", "hello")
        room.join("@bob:other.org")
        store_room(database, room)
    return database


def test_a_sound_database(stored: Database) -> None:
    assert stored.read_now(find_problems) == []
    assert stored.read_now(counts) == {"rooms": 3, "events": 21}


DAMAGES = {
    "DELETE FROM rooms WHERE room_nid = 2": "events.room_nid leads to nothing",
    "DELETE FROM state_groups WHERE state_group = 2": "events.state_group leads to nothing",
    "DELETE FROM events WHERE event_nid = 3": "event_edges.prev_nid leads to nothing",
    "UPDATE events SET state_group = NULL WHERE event_nid = 4": "an accepted event has no state after it",
    "UPDATE events SET stream_position = NULL WHERE event_nid = 4": "an event of a timeline has no position",
    "UPDATE events SET verdict = 2 WHERE event_nid = 7": "a forward extremity is not an accepted event of its room",
    "DELETE FROM forward_extremities WHERE room_nid = 2": "a room with a state has no forward extremity",
    "INSERT INTO backward_extremities (missing_event_id, event_nid, room_nid) SELECT event_id, 2, 1 FROM events "
    "WHERE event_nid = 1": "an event that is here counts as missing",
    "UPDATE events SET json = (SELECT json FROM events WHERE event_nid = 9) WHERE event_nid = 8": (
        "an event cannot be read or is not what its ID says"
    ),
    "DELETE FROM current_state WHERE room_nid = 2 AND event_nid = 10": "the current state differs from its state group",
    "UPDATE room_members SET event_nid = 3 WHERE room_nid = 1": "a member is not in the current state",
    "DELETE FROM room_members WHERE room_nid = 1": "a membership of the current state is not in the list of members",
    "UPDATE counters SET event = 7": "events.event_nid is ahead of its counter",
    "DELETE FROM counters": "events.event_nid is ahead of its counter",
}


@pytest.mark.parametrize(("damage", "what"), DAMAGES.items(), ids=DAMAGES.values())
def test_damage_is_found(stored: Database, damage: str, what: str) -> None:
    with stored.begin() as connection:
        connection.execute(text(damage))
    problems = stored.read_now(find_problems)
    (problem,) = [problem for problem in problems if problem.what == what]
    assert problem.count >= len(problem.examples) >= 1
    assert str(problem).startswith(f"{what}: {problem.count} (such as ")


def test_an_unreadable_event_is_found(stored: Database) -> None:
    with stored.begin() as connection:
        connection.execute(text("UPDATE events SET json = :json WHERE event_nid = 8"), {"json": b"{"})
    assert [problem.count for problem in stored.read_now(find_problems)] == [1]


def test_what_belongs_to_another_server_is_found(stored: Database) -> None:
    with stored.begin() as connection:
        server_identity.claim(connection, "one.example")
        for user_id in ("@ann:one.example", "@ann:two.example"):
            accounts.create_user(connection, user_id, None, is_admin=False, now_ms=1)
    (problem,) = stored.read_now(find_problems)
    assert str(problem) == "an account is of another server: 1 (such as @ann:two.example)"
    assert stored.read_now(wrong_server_name, "one.example") == []
    (problem,) = stored.read_now(wrong_server_name, "two.example")
    assert 'belongs to the server "one.example"' in problem.what
