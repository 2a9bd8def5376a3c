"""The published room directory."""

from __future__ import annotations

from sqlalchemy import Connection, update

from homeserver.storage.tables import rooms


def set_published(connection: Connection, room_id: str, published: bool) -> None:
    """List a room in the directory, or take it out."""
    connection.execute(update(rooms).where(rooms.c.room_id == room_id).values(published=published))
