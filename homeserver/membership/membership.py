"""Our users join, leave, invite, remove and ban; in rooms that this server is in, and in those that it is not in.

https://spec.matrix.org/v1.19/client-server-api/#room-membership
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol, TypeAlias

import structlog

from homeserver.errors import (
    BadState,
    Forbidden,
    InvalidParam,
    MatrixError,
    NotFound,
    UnableToAuthoriseJoin,
    UnableToGrantJoin,
    UnknownError,
)
from homeserver.graph.append import RoomWriters
from homeserver.graph.outdated_heads import refuses_by_newest_state
from homeserver.graph.send import Sender
from homeserver.graph.server_access import is_abandoned
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.membership.restricted_joins import RestrictedJoins
from homeserver.protocol.events import EventDraft
from homeserver.protocol.identifiers import is_valid_user_id, server_of
from homeserver.protocol.json_types import JsonObject
from homeserver.storage import accounts, user_rooms
from homeserver.storage.appends import TransactionKey
from homeserver.storage.database import Database
from homeserver.storage.user_rooms import Standing

logger = structlog.get_logger(__name__)

VOUCHER = "join_authorised_via_users_server"
"""The key of a join into a restricted room that names who lets the user in. Only this server may set it."""
VIA_MAX = 20
"""Servers that a client may name to join through."""

JoinedHook: TypeAlias = Callable[[str, str], Awaitable[None]]
"""Called with a user of ours and the room that it has joined."""


class RemoteRooms(Protocol):
    """Memberships of our users that other servers have to help with."""

    async def join(self, room_id: str, user_id: str, content: JsonObject, servers: Sequence[str]) -> None:
        """Join a room through one of these servers, or one that is known from an invitation."""

    async def leave(self, standing: Standing, user_id: str, reason: str | None) -> None:
        """Leave a room that this server is not in: reject an invitation, take back a knock."""


class OutgoingInvitations(Protocol):
    """Invitations of users of other servers."""

    async def send(
        self, working: WorkingHead, invitation: NewEvent, append: Callable[[NewEvent], Awaitable[None]]
    ) -> None:
        """Have the invited user's server sign an invitation, and ``append`` it."""


class MemberProfiles:
    """What membership events say of our users."""

    def __init__(self, database: Database, is_local: Callable[[str], bool]) -> None:
        self._database = database
        self._is_local = is_local

    async def member_content(self, user_id: str, membership: str, reason: str | None = None) -> JsonObject:
        """The content of a membership event, with name and picture where the user is one of ours."""
        content: JsonObject = {"membership": membership}
        if self._is_local(user_id):
            profiles = await self._database.read(accounts.read_profiles, [user_id])
            name, avatar = profiles.get(user_id, (None, None))
            if name is not None:
                content["displayname"] = name
            if avatar is not None:
                content["avatar_url"] = avatar
        if reason is not None:
            content["reason"] = reason
        return content


class Memberships:
    """What our users do to their own and others' membership."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        writers: RoomWriters,
        sender: Sender,
        profiles: MemberProfiles,
        restricted: RestrictedJoins,
        remote: RemoteRooms,
        outgoing: OutgoingInvitations,
        server_name: str,
        on_joined: JoinedHook | None = None,
    ) -> None:
        """``on_joined`` is called with user and room when a user of ours has joined a room."""
        self._database = database
        self._heads = heads
        self._writers = writers
        self._sender = sender
        self._profiles = profiles
        self._restricted = restricted
        self._remote = remote
        self._outgoing = outgoing
        self._server_name = server_name
        self._on_joined = on_joined

    def _is_resident(self, head: RoomHead | None) -> bool:
        return head is not None and self._server_name in head.joined_servers

    # -- one's own membership ------------------------------------------------------------------------------------------

    @refuses_by_newest_state
    async def join(self, user_id: str, room_id: str, via: Iterable[str] = (), reason: str | None = None) -> None:
        """Join a room; does nothing for those who are in it.

        Raises ``Forbidden`` where the room does not let them in, ``NotFound`` where nobody knows the room, and
        ``RemoteFailed`` where the servers that know it cannot be asked.
        """
        head = await self._heads.find(room_id)
        if head is not None and user_id in head.joined:
            if not await self._heads.is_outdated(head):
                return
            # Through another process the user may have left, or have been removed.
            head = await self._heads.find(room_id)
            if head is not None and user_id in head.joined:
                return
        await self._join(head, user_id, room_id, via, reason)
        if self._on_joined is not None:
            await self._on_joined(user_id, room_id)

    async def _join(
        self, head: RoomHead | None, user_id: str, room_id: str, via: Iterable[str], reason: str | None
    ) -> None:
        content = await self._profiles.member_content(user_id, "join", reason)
        servers = list(via)[:VIA_MAX]
        if head is None or not (self._is_resident(head) or is_abandoned(head)):
            await self._remote.join(room_id, user_id, content, servers)
        elif self._is_resident(head):
            await self._join_resident_room(head, user_id, content, servers)
        else:
            await self._join_abandoned_room(head, user_id, content, servers)

    async def _join_resident_room(
        self, head: RoomHead, user_id: str, content: JsonObject, servers: Sequence[str]
    ) -> None:
        room_id = head.room_id
        others = [server for server in head.joined_servers if server != self._server_name]
        if await self._restricted.needs_authorisation(head, user_id):
            try:
                content[VOUCHER] = await self._restricted.authorising_user(head, user_id)
            except (UnableToGrantJoin, UnableToAuthoriseJoin) as error:
                if not others:
                    raise Forbidden(error.message) from error
                await self._remote.join(room_id, user_id, content, [*servers, *others][:VIA_MAX])
                return
        try:
            await self._sender.send(room_id, EventDraft("m.room.member", user_id, content, user_id))
        except Forbidden:
            standing = await self._database.read(user_rooms.standing_of, user_id, room_id)
            if standing is None or standing.membership != "invite" or not _is_out_of_band(standing, head, user_id):
                raise
            # The room's state here does not have the invitation (yet): the server that it came from does.
            await self._remote.join(room_id, user_id, content, servers)

    async def _join_abandoned_room(
        self, head: RoomHead, user_id: str, content: JsonObject, servers: Sequence[str]
    ) -> None:
        """Join a room that everybody has left, as far as we know: an invitation into it is as good as it was.

        Where there is word of other servers that are in it by now, they are asked first.
        """
        standing = await self._database.read(user_rooms.standing_of, user_id, head.room_id)
        is_invited_elsewhere = standing is not None and _is_out_of_band(standing, head, user_id)
        if is_invited_elsewhere or any(server != self._server_name for server in servers):
            try:
                await self._remote.join(head.room_id, user_id, content, servers)
            except MatrixError as error:
                if is_invited_elsewhere or error.status == 403:
                    raise
                logger.info("nobody else is in the room", room_id=head.room_id, reason=error.message)
            else:
                return
        await self._sender.send(head.room_id, EventDraft("m.room.member", user_id, content, user_id))

    @refuses_by_newest_state
    async def leave(self, user_id: str, room_id: str, reason: str | None = None, *, is_governed: bool = True) -> None:
        """Leave a room, reject an invitation or take back a knock; does nothing for those who left.

        The last owner may not leave others behind if it ``is_governed``; the end of an account is not.
        Raises ``NotFound`` for a room that the user never had to do with, ``Forbidden`` for those who are banned.
        """
        standing = await self._standing(user_id, room_id)
        if standing.membership == "leave":
            return
        if standing.membership == "ban":
            raise Forbidden("You are banned from this room")
        head = await self._heads.find(room_id)
        is_here = head is not None and (self._is_resident(head) or is_abandoned(head))
        if head is None or not is_here or _is_out_of_band(standing, head, user_id):
            # Also an invitation into a room that we are in, if its state does not have it: it can always be dismissed.
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
        """Bring a user's changed name and picture into the rooms that they are in."""
        content = await self._profiles.member_content(user_id, "join")
        for room_id in await self._database.read(user_rooms.rooms_of, user_id, "join"):
            try:
                await self._sender.send(room_id, await self._with_standing_keys(room_id, user_id, content))
            except MatrixError:
                continue  # the room or its policy server does not let them; the profile itself has changed

    async def _with_standing_keys(self, room_id: str, user_id: str, content: JsonObject) -> EventDraft:
        head = await self._heads.get(room_id)
        standing = await self._heads.state_event(head, "m.room.member", user_id)
        # Nobody has to vouch for who is in the room already; to say so would take that server's signature again.
        dropped = ("displayname", "avatar_url", "reason", "is_direct", "third_party_invite", "membership", VOUCHER)
        kept = {k: v for k, v in standing.content.items() if k not in dropped} if standing else {}
        return EventDraft("m.room.member", user_id, {**kept, **content}, user_id)

    async def leave_all(self, user_id: str) -> None:
        """Leave every room and reject every invitation, as far as that is possible: the account is deactivated."""
        for membership in ("join", "invite", "knock"):
            for room_id in await self._database.read(user_rooms.rooms_of, user_id, membership):
                try:
                    await self.leave(user_id, room_id, is_governed=False)
                except MatrixError as error:
                    logger.info("room not left", room_id=room_id, user_id=user_id, reason=error.message)

    async def leave_for_closed_accounts(self) -> None:
        """Take out of all rooms whose account was closed by the command line, or while the server stopped."""
        for user_id in await self._database.read(user_rooms.closed_accounts_in_rooms):
            await self.leave_all(user_id)

    async def _standing(self, user_id: str, room_id: str) -> Standing:
        standing = await self._database.read(user_rooms.standing_of, user_id, room_id)
        if standing is None:
            raise NotFound("You have nothing to do with this room")
        return standing

    # -- the membership of others --------------------------------------------------------------------------------------

    @refuses_by_newest_state
    async def invite(
        self, sender: str, room_id: str, user_id: str, *, reason: str | None = None, is_direct: bool = False
    ) -> None:
        """Invite a user, on this server or another.

        The invitation of a user of another server exists only once that server has agreed to it. Raises ``Forbidden``
        for what the room does not allow (``reason: banned`` for a banned user), ``NotFound`` for a user of ours who
        does not exist, ``RemoteFailed`` and ``RemoteTimedOut`` where the other server cannot be asked.
        """
        if not is_valid_user_id(user_id):
            raise InvalidParam("Not a valid user ID")
        await self.check_invitable(sender, [user_id])
        content = await self._profiles.member_content(user_id, "invite", reason)
        if is_direct:
            content["is_direct"] = True
        draft = EventDraft("m.room.member", sender, content, user_id)
        head = await self._joined_head(sender, room_id)
        await self._check_not_banned(head, user_id)
        if server_of(user_id) == self._server_name:
            await self._sender.send(room_id, draft)
            return
        await self._check_federated(head, user_id)
        working = self._writers.look_at(head)
        # The invited user's server is sent the event before the room is: the policy server is asked before both.
        composed = await self._sender.recommended(working, await self._sender.compose(working, draft))

        async def append(invitation: NewEvent) -> None:
            async def job(working: WorkingHead) -> Sequence[NewEvent]:
                await self._check_not_banned(working.head, user_id)
                await self._sender.compose(working, draft)  # whether it is still allowed now
                return [invitation]

            await self._writers.submit(room_id, job)

        await self._outgoing.send(working, composed, append)

    async def check_invitable(self, sender: str, user_ids: Sequence[str]) -> None:
        """Raise ``NotFound`` unless those of the users who are ours exist and are active."""
        ours = [user_id for user_id in user_ids if server_of(user_id) == self._server_name]
        if not ours:
            return
        existing = await self._database.read(accounts.existing_users, ours)
        for user_id in ours:
            if user_id not in existing:
                raise NotFound(f"{user_id} does not exist on this server")

    @refuses_by_newest_state
    async def kick(self, sender: str, room_id: str, user_id: str, reason: str | None = None) -> None:
        """Remove a user, or take back an invitation or refuse a knock. Raises ``Forbidden``."""
        head = await self._joined_head(sender, room_id)
        target = await self._heads.state_event(head, "m.room.member", user_id)
        if target is None or target.membership not in ("join", "invite", "knock"):
            raise Forbidden("The user is not in this room")
        await self._set(sender, room_id, user_id, "leave", reason)

    @refuses_by_newest_state
    async def ban(self, sender: str, room_id: str, user_id: str, reason: str | None = None) -> None:
        """Ban a user, whether they were ever in the room or not. Raises ``Forbidden``."""
        if not is_valid_user_id(user_id):
            raise InvalidParam("Not a valid user ID")
        await self._joined_head(sender, room_id)
        content: JsonObject = {"membership": "ban", **({"reason": reason} if reason is not None else {})}
        await self._ban(room_id, EventDraft("m.room.member", sender, content, user_id))

    async def _ban(self, room_id: str, ban: EventDraft) -> str:
        """Send a ban; returns its event ID. A pending invitation is taken back first, where that needs to be said."""
        user_id = ban.state_key or ""
        head = await self._heads.find(room_id)
        if head is None or user_id not in head.invited or server_of(user_id) in head.joined_servers:
            return (await self._sender.send(room_id, ban)).event_id
        # The user's server is not in the room: it understands that an invitation is taken back, not a ban.
        revocation = replace(ban, content={**ban.content, "membership": "leave"})
        return (await self._sender.send_all(room_id, [revocation, ban]))[-1].event_id

    @refuses_by_newest_state
    async def unban(self, sender: str, room_id: str, user_id: str, reason: str | None = None) -> None:
        """Lift a ban. Raises ``Forbidden``, and ``BadState`` where there is no ban."""
        head = await self._joined_head(sender, room_id)
        target = await self._heads.state_event(head, "m.room.member", user_id)
        if target is None or target.membership != "ban":
            raise BadState("The user is not banned")
        await self._set(sender, room_id, user_id, "leave", reason)

    async def _set(self, sender: str, room_id: str, user_id: str, membership: str, reason: str | None) -> None:
        content: JsonObject = {"membership": membership, **({"reason": reason} if reason is not None else {})}
        await self._sender.send(room_id, EventDraft("m.room.member", sender, content, user_id))

    @refuses_by_newest_state
    async def send_member(self, room_id: str, draft: EventDraft, txn: TransactionKey | None = None) -> str | None:
        """An m.room.member event that a client wrote itself; returns its ID where it is sent as it is.

        Invitations to other servers take their own road, see ``invite``.
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
            await self._check_not_banned(await self._joined_head(draft.sender, room_id), user_id)
        if draft.content.get("membership") == "ban":
            return await self._ban(room_id, draft)
        event_id = (await self._sender.send(room_id, await self._vouched(room_id, draft), txn)).event_id
        if draft.content.get("membership") == "join" and self._on_joined is not None:
            await self._on_joined(user_id, room_id)
        return event_id

    async def _vouched(self, room_id: str, draft: EventDraft) -> EventDraft:
        """The draft with the voucher that it needs, and without the one that a client may have written itself."""
        content = {key: value for key, value in draft.content.items() if key != VOUCHER}
        head = await self._heads.find(room_id)
        joins = content.get("membership") == "join" and draft.state_key == draft.sender
        if head is not None and joins and await self._restricted.needs_authorisation(head, draft.sender):
            content[VOUCHER] = await self._restricted.authorising_user(head, draft.sender)
        return replace(draft, content=content)

    async def _joined_head(self, user_id: str, room_id: str) -> RoomHead:
        head = await self._heads.find(room_id)
        if head is None or user_id not in head.joined:
            raise Forbidden("You are not in this room")
        return head

    async def _check_not_banned(self, head: RoomHead, user_id: str) -> None:
        member = await self._heads.state_event(head, "m.room.member", user_id)
        if member is not None and member.membership == "ban":
            raise Forbidden("The user is banned from this room", reason="banned")

    async def _check_federated(self, head: RoomHead, user_id: str) -> None:
        create = await self._heads.state_event(head, "m.room.create")
        if create is not None and create.content.get("m.federate") is False:
            raise Forbidden(f"The room is closed to other servers, so {user_id} cannot be invited")


def _is_out_of_band(standing: Standing, head: RoomHead, user_id: str) -> bool:
    """Whether an invitation or a knock came from outside of the graph, and the room's state does not have it."""
    is_pending = standing.membership in ("invite", "knock")
    return is_pending and standing.is_outlier and head.state.get(("m.room.member", user_id)) != standing.event_id
