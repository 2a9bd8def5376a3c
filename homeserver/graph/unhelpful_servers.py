"""Servers that send events with ancestors that no server shows, and that did not help when they were asked for them.

Asking again for every further event would be endless work, caused by whoever sends them. So after a failure such a
server is not asked for a while in that room; each further failure makes the pause longer. Events that need no help are
handled meanwhile; the others are found, once the server helps again, as ancestors of later events.
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
    """In seconds of the monotonic clock."""


class UnhelpfulServers:
    """Remembers, by room and server, when to ask next for what events lack."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pauses: LruDict[tuple[str, str], _Pause] = LruDict(REMEMBERED_MAX, "unhelpful servers")

    def may_ask(self, room_id: str, server_name: str) -> bool:
        """Whether to ask a server for what its events in a room lack."""
        pause = self._pauses.get((room_id, server_name))
        return pause is None or self._clock.monotonic() >= pause.until

    def helped(self, room_id: str, server_name: str) -> None:
        """Note that a server returned what was missing."""
        self._pauses.remove((room_id, server_name))

    def did_not_help(self, room_id: str, server_name: str) -> None:
        """Note that a server did not return what was missing."""
        last = self._pauses.get((room_id, server_name))
        seconds = PAUSE_S_MIN if last is None else min(last.seconds * PAUSE_FACTOR, PAUSE_S_MAX)
        self._pauses.put((room_id, server_name), _Pause(seconds, self._clock.monotonic() + seconds))
