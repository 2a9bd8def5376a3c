"""homeserver/storage/prepared.py: statements that are compiled once."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import and_, bindparam, delete, event, select, update
from sqlalchemy.exc import IntegrityError

from homeserver.storage import auth_chains, event_graph, room_state
from homeserver.storage.database import Database
from homeserver.storage.prepared import PreparedSelect, prepared, prepared_insert, prepared_upsert
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


def test_selects_take_lists_of_any_length_as_one_parameter(database: Database) -> None:
    table = room_members.c
    by_user = PreparedSelect(
        select(table.user_id, table.display_name)
        .where(
            table.user_id.in_(bindparam("wanted", expanding=True)),
            table.room_nid.in_(bindparam("room_nids", expanding=True)),
            table.membership == bindparam("membership"),
            table.event_nid == 1,
        )
        .order_by(table.user_id)
    )
    names = [f"@{number:04}:x" for number in range(2000)]
    with database.begin() as connection:
        rows = [member(name, display_name=ODD) for name in names]
        prepared_insert(room_members).run(connection, [*rows, member(ODD, membership="leave")])
        found = by_user.rows(connection, wanted=names, room_nids=[1, 2**60], membership="join")
        assert [tuple(row) for row in found] == [(name, ODD) for name in names]
        few = by_user.rows(
            connection, wanted=(name for name in ["@0001:x", ODD, '"', "0"]), room_nids={1}, membership="join"
        )
        assert [tuple(row) for row in few] == [("@0001:x", ODD)]
        assert by_user.rows(connection, wanted=[], room_nids=[1], membership="join") == []
        assert list(by_user.rows(connection, wanted=names, room_nids=[2], membership="join")) == []


def test_selects_use_the_index(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    plans: list[str] = []

    def explain(connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.startswith("EXPLAIN"):
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            plans.append("; ".join(row[3] for row in rows))

    with database.begin() as connection:
        event.listen(connection, "before_cursor_execute", explain)
        event_graph.known_events(connection, {1: ["$a"], 2: ["$b"]})
        event_graph._BY_ID.rows(connection, room_id="!a", wanted=["$a"])
        event_graph._BY_NID.rows(connection, wanted=[1, 2])
        event_graph._REDACTIONS.rows(connection, wanted=["$a"], room_nids=[1])
        event_graph.forward_extremities_of(connection, [1, 2])
        room_state.state_key_nids(connection, [("m.room.member", "@a:x")])
        room_state.read_current_state_of_many(connection, [1, 2])
        auth_chains.positions_of(connection, [1])
    database.close()
    assert len(plans) == 8
    for plan in plans:
        assert "SCAN" not in plan.replace("SCAN json_each", ""), plan
