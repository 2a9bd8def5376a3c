"""Work with other servers that is in progress, so that every process on the database can wait for its end.

A row is a lease: the process that does the work prolongs it. An expired row was left behind by a process that died.
"""

from __future__ import annotations

from sqlalchemy import Connection, and_, bindparam, delete, select, update

from homeserver.storage.prepared import PreparedSelect, prepared, prepared_insert, prepared_upsert
from homeserver.storage.tables import under_way

_same = and_(
    under_way.c.kind == bindparam("b_kind"),
    under_way.c.room_id == bindparam("b_room_id"),
    under_way.c.user_id == bindparam("b_user_id"),
)
_PUT = prepared_upsert(under_way, "kind", "room_id", "user_id")
_CLAIM = prepared_insert(under_way, or_ignore=True)
_EXPIRE = prepared(delete(under_way).where(and_(_same, under_way.c.expires_ts <= bindparam("b_now_ms"))))
_END = prepared(delete(under_way).where(under_way.c.owner == bindparam("b_owner")))
_OWNER = PreparedSelect(select(under_way.c.owner).where(_same))
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
    _PUT.run(connection, [{**row, "expires_ts": expires_ts, "version": version}])


def claim(
    connection: Connection, kind: str, room_id: str, user_id: str, owner: str, now_ms: int, expires_ts: int
) -> bool:
    """The same for work that only one owner may do at a time; False if another one does it."""
    key = {"b_kind": kind, "b_room_id": room_id, "b_user_id": user_id}
    _EXPIRE.run(connection, [{**key, "b_now_ms": now_ms}])
    row = {"kind": kind, "room_id": room_id, "user_id": user_id, "owner": owner, "expires_ts": expires_ts}
    _CLAIM.run(connection, [row])
    return bool(_OWNER.rows(connection, **key)[0][0] == owner)


def prolong(connection: Connection, owner: str, expires_ts: int) -> None:
    """Prolong the lease of an owner whose work continues."""
    connection.execute(update(under_way).where(under_way.c.owner == owner).values(expires_ts=expires_ts))


def end(connection: Connection, owner: str) -> None:
    """Delete the lease of an owner whose work has ended, successfully or not."""
    _END.run(connection, [{"b_owner": owner}])


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
