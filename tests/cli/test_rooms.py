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


@pytest.fixture
def ownerless_room(migrated_server: Path) -> RoomFactory:
    room = RoomFactory()
    room.create("alice")
    room.join("bob")
    room.join("@zoe:other.org")
    room.set_power_levels("alice", {"bob": 50})
    room.leave("alice")
    database = Database(f"sqlite:///{migrated_server / 'homeserver.db'}")
    store_room(database, room)
    database.close()
    return room


def test_rooms_without_an_owner(run: Run, room: RoomFactory) -> None:
    assert run("rooms", "ownerless", "--json").json() == []
    assert run("rooms", "ownerless").status == 0
    shown = run("rooms", "show", room.room_id, "--json").json()
    assert (shown["ownerless"], shown["owners"]) == (False, ["@alice:example.org"])


def test_a_room_without_an_owner(run: Run, ownerless_room: RoomFactory) -> None:
    (listed,) = run("rooms", "ownerless", "--json").json()
    assert listed == {
        "room_id": ownerless_room.room_id,
        "joined_members": 2,
        "local_members": 1,
        "name": None,
        "canonical_alias": None,
    }
    assert ownerless_room.room_id in run("rooms", "ownerless").out
    shown = run("rooms", "show", ownerless_room.room_id, "--json").json()
    assert (shown["ownerless"], shown["owners"]) == (True, [])
    assert shown["could_have_prevented"] == [
        {"user_id": "@alice:example.org", "membership": "leave", "is_owner_on_return": True, "is_closed": False}
    ]
    assert (shown["may_give_owner"], shown["may_invite"]) == ([], ["@bob:example.org"])
    text = run("rooms", "show", ownerless_room.room_id).out
    assert "@alice:example.org         leave       yes                    no" in text
