"""Places for requests to other servers: how many run at the same time, for each purpose and at each destination.

Strangers, users and other servers can make this server ask hosts that never answer. Each purpose has places of its own,
so that look-ups cannot delay delivery, and requests for keys that a stranger causes cannot delay those that an incoming
request waits for. At most half of the places of a purpose go to destinations that have not answered lately, so that
servers that answer wait only for others that do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from homeserver.caches import ENTRY_BYTES, WeightedCache
from homeserver.errors import NoPlace


class Purpose(StrEnum):
    """What a request to another server is for."""

    DELIVERY = "delivery"
    """Transactions with our events."""
    AUTHENTICATION = "authentication"
    """The keys of a server whose request waits to be authenticated."""
    EVENT_KEYS = "event keys"
    """The keys of servers whose events others bring."""
    EVENTS = "events"
    """Events, states and auth chains that are missing here."""
    MEMBERSHIP = "membership"
    """Joins, leaves, knocks and invitations of our users."""
    POLICY = "policy"
    """Signatures of policy servers."""
    LOOK_UPS = "look-ups"
    """Profiles and aliases that our users ask for."""
    NOTARY = "notary"
    """The keys of servers that strangers ask this server about, as a notary."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one purpose may use."""

    at_once: int
    """How many requests run at the same time."""
    per_destination: int
    """How many of them go to the same server."""
    waiting_max: int
    """How many may wait for a place; further ones fail at once."""
    seconds_max: float | None
    """How long one may wait for a place; no bound for what waits in the background anyway."""


SHARES: Final[Mapping[Purpose, Share]] = {
    Purpose.DELIVERY: Share(192, 2, 100_000, None),
    Purpose.AUTHENTICATION: Share(64, 16, 1_000, 10.0),
    Purpose.EVENT_KEYS: Share(48, 8, 2_000, 60.0),
    Purpose.EVENTS: Share(64, 8, 1_000, 30.0),
    Purpose.MEMBERSHIP: Share(64, 8, 1_000, 30.0),
    Purpose.POLICY: Share(32, 8, 1_000, 5.0),
    Purpose.LOOK_UPS: Share(32, 4, 200, 10.0),
    Purpose.NOTARY: Share(16, 2, 200, 5.0),
}
ANSWERED_BYTES_MAX = 4 * 2**20
"""Memory for the names of the servers that answered lately: some 15,000."""
_NAME_BYTES = 80


@dataclass(slots=True)
class _Lane:
    """One destination's requests of one purpose."""

    turns: asyncio.Semaphore
    users: int = 0
    """How many requests run or wait."""


@dataclass(slots=True)
class _Room:
    """The places of one purpose."""

    share: Share
    turns: asyncio.Semaphore
    turns_of_silent: asyncio.Semaphore
    lanes: dict[str, _Lane] = field(default_factory=dict)
    waiting: int = 0


class Places:
    """Hands out the places. A request holds one from discovery to the end of its answer."""

    def __init__(self, shares: Mapping[Purpose, Share] = SHARES) -> None:
        self._rooms = {
            purpose: _Room(share, asyncio.Semaphore(share.at_once), asyncio.Semaphore(max(1, share.at_once // 2)))
            for purpose, share in shares.items()
        }
        self._answered: WeightedCache[str, bool] = WeightedCache(
            "servers that answered", ANSWERED_BYTES_MAX, lambda _: _NAME_BYTES, entry_bytes=ENTRY_BYTES
        )

    @contextlib.asynccontextmanager
    async def hold(self, purpose: Purpose, destination: str) -> AsyncIterator[None]:
        """Wait for a place for a request to a server, and hold it while the context lasts.

        Raises ``NoPlace`` when too many requests of the purpose wait, or no place becomes free in time.
        """
        room = self._rooms[purpose]
        lane = room.lanes.get(destination)
        if lane is None:
            lane = room.lanes[destination] = _Lane(asyncio.Semaphore(room.share.per_destination))
        lane.users += 1
        try:
            taken = await self._take(room, lane, destination)
            try:
                yield
            finally:
                for turns in reversed(taken):
                    turns.release()
        finally:
            lane.users -= 1
            if not lane.users:
                del room.lanes[destination]

    async def _take(self, room: _Room, lane: _Lane, destination: str) -> list[asyncio.Semaphore]:
        """Take a place of the destination, then one of the purpose: those who wait for a slow server take no other
        server's place.
        """
        taken: list[asyncio.Semaphore] = []
        try:
            if lane.turns.locked() or room.turns.locked() or room.turns_of_silent.locked():
                if room.waiting >= room.share.waiting_max:
                    raise NoPlace(destination)
                room.waiting += 1
                try:
                    async with asyncio.timeout(room.share.seconds_max):
                        await self._take_each(room, lane, destination, taken)
                finally:
                    room.waiting -= 1
            else:
                await self._take_each(room, lane, destination, taken)
        except BaseException as error:
            for turns in reversed(taken):
                turns.release()
            if isinstance(error, TimeoutError):
                raise NoPlace(destination) from error
            raise
        return taken

    async def _take_each(self, room: _Room, lane: _Lane, destination: str, taken: list[asyncio.Semaphore]) -> None:
        await lane.turns.acquire()
        taken.append(lane.turns)
        if self._answered.get(destination) is None:
            await room.turns_of_silent.acquire()
            taken.append(room.turns_of_silent)
        await room.turns.acquire()
        taken.append(room.turns)

    def answered(self, destination: str) -> None:
        """A server has answered: it need not share places with those that do not."""
        if self._answered.get(destination) is None:
            self._answered.put(destination, True)

    def did_not_answer(self, destination: str) -> None:
        """A server has not answered a request."""
        self._answered.drop(destination)
