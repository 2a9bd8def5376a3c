"""Marks work with other servers as under way, and waits for its end, in whichever process it is done.

Other servers may react to something before it is stored here: a user accepts an invitation while it is still being
sent, and events of a room arrive while the room is still being imported. They have to wait for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

import structlog

from homeserver.clock import Clock
from homeserver.storage import under_way as store
from homeserver.storage.database import Database

logger = structlog.get_logger(__name__)

INVITATION = "invitation"
"""An invitation of this user is being sent to the user's server."""
JOIN = "join"
"""Another server may have accepted this user's join, but the room is not here yet."""
IMPORT = "import"
"""A room that was joined is being stored."""

HISTORY = "history"
"""Missing history of a room is being fetched."""

LEASE_MS = 30_000
PROLONG_S = 10.0
LOOK_AGAIN_S = 0.1
"""How often to look whether the work of another process has ended."""


class UnderWay:
    """Knows what is under way."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._ended = asyncio.Event()

    async def start(self) -> None:
        """On SQLite, which only one process serves, end what a process left behind that was killed."""
        if self._database.is_sqlite:
            await self._database.write(store.end_all)

    @contextlib.asynccontextmanager
    async def marked(self, kind: str, room_id: str, user_id: str, version: str | None = None) -> AsyncIterator[str]:
        """Mark work as under way, for all processes; yields the name of the lease.

        ``version`` is the version of a room that is being joined.
        """
        owner = secrets.token_hex(8)
        expires_ts = self._clock.now_ms() + LEASE_MS
        await self._database.write(store.begin, kind, room_id, user_id, owner, expires_ts, version)
        async with self._held(owner):
            yield owner

    @contextlib.asynccontextmanager
    async def claimed(self, kind: str, room_id: str) -> AsyncIterator[str]:
        """Do work in a room that only one process and task may do at a time, after waiting until it is free.

        Yields the name of the lease. Before each write, check that the lease is still valid (``store.is_owner``).
        """
        owner = secrets.token_hex(8)
        # A task that is cancelled while it waits may have got the lease nevertheless, so release it then too.
        async with self._held(owner):
            while True:
                now = self._clock.now_ms()
                if await self._database.write(store.claim, kind, room_id, "", owner, now, now + LEASE_MS):
                    break
                await self._wait_a_moment(LOOK_AGAIN_S)
            yield owner

    @contextlib.asynccontextmanager
    async def _held(self, owner: str) -> AsyncIterator[None]:
        prolonging = asyncio.get_running_loop().create_task(self._prolong(owner))
        try:
            yield
        finally:
            prolonging.cancel()
            # Also if the caller was cancelled, so that others need not wait until the lease expires.
            await asyncio.shield(self._end(owner))

    async def _prolong(self, owner: str) -> None:
        while True:
            await asyncio.sleep(PROLONG_S)
            try:
                await self._database.write(store.prolong, owner, self._clock.now_ms() + LEASE_MS)
            except Exception as error:
                logger.warning("lease not renewed", error=str(error))

    async def _end(self, owner: str) -> None:
        try:
            await self._database.write(store.end, owner)
        except Exception as error:
            logger.warning("lease not released", error=str(error))
        ended, self._ended = self._ended, asyncio.Event()
        ended.set()

    async def is_under_way(self, kind: str, room_id: str, user_id: str | None = None) -> bool:
        """Whether any process is doing this now, for any user if none is given."""
        return await self._database.read(store.is_under_way, kind, room_id, user_id, self._clock.now_ms())

    async def version_of(self, kind: str, room_id: str) -> str | None:
        """The version of the room that is being joined by any process, if it is known."""
        return await self._database.read(store.version_of, kind, room_id, self._clock.now_ms())

    async def wait_for_end(self, kind: str, room_id: str, user_id: str | None, at_most_s: float) -> bool:
        """Wait until this is no longer under way; returns False if it still is after that time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + at_most_s
        while await self.is_under_way(kind, room_id, user_id):
            left = deadline - loop.time()
            if left <= 0:
                return False
            await self._wait_a_moment(min(LOOK_AGAIN_S, left))
        return True

    async def _wait_a_moment(self, seconds: float) -> None:
        ended = self._ended
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await ended.wait()
