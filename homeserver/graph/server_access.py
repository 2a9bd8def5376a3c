"""Which other servers may access a room.

https://spec.matrix.org/v1.19/server-server-api/#server-access-control-lists-acls
"""

from __future__ import annotations

from homeserver.errors import Forbidden, NotFound
from homeserver.graph.outdated_heads import refuses_by_newest_state
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.graph.under_way import INVITATION, JOIN, UnderWay
from homeserver.protocol.events import StateKey

INVITATION_WAIT_S = 20.0
"""How long a user who wants to join waits for an invitation that is still being sent."""
JOIN_WAIT_S = 10.0
"""How long a transaction with events of a room waits while the room is being joined; then the events are kept."""


class ServerAccess:
    """Decides whether servers may access rooms."""

    def __init__(self, heads: RoomHeads, under_way: UnderWay) -> None:
        self._heads = heads
        self._under_way = under_way

    async def is_allowed(self, head: RoomHead, server_name: str) -> bool:
        """Whether the room's server ACL lets a server take part."""
        return await self._heads.allows_server(head, server_name)

    @refuses_by_newest_state
    async def resident_room(self, room_id: str, server_name: str) -> RoomHead:
        """A room that this server is in, if its ACL allows the server. Raises ``NotFound``, ``Forbidden``."""
        head = await self._heads.find(room_id)
        if head is None or not head.joined_local:
            raise NotFound("Unknown room")
        if not await self.is_allowed(head, server_name):
            raise Forbidden("Your server is not allowed in this room")
        return head

    @refuses_by_newest_state
    async def room_for_handshake(self, room_id: str, user_id: str, server_name: str) -> RoomHead:
        """The head of a room that a user of another server wants to join, knock on or leave with our help.

        Waits for an invitation of the user that is still being sent, since the user may have seen it already. A room
        that everybody has left, as far as we know, can still be joined by invited users, since no other server can help
        them. Raises ``NotFound``, ``Forbidden``.
        """
        head = await self._heads.find(room_id)
        if head is not None and user_id not in head.joined and user_id not in head.invited:
            if await self._under_way.is_under_way(INVITATION, room_id, user_id):
                await self._under_way.wait_for_end(INVITATION, room_id, user_id, INVITATION_WAIT_S)
                self._heads.forget(room_id)  # another process may have stored the invitation just now
            head = await self._heads.find(room_id)
        if head is None or not (head.joined_local or (is_abandoned(head) and user_id in head.invited)):
            raise NotFound("Unknown room")
        if not await self.is_allowed(head, server_name):
            raise Forbidden("Your server is not allowed in this room")
        return head

    async def is_being_joined(self, room_id: str) -> bool:
        """Whether one of our users is joining a room that this server is not in yet."""
        return await self._under_way.is_under_way(JOIN, room_id)

    async def version_being_joined(self, room_id: str) -> str | None:
        """The version of a room that one of our users is joining, as far as it is known."""
        return await self._under_way.version_of(JOIN, room_id)

    async def wait_for_join(self, room_id: str) -> bool:
        """Wait until nobody is joining the room any more; returns False if that takes too long."""
        if not await self._under_way.wait_for_end(JOIN, room_id, None, JOIN_WAIT_S):
            return False
        self._heads.forget(room_id)
        return True

    @refuses_by_newest_state
    async def known_room(self, room_id: str, server_name: str) -> RoomHead:
        """A room that this server is or was in, for another one of which that is true as well, as far as we know.

        When our last user has left, other servers may need the events before the departure to accept it, and we may be
        the only one to have them. Raises ``NotFound``, ``Forbidden``.
        """
        head = await self._heads.find(room_id)
        if head is None:
            raise NotFound("Unknown room")
        if not await self.is_allowed(head, server_name):
            raise Forbidden("Your server is not allowed in this room")
        if server_name not in head.joined_servers and not member_keys(head, server_name):
            raise Forbidden("Your server is not in this room")
        return head


def is_abandoned(head: RoomHead) -> bool:
    """Whether everybody has left a room, as far as we know, so that no other server has newer events."""
    return not head.joined


def member_keys(head: RoomHead, server_name: str) -> list[StateKey]:
    """The state keys of a server's members. Every user who ever was a member has an entry in the current state."""
    suffix = ":" + server_name
    return [key for key in head.state if key[0] == "m.room.member" and key[1].endswith(suffix)]
