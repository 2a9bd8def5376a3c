"""The events that one answer is made of."""

from __future__ import annotations

from collections.abc import Iterable

from homeserver.graph.events import Events
from homeserver.storage.event_graph import StoredEvent


class LoadedEvents:
    """The events that an answer is made of: held for as long as it takes, however small the cache is."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._stored: dict[int, StoredEvent] = {}

    def put(self, stored: StoredEvent) -> None:
        """Have an event at hand that was found already."""
        self._stored[stored.event_nid] = stored

    async def load(self, nids: Iterable[int]) -> None:
        """Have these events at hand."""
        missing = [nid for nid in nids if nid not in self._stored]
        if missing:
            self._stored.update(await self._events.by_nid(missing))

    def get(self, event_nid: int) -> StoredEvent | None:
        """One of them."""
        return self._stored.get(event_nid)

    def all(self, nids: Iterable[int]) -> list[StoredEvent]:
        """Some of them, in this order."""
        return [stored for nid in nids if (stored := self._stored.get(nid)) is not None]

    def predecessor(self, event_nid: int) -> int | None:
        """The state event that one of them took the place of."""
        stored = self._stored.get(event_nid)
        return stored.replaces_nid if stored is not None else None
