"""Work with other servers that is in progress, so that every process on the database can wait for its end.

A row is a lease: the process that does the work prolongs it. An expired row was left behind by a process that died.
"""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, delete, select, update

from homeserver.storage.database import insert, upsert
from homeserver.storage.prepared import PreparedSelect
from homeserver.storage.tables import under_way

_OF_OWNER = PreparedSelect(
    select(under_way.c.owner).where(
        under_way.c.kind == bindparam("kind"),
        under_way.c.room_id == bindparam("room_id"),
        under_way.c.owner == bindparam("owner"),
    )
)


def begin(
    connection: Connection,
    kind: str,
    room_id: str,
    user_id: str,
    owner: str,
    expires_ts: int,
    version: str | None = None,
) -> None:
    """Record that some work is in progress; it replaces the same work of another owner.

    ``version`` is the version of a room that is being joined.
    """
    row = {"kind": kind, "room_id": room_id, "user_id": user_id, "owner": owner}
    upsert(
        connection, under_way, [{**row, "expires_ts": expires_ts, "version": version}], ["kind", "room_id", "user_id"]
    )


def claim(
    connection: Connection, kind: str, room_id: str, user_id: str, owner: str, now_ms: int, expires_ts: int
) -> bool:
    """The same for work that only one owner may do at a time; False if another one does it."""
    table = under_way.c
    same = (table.kind == kind, table.room_id == room_id, table.user_id == user_id)
    connection.execute(delete(under_way).where(*same, table.expires_ts <= now_ms))
    statement = insert(connection, under_way).on_conflict_do_nothing(index_elements=["kind", "room_id", "user_id"])
    connection.execute(
        statement, {"kind": kind, "room_id": room_id, "user_id": user_id, "owner": owner, "expires_ts": expires_ts}
    )
    return bool(connection.execute(select(table.owner).where(*same)).scalar_one() == owner)


def prolong(connection: Connection, owner: str, expires_ts: int) -> None:
    """Prolong the lease of an owner whose work continues."""
    connection.execute(update(under_way).where(under_way.c.owner == owner).values(expires_ts=expires_ts))


def end(connection: Connection, owner: str) -> None:
    """Delete the lease of an owner whose work has ended, successfully or not."""
    connection.execute(delete(under_way).where(under_way.c.owner == owner))


def end_all(connection: Connection) -> None:
    """Delete all leases: for a process that is the only one on its database, so that none of them can be in use."""
    connection.execute(delete(under_way))


def is_under_way(connection: Connection, kind: str, room_id: str, user_id: str | None, now_ms: int) -> bool:
    """Whether any process does this work now; for any user, if ``user_id`` is None."""
    table = under_way.c
    statement = select(table.owner).where(table.kind == kind, table.room_id == room_id, table.expires_ts > now_ms)
    if user_id is not None:
        statement = statement.where(table.user_id == user_id)
    return connection.execute(statement.limit(1)).first() is not None


def version_of(connection: Connection, kind: str, room_id: str, now_ms: int) -> str | None:
    """The version of the room that is being worked on, if its owner recorded it."""
    table = under_way.c
    statement = select(table.version).where(table.kind == kind, table.room_id == room_id, table.expires_ts > now_ms)
    return connection.execute(statement.where(table.version.is_not(None)).limit(1)).scalar()


def is_owner(connection: Connection, kind: str, room_id: str, owner: str) -> bool:
    """Whether this owner still has the lease for the work in a room: it may have expired, and another owner have taken
    it.
    """
    return bool(_OF_OWNER.rows(connection, kind=kind, room_id=room_id, owner=owner))
