"""Checks whether another server may send receipts and typing notices for a room."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeGuard

from homeserver.graph.state import RoomHead, RoomHeads

ROOM_ID_CHARACTERS_MAX = 255
ROOMS_MAX = 500
"""How many rooms the EDUs of one type in a transaction may be about; further ones are left out."""
ROOMS_NOT_SHARED_MAX = 10
"""After so many rooms of ours that the origin is not in, the rest is left out: each may cost a database question."""


async def rooms_of_edus(heads: RoomHeads, room_ids: Iterable[object], origin: str) -> dict[str, RoomHead]:
    """The rooms of EDUs from ``origin``, without those that either server is not in or whose server ACL denies it.

    All rooms that are unknown here cost one database question together.

    https://spec.matrix.org/v1.19/server-server-api/#server-access-control-lists-acls
    """
    strings = (room_id for room_id in room_ids if isinstance(room_id, str) and len(room_id) <= ROOM_ID_CHARACTERS_MAX)
    usable = list(dict.fromkeys(strings))
    found: dict[str, RoomHead] = {}
    not_shared = 0
    for room_id in await heads.known(usable[:ROOMS_MAX]):
        head = await _room_of_edu(heads, room_id, origin)
        if head is not None:
            found[room_id] = head
            continue
        not_shared += 1
        if not_shared >= ROOMS_NOT_SHARED_MAX:
            break
    return found


async def _room_of_edu(heads: RoomHeads, room_id: str, origin: str) -> RoomHead | None:
    head = await heads.newest_where(room_id, lambda head: bool(head.joined_local) and origin in head.joined_servers)
    return head if head is not None and await heads.allows_server(head, origin) else None


def is_user_of(user_id: object, server_name: str) -> TypeGuard[str]:
    """Whether a value is the ID of a user of a server."""
    return isinstance(user_id, str) and user_id.startswith("@") and user_id.partition(":")[2] == server_name
