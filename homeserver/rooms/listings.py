"""Lists of the governance API: whom they are for, and how they are read page by page."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import orjson

from homeserver.errors import Forbidden, InvalidParam
from homeserver.protocol.canonical_json import INTEGER_MAX, INTEGER_MIN
from homeserver.rooms.state import RoomHead, RoomHeads

Place: TypeAlias = tuple[str | int, ...]
"""Where an entry stands in its list: what the list is sorted by."""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which part of a list is asked for; by default all of it."""

    limit: int | None = None
    after: str | None = None
    """The token that came with the part before."""


async def room_of_member(heads: RoomHeads, user_id: str, room_id: str) -> RoomHead:
    """The room, for one of our users who is in it.

    Raises ``Forbidden`` for everybody else, whether there is such a room or not.
    """
    head = await heads.find(room_id)
    if head is None or user_id not in head.joined_local:
        raise Forbidden("You are not in this room")
    return head


def token_of(place: Place) -> str:
    """The token for the part of a list that follows this entry."""
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode().rstrip("=")


def place_of(token: str, kinds: Sequence[type[str] | type[int]]) -> Place:
    """The place that a token stands for. Raises ``InvalidParam`` for a token that was never given out."""
    try:
        place = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError):
        place = None
    if not isinstance(place, list) or len(place) != len(kinds):
        raise InvalidParam("'from' is not a token of this list")
    for part, kind in zip(place, kinds, strict=True):
        if type(part) is not kind or (isinstance(part, int) and not INTEGER_MIN <= part <= INTEGER_MAX):
            raise InvalidParam("'from' is not a token of this list")
    return tuple(place)
