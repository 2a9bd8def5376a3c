"""Copies users' settings of a room to the room that replaces it.

https://spec.matrix.org/v1.19/client-server-api/#room-upgrades
"""

from __future__ import annotations

from homeserver.graph.state import RoomHeads
from homeserver.graph.transferred_state import predecessor_of
from homeserver.notifier import Change, Notifier, Stream
from homeserver.storage.database import Database
from homeserver.storage.room_upgrades import copy_settings


class PersonalSettings:
    """Copies the account data of our users that belongs to rooms."""

    def __init__(self, database: Database, heads: RoomHeads, notifier: Notifier) -> None:
        self._database = database
        self._heads = heads
        self._notifier = notifier

    async def take_along(self, user_id: str, room_id: str) -> None:
        """Copy a user's settings of the room that a just joined room replaces, if it replaces one.

        "When a user joins the new room, the server should automatically transfer/replicate some of the user's
        personalized settings such as notifications, tags, etc."
        """
        old_id = await self._replaced_by(room_id)
        if old_id is None:
            return
        changed = await self._database.write(copy_settings, user_id, old_id, room_id)
        self._notifier.publish(
            Change(position, Stream.ACCOUNT_DATA, changed_in or None, (user_id,)) for changed_in, position in changed
        )

    async def _replaced_by(self, room_id: str) -> str | None:
        """The ID of the room that a room replaces, if both rooms say so: anybody can claim it for their new room."""
        head = await self._heads.find(room_id)
        create = await self._heads.state_event(head, "m.room.create") if head is not None else None
        old_id = predecessor_of(create) if create is not None else None
        old = await self._heads.find(old_id) if old_id is not None else None
        tombstone = await self._heads.state_event(old, "m.room.tombstone") if old is not None else None
        if tombstone is None or tombstone.content.get("replacement_room") != room_id:
            return None
        return old_id
