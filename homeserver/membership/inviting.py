"""How our users invite others, on this server and elsewhere.

https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidinvite
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from homeserver.errors import Forbidden, InvalidParam, NotFound
from homeserver.graph.append import RoomWriters
from homeserver.graph.outdated_heads import refuses_by_newest_state
from homeserver.graph.send import Sender
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.membership.member_profiles import MemberProfiles
from homeserver.protocol.events import EventDraft
from homeserver.protocol.identifiers import is_valid_user_id, server_of
from homeserver.storage import accounts
from homeserver.storage.database import Database


class OutgoingInvitations(Protocol):
    """Sends invitations to users of other servers."""

    async def send(
        self, working: WorkingHead, invitation: NewEvent, append: Callable[[NewEvent], Awaitable[None]]
    ) -> None:
        """Get an invitation signed by the invited user's server, and pass it to ``append``."""


class Inviting:
    """Invites users into rooms."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        writers: RoomWriters,
        sender: Sender,
        profiles: MemberProfiles,
        outgoing: OutgoingInvitations,
        server_name: str,
    ) -> None:
        self._database = database
        self._heads = heads
        self._writers = writers
        self._sender = sender
        self._profiles = profiles
        self._outgoing = outgoing
        self._server_name = server_name

    @refuses_by_newest_state
    async def invite(
        self, sender: str, room_id: str, user_id: str, *, reason: str | None = None, is_direct: bool = False
    ) -> None:
        """Invite a user, on this server or another.

        An invitation of a user of another server is valid only once that server has signed it. Raises ``Forbidden`` if
        the room does not allow it (``reason: banned`` for a banned user), ``NotFound`` for a user of ours who does not
        exist, ``RemoteFailed`` and ``RemoteTimedOut`` if the other server does not answer.
        """
        if not is_valid_user_id(user_id):
            raise InvalidParam("Not a valid user ID")
        await self.check_invitable(sender, [user_id])
        content = await self._profiles.member_content(user_id, "invite", reason)
        if is_direct:
            content["is_direct"] = True
        draft = EventDraft("m.room.member", sender, content, user_id)
        head = await joined_head(self._heads, sender, room_id)
        await check_not_banned(self._heads, head, user_id)
        if server_of(user_id) == self._server_name:
            await self._sender.send(room_id, draft)
            return
        await _check_federated(self._heads, head, user_id)
        working = self._writers.look_at(head)
        # The policy server is asked first, since the invited user's server gets the event before the room does.
        composed = await self._sender.recommended(working, await self._sender.compose(working, draft))

        async def append(invitation: NewEvent) -> None:
            async def job(working: WorkingHead) -> Sequence[NewEvent]:
                await check_not_banned(self._heads, working.head, user_id)
                await self._sender.compose(working, draft)  # raises if it is no longer allowed
                return [invitation]

            await self._writers.submit(room_id, job)

        await self._outgoing.send(working, composed, append)

    async def check_invitable(self, sender: str, user_ids: Sequence[str]) -> None:
        """Raise ``NotFound`` unless all users of this server among ``user_ids`` exist and are active."""
        ours = [user_id for user_id in user_ids if server_of(user_id) == self._server_name]
        if not ours:
            return
        existing = await self._database.read(accounts.existing_users, ours)
        for user_id in ours:
            if user_id not in existing:
                raise NotFound(f"{user_id} does not exist on this server")


async def joined_head(heads: RoomHeads, user_id: str, room_id: str) -> RoomHead:
    """The head of a room that the user is in. Raises ``Forbidden``."""
    head = await heads.find(room_id)
    if head is None or user_id not in head.joined:
        raise Forbidden("You are not in this room")
    return head


async def check_not_banned(heads: RoomHeads, head: RoomHead, user_id: str) -> None:
    """Raise ``Forbidden`` if the user is banned from the room."""
    member = await heads.state_event(head, "m.room.member", user_id)
    if member is not None and member.membership == "ban":
        raise Forbidden("The user is banned from this room", reason="banned")


async def _check_federated(heads: RoomHeads, head: RoomHead, user_id: str) -> None:
    # By what was signed: the rules that will judge the invitation go by that, too.
    create = await heads.original_state_event(head, "m.room.create")
    if create is not None and create.content.get("m.federate") is False:
        raise Forbidden(f"The room is closed to other servers, so {user_id} cannot be invited")
