"""Token buckets: how often something may happen for each of many subjects. Pure: the time is an argument.

A bucket holds ``burst`` tokens when it is full, and regains ``per_second`` of them. It is stored as one number, the
time when it will be full again: then a full bucket and one that is not there are the same, and a bucket that nobody
uses needs no work.
"""

from __future__ import annotations

from collections import OrderedDict

from homeserver.config import Rate

BUCKET_BYTES = 300
"""About what one bucket takes: its key, a number, and a place in an ordered dictionary."""


class Buckets:
    """The buckets of one limit, for up to ``entries_max`` subjects.

    With more subjects, the one that was used longest ago is forgotten, which makes its bucket full again.
    """

    def __init__(self, rate: Rate, entries_max: int) -> None:
        self._interval = 1 / rate.per_second
        """Seconds until one token is regained."""
        self._capacity = rate.burst * self._interval
        """Seconds until an empty bucket is full."""
        self._burst = rate.burst
        self._entries_max = entries_max
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, subject: str, now: float, cost: float = 1) -> float:
        """Take tokens if there are enough: returns 0, or else the seconds until there will be.

        A cost above the burst counts as the burst: otherwise it could never be paid.
        """
        full_at = max(self._full_at.get(subject, now), now) + min(cost, self._burst) * self._interval
        # Adding up and subtracting floating-point numbers may leave less than a microsecond.
        wait = full_at - now - self._capacity
        if wait > 1e-6:
            return wait
        self._store(subject, full_at, now)
        return 0.0

    def charge(self, subject: str, now: float, cost: float = 1) -> None:
        """Take tokens whether there are enough or not; a bucket is never emptier than empty."""
        full_at = max(self._full_at.get(subject, now), now) + cost * self._interval
        self._store(subject, min(full_at, now + self._capacity), now)

    def give_back(self, subject: str, cost: float = 1) -> None:
        """Undo a ``take``."""
        full_at = self._full_at.get(subject)
        if full_at is not None:
            self._full_at[subject] = full_at - cost * self._interval

    def _store(self, subject: str, full_at: float, now: float) -> None:
        self._full_at[subject] = full_at
        self._full_at.move_to_end(subject)
        if len(self._full_at) > self._entries_max:
            self._full_at.popitem(last=False)
        # Forget full buckets on the way, so that a quiet server keeps none.
        oldest = next(iter(self._full_at))
        if self._full_at[oldest] <= now:
            del self._full_at[oldest]
