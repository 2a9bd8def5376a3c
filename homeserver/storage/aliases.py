"""Room aliases of this server."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select, update

from homeserver.storage.database import insert
from homeserver.storage.tables import room_aliases, rooms


def add_alias(connection: Connection, alias: str, room_id: str, creator: str) -> bool:
    """Give a room an alias; False when it is taken."""
    added = connection.execute(
        insert(connection, room_aliases)
        .on_conflict_do_nothing(index_elements=["alias"])
        .values(alias=alias, room_id=room_id, creator=creator)
        .returning(room_aliases.c.alias)
    )
    return added.first() is not None


def remove_alias(connection: Connection, alias: str) -> bool:
    """Remove an alias; False if it does not exist."""
    return bool(connection.execute(delete(room_aliases).where(room_aliases.c.alias == alias)).rowcount)


def withdraw(connection: Connection, room_id: str) -> None:
    """Remove all aliases of a room, and its entry in the room directory."""
    connection.execute(delete(room_aliases).where(room_aliases.c.room_id == room_id))
    connection.execute(update(rooms).where(rooms.c.room_id == room_id).values(published=False))


def alias_row(connection: Connection, alias: str) -> tuple[str, str] | None:
    """``(room_id, creator)`` of an alias."""
    row = connection.execute(
        select(room_aliases.c.room_id, room_aliases.c.creator).where(room_aliases.c.alias == alias)
    ).first()
    return (row[0], row[1]) if row else None


def aliases_of(connection: Connection, room_id: str) -> list[str]:
    """The aliases that this server has for a room."""
    statement = select(room_aliases.c.alias).where(room_aliases.c.room_id == room_id).order_by(room_aliases.c.alias)
    return list(connection.execute(statement).scalars())
