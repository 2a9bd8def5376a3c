"""Whom a room has asked in, and what became of it; taking an invitation back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, cast

from homeserver.errors import Conflict
from homeserver.protocol.events import EventDraft
from homeserver.protocol.json_types import JsonObject
from homeserver.rooms.append import RoomWriters
from homeserver.rooms.ephemeral import is_user_of
from homeserver.rooms.listings import PageRequest, place_of, room_of_member, token_of
from homeserver.rooms.send import Sender
from homeserver.rooms.state import RoomHeads
from homeserver.rooms.working_head import NewEvent, WorkingHead
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
    """Only there if there is more."""


class Invitations:
    """The invitations of all rooms."""

    def __init__(
        self, database: Database, heads: RoomHeads, writers: RoomWriters, sender: Sender, server_name: str
    ) -> None:
        self._database = database
        self._heads = heads
        self._writers = writers
        self._sender = sender
        self._server_name = server_name

    async def of_room(self, user_id: str, room_id: str, page: PageRequest) -> InvitationList:
        """The latest invitation of each user, for a member of the room. Raises ``Forbidden``, ``InvalidParam``."""
        after = cast("store.Place", place_of(page.after, (int, int))) if page.after is not None else None
        head = await room_of_member(self._heads, user_id, room_id)
        limit = None if page.limit is None else page.limit + 1
        found = await self._database.read(store.invitations_of, head.room_nid, limit, after)
        shown = found if page.limit is None else found[: page.limit]
        answer: InvitationList = {
            "invitations": [
                {
                    "user_id": invitation.user_id,
                    "status": invitation.status,
                    "invited_by": invitation.invited_by,
                    "invited_at": invitation.invited_ts,
                    "updated_at": invitation.updated_ts,
                    "reason": invitation.reason,
                    "is_remote": not is_user_of(invitation.user_id, self._server_name),
                }
                for invitation in shown
            ]
        }
        if len(shown) < len(found):
            answer["next"] = token_of((shown[-1].invited_ts, shown[-1].event_nid))
        return answer

    async def revoke(self, sender: str, room_id: str, user_id: str, reason: str | None = None) -> str:
        """Take a pending invitation back; returns the ID of the event, which the invited user's server is sent.

        Raises ``Forbidden`` without the right to remove users, ``Conflict`` where no invitation is pending.
        """
        await room_of_member(self._heads, sender, room_id)

        async def job(working: WorkingHead) -> Sequence[NewEvent]:
            if user_id not in working.head.invited:
                raise Conflict("No invitation of this user is pending")
            content: JsonObject = {"membership": "leave", **({"reason": reason} if reason is not None else {})}
            return [await self._sender.compose(working, EventDraft("m.room.member", sender, content, user_id))]

        return (await self._writers.submit(room_id, job))[0].event_id
