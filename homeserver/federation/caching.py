"""Two small helpers: a cache of small values, and sharing one request among all who wait for the same answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from homeserver.caches import ENTRY_BYTES, WeightedCache

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

SMALL_VALUE_BYTES = 300


class LruDict(WeightedCache[Key, Value]):
    """A cache of small values of about the same size; the entries that were used longest ago are dropped first."""

    def __init__(self, size_max: int, name: str = "small values", value_bytes: int = SMALL_VALUE_BYTES) -> None:
        """A cache of about ``size_max`` entries, of at most ``value_bytes`` each."""
        super().__init__(name, size_max * (ENTRY_BYTES + value_bytes), lambda _: value_bytes)

    def remove(self, key: Key) -> None:
        """Forget a value, if there is one."""
        self.drop(key)


class SingleFlight(Generic[Key, Value]):
    """Runs one piece of work for all callers that ask for the same thing at the same time.

    The work continues when one of the waiting callers is cancelled: others may wait for it too, and its result is worth
    caching in any case.
    """

    def __init__(self) -> None:
        self._flights: dict[Key, asyncio.Task[Value]] = {}

    async def run(self, key: Key, work: Callable[[], Awaitable[Value]]) -> Value:
        """The result of ``work()``, or of the work for ``key`` that is already in progress."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.ensure_future(_as_coroutine(work))
            flight.add_done_callback(lambda done: self._land(key, done))
        return await asyncio.shield(flight)

    def _land(self, key: Key, flight: asyncio.Task[Value]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.cancelled():
            # each waiting caller got the error; without any, asyncio must not log that it was never retrieved
            flight.exception()

    async def aclose(self) -> None:
        """Cancel all work in progress."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)


async def _as_coroutine(work: Callable[[], Awaitable[Value]]) -> Value:
    return await work()
