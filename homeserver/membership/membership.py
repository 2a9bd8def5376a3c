"""Our users join, leave, invite, remove and ban, in rooms that this server is in and in those that it is not in.

https://spec.matrix.org/v1.19/client-server-api/#room-membership
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import structlog

from homeserver.errors import BadState, Forbidden, InvalidParam, MatrixError, NotFound, UnknownError
from homeserver.graph.outdated_heads import refuses_by_newest_state
from homeserver.graph.send import Sender
from homeserver.graph.server_access import is_abandoned
from homeserver.graph.state import RoomHeads
from homeserver.membership.inviting import Inviting, check_not_banned, joined_head
from homeserver.membership.joins import VOUCHER, Joins, RemoteRooms, is_out_of_band
from homeserver.membership.member_profiles import MemberProfiles
from homeserver.protocol.events import EventDraft
from homeserver.protocol.identifiers import is_valid_user_id, server_of
from homeserver.protocol.json_types import JsonObject
from homeserver.storage import user_rooms
from homeserver.storage.appends import TransactionKey
from homeserver.storage.database import Database
from homeserver.storage.user_rooms import Standing

logger = structlog.get_logger(__name__)


class Memberships:
    """What our users do with their own membership and that of others."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        sender: Sender,
        profiles: MemberProfiles,
        joins: Joins,
        remote: RemoteRooms,
        inviting: Inviting,
        server_name: str,
    ) -> None:
        self._database = database
        self._heads = heads
        self._sender = sender
        self._profiles = profiles
        self._joins = joins
        self._remote = remote
        self._inviting = inviting
        self._server_name = server_name

    # -- one's own membership ------------------------------------------------------------------------------------------

    async def join(self, user_id: str, room_id: str, via: Iterable[str] = (), reason: str | None = None) -> None:
        """See ``Joins.join``."""
        await self._joins.join(user_id, room_id, via, reason)

    @refuses_by_newest_state
    async def leave(self, user_id: str, room_id: str, reason: str | None = None, *, is_governed: bool = True) -> None:
        """Leave a room, reject an invitation or take back a knock; does nothing if the user has left already.

        The last owner may not leave other members behind, unless ``is_governed`` is off, as for a closed account.
        Raises ``NotFound`` if the user has no membership in the room, ``Forbidden`` if the user is banned.
        """
        standing = await self._standing(user_id, room_id)
        if standing.membership == "leave":
            return
        if standing.membership == "ban":
            raise Forbidden("You are banned from this room")
        head = await self._heads.find(room_id)
        is_here = head is not None and (self._server_name in head.joined_servers or is_abandoned(head))
        if head is None or not is_here or is_out_of_band(standing, head, user_id):
            # Also for an invitation that the state of our room does not have: it can always be rejected.
            await self._remote.leave(standing, user_id, reason)
            return
        content: JsonObject = {"membership": "leave", **({"reason": reason} if reason is not None else {})}
        draft = EventDraft("m.room.member", user_id, content, user_id)
        await self._sender.send(room_id, draft, is_governed=is_governed)

    async def forget(self, user_id: str, room_id: str) -> None:
        """Forget a room that the user left. Raises ``UnknownError`` while the user is in it or invited."""
        standing = await self._standing(user_id, room_id)
        if standing.membership not in ("leave", "ban"):
            raise UnknownError("You are still in this room")
        await self._database.write(user_rooms.forget, user_id, standing.room_nid)

    async def refresh_profile(self, user_id: str) -> None:
        """Update a user's name and picture in the rooms that they are in."""
        content = await self._profiles.member_content(user_id, "join")
        for room_id in await self._database.read(user_rooms.rooms_of, user_id, "join"):
            try:
                await self._sender.send(room_id, await self._with_standing_keys(room_id, user_id, content))
            except MatrixError:
                continue  # the room or its policy server refuses; the profile has changed nevertheless

    async def _with_standing_keys(self, room_id: str, user_id: str, content: JsonObject) -> EventDraft:
        head = await self._heads.get(room_id)
        standing = await self._heads.state_event(head, "m.room.member", user_id)
        # A member needs no voucher; with one, the event would need that server's signature again.
        dropped = ("displayname", "avatar_url", "reason", "is_direct", "third_party_invite", "membership", VOUCHER)
        kept = {k: v for k, v in standing.content.items() if k not in dropped} if standing else {}
        return EventDraft("m.room.member", user_id, {**kept, **content}, user_id)

    async def leave_all(self, user_id: str) -> None:
        """Leave all rooms and reject all invitations of a closed account, as far as that is possible."""
        for membership in ("join", "invite", "knock"):
            for room_id in await self._database.read(user_rooms.rooms_of, user_id, membership):
                try:
                    await self.leave(user_id, room_id, is_governed=False)
                except MatrixError as error:
                    logger.info("room not left", room_id=room_id, user_id=user_id, reason=error.message)

    async def leave_for_closed_accounts(self) -> None:
        """Leave all rooms for users whose account was closed by the command line, or while the server was stopping."""
        for user_id in await self._database.read(user_rooms.closed_accounts_in_rooms):
            await self.leave_all(user_id)

    async def _standing(self, user_id: str, room_id: str) -> Standing:
        standing = await self._database.read(user_rooms.standing_of, user_id, room_id)
        if standing is None:
            raise NotFound("You have nothing to do with this room")
        return standing

    # -- the membership of others --------------------------------------------------------------------------------------

    async def invite(
        self, sender: str, room_id: str, user_id: str, *, reason: str | None = None, is_direct: bool = False
    ) -> None:
        """See ``Inviting.invite``."""
        await self._inviting.invite(sender, room_id, user_id, reason=reason, is_direct=is_direct)

    async def check_invitable(self, sender: str, user_ids: Sequence[str]) -> None:
        """See ``Inviting.check_invitable``."""
        await self._inviting.check_invitable(sender, user_ids)

    @refuses_by_newest_state
    async def kick(self, sender: str, room_id: str, user_id: str, reason: str | None = None) -> None:
        """Remove a user, take back an invitation, or refuse a knock. Raises ``Forbidden``."""
        head = await joined_head(self._heads, sender, room_id)
        target = await self._heads.state_event(head, "m.room.member", user_id)
        if target is None or target.membership not in ("join", "invite", "knock"):
            raise Forbidden("The user is not in this room")
        await self._set(sender, room_id, user_id, "leave", reason)

    @refuses_by_newest_state
    async def ban(self, sender: str, room_id: str, user_id: str, reason: str | None = None) -> None:
        """Ban a user, whether they were ever in the room or not. Raises ``Forbidden``."""
        if not is_valid_user_id(user_id):
            raise InvalidParam("Not a valid user ID")
        await joined_head(self._heads, sender, room_id)
        content: JsonObject = {"membership": "ban", **({"reason": reason} if reason is not None else {})}
        await self._ban(room_id, EventDraft("m.room.member", sender, content, user_id))

    async def _ban(self, room_id: str, ban: EventDraft) -> str:
        """Send a ban, and before it a leave if that is needed to end an invitation; returns the ban's event ID."""
        user_id = ban.state_key or ""
        head = await self._heads.find(room_id)
        if head is None or user_id not in head.invited or server_of(user_id) in head.joined_servers:
            return (await self._sender.send(room_id, ban)).event_id
        # A server that is not in the room accepts that an invitation is taken back, but not a ban.
        revocation = replace(ban, content={**ban.content, "membership": "leave"})
        return (await self._sender.send_all(room_id, [revocation, ban]))[-1].event_id

    @refuses_by_newest_state
    async def unban(self, sender: str, room_id: str, user_id: str, reason: str | None = None) -> None:
        """Lift a ban. Raises ``Forbidden``, and ``BadState`` if there is no ban."""
        head = await joined_head(self._heads, sender, room_id)
        target = await self._heads.state_event(head, "m.room.member", user_id)
        if target is None or target.membership != "ban":
            raise BadState("The user is not banned")
        await self._set(sender, room_id, user_id, "leave", reason)

    async def _set(self, sender: str, room_id: str, user_id: str, membership: str, reason: str | None) -> None:
        content: JsonObject = {"membership": membership, **({"reason": reason} if reason is not None else {})}
        await self._sender.send(room_id, EventDraft("m.room.member", sender, content, user_id))

    @refuses_by_newest_state
    async def send_member(self, room_id: str, draft: EventDraft, txn: TransactionKey | None = None) -> str | None:
        """Send an m.room.member event that a client wrote itself; returns its ID.

        For an invitation to another server, see ``invite``; returns the ID of the user's member event then.
        """
        user_id = draft.state_key or ""
        if draft.content.get("membership") == "invite" and server_of(user_id) != self._server_name:
            content = draft.content
            reason = content.get("reason") if isinstance(content.get("reason"), str) else None
            await self.invite(draft.sender, room_id, user_id, reason=reason, is_direct=content.get("is_direct") is True)
            head = await self._heads.get(room_id)
            return head.state.get(("m.room.member", user_id))
        if draft.content.get("membership") == "invite":
            await self.check_invitable(draft.sender, [user_id])
            await check_not_banned(self._heads, await joined_head(self._heads, draft.sender, room_id), user_id)
        if draft.content.get("membership") == "ban":
            return await self._ban(room_id, draft)
        event_id = (await self._sender.send(room_id, await self._joins.vouched(room_id, draft), txn)).event_id
        if draft.content.get("membership") == "join":
            await self._joins.joined(user_id, room_id)
        return event_id
