"""Answers of /sync out of the database: first syncs, gaps, rooms that were joined or left, and all that is rare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson
from sqlalchemy import Connection

from homeserver.ephemeral.receipts import Receipts
from homeserver.ephemeral.typing import Typing
from homeserver.graph.events import Events
from homeserver.graph.state import RoomHeads, StateReader
from homeserver.reading.visible_events import SeenEvent, Viewer, VisibleEvents
from homeserver.storage import sync_streams
from homeserver.storage.account_data import GLOBAL
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.sync import room_states
from homeserver.sync.loaded_events import LoadedEvents
from homeserver.sync.pieces import (
    allows_ephemeral,
    is_name,
    member_events,
    receipt_events,
    summary,
)
from homeserver.sync.recent_changes import RecentChanges
from homeserver.sync.rendering import event_bytes
from homeserver.sync.room_reading import Question, Reading, RoomReading, read
from homeserver.sync.sent_members import Members
from homeserver.sync.stripped_rooms import StrippedRooms
from homeserver.sync.updates import RoomUpdate, SyncRequest, Update
from homeserver.sync.views import Views

FILTERED_COUNT_MIN = 50
"""Events that are read of a room at once where a filter may let few of them through."""
MORE_ROUNDS_MAX = 4
MORE_COUNT = 200
"""Events that are read at once when those were not enough, so many times at most."""
HEROES = 5


@dataclass(slots=True)
class _Room:
    """A room on its way into the answer."""

    reading: RoomReading
    seen: list[SeenEvent] = field(default_factory=list)
    """What of the timeline may be shown, newest first; maybe more than fit."""
    oldest_read: int = 0
    reaches_creation: bool = False
    ends_at_hole: bool = False
    """There is more before, which the user was not there to see, or earlier times that it was there."""
    update: RoomUpdate = field(default_factory=lambda: RoomUpdate("", 0))
    state: list[int] = field(default_factory=list)
    """The state events to be sent, members that are loaded lazily not among them."""
    members: dict[str, int] = field(default_factory=dict)
    """Those, by user."""
    heroes: list[str] | None = None
    wanted_members: set[str] = field(default_factory=set)

    @property
    def room_id(self) -> str:
        return self.reading.standing.room_id

    @property
    def room_nid(self) -> int:
        return self.reading.standing.room_nid


class Gathering:
    """Reads what a client is to be told."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        events: Events,
        states: StateReader,
        visible: VisibleEvents,
        typing: Typing,
        receipts: Receipts,
        recent: RecentChanges,
        views: Views,
    ) -> None:
        self._database = database
        self._stripped = StrippedRooms(heads, events)
        self._events = events
        self._states = states
        self._visible = visible
        self._typing = typing
        self._receipts = receipts
        self._recent = recent
        self._views = views

    async def gather(self, request: SyncRequest, known_members: Mapping[str, Members]) -> Update:
        """The answer to a request, and which member events are in it, by room.

        ``known_members`` is what the device has been sent of them before.
        """
        reading = await self._database.read(read, self._question(request))
        self._views.put(request.user_id, reading.position, reading.standings, reading.ignored)
        rooms = [_Room(room) for room in reading.rooms]
        loaded = LoadedEvents(self._events)
        await self._make_timelines(request, reading, rooms, loaded)
        await self._make_states(request, rooms, loaded)
        await self._add_members(request, rooms, known_members, loaded)
        update = Update(reading.position)
        for room in rooms:
            await self._finish(request, room, loaded)
        self._add_account_data(request, reading, rooms, update)
        for room in rooms:
            await self._add_ephemeral(request, room)
            if room.update.says_something:
                (update.left if room.reading.has_left else update.joined).append(room.update)
        update.invited = await self._stripped.of(request.user_id, reading.invited, reading.stripped)
        update.knocked = await self._stripped.of(request.user_id, reading.knocked, reading.stripped)
        return update

    def _question(self, request: SyncRequest) -> Question:
        timeline = request.filter.room.timeline
        since = request.since
        view = self._views.get(request.user_id)
        filtered = not timeline.is_everything or (view is not None and bool(view.ignored))
        count = 1 if timeline.is_nothing else request.timeline_limit + 1

        known_upto = self._recent.position

        def may_have_changed(room_ids: Iterable[str], position: int) -> Iterable[str]:
            # What was committed by now may not have been told of yet.
            if since is None or since < self._recent.floor or position > known_upto:
                return room_ids
            return [room_id for room_id in room_ids if self._recent.last_in_room(room_id) > since]

        return Question(
            user_id=request.user_id,
            since=since,
            full_state=request.full_state,
            include_left=request.filter.room.include_leave,
            with_members=not request.is_lazy,
            count=max(count, FILTERED_COUNT_MIN) if filtered and not timeline.is_nothing else count,
            with_receipts=self._receipts.enabled and not request.filter.room.ephemeral.is_nothing,
            allows_room=request.filter.room.allows_room,
            may_have_changed=may_have_changed,
        )

    # -- timelines -----------------------------------------------------------------------------------------------------

    async def _make_timelines(
        self, request: SyncRequest, reading: Reading, rooms: list[_Room], loaded: LoadedEvents
    ) -> None:
        await loaded.load(nid for room in rooms for nid, _ in room.reading.newest)
        for room in rooms:
            await self._take_in(request, reading, room, room.reading.newest, loaded)
        for _ in range(MORE_ROUNDS_MAX):
            short = [room for room in rooms if _wants_more(request, room)]
            if not short:
                break
            more = await self._database.read(_read_more, [(r.room_nid, r.reading.after, r.oldest_read) for r in short])
            for room, newest in zip(short, more, strict=True):
                room.reading.is_whole = len(newest) < MORE_COUNT
                await loaded.load(nid for nid, _ in newest)
                await self._take_in(request, reading, room, newest, loaded)
        for room in rooms:
            self._cut_timeline(request, room)

    async def _take_in(
        self,
        request: SyncRequest,
        reading: Reading,
        room: _Room,
        newest: list[tuple[int, int]],
        loaded: LoadedEvents,
    ) -> None:
        """Sort out what of the events, newest first, the client is to see."""
        if not newest:
            return
        room.oldest_read = newest[-1][1]
        stored = loaded.all(nid for nid, _ in newest)
        room.reaches_creation |= any(event.event.type == "m.room.create" for event in stored)
        timeline = request.filter.room.timeline
        wanted = [
            event
            for event in stored
            if timeline.allows(event.event.type, event.event.sender, room.room_id, event.event.content)
            # "Servers must still send state events sent by ignored users to clients."
            and (event.event.is_state or event.event.sender not in reading.ignored)
        ]
        seen = await self._visible.of(wanted, _viewer(request, room.reading))
        if room.reading.was_absent:
            # What changed of the state while the user was not there must not be undone by what came before it.
            kept = _without_holes(wanted, seen)
            if len(kept) < len(wanted):
                room.ends_at_hole = room.reading.is_whole = True
            seen = kept
        room.seen += seen

    def _cut_timeline(self, request: SyncRequest, room: _Room) -> None:
        reading, limit = room.reading, request.timeline_limit
        kept = room.seen[:limit]
        kept.reverse()
        limited = len(room.seen) > limit or not reading.is_whole or room.ends_at_hole
        if _is_silent(request, room):
            limited = False
        elif reading.is_fresh and not reading.has_left:
            # What came before this server took part can be had from others.
            limited = limited or not room.reaches_creation
        first = kept[0].stored.stream_position if kept else None
        prev_batch = reading.upto if first is None else first - 1
        room.update = RoomUpdate(room.room_id, prev_batch, kept, limited, is_fresh=reading.is_fresh)

    # -- state ---------------------------------------------------------------------------------------------------------

    async def _make_states(self, request: SyncRequest, rooms: list[_Room], loaded: LoadedEvents) -> None:
        for room in rooms:
            reading = room.reading
            if reading.has_left and reading.is_fresh and reading.departure is not None:
                reading.state = await self._state_at(request, reading.departure)
        await loaded.load(nid for room in rooms for nid in room.reading.state or ())
        await loaded.load(c.event_nid for room in rooms for c in room.reading.changes if c.event_nid is not None)
        await _load_predecessors(rooms, loaded)
        for room in rooms:
            reading, timeline = room.reading, _nids(room.update.timeline)
            if reading.state is not None:
                room.state = (
                    list(reading.state)
                    if request.state_after
                    else room_states.whole_before(reading.state, timeline, loaded.predecessor)
                )
            elif request.state_after:
                room.state = room_states.changes_after(reading.changes)
            else:
                room.state = room_states.changes_before(reading.changes, timeline, room.update.prev_batch)

    async def _state_at(self, request: SyncRequest, departure: StoredEvent) -> list[int]:
        assert departure.state_group is not None
        state = (await self._states.snapshot(departure.state_group)).state
        wanted = [i for key, i in state.items() if not request.is_lazy or key[0] != "m.room.member"]
        return [stored.event_nid for stored in (await self._events.by_id(wanted)).values()]

    # -- members -------------------------------------------------------------------------------------------------------

    async def _add_members(
        self, request: SyncRequest, rooms: list[_Room], known_members: Mapping[str, Members], loaded: LoadedEvents
    ) -> None:
        """Add what only needs to be sent of members: heroes, and with lazy loading the senders of events."""
        counted = [room for room in rooms if room.reading.counts is not None]
        await loaded.load(nid for room in counted for nid in room.reading.names)
        nameless = [r for r in counted if not any(is_name(stored.event) for stored in loaded.all(r.reading.names))]
        for room in rooms:
            if request.is_lazy:
                room.wanted_members = self._wanted_members(request, room)
        wanted = {room.room_nid: room.wanted_members for room in rooms if room.wanted_members}
        if not wanted and not nameless:
            return
        nids, heroes = await self._database.read(
            _read_members, request.user_id, wanted, [room.room_nid for room in nameless], request.is_lazy
        )
        await loaded.load(nid for members in nids.values() for nid in members.values())
        for room in nameless:
            room.heroes = heroes[room.room_nid]
        if request.is_lazy:
            for room in rooms:
                known = {} if room.reading.is_fresh else known_members.get(room.room_id, {})
                await _choose_members(request, room, nids.get(room.room_nid, {}), known, loaded)

    def _wanted_members(self, request: SyncRequest, room: _Room) -> set[str]:
        wanted = {seen.stored.event.sender for seen in room.update.timeline}
        if room.reading.state is not None:
            wanted.add(request.user_id)
            if request.state_after:
                wanted.update(member_events(seen.stored for seen in room.update.timeline))
        return wanted

    # -- the rest ------------------------------------------------------------------------------------------------------

    async def _finish(self, request: SyncRequest, room: _Room, loaded: LoadedEvents) -> None:
        """State events, the summary, and what of its own standing the user is told in any case."""
        reading, update = room.reading, room.update
        if reading.has_left:
            await self._add_own_standing(room)
        wanted = dict.fromkeys([*room.state, *room.members.values()])
        await loaded.load(wanted)
        allows = request.filter.room.state.allows
        update.state = [
            stored
            for stored in loaded.all(wanted)
            if allows(stored.event.type, stored.event.sender, room.room_id, stored.event.content)
        ]
        if reading.counts is not None:
            update.summary = summary(*reading.counts, room.heroes)

    async def _add_own_standing(self, room: _Room) -> None:
        """Let the timeline end with the event that says why the room is among those left."""
        update, standing = room.update, room.reading.standing
        if any(seen.stored.event_nid == standing.event_nid for seen in update.timeline):
            return
        stored = (await self._events.by_nid([standing.event_nid])).get(standing.event_nid)
        if stored is not None:
            update.timeline = [*update.timeline, SeenEvent(stored, standing.membership)]

    def _add_account_data(self, request: SyncRequest, reading: Reading, rooms: list[_Room], update: Update) -> None:
        by_id = {room.room_id: room for room in rooms}
        for room_id, event_type, content, _ in reading.account_data:
            if room_id == GLOBAL:
                if request.filter.account_data.allows(event_type, None):
                    update.account_data.append(event_bytes(event_type, content))
            elif (room := by_id.get(room_id)) is not None:
                allowed = request.filter.room.account_data
                if allowed.is_everything or allowed.allows(event_type, None, room_id, orjson.loads(content)):
                    room.update.account_data.append(event_bytes(event_type, content))

    async def _add_ephemeral(self, request: SyncRequest, room: _Room) -> None:
        reading, room_id = room.reading, room.room_id
        if reading.has_left:
            return
        if reading.typing_position:
            if not self._typing.is_fresh(room_id, reading.typing_position):
                await self._typing.refresh(room_id, reading.typing_position)
            changed = reading.typing_position > reading.after
            says_something = bool(self._typing.users_in(room_id)) if reading.is_fresh else changed
            if says_something and allows_ephemeral(request, "m.typing", room_id):
                room.update.ephemeral.append(self._typing.event_in(room_id))
        room.update.ephemeral += receipt_events(request, room_id, reading.receipts)


def _viewer(request: SyncRequest, reading: RoomReading) -> Viewer:
    if not reading.has_left:
        return Viewer(request.user_id, None)
    until = reading.departure.stream_position if reading.departure is not None else 0
    # "they may see any events which they were allowed to see before they left the room, but no events received after"
    return Viewer(request.user_id, until, peeks=False)


def _without_holes(wanted: Sequence[StoredEvent], seen: Sequence[SeenEvent]) -> list[SeenEvent]:
    """The newest of the seen events, up to the first one that was wanted and may not be seen."""
    kept: list[SeenEvent] = []
    for event, found in zip(wanted, seen, strict=False):
        if found.stored is not event:
            break
        kept.append(found)
    return kept


def _is_silent(request: SyncRequest, room: _Room) -> bool:
    """Whether the filter keeps the timeline of a room empty whatever happens."""
    timeline = request.filter.room.timeline
    return timeline.is_nothing or not timeline.allows_room(room.room_id)


def _wants_more(request: SyncRequest, room: _Room) -> bool:
    """Whether what was read is not enough for the timeline."""
    enough = room.reading.is_whole or len(room.seen) > request.timeline_limit
    return not enough and not _is_silent(request, room)


async def _load_predecessors(rooms: Iterable[_Room], loaded: LoadedEvents) -> None:
    """Have at hand the state events that those in the timelines took the place of."""
    timelines = (seen.stored for room in rooms for seen in room.update.timeline)
    await loaded.load(stored.replaces_nid for stored in timelines if stored.replaces_nid is not None)


async def _choose_members(
    request: SyncRequest, room: _Room, nids: Members, known: Members, loaded: LoadedEvents
) -> None:
    """The member events of these users as of the start of the timeline, or its end, that the client needs."""
    timeline = frozenset() if request.state_after else _nids(room.update.timeline)
    for user_id, event_nid in nids.items():
        found: int | None = event_nid
        while found is not None:
            await loaded.load([found])
            stored = loaded.get(found)
            if stored is not None and found not in timeline and (stored.stream_position or 0) <= room.reading.upto:
                break
            found = stored.replaces_nid if stored is not None else None
        # "Clients may request that redundant membership events are always included"
        if found is not None and (request.sends_redundant_members or known.get(user_id) != found):
            room.members[user_id] = found


def _nids(timeline: Iterable[SeenEvent]) -> frozenset[int]:
    return frozenset([seen.stored.event_nid for seen in timeline])


def _read_more(connection: Connection, rooms: Iterable[tuple[int, int, int]]) -> list[list[tuple[int, int]]]:
    """The next older events of rooms: ``(room_nid, after, before)`` each, neither included."""
    return [
        sync_streams.newest_events(connection, [room_nid], after, before - 1, MORE_COUNT).get(room_nid, [])
        for room_nid, after, before in rooms
    ]


def _read_members(
    connection: Connection, user_id: str, wanted: Mapping[int, Iterable[str]], nameless: Iterable[int], lazy: bool
) -> tuple[dict[int, Members], dict[int, list[str]]]:
    """The member events of the wanted users, and the heroes of the rooms without a name, by room."""
    members = sync_streams.member_events(connection, wanted)
    heroes: dict[int, list[str]] = {}
    for room_nid in nameless:
        found = sync_streams.heroes(connection, room_nid, user_id, HEROES)
        heroes[room_nid] = [hero for hero, _ in found]
        if lazy:
            # "the membership events for the heroes MUST be included in the state, unless they are redundant"
            members.setdefault(room_nid, {}).update(found)
    return members, heroes
