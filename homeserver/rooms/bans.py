"""Who is banned from a room, by whom, since when and why."""

from __future__ import annotations

from typing import TypedDict, cast

from homeserver.rooms.ephemeral import is_user_of
from homeserver.rooms.listings import PageRequest, place_of, room_of_member, token_of
from homeserver.rooms.state import RoomHeads
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
    """Only there if there is more."""


class Bans:
    """The bans of all rooms: what the room's current state says, so that every server in it has the same list."""

    def __init__(self, database: Database, heads: RoomHeads, server_name: str) -> None:
        self._database = database
        self._heads = heads
        self._server_name = server_name

    async def of_room(self, user_id: str, room_id: str, page: PageRequest) -> BanList:
        """Who is banned, for a member of the room. Raises ``Forbidden``, ``InvalidParam``."""
        after = cast("store.Place", place_of(page.after, (int, int))) if page.after is not None else None
        head = await room_of_member(self._heads, user_id, room_id)
        limit = None if page.limit is None else page.limit + 1
        found = await self._database.read(store.bans_of, head.room_nid, limit, after)
        shown = found if page.limit is None else found[: page.limit]
        answer: BanList = {
            "bans": [
                {
                    "user_id": ban.user_id,
                    "banned_by": ban.banned_by,
                    "banned_at": ban.banned_ts,
                    "reason": ban.reason,
                    "is_remote": not is_user_of(ban.user_id, self._server_name),
                }
                for ban in shown
            ]
        }
        if len(shown) < len(found):
            answer["next"] = token_of((shown[-1].banned_ts, shown[-1].event_nid))
        return answer
