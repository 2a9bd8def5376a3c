"""A clock that stands still until it is told to jump."""

from __future__ import annotations

from tests.factories.rooms import START_TS


class FakeClock:
    """A ``homeserver.clock.Clock`` for tests."""

    def __init__(self, now_ms: int = START_TS) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return self._now_ms / 1000

    def advance(self, ms: int) -> None:
        self._now_ms += ms
