"""What users have set for a room goes along with them to the room that replaces it.

https://spec.matrix.org/v1.19/client-server-api/#room-upgrades
"""

from __future__ import annotations

from homeserver.graph.state import RoomHeads
from homeserver.graph.transferred_state import predecessor_of
from homeserver.notifier import Change, Notifier, Stream
from homeserver.storage.database import Database
from homeserver.storage.room_upgrades import copy_settings


class PersonalSettings:
    """The account data of our users, as far as it is about a room."""

    def __init__(self, database: Database, heads: RoomHeads, notifier: Notifier) -> None:
        self._database = database
        self._heads = heads
        self._notifier = notifier

    async def take_along(self, user_id: str, room_id: str) -> None:
        """Copy what a user who has just joined a room had set for the one that it replaces, if it replaces one.

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
        """The room that a room replaces, if both say so: anybody can write of a new room that it replaces any other."""
        head = await self._heads.find(room_id)
        create = await self._heads.state_event(head, "m.room.create") if head is not None else None
        old_id = predecessor_of(create) if create is not None else None
        old = await self._heads.find(old_id) if old_id is not None else None
        tombstone = await self._heads.state_event(old, "m.room.tombstone") if old is not None else None
        if tombstone is None or tombstone.content.get("replacement_room") != room_id:
            return None
        return old_id
