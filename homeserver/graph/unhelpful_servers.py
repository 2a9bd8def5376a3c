"""Servers that send events which build on what nobody shows us, and that did not help when they were asked for it.

To ask again for every further event would be work without end, at the will of whoever sends them. So after a failure
such a server is left alone for a while in that room; each further one makes it longer. What can do without help is
taken in meanwhile; the rest is found, once the server helps again, by what builds on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.clock import Clock
from homeserver.federation.caching import LruDict

PAUSE_S_MIN = 2.0
PAUSE_S_MAX = 600.0
PAUSE_FACTOR = 2
REMEMBERED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class _Pause:
    seconds: float
    until: float
    """By the monotonic clock."""


class UnhelpfulServers:
    """Remembers, for rooms and servers, when next to ask for what events lack."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pauses: LruDict[tuple[str, str], _Pause] = LruDict(REMEMBERED_MAX, "unhelpful servers")

    def may_ask(self, room_id: str, server_name: str) -> bool:
        """Whether to ask a server for what its events in a room lack."""
        pause = self._pauses.get((room_id, server_name))
        return pause is None or self._clock.monotonic() >= pause.until

    def helped(self, room_id: str, server_name: str) -> None:
        """A server gave what was missing."""
        self._pauses.remove((room_id, server_name))

    def did_not_help(self, room_id: str, server_name: str) -> None:
        """A server was asked, and did not give what was missing."""
        last = self._pauses.get((room_id, server_name))
        seconds = PAUSE_S_MIN if last is None else min(last.seconds * PAUSE_FACTOR, PAUSE_S_MAX)
        self._pauses.put((room_id, server_name), _Pause(seconds, self._clock.monotonic() + seconds))
