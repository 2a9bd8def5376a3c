"""Account data and filters: what clients store on the server for their user."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, select

from homeserver.storage import streams
from homeserver.storage.database import insert, upsert
from homeserver.storage.tables import account_data, filters

GLOBAL = ""
"""The room ID of account data that belongs to the whole account."""

AccountDataRow = tuple[str, str, bytes, int]
"""Room ID (``GLOBAL`` for none), type, content as JSON, position."""

_COLUMNS = (account_data.c.room_id, account_data.c.type, account_data.c.content, account_data.c.position)
_ONE = select(account_data.c.content).where(
    account_data.c.user_id == bindparam("user_id"),
    account_data.c.room_id == bindparam("room_id"),
    account_data.c.type == bindparam("type"),
)
_SINCE = (
    select(*_COLUMNS)
    .where(
        account_data.c.user_id == bindparam("user_id"),
        account_data.c.position > bindparam("since"),
        account_data.c.position <= bindparam("upto"),
    )
    .order_by(account_data.c.position)
)
_ALL = select(*_COLUMNS).where(account_data.c.user_id == bindparam("user_id")).order_by(account_data.c.position)
_FILTER = select(filters.c.json).where(
    filters.c.user_id == bindparam("user_id"), filters.c.filter_id == bindparam("filter_id")
)


def put_account_data(connection: Connection, user_id: str, room_id: str, type_: str, content: bytes) -> int:
    """Set one piece of account data; returns the position of the change."""
    position = streams.next_position(connection)
    row = {"user_id": user_id, "room_id": room_id, "type": type_, "content": content, "position": position}
    upsert(connection, account_data, [row], ["user_id", "room_id", "type"])
    return position


def get_account_data(connection: Connection, user_id: str, room_id: str, type_: str) -> bytes | None:
    """One piece of account data, as JSON."""
    return connection.scalar(_ONE, {"user_id": user_id, "room_id": room_id, "type": type_})


def account_data_since(connection: Connection, user_id: str, since: int, upto: int) -> list[AccountDataRow]:
    """The changes after ``since``, up to and including ``upto``, in order."""
    rows = connection.execute(_SINCE, {"user_id": user_id, "since": since, "upto": upto})
    return [(row.room_id, row.type, row.content, row.position) for row in rows]


def all_account_data(connection: Connection, user_id: str) -> list[AccountDataRow]:
    """All account data of a user, ordered by position."""
    rows = connection.execute(_ALL, {"user_id": user_id})
    return [(row.room_id, row.type, row.content, row.position) for row in rows]


def put_filter(connection: Connection, user_id: str, filter_id: str, json: bytes) -> None:
    """Store a filter, unless it is stored already."""
    row = {"user_id": user_id, "filter_id": filter_id, "json": json}
    connection.execute(insert(connection, filters).values(row).on_conflict_do_nothing())


def get_filter(connection: Connection, user_id: str, filter_id: str) -> bytes | None:
    """A stored filter, as JSON."""
    return connection.scalar(_FILTER, {"user_id": user_id, "filter_id": filter_id})
