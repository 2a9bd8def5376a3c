"""Caches that are bounded in bytes, and the list of all of them.

How many bytes an entry takes is an estimate. It must not be too low for entries that others can make large.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

ENTRY_BYTES = 200
"""About what an entry takes besides its value: a small key, and a place in the dictionary."""


@dataclass(frozen=True, slots=True)
class CacheUse:
    """How full the caches of one name are, in this process."""

    name: str
    entries: int
    bytes: int
    bytes_max: int


class Measured(Protocol):
    """Something that keeps things in memory up to a bound."""

    @property
    def name(self) -> str:
        """Under which it is reported."""

    @property
    def bytes(self) -> int:
        """About how much memory it takes."""

    @property
    def bytes_max(self) -> int:
        """How much it may take."""

    def __len__(self) -> int: ...


_registered: weakref.WeakSet[Measured] = weakref.WeakSet()


def register(cache: Measured) -> None:
    """Have a cache appear in ``cache_uses`` for as long as it is in use."""
    _registered.add(cache)


def cache_uses() -> list[CacheUse]:
    """How full all caches of this process are, by name; for metrics. Caches of the same name are added up."""
    totals: dict[str, CacheUse] = {}
    for cache in list(_registered):
        known = totals.get(cache.name, CacheUse(cache.name, 0, 0, 0))
        totals[cache.name] = CacheUse(
            name=cache.name,
            entries=known.entries + len(cache),
            bytes=known.bytes + cache.bytes,
            bytes_max=known.bytes_max + cache.bytes_max,
        )
    return sorted(totals.values(), key=lambda use: use.name)


class WeightedCache(Generic[K, V]):
    """Keeps the entries that were used last, up to a total number of bytes."""

    def __init__(self, name: str, bytes_max: int, weigh: Callable[[V], int], *, entry_bytes: int = ENTRY_BYTES) -> None:
        """``weigh`` says how many bytes a value takes; ``entry_bytes`` is added for its key and its place."""
        self.name = name
        self.bytes_max = bytes_max
        self.bytes = 0
        """What all entries take together."""
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._weigh = weigh
        self._entry_bytes = entry_bytes
        register(self)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value, which counts as used by that."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def peek(self, key: K) -> V | None:
        """The value, without counting as a use."""
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def items(self) -> Iterator[tuple[K, V]]:
        """All entries, those that were used longest ago first; without counting as a use."""
        return ((key, entry[0]) for key, entry in self._entries.items())

    def put(self, key: K, value: V) -> None:
        """Add or replace an entry, and drop the ones that were used longest ago if there are too many bytes now."""
        self.drop(key)
        weight = self._entry_bytes + self._weigh(value)
        self._entries[key] = (value, weight)
        self.bytes += weight
        while self.bytes > self.bytes_max and len(self._entries) > 1:
            _, (_, freed) = self._entries.popitem(last=False)
            self.bytes -= freed

    def drop(self, key: K) -> None:
        """Forget an entry, if there is one."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry[1]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.bytes = 0
