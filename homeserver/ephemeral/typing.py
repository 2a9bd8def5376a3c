"""Who is typing in which room.

Typing notices are stored in the database, so that all processes on it agree; each process caches those that it knows.
A notice ends by itself when its time has run out: one timer waits for the next one that is due.

https://spec.matrix.org/v1.19/client-server-api/#typing-notifications
"""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import orjson
import structlog

from homeserver.clock import Clock
from homeserver.ephemeral.local_updates import is_user_of, room_of_edu
from homeserver.errors import Forbidden
from homeserver.graph.outdated_heads import refuses_by_newest_state
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.notifier import Change, Notifier, Stream
from homeserver.protocol.json_types import JsonObject
from homeserver.storage import typing as store
from homeserver.storage.database import Database
from homeserver.storage.typing import TypingNotice

logger = structlog.get_logger(__name__)

TIMEOUT_MS_DEFAULT = 30_000
TIMEOUT_MS_MAX = 120_000
REMOTE_TIMEOUT_MS = 60_000
"""How long a user of another server counts as typing, unless that server says that they have stopped."""
FEDERATION_REPEAT_S = 30.0
"""Other servers are told again after this long, so that they do not assume that the user has stopped."""
ROOMS_REMEMBERED_MAX = 10_000


class TypingDelivery(Protocol):
    """Sends typing notices to other servers."""

    async def send_typing(self, room_id: str, user_id: str, typing: bool) -> None:
        """Tell the other servers in the room that one of our users is typing, or has stopped. Best effort."""


@dataclass(slots=True)
class _RoomTyping:
    """Who is typing in one room."""

    room_nid: int
    position: int = 0
    """The position of the last change that is included here."""
    users: dict[str, int] = field(default_factory=dict)
    """When each user's notice ends, in milliseconds since the epoch; in the order in which they began."""
    positions: dict[str, int] = field(default_factory=dict)
    """The position of each user's last change."""
    rendered: bytes | None = None


class Typing:
    """The typing notices of all rooms."""

    def __init__(
        self,
        database: Database,
        notifier: Notifier,
        heads: RoomHeads,
        delivery: TypingDelivery,
        clock: Clock,
    ) -> None:
        self._database = database
        self._notifier = notifier
        self._heads = heads
        self._delivery = delivery
        self._clock = clock
        self._rooms: OrderedDict[str, _RoomTyping] = OrderedDict()
        self._due: list[tuple[int, str, str]] = []
        """A heap of the times when notices may end: ``(expires_ts, room_id, user_id)``."""
        self._timer: asyncio.TimerHandle | None = None
        self._expiring: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        """Tasks that end the notices of users who have left their room."""
        self._told: OrderedDict[tuple[str, str], float] = OrderedDict()
        """When other servers were last told that a user is typing, by room and user."""

    async def start(self) -> None:
        """Load the notices that had not ended when the server stopped."""
        await self._database.write(store.forget_stopped)
        for user in await self._database.read(store.all_typing):
            room = self._rooms.setdefault(user.room_id, _RoomTyping(user.room_nid))
            self._note(user.room_id, room, user.user_id, user.expires_ts, user.position)

    async def stop(self) -> None:
        """Stop the timer and the background work. Stored notices stay, and end when their time has run out."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._expiring is not None:
            self._expiring.cancel()
            await asyncio.gather(self._expiring, return_exceptions=True)
        for task in list(self._ending):
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)

    # -- changes -------------------------------------------------------------------------------------------------------

    @refuses_by_newest_state
    async def set_typing(self, user_id: str, room_id: str, typing: bool, timeout_ms: int = TIMEOUT_MS_DEFAULT) -> None:
        """Note that one of our users is typing, for ``timeout_ms`` at most, or has stopped. Raises ``Forbidden``."""
        head = await self._heads.find(room_id)
        if head is None or user_id not in head.joined_local:
            raise Forbidden("You are not in this room")
        # A timeout of zero means that the user has stopped.
        typing = typing and timeout_ms > 0
        changed = await self._store(head, user_id, min(timeout_ms, TIMEOUT_MS_MAX) if typing else 0)
        key, now = (room_id, user_id), self._clock.monotonic()
        if changed or (typing and now - self._told.get(key, 0.0) > FEDERATION_REPEAT_S):
            self._remember_told(key, now if typing else None)
            await self._delivery.send_typing(room_id, user_id, typing)
        await self._end_if_departed(room_id, user_id)

    async def receive(self, origin: str, edu: JsonObject) -> None:
        """Store the notice of an m.typing EDU; an invalid one is dropped.

        https://spec.matrix.org/v1.19/server-server-api/#typing-notifications
        """
        content = edu.get("content")
        if not isinstance(content, dict):
            return
        user_id, typing = content.get("user_id"), content.get("typing")
        if not isinstance(typing, bool) or not is_user_of(user_id, origin):
            return
        head = await room_of_edu(self._heads, content.get("room_id"), origin)
        if head is None or user_id not in head.joined:
            return
        await self._store(head, user_id, REMOTE_TIMEOUT_MS if typing else 0)
        await self._end_if_departed(head.room_id, user_id)

    def departed(self, room_id: str, user_ids: Iterable[str]) -> None:
        """End the notices of users, of any server, who have left a room or were removed from it."""
        room = self._rooms.get(room_id)
        typing = [user_id for user_id in user_ids if room is not None and user_id in room.users]
        if typing:
            task = asyncio.get_running_loop().create_task(self._end(room_id, typing))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _end_if_departed(self, room_id: str, user_id: str) -> None:
        """End a notice whose user left the room while it was being stored."""
        head = self._heads.cached(room_id)
        if head is not None and user_id not in head.joined:
            await self._end(room_id, [user_id])

    async def _end(self, room_id: str, user_ids: Iterable[str]) -> None:
        try:
            head = await self._heads.get(room_id)
            for user_id in user_ids:
                if user_id not in head.joined:  # a user who has rejoined meanwhile may be typing again
                    await self._store(head, user_id, 0)
                    self._told.pop((room_id, user_id), None)
        except Exception:
            # The notice ends by itself when its time has run out.
            logger.exception("typing could not be ended with the membership", room_id=room_id)

    async def _store(self, head: RoomHead, user_id: str, timeout_ms: int) -> bool:
        """Store a notice. Returns whether the set of typing users has changed."""
        now = self._clock.now_ms()
        expires_ts = now + timeout_ms if timeout_ms else 0
        notice = TypingNotice(head.room_nid, user_id, expires_ts, now)
        await self._known(head)
        position = await self._database.write_batched(store.store, notice)
        # Await nothing between commit and publication: the notifier holds back later positions until then.
        room = self._rooms.setdefault(head.room_id, _RoomTyping(head.room_nid))
        self._note(head.room_id, room, user_id, expires_ts, position)
        if position is None:
            return False
        self._publish(head.room_id, position)
        return True

    async def _known(self, head: RoomHead) -> None:
        """Load the notices of a room into memory."""
        if head.room_id not in self._rooms:
            await self.refresh(head.room_id)
            self._rooms.setdefault(head.room_id, _RoomTyping(head.room_nid))
        self._rooms.move_to_end(head.room_id)

    def _note(self, room_id: str, room: _RoomTyping, user_id: str, expires_ts: int, position: int | None) -> None:
        """Update the memory after a write. ``position`` is None if only the time of a notice has moved."""
        if position is not None:
            if position < room.positions.get(user_id, 0):
                return  # two writes returned in the opposite order
            room.positions[user_id] = position
            room.position = max(room.position, position)
            room.rendered = None
        if not expires_ts:
            room.users.pop(user_id, None)
            room.positions.pop(user_id, None)
            return
        room.users[user_id] = expires_ts
        heapq.heappush(self._due, (expires_ts, room_id, user_id))
        self._set_timer()
        self._forget_quiet_rooms()

    def _forget_quiet_rooms(self) -> None:
        while len(self._rooms) > ROOMS_REMEMBERED_MAX:
            room_id, room = next(iter(self._rooms.items()))
            if room.users:
                return  # the timer will end these notices
            del self._rooms[room_id]

    def _publish(self, room_id: str, position: int) -> None:
        self._notifier.publish([Change(position, Stream.TYPING, room_id, wakes_room=True)])

    def _remember_told(self, key: tuple[str, str], when: float | None) -> None:
        self._told.pop(key, None)
        if when is not None:
            self._told[key] = when
            if len(self._told) > ROOMS_REMEMBERED_MAX:
                self._told.popitem(last=False)

    # -- time ----------------------------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        due_ts = self._due[0][0]
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0, due_ts - self._clock.now_ms()) / 1000
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._expiring is None:
            self._expiring = asyncio.get_running_loop().create_task(self._expire_logged())

    async def _expire_logged(self) -> None:
        try:
            await self.expire()
        except Exception:
            logger.exception("typing notices could not be ended")
        finally:
            self._expiring = None
            if self._due:
                self._set_timer()

    async def expire(self) -> None:
        """End the notices that have run out."""
        now = self._clock.now_ms()
        due: dict[tuple[int, str], str] = {}
        while self._due and self._due[0][0] <= now:
            expires_ts, room_id, user_id = heapq.heappop(self._due)
            room = self._rooms.get(room_id)
            if room is not None and room.users.get(user_id) == expires_ts:
                due[room.room_nid, user_id] = room_id
        if not due:
            return
        # Another process may have prolonged the notice, or ended it already.
        heads = await self._heads.of_many(list(set(due.values())))
        answers = await self._database.write(store.expire, list(due), now)
        ended: list[tuple[str, str]] = []
        for (room_nid, user_id), (expires_ts, position) in answers.items():
            room_id = due[room_nid, user_id]
            self._note(room_id, self._rooms.setdefault(room_id, _RoomTyping(room_nid)), user_id, expires_ts, position)
            self._told.pop((room_id, user_id), None)
            if position is not None:
                head = self._heads.cached(room_id) or heads.get(room_id)
                self._publish(room_id, position)
                if head is not None and user_id in head.joined_local:
                    ended.append((room_id, user_id))
        for room_id, user_id in ended:
            await self._delivery.send_typing(room_id, user_id, False)

    # -- readers -------------------------------------------------------------------------------------------------------

    def is_fresh(self, room_id: str, position: int) -> bool:
        """Whether memory includes the change at this position."""
        room = self._rooms.get(room_id)
        return room is not None and room.position >= position

    async def refresh(self, room_id: str, position: int = 0) -> None:
        """Read from the database what other processes wrote, up to ``position`` or later."""
        stored = {user.user_id: user for user in await self._database.read(store.typing_in, room_id)}
        for user in stored.values():
            room = self._rooms.setdefault(room_id, _RoomTyping(user.room_nid))
            if user.position >= room.positions.get(user.user_id, 0):
                self._note(room_id, room, user.user_id, user.expires_ts, user.position)
        if (known := self._rooms.get(room_id)) is not None:
            for user_id in known.users.keys() - stored.keys():
                self._note(room_id, known, user_id, 0, position)
            known.position = max(known.position, position)

    def users_in(self, room_id: str) -> list[str]:
        """The IDs of the users who are typing in a room."""
        room = self._rooms.get(room_id)
        return list(room.users) if room is not None else []

    def event_in(self, room_id: str) -> bytes:
        """The m.typing event of a room, for clients."""
        room = self._rooms.get(room_id)
        if room is None:
            return _render(())
        if room.rendered is None:
            room.rendered = _render(room.users)
        return room.rendered

    def last_change_in(self, room_id: str) -> int:
        """The position of the last change in a room that memory includes, or 0."""
        room = self._rooms.get(room_id)
        return room.position if room is not None else 0


def _render(user_ids: Iterable[str]) -> bytes:
    return orjson.dumps({"type": "m.typing", "content": {"user_ids": list(user_ids)}})
