"""Time as an argument: whoever needs it is given a ``Clock``, so that tests can jump."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time, in two ways."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch: for what is stored, sent or compared with what others say."""

    def monotonic(self) -> float:
        """Seconds since some moment, never going back: for measuring how long something takes."""


class SystemClock:
    """The time of this machine."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds since some moment, never going back."""
        return time.monotonic()
