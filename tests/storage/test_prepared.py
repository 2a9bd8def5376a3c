"""homeserver/storage/prepared.py: statements that are compiled once."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import and_, bindparam, delete, select, update
from sqlalchemy.exc import IntegrityError

from homeserver.storage.database import Database
from homeserver.storage.prepared import prepared, prepared_insert, prepared_upsert
from homeserver.storage.tables import room_members, state_keys, user_rooms

ODD = "\0 \ufdd0 😀 %s :name ? é"


def member(user_id: str, **values: Any) -> dict[str, Any]:
    names = {"user_id": user_id, "membership": "join", "display_name": None, "sort_name": "", "avatar_url": None}
    return {"room_nid": 1, "event_nid": 1, "event_ts": 1, **names, **values}


def names_of(database: Database) -> dict[str, str | None]:
    statement = select(room_members.c.user_id, room_members.c.display_name)
    return {row[0]: row[1] for row in database.read_now(lambda connection: connection.execute(statement).all())}


def test_values_are_written_as_their_columns_want_them(database: Database) -> None:
    insert = prepared_insert(room_members)
    with database.begin() as connection:
        assert insert.run(connection, [member("@a:x", display_name=ODD), member("@b:x")]) == 2
        assert insert.run(connection, [member("@c:x", display_name="c")]) == 1
    assert names_of(database) == {"@a:x": ODD, "@b:x": None, "@c:x": "c"}


def test_nothing_is_run_without_rows(database: Database) -> None:
    with database.begin() as connection:
        assert prepared_insert(room_members).run(connection, []) == 0


def test_what_is_there_can_be_left_or_replaced(database: Database) -> None:
    with database.begin() as connection:
        prepared_insert(room_members).run(connection, [member("@a:x", display_name="old")])
        ignoring = prepared_insert(room_members, or_ignore=True)
        assert ignoring.run(connection, [member("@a:x"), member("@b:x", display_name="b")]) == 1
    assert names_of(database) == {"@a:x": "old", "@b:x": "b"}
    with database.begin() as connection:
        prepared_upsert(room_members, "room_nid", "user_id").run(connection, [member("@a:x", display_name="new")])
    assert names_of(database) == {"@a:x": "new", "@b:x": "b"}


def test_a_conflict_is_the_same_error_as_elsewhere(database: Database) -> None:
    with pytest.raises(IntegrityError), database.begin() as connection:
        prepared_insert(room_members).run(connection, [member("@a:x"), member("@a:x")])


def test_the_database_gives_out_ids(database: Database) -> None:
    insert = prepared_insert(state_keys, or_ignore=True)
    with database.begin() as connection:
        insert.run(connection, [{"type": "a", "state_key": ODD}, {"type": "a", "state_key": ""}])
        assert insert.run(connection, [{"type": "a", "state_key": ""}]) == 0
        assert sorted(connection.execute(select(state_keys.c.state_key)).scalars()) == ["", ODD]


def test_updates_with_values_of_their_own(database: Database) -> None:
    who = and_(user_rooms.c.user_id == bindparam("b_user_id"), user_rooms.c.membership == "join")
    leave = prepared(update(user_rooms).where(who).values(membership="leave", position=bindparam("b_position")))
    forget = prepared(delete(user_rooms).where(user_rooms.c.user_id == bindparam("b_user_id")))
    row = {"room_nid": 1, "membership": "join", "event_nid": 1, "sender": "@s:x", "position": 1}
    with database.begin() as connection:
        prepared_insert(user_rooms).run(connection, [{**row, "user_id": f"@{name}:x"} for name in "abc"])
        changed = leave.run(
            connection, [{"b_user_id": "@a:x", "b_position": 7}, {"b_user_id": "@b:x", "b_position": 8}]
        )
        assert changed == 2
        assert forget.run(connection, [{"b_user_id": "@c:x"}, {"b_user_id": "@nobody:x"}]) == 1
        found = connection.execute(select(user_rooms.c.user_id, user_rooms.c.membership, user_rooms.c.position)).all()
    assert sorted(tuple(row) for row in found) == [("@a:x", "leave", 7), ("@b:x", "leave", 8)]
