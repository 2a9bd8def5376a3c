"""Fills the gaps in a room's history when a client scrolls to them.

A gap is an event whose prev_events are not all here. The events that other servers return for it are placed in the lane
of the room's history below that event, see ``storage/places.py``.

https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias
from weakref import WeakValueDictionary

import structlog

from homeserver.clock import Clock
from homeserver.errors import RemoteError, RemoteRefused
from homeserver.federation.caching import LruDict
from homeserver.federation.client import FederationClient
from homeserver.graph.given_events import affordable
from homeserver.graph.history_servers import Candidates, HistoryServers
from homeserver.graph.incoming_events import IncomingEvents
from homeserver.graph.judgement import prev_events_first
from homeserver.graph.placement import Placer
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.graph.under_way import HISTORY, UnderWay
from homeserver.protocol.events import Event
from homeserver.storage import history_lanes
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.history_lanes import Gap, GivenEvent

logger = structlog.get_logger(__name__)

EVENTS_PER_BACKFILL = 100
HISTORY_BYTES_MAX = 24 * 1024 * 1024
"""How much memory, roughly, the events of one answer may take."""
GAPS_PER_BACKFILL_MAX = 10
SERVERS_TRIED_MAX = 5
SERVER_SECONDS_MAX = 15.0
"""How long one server may take, so that there is time to ask the next one."""
FILLING_SECONDS_MAX = 60.0
"""How long all servers may take together. Nobody waits that long for them: it goes on in the background."""
WAIT_SECONDS_MAX = 4.0
"""How long somebody waits for it, counted from its beginning: those who come later wait only for the rest of it."""
FILLINGS_AT_ONCE_MAX = 100
SLOW_SECONDS_MIN = 1.0
"""A server that has failed after so long a time is not asked again at once: whoever waits for it would lose as much."""
SLOW_PAUSE_SECONDS_MIN = 15.0
"""The pause after such a failure, for all gaps; for the same gap it doubles with each failure."""
SLOW_PAUSE_SECONDS_MAX = 600.0
SLOW_REMEMBERED_MAX = 10_000
LOOSE_EVENTS_CHECKED_MAX = 5
"""About how many events of one answer that nothing leads to other servers are asked."""
WITNESSES_MAX = 3
"""How many servers are asked about one such event."""
WITNESS_SECONDS_MAX = 5.0
RETRY_MS_MIN = 10_000
"""The pause before a missing event is requested again; it doubles each time that no server has it."""
RETRY_MS_MAX = 6 * 3600 * 1000
DOUBLINGS_MAX = 16


_Given: TypeAlias = dict[str, Event]
"""The events that a server returned, by event ID."""


@dataclass(frozen=True, slots=True)
class _Filling:
    """Servers being asked about some gaps of a room."""

    task: asyncio.Task[Filled]
    began: float


class SlowServers:
    """Remembers which servers have taken long to fail, at which gaps."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pauses: LruDict[tuple[str, str], tuple[float, float]] = LruDict(SLOW_REMEMBERED_MAX, "slow servers")
        """By server and missing event: until when it is not asked about that, and how long that pause is in all."""

    def failed(self, server_name: str, missing_event_ids: Iterable[str], seconds: float) -> None:
        """Note that a server failed after so many seconds, when it was asked for these events."""
        if seconds < SLOW_SECONDS_MIN:
            return
        now = self._clock.monotonic()
        self._pauses.put((server_name, ""), (now + SLOW_PAUSE_SECONDS_MIN, SLOW_PAUSE_SECONDS_MIN))
        for event_id in missing_event_ids:
            _, last = self._pauses.get((server_name, event_id)) or (0.0, SLOW_PAUSE_SECONDS_MIN / 2)
            pause = min(2 * last, SLOW_PAUSE_SECONDS_MAX)
            self._pauses.put((server_name, event_id), (now + pause, pause))

    def is_to_be_asked(self, server_name: str, missing_event_ids: Iterable[str]) -> bool:
        """Whether a server may be asked for any of these events now."""
        now = self._clock.monotonic()

        def is_paused(event_id: str) -> bool:
            until, _ = self._pauses.get((server_name, event_id)) or (0.0, 0.0)
            return now < until

        return not is_paused("") and not all(map(is_paused, missing_event_ids))


class Filled(Enum):
    """The result of asking other servers for history."""

    NEWS = auto()
    """There are more events now: read again."""
    NOTHING = auto()
    """Servers answered but had nothing. They are not asked about these gaps again for a while."""
    UNANSWERED = auto()
    """No server answered in time. A later request may be answered."""
    GIVEN_UP = auto()
    """The servers have not answered for minutes: continue with the events that are here."""


class Backfiller:
    """Fetches older events of rooms, from times when this server was not in them or not connected."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        client: FederationClient,
        incoming: IncomingEvents,
        placer: Placer,
        servers: HistoryServers,
        under_way: UnderWay,
        clock: Clock,
    ) -> None:
        self._database = database
        self._heads = heads
        self._client = client
        self._incoming = incoming
        self._placer = placer
        self._servers = servers
        self._under_way = under_way
        self._clock = clock
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._fillings: dict[tuple[str, frozenset[str]], _Filling] = {}
        self._slow = SlowServers(clock)

    async def stop(self) -> None:
        """Give up what is under way."""
        tasks = [filling.task for filling in self._fillings.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def fill(self, room_id: str, gaps: Sequence[Gap], seconds: float) -> Filled:
        """Ask for the events that are missing at these gaps of a room, which were just read.

        The caller waits for at most ``seconds``, and less if the servers have been asked for a while already. They are
        asked on in the background, so that a later call finds what they give. At most ``GAPS_PER_BACKFILL_MAX`` gaps
        are asked about. Never raises: servers that do not answer are skipped.
        """
        gaps = gaps[:GAPS_PER_BACKFILL_MAX]
        key = (room_id, frozenset(gap.missing_event_id for gap in gaps))
        filling = self._fillings.get(key)
        if filling is None:
            if len(self._fillings) >= FILLINGS_AT_ONCE_MAX:
                return Filled.UNANSWERED
            task = asyncio.get_running_loop().create_task(self._fill_in_turn(room_id, gaps))
            filling = self._fillings[key] = _Filling(task, self._clock.monotonic())
            task.add_done_callback(lambda _: self._fillings.pop(key, None))
        left = filling.began + WAIT_SECONDS_MAX - self._clock.monotonic()
        try:
            async with asyncio.timeout(max(0.0, min(seconds, left))):
                return await asyncio.shield(filling.task)
        except TimeoutError:
            return Filled.UNANSWERED

    async def _fill_in_turn(self, room_id: str, gaps: Sequence[Gap]) -> Filled:
        try:
            async with asyncio.timeout(FILLING_SECONDS_MAX):
                # One at a time, also over all processes: the events of an answer get places below those of the answer
                # before, so two at once could place an event before its ancestors.
                lock = self._locks.setdefault(room_id, asyncio.Lock())
                async with lock, self._under_way.claimed(HISTORY, room_id):
                    return await self._fill(room_id, gaps)
        except TimeoutError:
            logger.info("no server returned history in time", room_id=room_id)
            return Filled.UNANSWERED

    async def _fill(self, room_id: str, gaps: Sequence[Gap]) -> Filled:
        head = await self._heads.find(room_id)
        if head is None or not head.joined_local:
            return Filled.UNANSWERED
        wanted = [gap.missing_event_id for gap in gaps]
        missing = await self._database.read(history_lanes.still_missing, head.room_nid, wanted)
        if not missing.issuperset(wanted):
            return Filled.NEWS  # another request or process was faster
        answered = 0
        candidates = await self._servers.candidates(head, gaps)
        to_ask = [name for name in candidates.to_ask if self._slow.is_to_be_asked(name, wanted)]
        for server_name in to_ask[:SERVERS_TRIED_MAX]:
            found = await self._fill_from(server_name, candidates, head, gaps)
            if found is Filled.NEWS:
                return found
            answered += found is Filled.NOTHING
        if candidates.count and not answered:
            return Filled.GIVEN_UP if candidates.are_given_up else Filled.UNANSWERED
        await self._note_fruitless(head, gaps, answered)
        return Filled.NOTHING

    async def _fill_from(self, server_name: str, candidates: Candidates, head: RoomHead, gaps: Sequence[Gap]) -> Filled:
        wanted = list(dict.fromkeys(gap.missing_event_id for gap in gaps))
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(SERVER_SECONDS_MAX):
                pdus = await self._client.backfill(server_name, head.room_id, wanted, EVENTS_PER_BACKFILL)
        except (RemoteError, TimeoutError) as error:
            logger.info("server returned no history", room_id=head.room_id, server=server_name, reason=str(error))
            if isinstance(error, RemoteRefused) and error.status < 500 and error.status != 429:
                await self._servers.answered(candidates, server_name)
                return Filled.NOTHING
            self._slow.failed(server_name, wanted, self._clock.monotonic() - began)
            await self._servers.did_not_answer(candidates, server_name)
            return Filled.UNANSWERED
        await self._servers.answered(candidates, server_name)
        some = affordable(pdus, HISTORY_BYTES_MAX)
        given = await self._incoming.parse(some, head.version, head.room_id, is_history=True)
        if not await self._take_in(server_name, candidates, head, given, gaps):
            return Filled.NOTHING
        await self._note_fruitless(head, [gap for gap in gaps if _is_left_out(gap, given)], 1)
        return Filled.NEWS

    async def _take_in(
        self, server_name: str, candidates: Candidates, head: RoomHead, given: _Given, gaps: Sequence[Gap]
    ) -> bool:
        """Place the events that a server returned, if they fill gaps. Returns whether any did."""
        outcomes = await self._incoming.verify_each(list(given.values()))
        intact = {outcome.event_id: outcome for outcome in outcomes if isinstance(outcome, Event)}
        ordered = prev_events_first(given)
        # An event with a wrong signature cannot be stored. But its prev_events are right nevertheless, since they are
        # part of the hash that is its ID, by which other events name it.
        rows = [
            GivenEvent(event.event_id, event.prev_events, event.depth, event.event_id in intact) for event in ordered
        ]
        loose = await self._database.read(history_lanes.loose_events, head.room_nid, rows, gaps)
        believed = await self._believed(server_name, candidates, head, loose) if loose else set()
        places = await self._database.write(history_lanes.place_history, head.room_nid, rows, gaps, believed)
        wanted = [intact[event_id] for event_id in places]
        results = await self._placer.place(server_name, head.room_id, wanted, places=places)
        return any(isinstance(result, StoredEvent) for result in results.values())

    async def _believed(
        self, server_name: str, candidates: Candidates, head: RoomHead, loose: Sequence[GivenEvent]
    ) -> set[str]:
        """Those of the events without a link to what is here that another server of the room has, too.

        Servers leave out of their answers what they have rejected, so nothing leads to the events before that. But a
        server could also slip in a branch of its own making that nobody has ever seen. So somebody else has to show
        such an event; if there is nobody else, the word of the one server counts. What comes before a believed event
        needs no such proof. ``loose`` has descendants first.
        """
        witnesses = candidates.witnesses(server_name)
        if witnesses is None:
            return {event.event_id for event in loose}
        del witnesses[WITNESSES_MAX:]
        believed: set[str] = set()
        linked: set[str] = set()
        questions = 0
        for event in loose:
            if event.event_id not in linked:
                if questions == LOOSE_EVENTS_CHECKED_MAX:
                    break
                questions += 1
                if not await self._is_shown(head, event.event_id, witnesses):
                    logger.info("history without a link left out", room_id=head.room_id, event_id=event.event_id)
                    continue
                believed.add(event.event_id)
            linked.update(event.prev_events)
        return believed

    async def _is_shown(self, head: RoomHead, event_id: str, servers: list[str]) -> bool:
        for server_name in list(servers):
            try:
                async with asyncio.timeout(WITNESS_SECONDS_MAX):
                    pdu = await self._client.get_event(server_name, event_id)
            except RemoteRefused:
                continue
            except (RemoteError, TimeoutError):
                servers.remove(server_name)  # for the rest of this answer
                continue
            if event_id in await self._incoming.parse([pdu], head.version, head.room_id, is_history=True):
                return True
        return False

    async def _note_fruitless(self, head: RoomHead, gaps: Sequence[Gap], servers: int) -> None:
        now = self._clock.now_ms()
        retry_ts = {gap.missing_event_id: now + _pause_ms(gap.fruitless) for gap in gaps}
        if retry_ts:
            await self._database.write(history_lanes.note_fruitless, head.room_nid, retry_ts, servers)


def _is_left_out(gap: Gap, given: _Given) -> bool:
    """Whether an answer lacks the events that are missing at a gap, though it has less deep ones."""
    if gap.missing_event_id in given:
        return False
    return len(given) < EVENTS_PER_BACKFILL or gap.depth > min(event.depth for event in given.values())


def _pause_ms(fruitless: int) -> int:
    return min(RETRY_MS_MIN << min(fruitless, DOUBLINGS_MAX), RETRY_MS_MAX)
