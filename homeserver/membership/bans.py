"""Who is banned from a room, by whom, since when and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

from homeserver.graph.state import RoomHeads
from homeserver.reading.listings import PageRequest, newest_first, room_of_member
from homeserver.storage import listings as store
from homeserver.storage.database import Database


class ListedBan(TypedDict):
    """A banned user."""

    user_id: str
    banned_by: str
    banned_at: int
    reason: str | None
    is_remote: bool


class BanList(TypedDict, total=False):
    """The bans of a room, newest first."""

    bans: list[ListedBan]
    next: str
    """The token of the next page, if there is one."""


class Bans:
    """Lists the bans of rooms from their current state, so that every server in a room has the same list."""

    def __init__(self, database: Database, heads: RoomHeads, server_name: str) -> None:
        self._database = database
        self._heads = heads
        self._server_name = server_name

    async def of_room(self, user_id: str, room_id: str, page: PageRequest) -> BanList:
        """Who is banned, for a member of the room. Raises ``Forbidden``, ``InvalidParam``."""
        head = await room_of_member(self._heads, user_id, room_id)
        bans, following = await newest_first(self._database, head, page, store.bans_of, self._shown)
        return {"bans": bans} if following is None else {"bans": bans, "next": following}

    def _shown(self, bans: Iterable[store.Ban]) -> list[ListedBan]:
        return [
            {
                "user_id": ban.user_id,
                "banned_by": ban.banned_by,
                "banned_at": ban.banned_ts,
                "reason": ban.reason,
                "is_remote": ban.user_id.partition(":")[2] != self._server_name,
            }
            for ban in bans
        ]
