"""Reads news from memory: for clients that know everything except what happened recently.

``look`` finds out, without awaiting anything, what there may be to tell, so that a request with no news can begin to
wait at once. The parts that memory does not hold are read from the database one by one: a room whose state changed in
a way that only the database knows, and new account data. Only when the user has joined or left a room, ``gathering``
reads everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from homeserver.ephemeral.receipts import READ_PRIVATE, Receipts
from homeserver.graph.events import Events
from homeserver.notifier import Change, StateEffect, Stream
from homeserver.storage.account_data import GLOBAL
from homeserver.storage.database import Database
from homeserver.storage.sync_streams import StateChange
from homeserver.sync.gathering import question_of
from homeserver.sync.loaded_events import LoadedEvents
from homeserver.sync.news import News, RoomNews
from homeserver.sync.recent_changes import RecentChanges
from homeserver.sync.room_reading import OwnChanges, read_ongoing, read_own
from homeserver.sync.updates import SyncRequest
from homeserver.sync.views import IGNORED_USERS_TYPE, View, Views, ignored_users


class NotCached(Exception):
    """Everything has to be read from the database."""


class _NotInMemory(Exception):
    """A room has to be read from the database."""


@dataclass(frozen=True, slots=True)
class Window:
    """What may have happened for a user between two positions."""

    since: int
    upto: int
    view: View
    rooms: dict[str, list[Change]]
    """The changes in rooms that the user is in, as the notifier reported them: oldest first, none after ``upto``."""
    streams: frozenset[Stream]
    """The streams in which the user's own data changed."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not self.rooms and not self.streams


class Quick:
    """Finds news in memory."""

    def __init__(
        self, database: Database, events: Events, receipts: Receipts, recent: RecentChanges, views: Views
    ) -> None:
        self._database = database
        self._events = events
        self._receipts = receipts
        self._recent = recent
        self._views = views

    def look(self, user_id: str, since: int) -> Window | None:
        """What may have happened after a position; None if only the database can tell."""
        recent = self._recent
        recent.advance()
        view = self._views.get(user_id)
        # A position that was read from the database may be ahead of what this process has been notified of.
        if view is None or since < recent.floor or view.position < recent.floor:
            return None
        rooms = recent.in_rooms(view.joined, since)
        streams = recent.streams_changed(user_id, min(since, view.position))
        if not streams and 2 * view.position < recent.floor + recent.position:
            # Keep the view current: once the changes since then are forgotten, only the database could confirm it.
            view = self._views.advance(user_id, view, recent.position, view.ignored)
        return Window(since, max(since, recent.position), view, rooms, streams)

    async def read(self, request: SyncRequest, window: Window, loaded: LoadedEvents) -> News:
        """The news in a window; adds the events that were found to ``loaded``. Raises ``NotCached``."""
        news = News(window.upto, window.view.ignored, window.view.joined, heads_hold=True)
        elsewhere: list[RoomNews] = []
        for room_id, changes in window.rooms.items():
            if not request.filter.room.allows_room(room_id):
                continue
            try:
                news.rooms.append(self._room(request, window, room_id, changes, loaded))
            except _NotInMemory:
                elsewhere.append(_nothing_new(window, room_id))
        if window.streams:
            await self._read_own(request, window, news)
        if elsewhere:
            question = question_of(
                request, _all, ignores_users=bool(news.ignored), with_receipts=self._receipts.enabled
            )
            news.rooms += await self._database.read(read_ongoing, question, elsewhere)
        if news.account_data:
            _add_rooms_of_account_data(request, window, news)
        return news

    # -- rooms ---------------------------------------------------------------------------------------------------------

    def _room(
        self, request: SyncRequest, window: Window, room_id: str, changes: Iterable[Change], loaded: LoadedEvents
    ) -> RoomNews:
        news = _nothing_new(window, room_id)
        for change in changes:
            if change.stream is Stream.EVENTS:
                self._take_in_event(change, news, loaded)
            else:
                receipt = self._receipts.recent(change.position)
                if receipt is None:
                    raise _NotInMemory
                if receipt.receipt_type != READ_PRIVATE or receipt.user_id == request.user_id:
                    news.receipts.append(receipt)
        news.newest.reverse()
        return news

    def _take_in_event(self, change: Change, news: RoomNews, loaded: LoadedEvents) -> None:
        stored = self._events.cached_of(change)
        if stored is None or change.effect not in (StateEffect.NONE, StateEffect.OWN):
            raise _NotInMemory
        if not stored.is_for_clients:
            return
        loaded.put(stored)
        news.newest.append((stored.event_nid, change.position))
        if change.effect is StateEffect.OWN:
            news.changes.append(StateChange(news.room_nid, change.position, stored.event.key, stored.event_nid))

    # -- what belongs to the user --------------------------------------------------------------------------------------

    async def _read_own(self, request: SyncRequest, window: Window, news: News) -> None:
        view = window.view
        after = min(window.since, view.position)
        own = await self._database.read(read_own, request.user_id, after, window.upto)
        # A user who was invited again since the view was read has left the room in between.
        if own.moved or any(s.membership != "join" and s.room_id in view.joined for s in own.standings):
            raise NotCached
        news.ignored = _ignored(own, view)
        self._views.advance(request.user_id, view, window.upto, news.ignored)
        news.account_data = [row for row in own.account_data if row[3] > window.since]
        news.stripped = own.stripped
        for standing in own.standings:
            if standing.position > window.since and request.filter.room.allows_room(standing.room_id):
                if standing.membership == "knock" and standing.sender not in news.ignored:
                    news.knocked.append(standing)
                elif standing.membership == "invite" and standing.sender not in news.ignored:
                    news.invited.append(standing)


def _nothing_new(window: Window, room_id: str) -> RoomNews:
    return RoomNews(room_id, window.view.joined[room_id].room_nid, window.since, window.upto)


def _all(room_ids: Iterable[str], _: int) -> Iterable[str]:
    return room_ids


def _ignored(own: OwnChanges, view: View) -> frozenset[str]:
    """The users whom the user ignores now."""
    for room_id, event_type, content, _ in own.account_data:
        if room_id == GLOBAL and event_type == IGNORED_USERS_TYPE:
            return ignored_users(content)
    return view.ignored


def _add_rooms_of_account_data(request: SyncRequest, window: Window, news: News) -> None:
    """Add the rooms that have new account data but no other news: account data of a room is sent within the room."""
    present = {room.room_id for room in news.rooms}
    for room_id in dict.fromkeys(row[0] for row in news.account_data):
        if room_id in window.view.joined and room_id not in present and request.filter.room.allows_room(room_id):
            news.rooms.append(_nothing_new(window, room_id))
