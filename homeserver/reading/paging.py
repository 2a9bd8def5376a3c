"""Pages of a room's history, either way from any point of it; see ``storage/places.py`` for the order.

A page that reaches missing history asks other servers for it before it continues, so that no event is skipped that some
server can provide.

https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from sqlalchemy import Connection

from homeserver.clock import Clock
from homeserver.graph.events import Events
from homeserver.graph.missing_events import Filled
from homeserver.protocol.events import CREATE
from homeserver.protocol.filters import RoomEventFilter
from homeserver.reading.room_access import Access
from homeserver.reading.tokens import history_token
from homeserver.reading.visible_events import SeenEvent, VisibleEvents
from homeserver.storage import history as store
from homeserver.storage import history_lanes
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.history import PagedEvent
from homeserver.storage.history_lanes import Gap
from homeserver.storage.places import HIGHEST, LOWEST, floor_of_lane, lane_of, place_of

EVENTS_SCANNED_MAX = 1_000
"""How many events one request examines to find those that fit the filter and may be seen."""
FILTERED_BATCH = 100
"""How many more events are read at once if a filter may let few of them through."""
GAPS_READ_MAX = 10
FILLINGS_MAX = 20
"""How often one page asks other servers for history."""
FILLING_SECONDS_MAX = 5.0
"""How long the client that reads one page waits for that in total."""


class Backfiller(Protocol):
    """Fetches history that this server does not have yet."""

    async def fill(self, room_id: str, gaps: Sequence[Gap], seconds: float) -> Filled:
        """Ask other servers for the events that are missing at these gaps, for at most ``seconds``."""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The parameters of /messages."""

    start: int | None
    """The place where to begin; None: the newest event if ``backwards``, otherwise the oldest."""
    end: int | None
    """The place where to end; None: the other end of the history."""
    backwards: bool
    limit: int
    filter: RoomEventFilter
    start_token: str | None = None
    """The token that ``start`` was parsed from."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a room's history."""

    events: list[SeenEvent]
    start: str
    end: str | None
    """The token of the next page; None if there are no more events."""
    state: list[StoredEvent]
    """The member events of the senders, if members are loaded lazily."""


class _Ahead(Enum):
    """What follows in the direction of reading."""

    MORE = auto()
    END = auto()
    UNKNOWN = auto()
    """Missing history that no other server can be asked for now."""


@dataclass(slots=True)
class _Walk:
    """The progress of reading a page: events with ``low`` < place ≤ ``high`` are still to be read."""

    backwards: bool
    low: int
    high: int
    deadline: float
    ahead: _Ahead = _Ahead.MORE
    fillings: int = 0
    heeds_gaps: bool = True
    """Whether missing history is fetched before it is passed. Not where nobody has answered for long."""

    def move_past(self, place: int) -> None:
        """Note that the event at a place was read."""
        if self.backwards:
            self.high = place - 1
        else:
            self.low = place


class Pages:
    """Reads pages."""

    def __init__(
        self, database: Database, events: Events, visible: VisibleEvents, backfiller: Backfiller, clock: Clock
    ) -> None:
        self._database = database
        self._events = events
        self._visible = visible
        self._backfiller = backfiller
        self._clock = clock

    async def read(self, access: Access, request: PageRequest) -> tuple[list[SeenEvent], str, str | None]:
        """The events of a page, the token of its start, and the token of the next page if there is one."""
        walk = self._begin(access, request)
        start = walk.high if request.backwards else walk.low
        found: list[SeenEvent] = []
        scanned = 0
        while walk.ahead is _Ahead.MORE and len(found) < request.limit and scanned < EVENTS_SCANNED_MAX:
            wanted = request.limit - len(found)
            batch = await self._next(access, walk, wanted if request.filter.is_everything else FILTERED_BATCH + wanted)
            if request.backwards and request.start is None and batch and not scanned:
                start = batch[0].place
            scanned += len(batch)
            for paged, seen in await self._see(access, request.filter, batch):
                if seen is not None:
                    if len(found) == request.limit:
                        walk.ahead = _Ahead.MORE
                        break
                    found.append(seen)
                walk.move_past(paged.place)
        return found, request.start_token or history_token(start), self._end(walk)

    def _begin(self, access: Access, request: PageRequest) -> _Walk:
        first, last = (request.end, request.start) if request.backwards else (request.start, request.end)
        low = LOWEST if first is None else first
        high = HIGHEST if last is None else last
        if access.departure is not None:
            # "users who have left may see any events which they were allowed to see before they left the room, but no
            # events received after they left."
            high = min(high, access.departure.place or 0)
        deadline = self._clock.monotonic() + FILLING_SECONDS_MAX
        # Other servers give us no events of a room that we are not in.
        return _Walk(request.backwards, low, high, deadline, heeds_gaps=bool(access.head.joined_local))

    @staticmethod
    def _end(walk: _Walk) -> str | None:
        if not walk.backwards:
            # Always given: events that arrive later will come after this point.
            return history_token(walk.low)
        return None if walk.ahead is _Ahead.END else history_token(walk.high)

    # -- events --------------------------------------------------------------------------------------------------------

    async def _next(self, access: Access, walk: _Walk, count: int) -> list[PagedEvent]:
        """At most ``count`` further events, up to the next missing history; if that comes first, it is fetched.

        An empty list if the end is reached or no server can be asked; ``walk.ahead`` says which.
        """
        read = _read_backwards if walk.backwards else _read_forwards
        while True:
            gaps_max = GAPS_READ_MAX if walk.heeds_gaps else 0
            batch, gaps = await self._database.read(
                read, access.head.room_nid, walk.low, walk.high, count, self._clock.now_ms(), gaps_max
            )
            if batch or not gaps:
                if len(batch) <= count and not gaps:
                    walk.ahead = await self._what_is_beyond(access, walk)
                return batch[:count]
            if not await self._fill(access, walk, gaps):
                walk.ahead = _Ahead.UNKNOWN
                return []

    async def _fill(self, access: Access, walk: _Walk, gaps: Sequence[Gap]) -> bool:
        """Ask other servers for missing history. Returns whether it is worth reading on."""
        seconds = walk.deadline - self._clock.monotonic()
        if seconds <= 0 or walk.fillings == FILLINGS_MAX:
            return False
        walk.fillings += 1
        filled = await self._backfiller.fill(access.head.room_id, gaps, seconds)
        if filled is Filled.GIVEN_UP:
            walk.heeds_gaps = False  # it would be the same at every other gap
        return filled is not Filled.UNANSWERED

    async def _what_is_beyond(self, access: Access, walk: _Walk) -> _Ahead:
        """Whether the room ends here, if this server has no more events and no server may be asked for more now."""
        head = access.head
        if not walk.backwards or walk.low != LOWEST or not head.joined_local:
            return _Ahead.END
        create_id = head.state.get(CREATE)
        create = await self._events.get(head.room_id, create_id) if create_id is not None else None
        if create is not None and create.place is None:
            create = (await self._events.by_nid_anew([create])).get(create.event_nid)
        if create is not None and create.place is not None:
            return _Ahead.END
        # Only gaps up to the current lane matter: events that are missing above it would not come next.
        high = place_of(lane_of(walk.high))
        asked = await self._database.read(history_lanes.least_asked, head.room_nid, high)
        others = len(head.joined_servers) - 1
        return _Ahead.END if asked is None or asked >= others else _Ahead.UNKNOWN

    async def _see(
        self, access: Access, event_filter: RoomEventFilter, batch: Sequence[PagedEvent]
    ) -> list[tuple[PagedEvent, SeenEvent | None]]:
        stored = await self._placed(batch)
        room_id = access.head.room_id
        wanted = [
            event
            for paged in batch
            if (event := stored.get(paged.event_nid)) is not None
            and event_filter.allows(event.event.type, event.event.sender, room_id, event.event.content)
        ]
        seen = {s.stored.event_nid: s for s in await self._visible.of(wanted, access.viewer)}
        return [(paged, seen.get(paged.event_nid)) for paged in batch]

    async def _placed(self, batch: Sequence[PagedEvent]) -> dict[int, StoredEvent]:
        stored = await self._events.by_nid(paged.event_nid for paged in batch)
        # Other processes do not report what they backfill: these cached outliers have a place by now. Read them anew.
        outdated = [event for event in stored.values() if event.place is None]
        if outdated:
            stored.update(await self._events.by_nid_anew(outdated))
        return stored


def _read_backwards(
    connection: Connection, room_nid: int, low: int, high: int, count: int, now_ms: int, gaps_max: int
) -> tuple[list[PagedEvent], list[Gap]]:
    """The next older events, up to ``count`` + 1 and not past missing history, and the gaps that come first.

    The events that are fetched for a gap get places at the bottom of its lane, so all of the lane is read before them.
    Gaps in the lane of ``high`` may lie above ``high``.
    """
    gaps = history_lanes.gaps_between(
        connection,
        room_nid,
        place_of(lane_of(low)),
        place_of(lane_of(high)),
        now_ms,
        gaps_max,
        highest_first=True,
    )
    floor = max(low, floor_of_lane(lane_of(gaps[0].place))) if gaps else low
    batch = store.page(connection, room_nid, floor, high, backwards=True, count=count + 1)
    return batch, gaps


def _read_forwards(
    connection: Connection, room_nid: int, low: int, high: int, count: int, now_ms: int, gaps_max: int
) -> tuple[list[PagedEvent], list[Gap]]:
    """The next newer events and the gaps that come first. A lane with gaps is read only once they are filled."""
    gaps = history_lanes.gaps_between(
        connection, room_nid, place_of(lane_of(low)), high, now_ms, gaps_max, highest_first=False
    )
    ceiling = min(high, floor_of_lane(lane_of(gaps[0].place))) if gaps else high
    batch = store.page(connection, room_nid, low, ceiling, backwards=False, count=count + 1)
    return batch, gaps
