"""What a part of a list costs: what it holds, whatever the room holds. On both kinds of database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, update

from homeserver.storage import listings, read_receipts
from homeserver.storage.database import Database
from homeserver.storage.receipts import NewReceipt
from homeserver.storage.receipts import store as store_receipts
from homeserver.storage.tables import events, invitations, receipts, room_members

SMALL, LARGE = 300, 3_000
ROOMS = {1: SMALL, 2: LARGE}
PAGE = 20
MESSAGE = 1
"""The position of the message that everybody has read."""
LATEST = 1_000_000
"""That of one that nobody has read."""


def member(number: int) -> str:
    return f"@{number:05}:other.org"


OTHERS = frozenset(member(number) for number in range(0, 100, 2))


@pytest.fixture(scope="module")
def rooms(shared_database: Database) -> Database:
    """A small room and a large one, each with members, banned users, invitations and receipts."""
    with shared_database.begin() as connection:
        for room_nid, size in ROOMS.items():
            _fill(connection, room_nid, size)
    if not shared_database.is_sqlite:
        with shared_database.engine.connect() as connection:
            connection.exec_driver_sql("ANALYZE")
            connection.commit()
    return shared_database


def _fill(connection: Connection, room_nid: int, size: int) -> None:
    first = room_nid * 100_000
    message, latest = first + 90_000, first + 90_001
    rows: list[dict[str, Any]] = [_event(first + n, room_nid, None) for n in range(2 * size)]
    rows += [_event(message, room_nid, MESSAGE), _event(latest, room_nid, LATEST + room_nid)]
    connection.execute(insert(events), rows)
    connection.execute(
        insert(room_members),
        [
            {
                "room_nid": room_nid,
                "user_id": member(n),
                "membership": "join" if n < size else "ban",
                "event_nid": first + n,
                "event_ts": n % size // 3,
                "display_name": f"name {n * 7919 % size:05}",
                "sort_name": f"name {n * 7919 % size:05}",
            }
            for n in range(2 * size)
        ],
    )
    connection.execute(
        insert(invitations),
        [
            {
                "room_nid": room_nid,
                "user_id": member(n),
                "status": "pending",
                "invited_by": member(0),
                "invited_ts": n // 3,
                "updated_ts": n,
                "event_nid": first + n,
            }
            for n in range(size)
        ],
    )
    connection.execute(
        insert(receipts),
        [
            {
                "room_nid": room_nid,
                "receipt_type": "m.read",
                "user_id": member(n),
                "thread_id": "",
                "event_id": f"${message}",
                "event_nid": message,
                "ts": n,
                "position": first + n,
            }
            for n in range(size)
        ],
    )


def _event(nid: int, room_nid: int, position: int | None) -> dict[str, Any]:
    return {
        "event_nid": nid,
        "event_id": f"${nid}",
        "room_nid": room_nid,
        "type": "m.room.member",
        "depth": 1,
        "origin_server_ts": nid,
        "stream_position": position,
        "verdict": 0,
        "json": json.dumps({"sender": member(0), "content": {"reason": "noise"}}).encode(),
    }


def work(database: Database, read: Callable[..., Sequence[Any]], room_nid: int, *args: Any) -> tuple[list[Any], int]:
    """What is read, and how much the database had to look at: steps of SQLite, rows of PostgreSQL."""
    return database.read_now(_steps if database.is_sqlite else _rows, read, room_nid, *args)


def _steps(connection: Connection, read: Callable[..., Sequence[Any]], *args: Any) -> tuple[list[Any], int]:
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    raw = connection.connection.driver_connection
    assert raw is not None
    raw.set_progress_handler(count, 1)
    try:
        found = list(read(connection, *args))
    finally:
        raw.set_progress_handler(None, 0)
    return found, steps


def _rows(connection: Connection, read: Callable[..., Sequence[Any]], *args: Any) -> tuple[list[Any], int]:
    run: list[tuple[str, Any]] = []

    def remember(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        run.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", remember)
    try:
        found = list(read(connection, *args))
    finally:
        event.remove(connection, "before_cursor_execute", remember)
    rows = 0
    for statement, parameters in run:
        explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).scalar_one()
        rows += sum(_looked_at(node) for node in _nodes(explained[0]["Plan"]))
    return found, rows


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _looked_at(node: dict[str, Any]) -> int:
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Join Filter", 0)
    return int((node["Actual Rows"] + removed) * node["Actual Loops"])


PARTS: dict[str, tuple[Callable[..., Sequence[Any]], tuple[Any, ...]]] = {
    "the first members": (listings.joined_after, (listings.FIRST, PAGE, OTHERS)),
    "members in the middle": (listings.joined_after, (("name 00150", "@"), PAGE, OTHERS)),
    "the first invitations": (listings.invitations_of, (PAGE, None)),
    "invitations in the middle": (listings.invitations_of, (PAGE, (50, 2**52))),
    "the first bans": (listings.bans_of, (PAGE, None)),
    "bans in the middle": (listings.bans_of, (PAGE, (50, 2**52))),
    "the first receipts": (read_receipts.read_receipts_of, (["", "main"], MESSAGE, "", PAGE)),
    "receipts in the middle": (read_receipts.read_receipts_of, (["", "main"], MESSAGE, member(150), PAGE)),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_costs_what_it_holds_and_not_what_the_room_holds(rooms: Database, part: str) -> None:
    read, args = PARTS[part]
    for room_nid in ROOMS:
        work(rooms, read, room_nid, *args)  # SQLite reads the schema on the first occasion
    (few, little), (many, more) = (work(rooms, read, room_nid, *args) for room_nid in ROOMS)
    assert len(few) == len(many) == PAGE
    assert more <= little * 1.5
    whole, _ = work(rooms, *_whole(read, 2))
    assert len(whole) == LARGE


def _whole(read: Callable[..., Sequence[Any]], room_nid: int) -> tuple[Any, ...]:
    if read is listings.joined_after:
        return listings.joined_members, room_nid
    return (read, room_nid, ["", "main"], MESSAGE) if read is read_receipts.read_receipts_of else (read, room_nid)


def test_users_who_are_looked_for_cost_no_more_in_a_large_room(rooms: Database) -> None:
    (_, little), (found, more) = (work(rooms, listings.joined_among, room_nid, OTHERS) for room_nid in ROOMS)
    assert more <= little * 2  # PostgreSQL may collect what it finds in the index first, and counts twice then
    assert {one[0] for one in found} == OTHERS
    assert found == sorted(found, key=listings.name_place)


def test_receipts_of_who_has_not_read_so_far_are_passed_over(rooms: Database) -> None:
    """The events that they name are not looked for."""
    read = read_receipts.read_receipts_of
    found, passed = work(rooms, read, 2, ["", "main"], LATEST)
    assert found == []
    _, looked_for = work(rooms, read, 2, ["", "main"], MESSAGE)
    assert passed * 2 < looked_for


def test_a_receipt_counts_that_came_before_its_event_had_a_place(shared_database: Database) -> None:
    """Its own position is before that of the event then."""
    new = NewReceipt(3, "m.read", member(1), "", "$outlier", 5)
    with shared_database.begin() as connection:
        connection.execute(insert(events), [{**_event(1, 3, None), "event_id": new.event_id}])
        store_receipts(connection, [[new]])
        connection.execute(update(events).where(events.c.event_nid == 1).values(stream_position=LATEST))
    (found,) = shared_database.read_now(read_receipts.read_receipts_of, 3, [""], LATEST)
    assert (found[0], found[4]) == (member(1), LATEST)


@pytest.mark.parametrize("read", [listings.invitations_of, listings.bans_of], ids=["invitations", "bans"])
def test_parts_from_new_to_old_make_the_whole(rooms: Database, read: Callable[..., Sequence[Any]]) -> None:
    whole = rooms.read_now(read, 1)
    assert [entry.place for entry in whole] == sorted((entry.place for entry in whole), reverse=True)
    seen: list[Any] = []
    while part := rooms.read_now(read, 1, 7, seen[-1].place if seen else None):
        seen.extend(part)
    assert seen == whole


def test_parts_by_name_make_the_whole(rooms: Database) -> None:
    whole = [one for one in rooms.read_now(listings.joined_members, 1) if one[0] not in OTHERS]
    assert whole == sorted(whole, key=listings.name_place)
    seen: list[listings.JoinedMember] = []
    while part := rooms.read_now(
        listings.joined_after, 1, listings.name_place(seen[-1]) if seen else listings.FIRST, 7, OTHERS
    ):
        seen.extend(part)
    assert seen == whole
