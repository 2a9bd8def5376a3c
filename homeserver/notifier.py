"""Wakes the requests that wait for news, in every process; carries no data.

After a commit, the writer publishes the positions that it took, and for each the room or the users that it concerns.
Readers fetch the rest by position. A change does not list the users to wake for its room: each waiting request names
the rooms of its user, so that a change in a room with many members costs no more than any other. Changes of other
processes on the same database are noticed as a gap in the positions, or by an announcement (``catch_up``), and read
from the database before any request is woken, so no reader ever sees a later position without the earlier ones.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import structlog

from homeserver.caches import register

logger = structlog.get_logger(__name__)

RECENT_BYTES_MAX = 16 * 2**20
"""The memory for recent changes; readers that are further behind query the database."""
CHANGE_BYTES = 320
"""The approximate size of one change, including its event ID and its entry in a reader's index."""
USER_BYTES = 80
"""The approximate size of one user ID."""
IDLE_ROOMS_MAX = 100_000
"""How many rooms, over all users, stay registered for users without a waiting request."""
CATCH_UP_MAX = 10_000
"""How many positions are read from the database at once."""


class Stream(Enum):
    """What changed at a position."""

    EVENTS = "events"
    RECEIPTS = "receipts"
    ACCOUNT_DATA = "account_data"
    MEMBERSHIP = "membership"
    """The membership of one of our users, changed without an event of the room: an invitation from outside, a forgotten
    room.
    """
    TO_DEVICE = "to_device"
    DEVICE_LISTS = "device_lists"
    PRESENCE = "presence"


class StateEffect(Enum):
    """What an event did to the current state of its room."""

    UNKNOWN = "unknown"
    """Not known: the reader must query the database."""
    NONE = "none"
    """Nothing: a message, or an event that was not accepted."""
    OWN = "own"
    """The event set its own entry of the state, and nothing else changed."""
    OTHER = "other"
    """Anything else: branches met, or the state of the room was replaced."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something happened at a position, in a room, to some users, or both."""

    position: int
    stream: Stream
    room_id: str | None = None
    users: tuple[str, ...] = ()
    """Our users whom it concerns directly, such as those whose membership changed. Few, however large the room."""
    wakes_room: bool = False
    """Whether to wake the requests of everybody in the room, not only those of ``users``."""
    event_id: str | None = None
    """The event at this position, if it is cached: readers then need not query the database for it."""
    effect: StateEffect = StateEffect.UNKNOWN
    """What that event did to the current state."""

    @property
    def weight(self) -> int:
        """Its approximate size in bytes."""
        return CHANGE_BYTES + USER_BYTES * len(self.users)


LoadChanges = Callable[[int, int], Awaitable[Sequence[Change]]]
"""Reads from the database the changes after the first position, up to and including the second."""


class _Waiters:
    """The waiting requests, by user, and the rooms whose changes they wait for.

    The rooms of a user stay registered for a while after its request has ended: the next request usually comes at once,
    and need not register hundreds of rooms again.
    """

    def __init__(self) -> None:
        self._futures: dict[str, set[asyncio.Future[bool]]] = {}
        """By user. The result is whether something woke the request, not its time that ran out."""
        self._rooms: OrderedDict[str, Collection[str]] = OrderedDict()
        """The rooms that are registered for a user; the users whose requests ended longest ago come first."""
        self._users: dict[str, set[str]] = {}
        """The users that are registered for a room."""
        self._rooms_count = 0

    def __bool__(self) -> bool:
        return bool(self._futures)

    def add(self, user_id: str, rooms: Collection[str], future: asyncio.Future[bool]) -> None:
        """Register a request. ``rooms`` are the rooms of its user; the caller must not change the collection
        afterwards.
        """
        self._register(user_id, rooms)
        self._futures.setdefault(user_id, set()).add(future)

    def discard(self, user_id: str, future: asyncio.Future[bool]) -> None:
        """A request has ended."""
        futures = self._futures.get(user_id)
        if futures is not None:
            futures.discard(future)
            if not futures:
                del self._futures[user_id]
        self._drop_idle()

    def wake(self, change: Change) -> None:
        """Wake all requests that a change concerns."""
        for user_id in change.users:
            self.wake_user(user_id)
        if change.wakes_room and change.room_id is not None:
            self.wake_room(change.room_id)

    def wake_room(self, room_id: str) -> None:
        """Wake all requests that wait for changes in a room."""
        users = self._users.get(room_id)
        if users and self._futures:
            waiting = self._futures
            found = (
                [u for u in users if u in waiting] if len(users) < len(waiting) else [u for u in waiting if u in users]
            )
            for user_id in found:
                self.wake_user(user_id)

    def wake_user(self, user_id: str) -> None:
        """Wake all requests of a user."""
        for future in self._futures.pop(user_id, ()):
            _end_wait(future, True)

    def wake_all(self) -> None:
        """Wake all requests of everybody."""
        for user_id in list(self._futures):
            self.wake_user(user_id)

    def _register(self, user_id: str, rooms: Collection[str]) -> None:
        registered = self._rooms.get(user_id, ())
        if registered is not rooms:
            for room_id in registered:
                if room_id not in rooms:
                    self._remove(user_id, room_id)
            for room_id in rooms:
                self._users.setdefault(room_id, set()).add(user_id)
            self._rooms_count += len(rooms) - len(registered)
        self._rooms[user_id] = rooms
        self._rooms.move_to_end(user_id)

    def _remove(self, user_id: str, room_id: str) -> None:
        users = self._users.get(room_id)
        if users is not None:
            users.discard(user_id)
            if not users:
                del self._users[room_id]

    def _drop_idle(self) -> None:
        while self._rooms_count > IDLE_ROOMS_MAX or len(self._rooms) > IDLE_ROOMS_MAX:
            user_id = next(iter(self._rooms))
            if user_id in self._futures:
                return  # the oldest request still waits; no request waits for longer than some minutes
            rooms = self._rooms.pop(user_id)
            self._rooms_count -= len(rooms)
            for room_id in rooms:
                self._remove(user_id, room_id)


class Notifier:
    """The last known position, the recent changes, and the requests that wait for more."""

    name = "changes"

    def __init__(self, position: int, load_changes: LoadChanges) -> None:
        self.position = position
        """All changes up to here are committed, and known to this process."""
        self._load_changes = load_changes
        self._recent: deque[Change] = deque()
        self.bytes = 0
        self.bytes_max = RECENT_BYTES_MAX
        self._floor = position
        self._waiters = _Waiters()
        self._readers: set[asyncio.Event] = set()
        self._pending: dict[int, Change] = {}
        self._catching_up: asyncio.Task[None] | None = None
        self._target = position
        self._closed = False
        register(self)

    def __len__(self) -> int:
        return len(self._recent)

    # -- writers -------------------------------------------------------------------------------------------------------

    def publish(self, changes: Iterable[Change]) -> None:
        """Announce committed changes, each with its own position."""
        for change in changes:
            if change.position > self.position:
                self._pending[change.position] = change
                self._target = max(self._target, change.position)
        self._drain()
        if self._pending and self._catching_up is None:
            self._begin_to_catch_up()

    async def catch_up(self, position: int) -> None:
        """Read what other processes wrote up to ``position``. Raises the errors of the database."""
        self._target = max(self._target, position)
        while self.position < position:
            await asyncio.shield(self._catching_up or self._begin_to_catch_up())

    def _begin_to_catch_up(self) -> asyncio.Task[None]:
        self._catching_up = task = asyncio.get_running_loop().create_task(self._catch_up())
        task.add_done_callback(_log_failure)
        return task

    async def _catch_up(self) -> None:
        try:
            while self.position < self._target:
                goal = min(self._target, self.position + CATCH_UP_MAX)
                # Commits become visible in the order of their positions, so everything up to the goal can be read now.
                found = {change.position: change for change in await self._load_changes(self.position, goal)}
                start = self.position
                for position in sorted(found.keys() | {p for p in self._pending if start < p <= goal}):
                    if position > self.position:
                        self._accept(self._pending.pop(position) if position in self._pending else found[position])
                self.position = max(self.position, goal)
                self._drain()
        finally:
            self._catching_up = None

    def _drain(self) -> None:
        while (change := self._pending.pop(self.position + 1, None)) is not None:
            self._accept(change)
        if self._pending:
            self._pending = {p: c for p, c in self._pending.items() if p > self.position}

    def _accept(self, change: Change) -> None:
        self.position = change.position
        self._recent.append(change)
        self.bytes += change.weight
        while self.bytes > self.bytes_max:
            forgotten = self._recent.popleft()
            self._floor = forgotten.position
            self.bytes -= forgotten.weight
        if self._waiters:
            self._waiters.wake(change)
        for reader in self._readers:
            reader.set()

    # -- readers -------------------------------------------------------------------------------------------------------

    def changes_since(self, position: int) -> list[Change] | None:
        """The changes after ``position``, oldest first; None if older ones than are kept would be needed."""
        if position < self._floor:
            return None
        found: list[Change] = []
        for change in reversed(self._recent):
            if change.position <= position:
                break
            found.append(change)
        found.reverse()
        return found

    @property
    def floor(self) -> int:
        """Changes up to and including this position may have been dropped."""
        return self._floor

    async def wait_for_user(self, user_id: str, timeout_s: float, rooms: Collection[str] = ()) -> bool:
        """Wait until something concerns the user; False on a timeout or when the server stops.

        ``rooms`` are the rooms that the user is in, as a collection that must not change afterwards. A change of the
        user's membership wakes the request, which then waits again with its new rooms. Do not await anything between
        reading the data and this call: then whatever is published after the reading wakes the request.
        """
        if self._closed or timeout_s <= 0:
            return False
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(timeout_s, _end_wait, future, False)
        self._waiters.add(user_id, rooms, future)
        try:
            return await future and not self._closed
        finally:
            timer.cancel()
            self._waiters.discard(user_id, future)

    def wake_user(self, user_id: str) -> None:
        """Wake a user's requests for a reason that has no position (a logout)."""
        self._waiters.wake_user(user_id)

    def wake_room(self, room_id: str) -> None:
        """Wake the requests that wait for a room, for a reason that has no position (typing)."""
        self._waiters.wake_room(room_id)

    def reader(self) -> asyncio.Event:
        """An event that is set at every change; for background readers, which clear it themselves."""
        event = asyncio.Event()
        self._readers.add(event)
        return event

    def close(self) -> None:
        """End all waits, because the server stops."""
        self._closed = True
        self._waiters.wake_all()
        for reader in self._readers:
            reader.set()


def _end_wait(future: asyncio.Future[bool], woken: bool) -> None:
    if not future.done():
        future.set_result(woken)


def _log_failure(task: asyncio.Task[None]) -> None:
    # Pending changes stay pending; the next change, or the next poll of the database, tries again.
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("cannot read what other processes wrote", error=str(error))
