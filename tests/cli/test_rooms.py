"""``homeserver rooms``."""

from __future__ import annotations

from pathlib import Path

import pytest

from homeserver.storage.database import Database
from tests.cli.conftest import Run
from tests.factories.rooms import RoomFactory
from tests.storage.stored_rooms import store_room


@pytest.fixture
def room(migrated_server: Path) -> RoomFactory:
    room = RoomFactory()
    room.create("alice")
    room.state_event("alice", "m.room.name", {"name": "\x1b[2Jclear"})
    database = Database(f"sqlite:///{migrated_server / 'homeserver.db'}")
    store_room(database, room)
    database.close()
    return room


def test_list(run: Run, room: RoomFactory) -> None:
    (listed,) = run("rooms", "list", "--json").json()
    assert (listed["room_id"], listed["version"], listed["joined_members"]) == (room.room_id, "11", 1)
    assert room.room_id in (table := run("rooms", "list").out)
    assert "\x1b" not in table


def test_show(run: Run, room: RoomFactory) -> None:
    shown = run("rooms", "show", room.room_id, "--json").json()
    assert shown["creator"] == "@alice:example.org"
    assert shown["members"] == {"join": ["@alice:example.org"]}
    text = run("rooms", "show", room.room_id).out
    assert "@alice:example.org  join" in text
    assert "\x1b" not in text


def test_show_an_unknown_room(run: Run, migrated_server: Path) -> None:
    outcome = run("rooms", "show", "!gone:example.org")
    assert outcome.status == 1
    assert "!gone:example.org" in outcome.err
