"""Servers that do not answer requests for history, and whether to go on without them.

A server that fails once may be back in a moment, so the client that reads a page is told to try again. A server that
has not answered for minutes may be gone for good, and must not make the events unreachable that are here. It is still
asked from time to time, and at once after it has made a request itself. All of this is in the database, for every
process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import structlog

from homeserver.clock import Clock
from homeserver.federation.caching import LruDict
from homeserver.storage import silent_servers as store
from homeserver.storage.database import Database, reads_for_other_servers
from homeserver.storage.silent_servers import Silence

logger = structlog.get_logger(__name__)

GIVEN_UP_TIMES = 3
GIVEN_UP_AFTER_MS = 3 * 60 * 1000
"""A server is given up after so many requests without an answer, the last one so long after the first."""
PAUSE_MS_MAX = 3600 * 1000
LOOK_AGAIN_S = 10.0
"""How often requests of a server cause a look into the database whether it had been silent."""
LOOKED_AT_MAX = 10_000


def is_given_up(silence: Silence | None) -> bool:
    """Whether a server has not answered for so long that pages go on without it."""
    return (
        silence is not None
        and silence.times >= GIVEN_UP_TIMES
        and silence.last_ts - silence.since_ts >= GIVEN_UP_AFTER_MS
    )


def is_to_be_asked(silence: Silence | None, now_ms: int) -> bool:
    """Whether to ask a server now. One that was given up is not asked for as long as it has been silent."""
    if silence is None or not is_given_up(silence):
        return True
    return now_ms - silence.last_ts >= min(silence.last_ts - silence.since_ts, PAUSE_MS_MAX)


class SilentServers:
    """Remembers which servers do not answer."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._looked_at: LruDict[str, float] = LruDict(LOOKED_AT_MAX, "servers that made requests")
        self._tasks: set[asyncio.Task[None]] = set()

    async def silences_of(self, server_names: Collection[str]) -> dict[str, Silence]:
        """The servers among these that did not answer the last time, by name."""
        return await self._database.read(store.silences_of, server_names)

    async def did_not_answer(self, server_name: str) -> Silence:
        """Note that a server did not answer. Returns its silence so far."""
        return await self._database.write(store.note_silence, server_name, self._clock.now_ms())

    async def answered(self, server_name: str) -> None:
        """Note that a silent server has answered."""
        await self._database.write(store.forget_silence, server_name)

    def sign_of_life(self, server_name: str) -> None:
        """Note that a server has made an authenticated request. If it was silent before, it will be asked again."""
        now = self._clock.monotonic()
        last = self._looked_at.get(server_name)
        if last is not None and now - last < LOOK_AGAIN_S:
            return
        self._looked_at.put(server_name, now)
        task = asyncio.get_running_loop().create_task(self._forget(server_name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forget(self, server_name: str) -> None:
        reads_for_other_servers()
        try:
            if await self._database.read(store.is_silent, server_name):
                await self._database.write(store.forget_silence, server_name)
        except Exception as error:
            # It will be asked again after its pause in any case.
            logger.warning("request of a silent server not noted", server=server_name, error=str(error))
