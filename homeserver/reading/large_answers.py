"""Answers to clients that hold many events, such as the whole state of a large room.

They are made one after the other, in turn by user, and in slices, so that neither the event loop nor the database's
threads for other requests are busy with them for long.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from homeserver.clock import Clock
from homeserver.graph.events import Events
from homeserver.limits.fair_budget import FairBudget
from homeserver.reading.client_events import ClientEvents
from homeserver.storage.database import reads_for_large_answers
from homeserver.storage.event_graph import StoredEvent

LARGE_MIN = 500
"""Answers with at least so many events wait for a turn."""
AT_ONCE_MAX = 2
AT_ONCE_PER_USER_MAX = 1
"""Two at once would end no sooner, because most of the work is Python's."""
WAITING_PER_USER_MAX = 20
WAIT_SECONDS_MAX = 60.0
SLICE = 150
"""How many events are read and rendered before other requests may run: a few milliseconds."""

Choice = Callable[[StoredEvent], bool]


class LargeAnswers:
    """Renders lists of events."""

    def __init__(self, events: Events, client_events: ClientEvents, clock: Clock) -> None:
        self._events = events
        self._client_events = client_events
        self._clock = clock
        self._turns = FairBudget(
            AT_ONCE_MAX,
            per_subject=AT_ONCE_PER_USER_MAX,
            waiting_per_subject_max=WAITING_PER_USER_MAX,
            text="You ask for too many large answers at once",
        )

    @contextlib.asynccontextmanager
    async def turn(self, user_id: str, size: int) -> AsyncIterator[None]:
        """Wait for a turn if an answer to a user has many events. Raises ``LimitExceeded``."""
        if size < LARGE_MIN:
            yield
            return
        async with self._turns.share(user_id, seconds=WAIT_SECONDS_MAX):
            with reads_for_large_answers():
                yield

    async def by_id(self, room_id: str, event_ids: Sequence[str], choice: Choice | None = None) -> bytes:
        """The chosen ones of these events of a room, as a JSON list."""
        rendered: list[bytes] = []
        for start in range(0, len(event_ids), SLICE):
            found = await self._events.by_id(room_id, event_ids[start : start + SLICE])
            rendered += await self._render(found.values(), choice)
        return b"[" + b",".join(rendered) + b"]"

    async def by_nid(self, nids: Sequence[int], choice: Choice | None = None) -> bytes:
        """The same by numeric ID."""
        rendered: list[bytes] = []
        for start in range(0, len(nids), SLICE):
            found = await self._events.by_nid(nids[start : start + SLICE])
            rendered += await self._render(found.values(), choice)
        return b"[" + b",".join(rendered) + b"]"

    async def _render(self, found: Iterable[StoredEvent], choice: Choice | None) -> list[bytes]:
        chosen = [stored for stored in found if choice is None or choice(stored)]
        await self._client_events.prepare(chosen)
        now_ms = self._clock.now_ms()
        rendered = [self._client_events.render(stored, now_ms=now_ms, with_room_id=True) for stored in chosen]
        await asyncio.sleep(0)
        return rendered
