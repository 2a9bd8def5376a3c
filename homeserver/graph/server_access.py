"""Which other servers may ask about a room.

https://spec.matrix.org/v1.19/server-server-api/#server-access-control-lists-acls
"""

from __future__ import annotations

from homeserver.errors import Forbidden, NotFound
from homeserver.graph.outdated_heads import refuses_by_newest_state
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.protocol.events import StateKey
from homeserver.protocol.server_acls import server_acl_allows


class ServerAccess:
    """Lets servers in, or not."""

    def __init__(self, heads: RoomHeads) -> None:
        self._heads = heads

    async def is_allowed(self, head: RoomHead, server_name: str) -> bool:
        """Whether the room's server ACL lets a server take part."""
        acl = await self._heads.state_event(head, "m.room.server_acl")
        return server_acl_allows(acl.content if acl is not None else None, server_name)

    @refuses_by_newest_state
    async def resident_room(self, room_id: str, server_name: str) -> RoomHead:
        """A room that this server is in, for a server that the ACL does not shut out.

        Raises ``NotFound``, ``Forbidden``.
        """
        head = await self._heads.find(room_id)
        if head is None or not head.joined_local:
            raise NotFound("Unknown room")
        if not await self.is_allowed(head, server_name):
            raise Forbidden("Your server is not allowed in this room")
        return head

    @refuses_by_newest_state
    async def known_room(self, room_id: str, server_name: str) -> RoomHead:
        """A room that this server is in, for a server that is or was in it. Raises ``NotFound``, ``Forbidden``."""
        head = await self.resident_room(room_id, server_name)
        if server_name not in head.joined_servers and not member_keys(head, server_name):
            raise Forbidden("Your server is not in this room")
        return head


def member_keys(head: RoomHead, server_name: str) -> list[StateKey]:
    """The keys of the members of a server. Whoever was ever a member has an entry in the current state."""
    suffix = ":" + server_name
    return [key for key in head.state if key[0] == "m.room.member" and key[1].endswith(suffix)]
