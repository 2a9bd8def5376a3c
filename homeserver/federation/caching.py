"""Two small helpers: a dictionary that forgets, and one flight for all who want to go to the same place."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class LruDict(Generic[Key, Value]):
    """A dictionary of at most ``size_max`` entries; what was not used for longest goes first."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._entries: OrderedDict[Key, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Value | None:
        """The value, which counts as used now."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: Key, value: Value) -> None:
        """Set a value."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._size_max:
            self._entries.popitem(last=False)

    def remove(self, key: Key) -> None:
        """Forget a value, if there is one."""
        self._entries.pop(key, None)


class SingleFlight(Generic[Key, Value]):
    """Runs one piece of work for all who ask for the same thing at the same time.

    The work goes on when one of those who wait is cancelled: others may wait for it too, and its result is worth
    remembering in any case.
    """

    def __init__(self) -> None:
        self._flights: dict[Key, asyncio.Task[Value]] = {}

    async def run(self, key: Key, work: Callable[[], Awaitable[Value]]) -> Value:
        """The result of ``work()``, or of the work for ``key`` that is under way already."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.ensure_future(_as_coroutine(work))
            flight.add_done_callback(lambda done: self._land(key, done))
        return await asyncio.shield(flight)

    def _land(self, key: Key, flight: asyncio.Task[Value]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # whoever waited was told; when nobody does any more, asyncio need not complain

    async def aclose(self) -> None:
        """Cancel what is under way."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)


async def _as_coroutine(work: Callable[[], Awaitable[Value]]) -> Value:
    return await work()
