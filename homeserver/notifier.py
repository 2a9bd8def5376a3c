"""Wakes whoever waits on the stream, in every process; carries no data.

After a commit, the writer says which positions it took and whom they concern. What is remembered of that is who and
where, not what: readers fetch the rest by position. Changes of other processes on the same database are noticed as a
gap in the positions, or by a broker (``catch_up``), and read from the database before anyone is woken, so nobody ever
sees a later position without the earlier ones.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import structlog

logger = structlog.get_logger(__name__)

RECENT_CHANGES_MAX = 50_000
"""Changes that are remembered; whoever is further behind asks the database."""
CATCH_UP_MAX = 10_000
"""Positions that are read from the database at once."""


class Stream(Enum):
    """What changed at a position."""

    EVENTS = "events"
    RECEIPTS = "receipts"
    TYPING = "typing"
    ACCOUNT_DATA = "account_data"
    MEMBERSHIP = "membership"
    """The standing of one of our users to a room: an invitation from outside, a forgotten room."""
    TO_DEVICE = "to_device"
    DEVICE_LISTS = "device_lists"
    PRESENCE = "presence"


class StateEffect(Enum):
    """What an event did to the current state of its room."""

    UNKNOWN = "unknown"
    """Whoever needs to know asks the database."""
    NONE = "none"
    """Nothing: a message, or an event that was not let in."""
    OWN = "own"
    """It took its own place in the state, and nothing else changed."""
    OTHER = "other"
    """Anything else: branches met, or the state of the room was replaced."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something happened at a position, in a room, to a user, or both."""

    position: int
    stream: Stream
    room_id: str | None = None
    user_id: str | None = None
    audience: Iterable[str] = ()
    """Our users who should be woken."""
    event_id: str | None = None
    """The event at this position, where it is at hand: readers then need not ask the database for it."""
    effect: StateEffect = StateEffect.UNKNOWN
    """What that event did to the current state."""


LoadChanges = Callable[[int, int], Awaitable[Sequence[Change]]]
"""Reads from the database what happened after one position up to and with another."""


class Notifier:
    """The last known position, the recent changes, and those who wait for more."""

    def __init__(self, position: int, load_changes: LoadChanges) -> None:
        self.position = position
        """All changes up to here are committed, and known here."""
        self._load_changes = load_changes
        self._recent: deque[Change] = deque(maxlen=RECENT_CHANGES_MAX)
        self._floor = position
        self._last_in_room: dict[str, int] = {}
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._readers: set[asyncio.Event] = set()
        self._pending: dict[int, Change] = {}
        self._catching_up: asyncio.Task[None] | None = None
        self._target = position
        self._closed = False

    # -- writers -------------------------------------------------------------------------------------------------------

    def publish(self, changes: Iterable[Change]) -> None:
        """Tell of committed changes, each with a position of its own."""
        for change in changes:
            if change.position > self.position:
                self._pending[change.position] = change
                self._target = max(self._target, change.position)
        self._drain()
        if self._pending and self._catching_up is None:
            self._begin_to_catch_up()

    async def catch_up(self, position: int) -> None:
        """Take in what other processes wrote up to ``position``. Raises what reading it raises."""
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
                # Commits become visible in the order of their positions: all up to the goal can be read now.
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
        if len(self._recent) == RECENT_CHANGES_MAX:
            self._floor = self._recent[0].position
        self._recent.append(change)
        if change.room_id is not None:
            self._last_in_room[change.room_id] = change.position
        waiters = self._waiters
        if waiters:
            audience = change.audience
            for user_id in audience if not isinstance(audience, (set, frozenset)) else _smaller(audience, waiters):
                for future in waiters.pop(user_id, ()):
                    if not future.done():
                        future.set_result(None)
        for reader in self._readers:
            reader.set()

    # -- readers -------------------------------------------------------------------------------------------------------

    def changes_since(self, position: int) -> list[Change] | None:
        """The changes after ``position``, oldest first; None when that is too long ago to be remembered here."""
        if position < self._floor:
            return None
        found: list[Change] = []
        for change in reversed(self._recent):
            if change.position <= position:
                break
            found.append(change)
        found.reverse()
        return found

    def last_change_in(self, room_id: str) -> int:
        """The position of the last change in a room, or the floor below which nothing is remembered."""
        return self._last_in_room.get(room_id, self._floor)

    @property
    def floor(self) -> int:
        """Changes up to and with this position may have been forgotten."""
        return self._floor

    async def wait_for_user(self, user_id: str, timeout_s: float) -> bool:
        """Wait until something concerns the user; False when the time ran out or the server stops.

        Call without awaiting anything between the look at the data and this: whatever is published after the look
        then wakes.
        """
        if self._closed or timeout_s <= 0:
            return False
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(user_id, set())
        waiters.add(future)
        try:
            async with asyncio.timeout(timeout_s):
                await future
            return not self._closed
        except TimeoutError:
            return False
        finally:
            waiters.discard(future)
            if not waiters and self._waiters.get(user_id) is waiters:
                del self._waiters[user_id]

    def wake_user(self, user_id: str) -> None:
        """Wake a user's requests for a reason that has no position (a logout)."""
        for future in self._waiters.pop(user_id, ()):
            if not future.done():
                future.set_result(None)

    def reader(self) -> asyncio.Event:
        """An event that is set at every change; for background readers, which clear it themselves."""
        event = asyncio.Event()
        self._readers.add(event)
        return event

    def close(self) -> None:
        """Let all who wait go: the server stops."""
        self._closed = True
        for user_id in list(self._waiters):
            self.wake_user(user_id)
        for reader in self._readers:
            reader.set()


def _log_failure(task: asyncio.Task[None]) -> None:
    # What is pending stays so; the next change, or the next look at the database, tries again.
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("cannot read what other processes wrote", error=str(error))


def _smaller(audience: set[str] | frozenset[str], waiters: dict[str, set[asyncio.Future[None]]]) -> list[str]:
    if len(audience) <= len(waiters):
        return [user_id for user_id in audience if user_id in waiters]
    return [user_id for user_id in waiters if user_id in audience]
