"""homeserver/storage/waiting_events.py: events that wait, in each kind of database."""

from __future__ import annotations

from homeserver.storage import waiting_events as store
from homeserver.storage.database import Database
from homeserver.storage.waiting_events import WaitingEvent

ROOM, ORIGIN = "!room:example.org", "example.org"


def waiting(name: str, *, room_id: str = ROOM, origin: str = ORIGIN, retry_at_ts: int = 1000) -> WaitingEvent:
    return WaitingEvent(room_id, name, origin, b"{}", frozenset({"$lost", "$too"}), 0, retry_at_ts, 1)


MEMBERS = {ORIGIN, "other.org", "small.org"}


def test_so_many_are_kept_of_each_server_and_each_room(database: Database) -> None:
    with database.begin() as connection:
        three = [waiting(f"${number}") for number in range(3)]
        assert set(store.keep(connection, three, MEMBERS, 2, 3)) == {"$0", "$1"}
        # What waits already is kept whatever else there is.
        assert set(store.keep(connection, three, MEMBERS, 2, 3)) == {"$0", "$1"}
        others = [waiting(f"$other{number}", origin="other.org") for number in range(3)]
        assert set(store.keep(connection, others, MEMBERS, 2, 3)) == {"$other0"}
        assert set(store.keep(connection, [waiting("$0", room_id="!b:x")], MEMBERS, 2, 3)) == {"$0"}
        assert store.keep(connection, [], MEMBERS, 2, 3) == {}
        assert store.known_of(connection, ROOM, ["$0", "$2", "$other0"]) == {"$0", "$other0"}
        lacks = frozenset({"$lost", "$too"})
        assert sorted(store.all_lacking(connection)) == sorted(
            [("!b:x", "$0", lacks), (ROOM, "$0", lacks), (ROOM, "$1", lacks), (ROOM, "$other0", lacks)]
        )


def test_whoever_has_the_most_makes_room_for_the_others(database: Database) -> None:
    with database.begin() as connection:
        store.keep(connection, [waiting(f"${number}") for number in range(6)], MEMBERS, 10, 8)
        store.keep(connection, [waiting(f"$other{n}", origin="other.org") for n in range(2)], MEMBERS, 10, 8)
        small = [waiting(f"$small{number}", origin="small.org") for number in range(8)]
        kept = store.keep(connection, small, MEMBERS, 10, 8)
        assert set(kept) == {"$small0", "$small1", "$small2"}
        names = {name for _, name, _ in store.all_lacking(connection)}
        assert names == {"$3", "$4", "$5", "$other0", "$other1", *kept}
        # Nobody has more than them now.
        assert store.keep(connection, small[3:], MEMBERS, 10, 8) == {}


def test_servers_that_are_not_in_the_room_share_the_space_of_one(database: Database) -> None:
    with database.begin() as connection:
        for number in range(5):
            strangers = [waiting(f"$stranger{number}{n}", origin=f"stranger{number}.org") for n in range(2)]
            kept = store.keep(connection, strangers, MEMBERS, 3, 20)
            assert len(kept) == (2, 1, 0, 0, 0)[number]
        assert len(store.keep(connection, [waiting(f"${n}") for n in range(3)], MEMBERS, 3, 20)) == 3


def test_each_is_tried_by_one_process_at_a_time(database: Database) -> None:
    with database.begin() as connection:
        assert store.next_ts(connection) is None
        store.keep(connection, [waiting("$late", retry_at_ts=3000), waiting("$early")], MEMBERS, 10, 10)
        assert store.next_ts(connection) == 1000
        assert store.claim_due(connection, 999, 5000, 10) == []
        (claimed,) = store.claim_due(connection, 1000, 5000, 10)
        assert claimed == waiting("$early")
        assert store.claim_due(connection, 1000, 5000, 10) == []
        store.postpone(connection, claimed, ["$lost"], 2000)
        (again,) = store.claim_due(connection, 2000, 5000, 10)
        assert (again.attempts, again.lacks) == (1, frozenset({"$lost"}))
        # What has come makes it due at once, and nothing makes it late.
        store.make_due(connection, ROOM, ["$early", "$late", "$unknown"], 2500)
        assert {event.event_id for event in store.claim_due(connection, 2500, 5000, 1)} < {"$early", "$late"}
        assert len(store.claim_due(connection, 2500, 5000, 10)) == 1
        store.remove(connection, ROOM, ["$early"])
        store.remove(connection, "!b:x", ["$late"])
        assert [event_id for _, event_id, _ in store.all_lacking(connection)] == ["$late"]
