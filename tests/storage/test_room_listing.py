"""homeserver/storage/room_listing.py."""

from __future__ import annotations

from homeserver.storage.database import Database
from homeserver.storage.room_listing import RoomSummary, list_rooms, show_room
from tests.factories.rooms import START_TS, RoomFactory
from tests.storage.stored_rooms import store_room


def test_list_and_show(database: Database) -> None:
    plain = RoomFactory("10", room_localpart="plain")
    plain.create("alice")
    furnished = RoomFactory(room_localpart="furnished")
    furnished.create("alice")
    furnished.join("@bob:other.org")
    furnished.ban("alice", "@bob:other.org")
    furnished.state_event("alice", "m.room.name", {"name": "Furnished"})
    furnished.state_event("alice", "m.room.canonical_alias", {"alias": "#furnished:example.org"})
    furnished.state_event("alice", "m.room.topic", {"topic": ["not text"]})
    for room in (plain, furnished):
        store_room(database, room)

    summaries = database.read_now(list_rooms)
    assert summaries == [
        RoomSummary(plain.room_id, "10", None, None, 1, START_TS),
        RoomSummary(furnished.room_id, "11", "Furnished", "#furnished:example.org", 1, START_TS),
    ]
    details = database.read_now(show_room, furnished.room_id)
    assert details is not None
    assert details.summary == summaries[1]
    assert details.creator == "@alice:example.org"
    assert details.topic is None
    assert not details.encrypted
    assert details.members == {"join": ["@alice:example.org"], "ban": ["@bob:other.org"]}
    assert (details.events, details.forward_extremities) == (len(furnished.events), 1)
    assert database.read_now(show_room, "#furnished:example.org") == details
    assert database.read_now(show_room, "!unknown:example.org") is None
