"""Who is typing in which room.

Nothing of this is stored. Each process keeps what its clients and other servers report to it, sends that to the other
processes, and receives what they send (``storage/notices.py``). A notice ends by itself when its time has run out: one
timer waits for the next one that is due. So a restart forgets who is typing, and clients are told so.

A client's token says which changes the client knows, see ``ephemeral/typing_tokens.py``.

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
from homeserver.ephemeral.local_updates import is_user_of, rooms_of_edus
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
"""How long a user of another server counts as typing, unless that server says that they have stopped."""
FEDERATION_REPEAT_S = 30.0
"""Other servers are told again after this long, so that they do not assume that the user has stopped."""
ELSEWHERE_SLACK_MS = 60_000
"""How much later than another process this one may learn of a change, including the difference of their clocks."""
BYTES_MAX = 8 * 2**20
"""How much memory the notices of all rooms together may use."""
ROOM_BYTES = 900
USER_BYTES = 700
"""Two entries of a dictionary and of a heap, and a user ID that may be long."""
TYPISTS_PER_ROOM_MAX = 500
"""A limit, since all clients in the room are sent the whole list at each change."""
DUE_SPARE = 1_000
"""How many outdated entries the heap may have, besides as many as there are current ones."""
WHO_TYPES = "who types"


class TypingDelivery(Protocol):
    """Sends typing notices to other servers."""

    async def send_typing(self, room_id: str, user_id: str, typing: bool) -> None:
        """Tell the other servers in the room that one of our users is typing, or has stopped. Best effort.

        Does nothing in a process that does not deliver.
        """


class TypingNotices(Protocol):
    """Sends notices to the other processes of this server."""

    def send(self, key: tuple[str, ...], body: str) -> None:
        """Send a notice soon; it replaces one that still waits under the same key. Best effort."""

    async def stop(self) -> None:
        """Stop the background work."""


@dataclass(slots=True)
class _Typist:
    """A user who is typing."""

    until: float
    """When the notice ends, by the monotonic clock."""
    due: float
    """When the timer checks it; not later than ``until``."""
    is_own: bool
    """Whether the user, or the user's server, has told this process; otherwise another process has."""
    told: float | None = None
    """When other servers were last told about it."""


@dataclass(slots=True)
class _RoomTyping:
    """Who is typing in one room."""

    changed: int
    """When the set of typing users last changed, by ``Typing.position``."""
    users: dict[str, _Typist] = field(default_factory=dict)
    """By user ID, in the order in which they began."""
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
        """``process`` is a 16-bit number that distinguishes this process from others, and from earlier ones."""
        self._notifier = notifier
        self._heads = heads
        self._delivery = delivery
        self._notices = notices
        self._clock = clock
        self._process = process
        self._is_local = is_local
        self.position = clock.now_ms()
        """When the typing users of any room last changed: milliseconds since the epoch, or slightly more after many
        changes."""
        self._token = Point(self.position, process, 0).as_number()
        """The token for a user in whose rooms nobody is typing."""
        self._floor = self.position
        """Changes up to here may have been forgotten."""
        self._rooms: OrderedDict[str, _RoomTyping] = OrderedDict()
        """The room that changed last is at the end."""
        self._active: dict[str, _RoomTyping] = {}
        """The rooms in which somebody is typing."""
        self._quiet: OrderedDict[str, None] = OrderedDict()
        """The other rooms, in the same order."""
        self.bytes = 0
        self.bytes_max = BYTES_MAX
        self._due: list[tuple[float, str, str]] = []
        """A heap of the times when notices may end, ``(due, room_id, user_id)``; some entries are outdated."""
        self._typists = 0
        self._timer: asyncio.TimerHandle | None = None
        self._for_servers: dict[tuple[str, str], bool] = {}
        """What other servers still have to be told, by room and user."""
        self._telling: asyncio.Task[None] | None = None
        register(self)

    def __len__(self) -> int:
        return len(self._rooms)

    async def stop(self) -> None:
        """Stop the timer, and the sending of notices."""
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
        """Note that one of our users is typing, for at most ``timeout_ms``, or has stopped. Raises ``Forbidden``."""
        head = await self._heads.find(room_id)
        if head is None or not self._is_in(head, user_id):
            raise Forbidden("You are not in this room")
        # A timeout of zero means that the user has stopped.
        self._take_in(head.room_id, user_id, min(timeout_ms, TIMEOUT_MS_MAX) if typing and timeout_ms > 0 else 0)

    async def receive(self, origin: str, *edus: JsonObject) -> None:
        """Handle the m.typing EDUs of a transaction; invalid ones are dropped.

        https://spec.matrix.org/v1.19/server-server-api/#typing-notifications
        """
        contents = [content for edu in edus if isinstance(content := edu.get("content"), dict)]
        heads = await rooms_of_edus(self._heads, [content.get("room_id") for content in contents], origin)
        for content in contents:
            room_id, user_id, typing = content.get("room_id"), content.get("user_id"), content.get("typing")
            head = heads.get(room_id) if isinstance(room_id, str) else None
            if head is None or not isinstance(typing, bool) or not is_user_of(user_id, origin):
                continue
            if self._is_in(head, user_id):
                self._take_in(head.room_id, user_id, REMOTE_TIMEOUT_MS if typing else 0)

    def _is_in(self, head: RoomHead, user_id: str) -> bool:
        # The user may have left while the head was being read; then ``departed`` was called too early.
        return user_id in (self._heads.cached(head.room_id) or head).joined

    def departed(self, room_id: str, user_ids: Iterable[str]) -> None:
        """End the notices of users, of any server, who have left a room or were removed from it."""
        room = self._active.get(room_id)
        for user_id in [user_id for user_id in user_ids if room is not None and user_id in room.users]:
            self._take_in(room_id, user_id, 0)

    def _take_in(self, room_id: str, user_id: str, timeout_ms: int) -> None:
        """Note what a client or another server reports, and tell the other processes."""
        # A user who is still typing is no change for clients, but the other processes have to prolong the notice.
        if self._note(room_id, user_id, timeout_ms, is_own=True) or timeout_ms:
            self._notices.send((room_id, user_id), _notice_of(room_id, user_id, timeout_ms))

    # -- other processes -----------------------------------------------------------------------------------------------

    def begin_to_hear(self) -> None:
        """Ask the other processes for the notices that were missed: from now on their notices arrive."""
        self._notices.send((WHO_TYPES,), orjson.dumps([WHO_TYPES]).decode())

    def hear(self, body: str) -> None:
        """Handle a notice of another process; an invalid one is dropped."""
        try:
            said = orjson.loads(body)
        except orjson.JSONDecodeError:
            return
        match said:
            case ["typing", str(room_id), str(user_id), int(timeout_ms)] if 0 <= timeout_ms <= TIMEOUT_MS_MAX:
                head = self._heads.cached(room_id)
                if timeout_ms and head is not None and user_id not in head.joined:
                    # The user has left the room meanwhile, which the other process does not know yet.
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
        """Note that a user is typing, or has stopped; returns whether the set of typing users has changed."""
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
            # If the notice now ends later, the heap gets the new time when the old one has come.
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
        self._token = Point(self.position, self._process, 0).as_number()
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
        """Every process calls this; only the one that delivers to other servers sends."""
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
                    # On other servers the notice ends by itself after a while.
                    logger.exception("internal error while telling other servers who is typing")
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
        """End the notices that have run out. Each process does so by itself."""
        now = self._clock.monotonic()
        while self._due and self._due[0][0] <= now:
            due, room_id, user_id = heapq.heappop(self._due)
            room = self._active.get(room_id)
            typist = room.users.get(user_id) if room is not None else None
            if typist is None or typist.due != due:
                continue  # the user has stopped, or another entry is the current one
            if typist.until <= now:
                self._note(room_id, user_id, 0, is_own=False)
            else:
                typist.due = typist.until
                heapq.heappush(self._due, (typist.due, room_id, user_id))

    # -- readers -------------------------------------------------------------------------------------------------------

    def token(self, joined: Collection[str]) -> int:
        """The part of a token for a client that knows everything about typing in the rooms that its user is in."""
        return self._token | self._digest(joined) if self._active else self._token

    def to_tell(self, token: int, joined: Collection[str]) -> Collection[str]:
        """The rooms whose typing users a client with this token has to be told, even if nobody is typing there any
        more.

        There are none if the token is equal to the current one.
        """
        point = Point.of_number(token)
        if point.process == self._process and self._floor <= point.ms <= self.position:
            return () if point.ms == self.position else self._changed_since(point.ms, joined)
        # The token is from another process, or from before a restart.
        if point.digest == self._digest(joined):
            return ()
        after = min(point.ms, self._clock.now_ms()) - ELSEWHERE_SLACK_MS
        if after < self._floor and point.digest:
            return joined  # the client may believe that somebody is typing whom this process does not know of
        return {*self._changed_since(after, joined), *self.active(joined)}

    def active(self, joined: Collection[str]) -> list[str]:
        """The rooms among ``joined`` in which somebody is typing."""
        if len(self._active) < len(joined):
            return [room_id for room_id in self._active if room_id in joined]
        return [room_id for room_id in joined if room_id in self._active]

    def users_in(self, room_id: str) -> list[str]:
        """The IDs of the users who are typing in a room."""
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
        """A number that is equal in processes with the same typing users in these rooms; 0 if nobody is typing."""
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
