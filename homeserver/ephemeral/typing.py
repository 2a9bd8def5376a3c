"""Who is typing in which room.

Nothing of it is stored. Each process keeps what it was told by its clients and by other servers, tells the other
processes, and hears from them what they were told (``storage/notices.py``). A notice ends by itself when its time has
run out: one timer waits for the next one that is due. So a restart forgets who types, and clients are told so.

Which changes a client has been told of its token says, see ``ephemeral/typing_tokens.py``.

https://spec.matrix.org/v1.19/client-server-api/#typing-notifications
"""

from __future__ import annotations

import asyncio
import heapq
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import orjson
import structlog

from homeserver.caches import register
from homeserver.clock import Clock
from homeserver.ephemeral.local_updates import is_user_of, room_of_edu
from homeserver.ephemeral.typing_tokens import DIGEST_MAX, Point
from homeserver.errors import Forbidden
from homeserver.graph.outdated_heads import refuses_by_newest_state
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.notifier import Notifier
from homeserver.protocol.json_types import JsonObject

logger = structlog.get_logger(__name__)

TIMEOUT_MS_DEFAULT = 30_000
TIMEOUT_MS_MAX = 120_000
REMOTE_TIMEOUT_MS = 60_000
"""How long a user of another server types, unless that server says that it has stopped."""
FEDERATION_REPEAT_S = 30.0
"""Other servers are told again after this long, before they think that the user has stopped."""
ELSEWHERE_SLACK_MS = 60_000
"""How much later than another process this one may hear of a change, the difference of their clocks included."""
BYTES_MAX = 8 * 2**20
"""What is remembered of all rooms together."""
ROOM_BYTES = 900
USER_BYTES = 700
"""Two entries of a dictionary and of a heap, and a user ID that may be long."""
TYPISTS_PER_ROOM_MAX = 500
"""Everybody in the room is sent the whole list at each change."""
DUE_SPARE = 1_000
"""Entries of the heap that may no longer count, besides as many as do."""
WHO_TYPES = "who types"


class TypingDelivery(Protocol):
    """Tells other servers."""

    async def send_typing(self, room_id: str, user_id: str, typing: bool) -> None:
        """Tell the other servers in the room that one of our users types, or has stopped. Best effort.

        Does nothing in a process that does not deliver.
        """


class TypingNotices(Protocol):
    """Tells the other processes of this server."""

    def send(self, key: tuple[str, ...], body: str) -> None:
        """Tell them soon, in place of what still waits under the same key. Best effort."""

    async def stop(self) -> None:
        """Stop the background work."""


@dataclass(slots=True)
class _Typist:
    """Somebody types."""

    until: float
    """When it ends, by the monotonic clock."""
    due: float
    """When the timer looks at it. Not later than ``until``."""
    is_own: bool
    """Whether this process was told by the user, or by the user's server; not by another process."""
    told: float | None = None
    """When other servers were last told of it."""


@dataclass(slots=True)
class _RoomTyping:
    """Who types in one room."""

    changed: int
    """When it last changed who types, by ``Typing.position``."""
    users: dict[str, _Typist] = field(default_factory=dict)
    """In the order in which they began."""
    rendered: bytes | None = None
    digest: int | None = None


class Typing:
    """The typing notices of all rooms."""

    name = "typing"

    def __init__(
        self,
        notifier: Notifier,
        heads: RoomHeads,
        delivery: TypingDelivery,
        notices: TypingNotices,
        clock: Clock,
        *,
        process: int,
        is_local: Callable[[str], bool],
    ) -> None:
        """``process`` is a number of 16 bits that tells this process from others, and from those before it."""
        self._notifier = notifier
        self._heads = heads
        self._delivery = delivery
        self._notices = notices
        self._clock = clock
        self._process = process
        self._is_local = is_local
        self.position = clock.now_ms()
        """When it last changed anywhere who types: milliseconds since the epoch, a little more if much happens."""
        self._floor = self.position
        """Of changes up to here not everything is remembered."""
        self._rooms: OrderedDict[str, _RoomTyping] = OrderedDict()
        """The room that changed last comes last."""
        self._active: dict[str, _RoomTyping] = {}
        """Those in which somebody types."""
        self._quiet: OrderedDict[str, None] = OrderedDict()
        """The others, in the same order."""
        self.bytes = 0
        self.bytes_max = BYTES_MAX
        self._due: list[tuple[float, str, str]] = []
        """A heap of times that may run out, ``(due, room_id, user_id)``. Entries that no longer count are in it too."""
        self._typists = 0
        self._timer: asyncio.TimerHandle | None = None
        self._for_servers: dict[tuple[str, str], bool] = {}
        """What other servers are still to be told, by room and user."""
        self._telling: asyncio.Task[None] | None = None
        register(self)

    def __len__(self) -> int:
        return len(self._rooms)

    async def stop(self) -> None:
        """Forget the timer, and tell nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
        await self._notices.stop()

    # -- changes -------------------------------------------------------------------------------------------------------

    @refuses_by_newest_state
    async def set_typing(self, user_id: str, room_id: str, typing: bool, timeout_ms: int = TIMEOUT_MS_DEFAULT) -> None:
        """One of our users types in a room for so long, or has stopped. Raises ``Forbidden`` for who is not in it."""
        head = await self._heads.find(room_id)
        if head is None or not self._is_in(head, user_id):
            raise Forbidden("You are not in this room")
        # A timeout of nothing is a stop.
        self._take_in(head.room_id, user_id, min(timeout_ms, TIMEOUT_MS_MAX) if typing and timeout_ms > 0 else 0)

    async def receive(self, origin: str, edu: JsonObject) -> None:
        """Take in an m.typing EDU; what does not fit is dropped.

        https://spec.matrix.org/v1.19/server-server-api/#typing-notifications
        """
        content = edu.get("content")
        if not isinstance(content, dict):
            return
        user_id, typing = content.get("user_id"), content.get("typing")
        if not isinstance(typing, bool) or not is_user_of(user_id, origin):
            return
        head = await room_of_edu(self._heads, content.get("room_id"), origin)
        if head is None or not self._is_in(head, user_id):
            return
        self._take_in(head.room_id, user_id, REMOTE_TIMEOUT_MS if typing else 0)

    def _is_in(self, head: RoomHead, user_id: str) -> bool:
        # The user may have left while the head was being read; ``departed`` has come too early then.
        return user_id in (self._heads.cached(head.room_id) or head).joined

    def departed(self, room_id: str, user_ids: Iterable[str]) -> None:
        """Users, of any server, have left a room or were removed from it: they do not type there any longer."""
        room = self._active.get(room_id)
        for user_id in [user_id for user_id in user_ids if room is not None and user_id in room.users]:
            self._take_in(room_id, user_id, 0)

    def _take_in(self, room_id: str, user_id: str, timeout_ms: int) -> None:
        """Note what a client or another server says, and tell the other processes."""
        # To type on is no change for clients, but it is news for the other processes, who would end it.
        if self._note(room_id, user_id, timeout_ms, is_own=True) or timeout_ms:
            self._notices.send((room_id, user_id), _notice_of(room_id, user_id, timeout_ms))

    # -- other processes -----------------------------------------------------------------------------------------------

    def begin_to_hear(self) -> None:
        """Notices of other processes arrive from now on: ask for those that were missed."""
        self._notices.send((WHO_TYPES,), orjson.dumps([WHO_TYPES]).decode())

    def hear(self, body: str) -> None:
        """Take in a notice of another process; what does not fit is dropped."""
        try:
            said = orjson.loads(body)
        except orjson.JSONDecodeError:
            return
        match said:
            case ["typing", str(room_id), str(user_id), int(timeout_ms)] if 0 <= timeout_ms <= TIMEOUT_MS_MAX:
                head = self._heads.cached(room_id)
                if timeout_ms and head is not None and user_id not in head.joined:
                    # The user has left meanwhile, which the other process does not know yet.
                    self._notices.send((room_id, user_id), _notice_of(room_id, user_id, 0))
                else:
                    self._note(room_id, user_id, timeout_ms, is_own=False)
            case [str(what)] if what == WHO_TYPES:
                now = self._clock.monotonic()
                for active_id, room in self._active.items():
                    for user_id, typist in room.users.items():
                        if typist.is_own and typist.until > now:
                            left_ms = int((typist.until - now) * 1000)
                            self._notices.send((active_id, user_id), _notice_of(active_id, user_id, left_ms))
            case _:
                return

    # -- what is known -------------------------------------------------------------------------------------------------

    def _note(self, room_id: str, user_id: str, timeout_ms: int, *, is_own: bool) -> bool:
        """Remember that a user types for so long, or has stopped; whether who types in the room is another set now."""
        room = self._rooms.get(room_id)
        typist = room.users.get(user_id) if room is not None else None
        now = self._clock.monotonic()
        if not timeout_ms:
            if room is None or typist is None:
                return False
            del room.users[user_id]
            self._typists -= 1
            self.bytes -= USER_BYTES
            self._changed(room_id, room)
            self._tell_servers(room_id, user_id, False)
            return True
        until = now + timeout_ms / 1000
        if room is not None and typist is not None:
            # Where it ends later than was thought, the heap is given the new time when the old one has come.
            typist.until, typist.is_own = until, is_own
            if until < typist.due:
                self._await_end(room_id, user_id, typist)
            if typist.told is None or now - typist.told > FEDERATION_REPEAT_S:
                typist.told = now
                self._tell_servers(room_id, user_id, True)
            return False
        if not self._has_place(room):
            return False
        if room is None:
            room = self._rooms[room_id] = _RoomTyping(0)
            self.bytes += ROOM_BYTES
        room.users[user_id] = typist = _Typist(until, until, is_own, now)
        self._typists += 1
        self.bytes += USER_BYTES
        self._await_end(room_id, user_id, typist)
        self._changed(room_id, room)
        self._tell_servers(room_id, user_id, True)
        return True

    def _has_place(self, room: _RoomTyping | None) -> bool:
        if room is not None and len(room.users) >= TYPISTS_PER_ROOM_MAX:
            return False
        while self._quiet and self.bytes + ROOM_BYTES + USER_BYTES > self.bytes_max:
            room_id, _ = self._quiet.popitem(last=False)
            self._floor = self._rooms.pop(room_id).changed
            self.bytes -= ROOM_BYTES
        return self.bytes + ROOM_BYTES + USER_BYTES <= self.bytes_max

    def _changed(self, room_id: str, room: _RoomTyping) -> None:
        self.position = max(self.position + 1, self._clock.now_ms())
        room.changed = self.position
        room.rendered = room.digest = None
        self._rooms.move_to_end(room_id)
        self._quiet.pop(room_id, None)
        if room.users:
            self._active[room_id] = room
        else:
            self._active.pop(room_id, None)
            self._quiet[room_id] = None
        self._notifier.wake_room(room_id)

    # -- other servers -------------------------------------------------------------------------------------------------

    def _tell_servers(self, room_id: str, user_id: str, typing: bool) -> None:
        """Every process tells of what it hears; the one that delivers does send it."""
        if not self._is_local(user_id):
            return
        self._for_servers.pop((room_id, user_id), None)
        self._for_servers[room_id, user_id] = typing
        if self._telling is None:
            self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        try:
            while self._for_servers:
                (room_id, user_id), typing = next(iter(self._for_servers.items()))
                del self._for_servers[room_id, user_id]
                try:
                    await self._delivery.send_typing(room_id, user_id, typing)
                except Exception:
                    # For them it ends by itself after a while.
                    logger.exception("other servers could not be told who types")
        finally:
            self._telling = None

    # -- time ----------------------------------------------------------------------------------------------------------

    def _await_end(self, room_id: str, user_id: str, typist: _Typist) -> None:
        typist.due = typist.until
        heapq.heappush(self._due, (typist.due, room_id, user_id))
        if len(self._due) > 2 * self._typists + DUE_SPARE:
            self._due = [(t.due, i, u) for i, room in self._active.items() for u, t in room.users.items()]
            self._due.append((typist.due, room_id, user_id))  # its room may not count as active yet
            heapq.heapify(self._due)
        self._set_timer()

    def _set_timer(self) -> None:
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, self._due[0][0] - self._clock.monotonic())
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self.expire()
        if self._due:
            self._set_timer()

    def expire(self) -> None:
        """End the notices whose time has run out. Each process does so for itself."""
        now = self._clock.monotonic()
        while self._due and self._due[0][0] <= now:
            due, room_id, user_id = heapq.heappop(self._due)
            room = self._active.get(room_id)
            typist = room.users.get(user_id) if room is not None else None
            if typist is None or typist.due != due:
                continue  # the user has stopped, or another entry counts
            if typist.until <= now:
                self._note(room_id, user_id, 0, is_own=False)
            else:
                typist.due = typist.until
                heapq.heappush(self._due, (typist.due, room_id, user_id))

    # -- readers -------------------------------------------------------------------------------------------------------

    def token(self, joined: Collection[str]) -> int:
        """What a client knows who has been told of everything in the rooms that its user is in; for its token."""
        return Point(self.position, self._process, self._digest(joined)).as_number()

    def to_tell(self, token: int, joined: Collection[str]) -> Collection[str]:
        """The rooms of which a client with this token is to be told who types, if nobody is typing any more too."""
        point = Point.of_number(token)
        if point.process == self._process and self._floor <= point.ms <= self.position:
            return () if point.ms == self.position else self._changed_since(point.ms, joined)
        # The token is of another process, or of before a restart.
        if point.digest == self._digest(joined):
            return ()
        after = min(point.ms, self._clock.now_ms()) - ELSEWHERE_SLACK_MS
        if after < self._floor and point.digest:
            return joined  # the client thinks of somebody as typing, of whom this process may know nothing
        return {*self._changed_since(after, joined), *self.active(joined)}

    def active(self, joined: Collection[str]) -> list[str]:
        """Those of some rooms in which somebody types."""
        if len(self._active) < len(joined):
            return [room_id for room_id in self._active if room_id in joined]
        return [room_id for room_id in joined if room_id in self._active]

    def users_in(self, room_id: str) -> list[str]:
        """Who types in a room."""
        room = self._active.get(room_id)
        return list(room.users) if room is not None else []

    def event_in(self, room_id: str) -> bytes:
        """The m.typing event of a room, for clients."""
        room = self._active.get(room_id)
        if room is None:
            return _render(())
        if room.rendered is None:
            room.rendered = _render(room.users)
        return room.rendered

    def _changed_since(self, after: int, joined: Collection[str]) -> list[str]:
        found: list[str] = []
        for looked_at, (room_id, room) in enumerate(reversed(self._rooms.items())):
            if room.changed <= after:
                break
            if looked_at > len(joined):
                return [i for i in joined if (known := self._rooms.get(i)) is not None and known.changed > after]
            if room_id in joined:
                found.append(room_id)
        return found

    def _digest(self, joined: Collection[str]) -> int:
        """The same in each process that knows the same users to type in these rooms; 0 if nobody does."""
        digest = 0
        for room_id in self.active(joined):
            room = self._active[room_id]
            if room.digest is None:
                room.digest = zlib.crc32(orjson.dumps([room_id, *sorted(room.users)])) | 1 << 32
            digest += room.digest
        return digest and digest % DIGEST_MAX + 1


def _notice_of(room_id: str, user_id: str, timeout_ms: int) -> str:
    return orjson.dumps(["typing", room_id, user_id, timeout_ms]).decode()


def _render(user_ids: Iterable[str]) -> bytes:
    return orjson.dumps({"type": "m.typing", "content": {"user_ids": list(user_ids)}})
