"""What clients read of a room beside /sync: its messages page by page, single events, its state and members.

https://spec.matrix.org/v1.19/client-server-api/#getting-events-for-a-room
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Connection

from homeserver.clock import Clock
from homeserver.errors import Forbidden, NotFound
from homeserver.graph.events import Events
from homeserver.graph.outdated_heads import refuses_by_newest_state
from homeserver.graph.state import RoomHeads, StateReader
from homeserver.protocol.events import StateKey
from homeserver.protocol.filters import RoomEventFilter
from homeserver.protocol.redaction import redact_event
from homeserver.reading.client_events import ClientEvents, OnBehalfOf, dumps
from homeserver.reading.room_access import Access, RoomAccess
from homeserver.reading.tokens import history_token
from homeserver.reading.visible_events import SeenEvent, VisibleEvents
from homeserver.storage import history as store
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.history import HIGHEST, LOWEST, JoinedMember, PagedEvent, Place

LIMIT_MAX = 1_000
EVENTS_SCANNED_MAX = 1_000
"""How many events one request looks at to find those that fit a filter and may be seen."""
FILTERED_BATCH = 100
"""How many events are read at once where a filter may let few of them through."""
STREAM_END = 2**62


class Backfiller(Protocol):
    """Fetches history that this server does not have yet."""

    async def backfill(self, room_id: str, before_depth: int) -> bool:
        """Ask other servers for events that come before this depth; whether any were stored."""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What a client asks of /messages."""

    start: int | Place | None
    """From where: a position in the stream, a place in the history, or one of its ends."""
    end: int | Place | None
    backwards: bool
    limit: int
    filter: RoomEventFilter


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a room's history."""

    events: list[SeenEvent]
    start: str
    end: str | None
    """None where no more events are to be had."""
    state: list[StoredEvent]
    """The member events of those who sent the events, if members are loaded lazily."""


@dataclass(slots=True)
class _Walk:
    """Where reading a page stands."""

    low: Place
    high: Place
    upto: int
    """Nothing that came later than this position."""
    gap: tuple[int, int] | None = None
    """Both ends are positions in the stream: the events between them, in the order in which they came."""
    is_over: bool = False
    may_backfill: bool = True


class History:
    """Reads rooms for clients."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        events: Events,
        states: StateReader,
        client_events: ClientEvents,
        visible: VisibleEvents,
        access: RoomAccess,
        backfiller: Backfiller,
        clock: Clock,
    ) -> None:
        self._database = database
        self._heads = heads
        self._events = events
        self._states = states
        self._client_events = client_events
        self._visible = visible
        self._access = access
        self._backfiller = backfiller
        self._clock = clock

    # -- messages ------------------------------------------------------------------------------------------------------

    async def messages(self, requester: OnBehalfOf, room_id: str, request: PageRequest) -> Page:
        """One page of a room's history. Raises ``Forbidden`` for who may read nothing of it.

        https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages
        """
        access = await self._access.of(requester.user_id, room_id)
        walk = await self._begin(access, request)
        # The requested end of the page, in the direction of reading; what it is without one is found out below.
        start = self._start_token(request, walk)
        found: list[SeenEvent] = []
        scanned = 0
        last: PagedEvent | None = None
        while not walk.is_over and len(found) < request.limit and scanned < EVENTS_SCANNED_MAX:
            wanted = request.limit - len(found)
            batch = await self._read(access, request, walk, wanted)
            scanned += len(batch)
            for paged, seen in await self._see(access, request.filter, batch):
                if seen is not None:
                    if len(found) == request.limit:
                        walk.is_over = False
                        break
                    found.append(seen)
                last = paged
        end = None if walk.is_over or last is None else _token_after(request, walk, last)
        state = await self._senders_members(found) if request.filter.lazy_load_members else []
        return Page(found, start, end, state)

    async def _begin(self, access: Access, request: PageRequest) -> _Walk:
        """Where the page starts and ends, in the order of the history."""
        upto = STREAM_END
        if access.departure is not None:
            # "users who have left may see any events which they were allowed to see before they left the room, but no
            # events received after they left."
            upto = access.departure.stream_position or 0
        start, end = request.start, request.end
        if isinstance(start, int) and isinstance(end, int):
            after, before = sorted((start, end))
            return _Walk(LOWEST, HIGHEST, min(before, upto), gap=(after, min(before, upto)))
        first, last = (end, start) if request.backwards else (start, end)
        low = await self._place(access, first, LOWEST)
        high = await self._place(access, last, HIGHEST)
        return _Walk(low, high, upto)

    async def _place(self, access: Access, point: int | Place | None, default: Place) -> Place:
        if point is None:
            if default is HIGHEST and access.departure is not None:
                return Place(access.departure.event.depth, access.departure.stream_position or 0)
            return default
        if isinstance(point, Place):
            return point
        found = await self._database.read(store.place_in_history, access.head.room_nid, point)
        return found or LOWEST

    def _start_token(self, request: PageRequest, walk: _Walk) -> str:
        if isinstance(request.start, int):
            return f"s{request.start}"
        if request.start is not None:
            return history_token(request.start)
        return history_token(walk.high if request.backwards else walk.low)

    async def _read(self, access: Access, request: PageRequest, walk: _Walk, wanted: int) -> list[PagedEvent]:
        """The next events of the walk, which is moved on. Backfills where this server has a gap."""
        count = wanted if request.filter.is_everything else max(wanted, FILTERED_BATCH)
        batch, gap_depth = await self._database.read(_read_page, access.head.room_nid, request.backwards, walk, count)
        if gap_depth is not None and walk.may_backfill:
            walk.may_backfill = False
            if await self._backfiller.backfill(access.head.room_id, gap_depth):
                batch, _ = await self._database.read(_read_page, access.head.room_nid, request.backwards, walk, count)
        walk.is_over = len(batch) <= count
        batch = batch[:count]
        if batch:
            _move_on(walk, batch[-1].place, request.backwards)
        return batch

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
        # What another process backfills nobody is told. It stands where the page says, not outside as it did.
        outdated = [event for event in stored.values() if event.stream_position is None]
        if outdated:
            stored.update(await self._events.by_nid_anew(outdated))
        return stored

    async def _senders_members(self, found: Sequence[SeenEvent]) -> list[StoredEvent]:
        """The member events of the senders, as of the first event."""
        senders: dict[StateKey, None] = {("m.room.member", seen.stored.event.sender): None for seen in found}
        if not senders:
            return []
        event_ids: dict[StateKey, str] = {}
        for seen in (found[0], found[-1]):
            missing = [key for key in senders if key not in event_ids]
            if missing and seen.stored.state_group is not None:
                event_ids.update(await self._states.lookup(seen.stored.state_group, missing))
        members = await self._events.by_id(event_ids.values())
        return [members[event_id] for event_id in event_ids.values() if event_id in members]

    async def render_page(self, requester: OnBehalfOf, page: Page) -> bytes:
        """The answer of /messages."""
        await self._client_events.prepare([*(seen.stored for seen in page.events), *page.state])
        now = self._clock.now_ms()
        render = self._client_events.render
        chunk = b",".join(
            [
                render(s.stored, now_ms=now, with_room_id=True, requester=requester, membership=s.membership)
                for s in page.events
            ]
        )
        answer = [b'{"chunk":[', chunk, b'],"start":"', page.start.encode(), b'"']
        if page.end is not None:
            answer += [b',"end":"', page.end.encode(), b'"']
        if page.state:
            answer += [b',"state":', self._render_list(page.state, now)]
        return b"".join([*answer, b"}"])

    # -- single events and state ---------------------------------------------------------------------------------------

    async def event(self, requester: OnBehalfOf, room_id: str, event_id: str) -> bytes:
        """One event, rendered. Raises ``NotFound`` if it is not there or may not be seen."""
        try:
            access = await self._access.of(requester.user_id, room_id)
        except Forbidden:
            raise NotFound("There is no such event, or you may not see it") from None
        stored = await self._events.get(event_id)
        if stored is None or stored.room_nid != access.head.room_nid:
            raise NotFound("There is no such event, or you may not see it")
        if stored.stream_position is None:
            stored = (await self._events.by_nid_anew([stored]))[stored.event_nid]
        seen = await self._visible.of([stored], access.viewer)
        if not seen:
            raise NotFound("There is no such event, or you may not see it")
        await self._client_events.prepare([stored])
        return self._client_events.render(
            stored,
            now_ms=self._clock.now_ms(),
            with_room_id=True,
            requester=requester,
            membership=seen[0].membership,
        )

    async def state(self, user_id: str, room_id: str) -> bytes:
        """All state events of a room, rendered as a list: now, or when the user left. Raises ``Forbidden``."""
        access = await self._access.of(user_id, room_id)
        state = access.head.state
        if access.departure is not None and access.departure.state_group is not None:
            state = (await self._states.snapshot(access.departure.state_group)).state
        return await self._rendered_events(state.values())

    async def state_event(self, user_id: str, room_id: str, key: StateKey) -> StoredEvent:
        """One state event of a room: now, or when the user left. Raises ``Forbidden``, ``NotFound``."""
        access = await self._access.of(user_id, room_id)
        if access.departure is not None and access.departure.state_group is not None:
            event_id = (await self._states.lookup(access.departure.state_group, [key])).get(key)
        else:
            event_id = access.head.state.get(key)
        stored = await self._events.get(event_id) if event_id is not None else None
        if stored is None:
            raise NotFound("The room has no such state")
        return stored

    async def render_event(self, stored: StoredEvent) -> bytes:
        """An event in the format for clients."""
        await self._client_events.prepare([stored])
        return self._client_events.render(stored, now_ms=self._clock.now_ms(), with_room_id=True)

    def render_content(self, stored: StoredEvent) -> bytes:
        """The content of an event, or what is left of it."""
        return dumps(redact_event(stored.event).content if stored.redacted_by is not None else stored.event.content)

    # -- members -------------------------------------------------------------------------------------------------------

    async def members(
        self,
        user_id: str,
        room_id: str,
        *,
        at: int | Place | None = None,
        membership: str | None = None,
        not_membership: str | None = None,
    ) -> bytes:
        """The m.room.member events of a room, rendered as a list: now, at a token, or when the user left.

        Raises ``Forbidden``.
        """
        access = await self._access.of(user_id, room_id)
        event_ids = await self._members_at(access, at)
        stored = (await self._events.by_id(event_ids)).values()
        chosen = [event for event in stored if _is_chosen(event.event.membership, membership, not_membership)]
        await self._client_events.prepare(chosen)
        return self._render_list(chosen, self._clock.now_ms())

    async def _members_at(self, access: Access, at: int | Place | None) -> list[str]:
        departure = access.departure
        if departure is not None and (at is None or _is_after(at, departure)):
            at = Place(departure.event.depth, departure.stream_position or 0)
        if at is None:
            return [event_id for key, event_id in access.head.state.items() if key[0] == "m.room.member"]
        group = await self._database.read(_group_at, access.head.room_nid, at)
        if group is None:
            return []
        state = (await self._states.snapshot(group)).state
        return [event_id for key, event_id in state.items() if key[0] == "m.room.member"]

    @refuses_by_newest_state
    async def joined_members(self, user_id: str, room_id: str) -> list[JoinedMember]:
        """The joined users of a room that the user is in. Raises ``Forbidden``."""
        head = await self._heads.find(room_id)
        if head is None or user_id not in head.joined_local:
            raise Forbidden("You are not in this room")
        return await self._database.read(store.joined_members, head.room_nid)

    async def joined_rooms(self, user_id: str) -> list[str]:
        """The IDs of the rooms that the user is in."""
        return await self._database.read(store.joined_room_ids, user_id)

    async def _rendered_events(self, event_ids: Iterable[str]) -> bytes:
        stored = list((await self._events.by_id(event_ids)).values())
        await self._client_events.prepare(stored)
        return self._render_list(stored, self._clock.now_ms())

    def _render_list(self, stored: Iterable[StoredEvent], now_ms: int) -> bytes:
        render = self._client_events.render
        return b"[" + b",".join([render(event, now_ms=now_ms, with_room_id=True) for event in stored]) + b"]"


def _read_page(
    connection: Connection, room_nid: int, backwards: bool, walk: _Walk, count: int
) -> tuple[list[PagedEvent], int | None]:
    """The next events, one more than ``count`` if there are more; and the depth of a gap that was come upon."""
    if walk.gap is not None:
        after, upto = walk.gap
        batch = store.page_of_stream(connection, room_nid, after, upto, backwards=backwards, count=count + 1)
        return batch, None
    low, high = walk.low, walk.high
    batch = store.page(connection, room_nid, low, high, backwards=backwards, count=count + 1, upto=walk.upto)
    if not backwards:
        return batch, None
    lowest = batch[count - 1].place.depth if len(batch) > count else max(low.depth, 0)
    return batch, store.deepest_gap(connection, room_nid, lowest, high.depth)


def _move_on(walk: _Walk, place: Place, backwards: bool) -> None:
    """Let the rest of the walk begin after what was read."""
    if walk.gap is not None:
        after, upto = walk.gap
        walk.gap = (after, place.position - 1) if backwards else (place.position, upto)
    elif backwards:
        walk.high = Place(place.depth, place.position - 1)
    else:
        walk.low = place


def _token_after(request: PageRequest, walk: _Walk, last: PagedEvent) -> str:
    """The token from which reading goes on after an event."""
    position = last.place.position - 1 if request.backwards else last.place.position
    if walk.gap is not None:
        return f"s{max(position, 0)}"
    return history_token(Place(last.place.depth, position))


def _is_chosen(value: str | None, membership: str | None, not_membership: str | None) -> bool:
    """ "the two parameters create an 'or' condition: either the membership is the same as membership or is not the
    same as not_membership."
    """
    if membership is None and not_membership is None:
        return True
    return (membership is not None and value == membership) or (not_membership is not None and value != not_membership)


def _is_after(at: int | Place, departure: StoredEvent) -> bool:
    position = departure.stream_position or 0
    if isinstance(at, int):
        return at >= position
    return at >= Place(departure.event.depth, position)


def _group_at(connection: Connection, room_nid: int, at: int | Place) -> int | None:
    """The state group of the last event up to a point."""
    place = store.place_in_history(connection, room_nid, at) if isinstance(at, int) else at
    return store.state_group_at(connection, room_nid, place) if place is not None else None
