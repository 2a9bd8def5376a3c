"""``/sync``: look, answer, or wait until something happens.

https://spec.matrix.org/v1.19/client-server-api/#syncing
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping

from homeserver.clock import Clock
from homeserver.errors import UnknownPos
from homeserver.graph.events import Events
from homeserver.notifier import Notifier
from homeserver.storage import streams
from homeserver.storage.database import Database
from homeserver.sync.composing import Composer
from homeserver.sync.gathering import Gathering
from homeserver.sync.loaded_events import LoadedEvents
from homeserver.sync.members import members_in
from homeserver.sync.quick import NotCached, Quick, Window
from homeserver.sync.rendering import SyncRendering
from homeserver.sync.sent_members import NOTHING, Members, SentMembers
from homeserver.sync.updates import SyncRequest, Update

TIMEOUT_MS_MAX = 120_000
"""The longest that a request waits, whatever it asks for."""

CheckRequester = Callable[[], Awaitable[object]]
"""Raises if the request may no longer be answered, because the device was logged out."""


class Sync:
    """Answers requests of /sync."""

    def __init__(
        self,
        database: Database,
        notifier: Notifier,
        clock: Clock,
        events: Events,
        quick: Quick,
        gathering: Gathering,
        composer: Composer,
        rendering: SyncRendering,
    ) -> None:
        self._database = database
        self._notifier = notifier
        self._clock = clock
        self._events = events
        self._quick = quick
        self._gathering = gathering
        self._composer = composer
        self._rendering = rendering
        self._sent_members = SentMembers()

    async def sync(self, request: SyncRequest, timeout_ms: int, check_requester: CheckRequester) -> bytes:
        """The response body, once there is something to tell or the time has run out.

        Raises ``UnknownPos`` for a position that was never given out, and what ``check_requester`` raises.
        """
        if request.since is not None and request.since > self._notifier.position:
            await self._catch_up(request.since)
        known: Mapping[str, Members] = NOTHING
        if request.is_lazy:
            known = self._sent_members.known_to(request.user_id, request.device_id, request.since)
        if request.since is None or request.full_state:
            update = await self._gather(request, known)
        else:
            update = await self._wait_for_news(request, timeout_ms, known, check_requester)
        if request.is_lazy:
            self._remember_members(request, update)
        if update.joined or update.left:
            await self._rendering.prepare(update)
        return self._rendering.render(request, update)

    def _remember_members(self, request: SyncRequest, update: Update) -> None:
        sent = {room.room_id: members_in(room, state_after=request.state_after) for room in update.joined}
        afresh = [room.room_id for room in update.joined if room.is_fresh] + [room.room_id for room in update.left]
        self._sent_members.sending(request.user_id, request.device_id, request.since, update.next_batch, sent, afresh)

    async def _wait_for_news(
        self, request: SyncRequest, timeout_ms: int, known: Mapping[str, Members], check_requester: CheckRequester
    ) -> Update:
        deadline = self._clock.monotonic() + min(timeout_ms, TIMEOUT_MS_MAX) / 1000
        woken = False
        while True:
            update, rooms = await self._news(request, known)
            if update.says_something:
                return update
            remaining_s = deadline - self._clock.monotonic()
            if remaining_s <= 0:
                return update
            request = request.after(update)
            if woken:
                woken = False
                await check_requester()
                continue
            # Nothing was awaited since ``look`` found nothing, so no change can slip in between: later ones wake this.
            woken = await self._notifier.wait_for_user(request.user_id, remaining_s, rooms)
            if not woken:
                deadline = float("-inf")  # look once more, so that next_batch passes changes that do not matter here

    async def _news(self, request: SyncRequest, known: Mapping[str, Members]) -> tuple[Update, Collection[str]]:
        """What happened since ``request.since``, and the rooms to wait for, which are those that the user is in.

        If the update is empty, nothing was awaited since ``look``.
        """
        assert request.since is not None
        while True:
            window = self._quick.look(request.user_id, request.since)
            if window is not None and window.is_empty:
                joined = window.view.joined
                return self._composer.compose_typing(request, window.upto, joined), joined
            update = await self._read_news(request, window, known)
            if update.says_something:
                return update, ()
            request = request.after(update)

    async def _read_news(self, request: SyncRequest, window: Window | None, known: Mapping[str, Members]) -> Update:
        if window is not None:
            loaded = LoadedEvents(self._events)
            try:
                news = await self._quick.read(request, window, loaded)
            except NotCached:
                pass
            else:
                return await self._composer.compose(request, news, known, loaded)
        return await self._gather(request, known)

    async def _gather(self, request: SyncRequest, known: Mapping[str, Members]) -> Update:
        news = await self._gathering.read(request)
        return await self._composer.compose(request, news, known, LoadedEvents(self._events))

    async def _catch_up(self, since: int) -> None:
        """Wait until this process is as far as the process that gave the client its token. Raises ``UnknownPos``."""
        position = await self._database.read(streams.current_position)
        if since > position:
            raise UnknownPos("The since token was not given out by this server")
        await self._notifier.catch_up(position)
