"""Chooses the events of each room's timeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from homeserver.protocol.events import StateKey
from homeserver.reading.visible_events import SeenEvent, Viewer, VisibleEvents
from homeserver.storage import sync_streams
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.places import before_position, place_of
from homeserver.sync.loaded_events import LoadedEvents
from homeserver.sync.news import News, RoomNews
from homeserver.sync.updates import RoomUpdate, SyncRequest

FILTERED_COUNT_MIN = 50
"""How many events of a room are examined at once, at least, if a filter may let few of them through."""
MORE_ROUNDS_MAX = 4
MORE_COUNT = 200
"""If those were not enough, this many events are read at once, at most ``MORE_ROUNDS_MAX`` times."""


def events_at_once(request: SyncRequest, *, ignores_users: bool) -> int:
    """How many events of a room to examine at first: one more than fit into a timeline, to know whether there are more.

    ``ignores_users`` says whether the user ignores others, whose events are left out.
    """
    timeline = request.filter.room.timeline
    if timeline.is_nothing:
        return 1
    count = request.timeline_limit + 1
    return count if timeline.is_everything and not ignores_users else max(count, FILTERED_COUNT_MIN)


@dataclass(slots=True)
class RoomDraft:
    """The update of a room while it is being made."""

    news: RoomNews
    seen: list[SeenEvent] = field(default_factory=list)
    """The events that may be shown, newest first; possibly more than fit into the timeline."""
    looked_at: int = 0
    """How many of ``news.newest`` were examined already."""
    reaches_creation: bool = False
    has_hidden: bool = False
    """Whether events were left out that the user may not see."""
    is_cut: bool = False
    """Whether the timeline must not include older events."""
    hidden_keys: frozenset[StateKey] = frozenset()
    """State keys that hidden events changed, and that no later shown event changed again."""
    start: int = 0
    """The timeline's events come after this position."""
    update: RoomUpdate = field(init=False)
    state: Sequence[int] = ()
    """Numeric IDs of the state events to be sent, without those that lazy loading adds."""
    members: dict[str, int] = field(default_factory=dict)
    """Member events that lazy loading adds, by user."""

    @property
    def room_id(self) -> str:
        """The room."""
        return self.news.room_id

    @property
    def timeline_nids(self) -> frozenset[int]:
        """The events in the timeline."""
        return frozenset([seen.stored.event_nid for seen in self.update.timeline])


class Timelines:
    """Makes timelines."""

    def __init__(self, database: Database, visible: VisibleEvents) -> None:
        self._database = database
        self._visible = visible

    async def add(self, request: SyncRequest, news: News, drafts: Sequence[RoomDraft], loaded: LoadedEvents) -> None:
        """Fill ``seen``, and make each draft's ``update`` with its timeline."""
        at_once = events_at_once(request, ignores_users=bool(news.ignored))
        if len(drafts) > 1:  # all in one read
            await loaded.load(nid for draft in drafts for nid, _ in draft.news.newest[:at_once])
        for draft in drafts:
            while draft.looked_at < len(draft.news.newest):
                await self._look_at(request, news, draft, at_once, loaded)
                if draft.looked_at < len(draft.news.newest) and not _wants_more(request, draft):
                    break
        short = [draft for draft in drafts if not draft.news.is_whole]
        if short:
            await self._look_further(request, news, short, loaded)
        for draft in drafts:
            if draft.news.has_left:
                await _add_own_standing(request, draft, loaded)
            _cut(request, draft)

    async def _look_further(
        self, request: SyncRequest, news: News, drafts: Sequence[RoomDraft], loaded: LoadedEvents
    ) -> None:
        """Read more events for the rooms that do not have enough yet."""
        for _ in range(MORE_ROUNDS_MAX):
            short = [draft for draft in drafts if not draft.news.is_whole and _wants_more(request, draft)]
            if not short:
                break
            await self._read_more(short)
            for draft in short:
                await self._look_at(request, news, draft, MORE_COUNT, loaded)

    async def _read_more(self, short: Sequence[RoomDraft]) -> None:
        spans = [
            (d.news.room_nid, d.news.timeline_after, d.news.newest[-1][1] if d.news.newest else d.news.upto)
            for d in short
        ]
        for draft, older in zip(short, await self._database.read(_read_older, spans), strict=True):
            draft.news.newest += older
            draft.news.is_whole = len(older) < MORE_COUNT

    async def _look_at(
        self, request: SyncRequest, news: News, draft: RoomDraft, count: int, loaded: LoadedEvents
    ) -> None:
        """Examine the next ``count`` older events, and add those that the client is to see to ``seen``."""
        nids = [nid for nid, _ in draft.news.newest[draft.looked_at : draft.looked_at + count]]
        draft.looked_at += len(nids)
        stored = loaded.all(nids)
        if len(stored) < len(nids):
            await loaded.load(nids)
            stored = loaded.all(nids)
        if draft.news.is_fresh:
            draft.reaches_creation |= any(event.event.type == "m.room.create" for event in stored)
        timeline, room_id = request.filter.room.timeline, draft.room_id
        wanted = stored
        if not timeline.is_everything:
            wanted = [e for e in wanted if timeline.allows(e.event.type, e.event.sender, room_id, e.event.content)]
        if news.ignored:
            # "Servers must still send state events sent by ignored users to clients."
            wanted = [e for e in wanted if e.event.is_state or e.event.sender not in news.ignored]
        if wanted and not draft.is_cut:
            seen = await self._visible.of(wanted, _viewer(request, draft.news))
            if len(seen) == len(wanted) and not draft.hidden_keys:
                draft.seen += seen
            else:
                _skip_hidden(request, draft, wanted, seen)


def _skip_hidden(
    request: SyncRequest, draft: RoomDraft, wanted: Sequence[StoredEvent], seen: Sequence[SeenEvent]
) -> None:
    """Add the visible events, newest first, and cut the timeline where an older event would lead to a wrong state.

    A client that applies the timeline to the state at its start must end with the current state. If a hidden event
    has changed the state for a key, an older event with the same key would undo that for the client: it is not shown.
    """
    shown = iter(seen)
    following = next(shown, None)
    covered = {s.stored.event.key for s in draft.seen if s.stored.event.is_state}
    for event in wanted:
        key = event.event.key if event.event.is_state else None
        if following is None or following.stored is not event:
            draft.has_hidden = True
            if key is not None and key not in covered and not request.state_after:
                draft.hidden_keys |= {key}
            continue
        if key in draft.hidden_keys:
            draft.is_cut = True
            return
        if key is not None:
            covered.add(key)
        draft.seen.append(following)
        following = next(shown, None)


async def _add_own_standing(request: SyncRequest, draft: RoomDraft, loaded: LoadedEvents) -> None:
    """End the timeline of a left room with the user's current member event, if the filter lets it through.

    That event may be outside the timeline's span: after a ban that followed a leave, or a rejected invitation.
    """
    await loaded.load([draft.news.standing_nid])
    stored = loaded.get(draft.news.standing_nid)
    if stored is None or any(seen.stored.event_nid == stored.event_nid for seen in draft.seen):
        return
    event = stored.event
    if request.filter.room.timeline.allows(event.type, event.sender, draft.room_id, event.content):
        draft.seen.insert(0, SeenEvent(stored, event.membership or "leave"))


def _cut(request: SyncRequest, draft: RoomDraft) -> None:
    news, limit = draft.news, request.timeline_limit
    kept = draft.seen[:limit]
    kept.reverse()
    limited = len(draft.seen) > limit or not news.is_whole or draft.looked_at < len(news.newest) or draft.is_cut
    limited = limited or news.hole is not None
    if _is_silent(request, draft):
        limited = False
    elif news.is_fresh:
        # Events from before this server joined can be backfilled; hidden events are missing in any case.
        limited = limited or draft.has_hidden or not draft.reaches_creation
    first = kept[0].stored.stream_position if kept else None
    draft.start = news.upto if first is None else first - 1
    # Not the place of the position before: events that are backfilled below the first event come between the two.
    prev_batch = place_of(news.upto) if first is None else before_position(first)
    draft.update = RoomUpdate(draft.room_id, prev_batch, kept, limited, is_fresh=news.is_fresh)


def _viewer(request: SyncRequest, news: RoomNews) -> Viewer:
    if not news.has_left:
        return Viewer(request.user_id, None)
    until = news.departure.stream_position if news.departure is not None else 0
    # "they may see any events which they were allowed to see before they left the room, but no events received after"
    return Viewer(request.user_id, until, peeks=False)


def _is_silent(request: SyncRequest, draft: RoomDraft) -> bool:
    """Whether the filter keeps the timeline of a room empty whatever happens."""
    timeline = request.filter.room.timeline
    return timeline.is_nothing or not timeline.allows_room(draft.room_id)


def _wants_more(request: SyncRequest, draft: RoomDraft) -> bool:
    """Whether the timeline needs more events than were examined."""
    return len(draft.seen) <= request.timeline_limit and not draft.is_cut and not _is_silent(request, draft)


def _read_older(connection: Connection, spans: Iterable[tuple[int, int, int]]) -> list[list[tuple[int, int]]]:
    """The next older events of each room; a span is ``(room_nid, after, before)``, both ends excluded."""
    return [
        sync_streams.newest_events(connection, [room_nid], after, before - 1, MORE_COUNT).get(room_nid, [])
        for room_nid, after, before in spans
    ]
