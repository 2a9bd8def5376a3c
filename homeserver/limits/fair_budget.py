"""A bounded resource that many callers share: some run, the others wait, and those that wait take turns by subject.

Whoever sends many requests waits behind itself, not before others. That is what keeps a hundred connections of one
address from taking all threads for passwords, or all memory for bodies.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator

from homeserver.errors import LimitExceeded

RETRY_AFTER_MS = 2_000


class FairBudget:
    """Hands out a capacity in shares."""

    def __init__(
        self,
        capacity: int,
        *,
        per_subject: int | None = None,
        waiting_max: int = 500,
        waiting_per_subject_max: int = 20,
        text: str = "Too many requests at once",
    ) -> None:
        """One subject has at most ``per_subject`` of the capacity at a time. ``text`` is for those who may not wait."""
        self._capacity = capacity
        self._per_subject = capacity if per_subject is None else per_subject
        self._waiting_max = waiting_max
        self._waiting_per_subject_max = waiting_per_subject_max
        self._text = text
        self.used = 0
        """How much of the capacity is in use."""
        self._used_by: Counter[str] = Counter()
        self._queues: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        """Those who wait, by subject; the subject whose turn is next comes first."""
        self.waiting = 0
        """How many wait."""

    @contextlib.asynccontextmanager
    async def share(self, subject: str, amount: int = 1, *, seconds: float | None = None) -> AsyncIterator[None]:
        """Hold a share while the context lasts, after waiting for it if need be.

        Raises ``LimitExceeded`` when too many wait, or after so many ``seconds`` of waiting.
        """
        await self.take(subject, amount, seconds=seconds)
        try:
            yield
        finally:
            self.release(subject, amount)

    async def take(self, subject: str, amount: int = 1, *, seconds: float | None = None) -> None:
        """Take a share, to be released with the same arguments. Raises ``LimitExceeded`` as ``share`` does.

        An amount above what one subject may have counts as that, here and when it is released.
        """
        amount = min(amount, self._per_subject)
        if not self._queues and self._fits(subject, amount):
            self._grant(subject, amount)
            return
        waiter = self._enqueue(subject, amount)
        try:
            async with asyncio.timeout(seconds):
                await waiter.granted
        except TimeoutError:
            self._give_up(subject, waiter)
            raise self._refusal() from None
        except BaseException:
            self._give_up(subject, waiter)
            raise

    def release(self, subject: str, amount: int = 1) -> None:
        """Give a share back."""
        amount = min(amount, self._per_subject)
        self.used -= amount
        self._used_by[subject] -= amount
        if self._used_by[subject] <= 0:
            del self._used_by[subject]
        self._serve()

    def _fits(self, subject: str, amount: int) -> bool:
        return self.used + amount <= self._capacity and self._used_by[subject] + amount <= self._per_subject

    def _grant(self, subject: str, amount: int) -> None:
        self.used += amount
        self._used_by[subject] += amount

    def _enqueue(self, subject: str, amount: int) -> _Waiter:
        if len(self._queues.get(subject, ())) >= self._waiting_per_subject_max:
            raise self._refusal()
        if self.waiting >= self._waiting_max:
            self._drop_from_longest(subject)
        queue = self._queues.setdefault(subject, deque())
        waiter = _Waiter(amount)
        queue.append(waiter)
        self.waiting += 1
        self._serve()  # those before it may all wait for themselves only
        return waiter

    def _drop_from_longest(self, newcomer: str) -> None:
        """Make room: refuse the last one of the longest queue, or the newcomer if no queue is longer than its own."""
        longest = max(self._queues, key=lambda subject: len(self._queues[subject]))
        if len(self._queues[longest]) <= len(self._queues.get(newcomer, ())) + 1:
            raise self._refusal()
        waiter = self._queues[longest].pop()
        self.waiting -= 1
        waiter.granted.set_exception(self._refusal())

    def _give_up(self, subject: str, waiter: _Waiter) -> None:
        queue = self._queues.get(subject)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            self.waiting -= 1
            if not queue:
                del self._queues[subject]
            self._serve()  # those behind it may need less
        elif waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
            self.release(subject, waiter.amount)

    def _serve(self) -> None:
        """Let in those who wait, in turn, as long as there is capacity."""
        while self._serve_round():
            pass

    def _serve_round(self) -> bool:
        """Let in at most one of each subject; returns whether to go on."""
        has_served = False
        for subject in list(self._queues):
            queue = self._queues[subject]
            waiter = queue[0]
            if self._used_by[subject] + waiter.amount > self._per_subject:
                continue  # it waits for itself
            if self.used + waiter.amount > self._capacity:
                return False  # the next ones wait too, so that a large share gets its turn
            queue.popleft()
            self.waiting -= 1
            del self._queues[subject]
            if queue:
                self._queues[subject] = queue  # at the end
            self._grant(subject, waiter.amount)
            waiter.granted.set_result(None)
            has_served = True
        return has_served

    def _refusal(self) -> LimitExceeded:
        return LimitExceeded(self._text, retry_after_ms=RETRY_AFTER_MS)


class _Waiter:
    """One who waits for a share."""

    __slots__ = ("amount", "granted")

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
