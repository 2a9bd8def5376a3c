"""How our users join rooms, those that this server is in and those that it is not in.

https://spec.matrix.org/v1.19/client-server-api/#joining-rooms
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol, TypeAlias

import structlog

from homeserver.errors import Forbidden, MatrixError, UnableToAuthoriseJoin, UnableToGrantJoin
from homeserver.graph.outdated_heads import refuses_by_newest_state
from homeserver.graph.send import Sender
from homeserver.graph.server_access import is_abandoned
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.membership.member_profiles import MemberProfiles
from homeserver.membership.restricted_joins import RestrictedJoins
from homeserver.protocol.events import EventDraft
from homeserver.protocol.json_types import JsonObject
from homeserver.storage import user_rooms
from homeserver.storage.database import Database
from homeserver.storage.user_rooms import Standing

logger = structlog.get_logger(__name__)

VOUCHER = "join_authorised_via_users_server"
"""The key in a join into a restricted room that names the user who lets them in. Only this server may set it."""
VIA_MAX = 20
"""How many servers to join through a client may name."""

JoinedHook: TypeAlias = Callable[[str, str], Awaitable[None]]
"""Called with the IDs of a user of ours and of the room that the user has joined."""


class RemoteRooms(Protocol):
    """Memberships of our users that other servers have to help with."""

    async def join(self, room_id: str, user_id: str, content: JsonObject, servers: Sequence[str]) -> None:
        """Join a room through one of these servers, or one that is known from an invitation."""

    async def leave(self, standing: Standing, user_id: str, reason: str | None) -> None:
        """Leave a room that this server is not in: reject an invitation, take back a knock."""


class Joins:
    """Brings our users into rooms."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        sender: Sender,
        profiles: MemberProfiles,
        restricted: RestrictedJoins,
        remote: RemoteRooms,
        server_name: str,
        on_joined: JoinedHook | None = None,
    ) -> None:
        self._database = database
        self._heads = heads
        self._sender = sender
        self._profiles = profiles
        self._restricted = restricted
        self._remote = remote
        self._server_name = server_name
        self._on_joined = on_joined

    @refuses_by_newest_state
    async def join(self, user_id: str, room_id: str, via: Iterable[str] = (), reason: str | None = None) -> None:
        """Join a room; does nothing if the user is in it already.

        Raises ``Forbidden`` if the room does not let the user in, ``NotFound`` if no server knows the room, and
        ``RemoteFailed`` if the servers that know it do not answer.
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
        await self.joined(user_id, room_id)

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
            if standing is None or standing.membership != "invite" or not is_out_of_band(standing, head, user_id):
                raise
            # The invitation is not in the room's state here (yet), but it is at the server that sent it.
            await self._remote.join(room_id, user_id, content, servers)

    async def _join_abandoned_room(
        self, head: RoomHead, user_id: str, content: JsonObject, servers: Sequence[str]
    ) -> None:
        """Join a room that everybody has left, as far as we know; invitations into it are still valid.

        If other servers may be in it by now, according to an invitation or the client, they are asked first.
        """
        standing = await self._database.read(user_rooms.standing_of, user_id, head.room_id)
        is_invited_elsewhere = standing is not None and is_out_of_band(standing, head, user_id)
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

    async def joined(self, user_id: str, room_id: str) -> None:
        """Call the hook: one of our users has joined a room."""
        if self._on_joined is not None:
            await self._on_joined(user_id, room_id)

    def _is_resident(self, head: RoomHead | None) -> bool:
        return head is not None and self._server_name in head.joined_servers

    async def vouched(self, room_id: str, draft: EventDraft) -> EventDraft:
        """The draft with the voucher that it needs, and without one that the client may have written itself."""
        content = {key: value for key, value in draft.content.items() if key != VOUCHER}
        head = await self._heads.find(room_id)
        joins = content.get("membership") == "join" and draft.state_key == draft.sender
        if head is not None and joins and await self._restricted.needs_authorisation(head, draft.sender):
            content[VOUCHER] = await self._restricted.authorising_user(head, draft.sender)
        return replace(draft, content=content)


def is_out_of_band(standing: Standing, head: RoomHead, user_id: str) -> bool:
    """Whether an invitation or knock was received outside of the graph, and the room's state does not have it."""
    is_pending = standing.membership in ("invite", "knock")
    return is_pending and standing.is_outlier and head.state.get(("m.room.member", user_id)) != standing.event_id
