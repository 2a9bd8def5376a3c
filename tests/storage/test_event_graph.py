"""homeserver/storage/event_graph.py: what many IDs cost."""

from __future__ import annotations

from homeserver.storage.database import Database
from homeserver.storage.event_graph import known_events
from tests.factories.rooms import RoomFactory
from tests.storage.stored_rooms import store_room


class SearchedOnce(list[str]):
    """A list that must not be searched for each event that was found: it may be the state of a large room."""

    def __contains__(self, _: object) -> bool:
        raise AssertionError("a list is searched")


def test_ids_are_not_searched_in_a_list(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    room = RoomFactory()
    room.create("alice")
    room.join("bob")
    store_room(database, room)
    with database.begin() as connection:
        found = known_events(connection, {1: SearchedOnce([*room.events, "$unknown"])})
    assert found[1].keys() == room.events.keys()
    database.close()
