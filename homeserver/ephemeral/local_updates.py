"""Checks whether another server may send receipts and typing notices for a room."""

from __future__ import annotations

from typing import TypeGuard

from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.protocol.server_acls import server_acl_allows


async def room_of_edu(heads: RoomHeads, room_id: object, origin: str) -> RoomHead | None:
    """The room of an EDU from ``origin``; None unless both servers are in it and its server ACL allows ``origin``.

    https://spec.matrix.org/v1.19/server-server-api/#server-access-control-lists-acls
    """
    if not isinstance(room_id, str):
        return None
    head = await heads.newest_where(room_id, lambda head: bool(head.joined_local) and origin in head.joined_servers)
    if head is None:
        return None
    # As ``ServerAccess.is_allowed`` has it, a redacted ACL counts as it was signed.
    acl = await heads.original_state_event(head, "m.room.server_acl")
    if acl is not None and not server_acl_allows(acl.content, origin):
        return None
    return head


def is_user_of(user_id: object, server_name: str) -> TypeGuard[str]:
    """Whether a value is the ID of a user of a server."""
    return isinstance(user_id, str) and user_id.startswith("@") and user_id.partition(":")[2] == server_name
