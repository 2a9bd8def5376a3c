"""Reads news from the database: for first syncs, clients that were away, and users who have joined or left a room."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from homeserver.storage.database import Database
from homeserver.sync.news import News
from homeserver.sync.recent_changes import RecentChanges
from homeserver.sync.room_reading import Question, read
from homeserver.sync.timelines import events_at_once
from homeserver.sync.updates import SyncRequest
from homeserver.sync.views import Views


class Gathering:
    """Reads everything that may have happened for a user."""

    def __init__(self, database: Database, recent: RecentChanges, views: Views, *, with_receipts: bool) -> None:
        self._database = database
        self._recent = recent
        self._views = views
        self._with_receipts = with_receipts

    async def read(self, request: SyncRequest) -> News:
        """The news since ``request.since``, or everything for a first sync."""
        reading = await self._database.read(read, self._question(request))
        self._views.put(request.user_id, reading.news.position, reading.standings, reading.news.ignored)
        return reading.news

    def _question(self, request: SyncRequest) -> Question:
        since = request.since
        known_upto = self._recent.position

        def may_have_changed(room_ids: Iterable[str], position: int) -> Iterable[str]:
            # The notifier may not have reported yet what is committed already.
            if since is None or since < self._recent.floor or position > known_upto:
                return room_ids
            return [room_id for room_id in room_ids if self._recent.last_in_room(room_id) > since]

        view = self._views.get(request.user_id)
        return question_of(
            request,
            may_have_changed,
            ignores_users=view is not None and bool(view.ignored),
            with_receipts=self._with_receipts,
        )


def question_of(
    request: SyncRequest,
    may_have_changed: Callable[[Iterable[str], int], Iterable[str]],
    *,
    ignores_users: bool,
    with_receipts: bool,
) -> Question:
    """What to read for a request. ``ignores_users`` says whether events of ignored users may have to be left out."""
    return Question(
        user_id=request.user_id,
        since=request.since,
        full_state=request.full_state,
        include_left=request.filter.room.include_leave,
        with_members=not request.is_lazy,
        count=events_at_once(request, ignores_users=ignores_users),
        with_receipts=with_receipts and not request.filter.room.ephemeral.is_nothing,
        allows_room=request.filter.room.allows_room,
        may_have_changed=may_have_changed,
    )
