"""Lists of the governance API: who may read them, and how they are paged.

A token holds the sort key of the last entry of a page, not a count, so that entries that are added or removed between
two requests make no other entry appear twice or not at all.
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
"""The sort key of an entry in its list."""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The part of a list that a client wants; by default all of it."""

    limit: int | None = None
    after: str | None = None
    """The token that came with the page before. Only used with a limit."""


class _Timed(Protocol):
    """An entry of a list that is sorted from new to old."""

    @property
    def place(self) -> TimePlace:
        """The sort key."""


Stored = TypeVar("Stored", bound=_Timed)
Entry = TypeVar("Entry")


async def room_of_member(heads: RoomHeads, user_id: str, room_id: str) -> RoomHead:
    """The head of a room that one of our users is in.

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
    """A page of a list that is sorted from new to old, and the token of the next page if there is one.

    ``read`` takes a numeric room ID, a limit and a place, and reads the stored entries that follow the place; ``shown``
    turns them into the entries of the answer. Raises ``InvalidParam`` for a token that was never given out.
    """
    after = cast("TimePlace", place_of(page.after, (int, int))) if page.after is not None else None
    most = None if page.limit is None else page.limit + 1

    def work(connection: Connection) -> tuple[list[Entry], str | None]:
        stored = read(connection, head.room_nid, most, after)
        part = stored[: page.limit]
        return shown(part), token_of(part[-1].place) if len(part) < len(stored) else None

    return await database.read(work)


def token_of(place: Place) -> str:
    """The token for the page that follows the entry with this sort key."""
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode().rstrip("=")


def place_of(token: str, kinds: Sequence[type[str] | type[int]]) -> Place:
    """The sort key that a token holds; ``kinds`` are the types of its parts.

    Raises ``InvalidParam`` for a token that was never given out.
    """
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
