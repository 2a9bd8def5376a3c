"""The events that one answer is made from."""

from __future__ import annotations

from collections.abc import Iterable

from homeserver.graph.events import Events
from homeserver.storage.event_graph import StoredEvent


class LoadedEvents:
    """Keeps the events that one answer is made from until it is done, however small the cache is."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._stored: dict[int, StoredEvent] = {}

    def put(self, stored: StoredEvent) -> None:
        """Add an event that was found already."""
        self._stored[stored.event_nid] = stored

    async def load(self, nids: Iterable[int]) -> None:
        """Read the events that are not held yet."""
        missing = [nid for nid in nids if nid not in self._stored]
        if missing:
            self._stored.update(await self._events.by_nid(missing))

    def get(self, event_nid: int) -> StoredEvent | None:
        """A held event, or None."""
        return self._stored.get(event_nid)

    def all(self, nids: Iterable[int]) -> list[StoredEvent]:
        """Those of the events that are held, in the order of ``nids``."""
        return [stored for nid in nids if (stored := self._stored.get(nid)) is not None]

    def predecessor(self, event_nid: int) -> int | None:
        """The state event that a held event replaced."""
        stored = self._stored.get(event_nid)
        return stored.replaces_nid if stored is not None else None
