"""The invitations of a room and their status; taking an invitation back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

from homeserver.errors import Conflict
from homeserver.graph.send import Recommended, Sender
from homeserver.graph.state import RoomHeads
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.protocol.events import EventDraft
from homeserver.protocol.json_types import JsonObject
from homeserver.reading.listings import PageRequest, newest_first, room_of_member
from homeserver.storage import listings as store
from homeserver.storage.database import Database


class ListedInvitation(TypedDict):
    """The latest invitation of a user."""

    user_id: str
    status: str
    """pending, accepted, rejected or revoked."""
    invited_by: str
    invited_at: int
    updated_at: int
    reason: str | None
    is_remote: bool


class InvitationList(TypedDict, total=False):
    """The invitations of a room, newest first."""

    invitations: list[ListedInvitation]
    next: str
    """The token of the next page, if there is one."""


class Invitations:
    """Lists the invitations of rooms, and takes them back."""

    def __init__(self, database: Database, heads: RoomHeads, sender: Sender, server_name: str) -> None:
        self._database = database
        self._heads = heads
        self._sender = sender
        self._server_name = server_name

    async def of_room(self, user_id: str, room_id: str, page: PageRequest) -> InvitationList:
        """The latest invitation of each user, for a member of the room. Raises ``Forbidden``, ``InvalidParam``."""
        head = await room_of_member(self._heads, user_id, room_id)
        found, following = await newest_first(self._database, head, page, store.invitations_of, self._shown)
        return {"invitations": found} if following is None else {"invitations": found, "next": following}

    def _shown(self, invitations: Iterable[store.Invitation]) -> list[ListedInvitation]:
        return [
            {
                "user_id": user_id,
                "status": status,
                "invited_by": invited_by,
                "invited_at": invited_ts,
                "updated_at": updated_ts,
                "reason": reason,
                "is_remote": user_id.partition(":")[2] != self._server_name,
            }
            for user_id, status, invited_by, invited_ts, updated_ts, reason, _ in invitations
        ]

    async def revoke(self, sender: str, room_id: str, user_id: str, reason: str | None = None) -> str:
        """Take a pending invitation back; returns the ID of the event, which is also sent to the invited user's server.

        Raises ``Forbidden`` if the sender may not remove users, ``Conflict`` if no invitation is pending.
        """
        await room_of_member(self._heads, sender, room_id)

        async def job(working: WorkingHead, recommended: Recommended) -> Sequence[NewEvent]:
            if user_id not in working.head.invited:
                raise Conflict("No invitation of this user is pending")
            content: JsonObject = {"membership": "leave", **({"reason": reason} if reason is not None else {})}
            draft = EventDraft("m.room.member", sender, content, user_id)
            return [await self._sender.compose_recommended(working, draft, recommended)]

        return (await self._sender.submit(room_id, job))[0].event_id
