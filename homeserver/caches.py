"""A cache that is bounded by what its entries weigh, not by how many they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class WeightedCache(Generic[K, V]):
    """Keeps what was used last, up to a total weight."""

    def __init__(self, weight_max: int, weigh: Callable[[V], int]) -> None:
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._weigh = weigh
        self._weight_max = weight_max
        self.weight = 0
        """What all entries weigh together."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The entry, which counts as used by that."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def peek(self, key: K) -> V | None:
        """The entry, without counting as a use."""
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        """Add or replace an entry, and let go of the oldest ones if that is too much."""
        old = self._entries.pop(key, None)
        if old is not None:
            self.weight -= self._weigh(old)
        self._entries[key] = value
        self.weight += self._weigh(value)
        while self.weight > self._weight_max and len(self._entries) > 1:
            _, oldest = self._entries.popitem(last=False)
            self.weight -= self._weigh(oldest)

    def drop(self, key: K) -> None:
        """Forget an entry."""
        old = self._entries.pop(key, None)
        if old is not None:
            self.weight -= self._weigh(old)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.weight = 0
