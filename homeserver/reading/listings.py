"""Lists of the governance API: whom they are for, and how they are read page by page.

A token names the entry that ended the part before, by what the list is sorted by, and not how many there were: what
comes and goes meanwhile takes nothing away from those who stay where they are, and shows none of them twice.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar, cast

import orjson
from sqlalchemy import Connection

from homeserver.errors import Forbidden, InvalidParam
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.protocol.canonical_json import INTEGER_MAX, INTEGER_MIN
from homeserver.storage.database import Database
from homeserver.storage.listings import TimePlace

Place: TypeAlias = tuple[str | int, ...]
"""Where an entry stands in its list: what the list is sorted by."""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which part of a list is asked for; by default all of it."""

    limit: int | None = None
    after: str | None = None
    """The token that came with the part before. Goes with a limit."""


class _Timed(Protocol):
    """An entry of a list that goes from new to old."""

    @property
    def place(self) -> TimePlace:
        """Where it stands."""


Stored = TypeVar("Stored", bound=_Timed)
Entry = TypeVar("Entry")


async def room_of_member(heads: RoomHeads, user_id: str, room_id: str) -> RoomHead:
    """The room, for one of our users who is in it.

    Raises ``Forbidden`` for everybody else, whether there is such a room or not.
    """
    head = await heads.newest_where(room_id, lambda head: user_id in head.joined_local)
    if head is None:
        raise Forbidden("You are not in this room")
    return head


async def newest_first(
    database: Database,
    head: RoomHead,
    page: PageRequest,
    read: Callable[[Connection, int, int | None, TimePlace | None], Sequence[Stored]],
    shown: Callable[[Sequence[Stored]], list[Entry]],
) -> tuple[list[Entry], str | None]:
    """A part of a list that goes from new to old, and the token for what follows, if anything does.

    ``read`` reads so many stored entries of a room at most that follow a place, and ``shown`` makes of them what is
    answered. Raises ``InvalidParam`` for a token that was never given out.
    """
    after = cast("TimePlace", place_of(page.after, (int, int))) if page.after is not None else None
    most = None if page.limit is None else page.limit + 1

    def work(connection: Connection) -> tuple[list[Entry], str | None]:
        stored = read(connection, head.room_nid, most, after)
        part = stored[: page.limit]
        return shown(part), token_of(part[-1].place) if len(part) < len(stored) else None

    return await database.read(work)


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
