"""What a replaced room passes on to its successor, besides its events."""

from __future__ import annotations

import orjson
from sqlalchemy import Connection, select, update

from homeserver.storage.account_data import GLOBAL, get_account_data, put_account_data
from homeserver.storage.tables import room_aliases, rooms


def hand_over(connection: Connection, old_room_id: str, new_room_id: str) -> None:
    """Make all aliases of this server point to the new room, and list it in the room directory if the old one was
    listed.
    """
    connection.execute(update(room_aliases).where(room_aliases.c.room_id == old_room_id).values(room_id=new_room_id))
    if connection.scalar(select(rooms.c.published).where(rooms.c.room_id == old_room_id)):
        connection.execute(update(rooms).where(rooms.c.room_id == old_room_id).values(published=False))
        connection.execute(update(rooms).where(rooms.c.room_id == new_room_id).values(published=True))


def copy_settings(connection: Connection, user_id: str, old_room_id: str, new_room_id: str) -> list[tuple[str, int]]:
    """Copy a user's tags of the old room to the new one, and mark the new one as a direct chat if the old one is.

    What the user has set for the new room is kept. Returns ``(room_id, position)`` of each changed piece of account
    data, the room ID as in ``account_data``.
    """
    changed: list[tuple[str, int]] = []
    tags = get_account_data(connection, user_id, old_room_id, "m.tag")
    if tags is not None and get_account_data(connection, user_id, new_room_id, "m.tag") is None:
        changed.append((new_room_id, put_account_data(connection, user_id, new_room_id, "m.tag", tags)))
    direct = orjson.loads(get_account_data(connection, user_id, GLOBAL, "m.direct") or b"{}")
    added = False
    for room_ids in direct.values():
        if isinstance(room_ids, list) and old_room_id in room_ids and new_room_id not in room_ids:
            room_ids.append(new_room_id)
            added = True
    if added:
        changed.append((GLOBAL, put_account_data(connection, user_id, GLOBAL, "m.direct", orjson.dumps(direct))))
    return changed
