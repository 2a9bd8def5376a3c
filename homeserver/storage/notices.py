"""Short notices from one process to the others on the same PostgreSQL database, which are not stored.

They carry states that end too soon to be worth a commit, such as typing. A separate PostgreSQL connection sends them
(``NOTIFY``), so they wait neither for a thread nor for the lock of the write transactions. A notice is lost if a
connection breaks, and its sender must cope with that. On SQLite there are no other processes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

import psycopg
import structlog
from sqlalchemy.engine import URL

from homeserver.storage.database import Database

logger = structlog.get_logger(__name__)

CHANNEL = "homeserver_notices"
WAITING_MAX = 5_000
"""How many notices wait to be sent while PostgreSQL does not answer; the oldest are dropped."""
BODY_BYTES_MAX = 7_900
"""PostgreSQL accepts less than 8,000 bytes, including the sender's name."""
SEND_TIMEOUT_S = 10.0
_SEND = "SELECT pg_notify(%s, body) FROM unnest(%s::text[]) AS body"


class Notices:
    """Sends the notices of this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: OrderedDict[tuple[str, ...], str] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        self._connection: psycopg.AsyncConnection[Any] | None = None

    def send(self, key: tuple[str, ...], body: str) -> None:
        """Send a notice to the other processes soon; it replaces one that still waits with the same ``key``."""
        if self._database.is_sqlite or len(body.encode()) + len(self._database.name) + 1 > BODY_BYTES_MAX:
            return
        self._waiting.pop(key, None)
        self._waiting[key] = f"{self._database.name} {body}"
        if len(self._waiting) > WAITING_MAX:
            self._waiting.popitem(last=False)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Close the connection. Notices that still wait are not sent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._disconnect()

    async def _run(self) -> None:
        try:
            while self._waiting:
                bodies = list(self._waiting.values())
                self._waiting.clear()
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await self._send(bodies)
        except (psycopg.Error, OSError) as error:
            logger.warning("other processes cannot be told", error=str(error))
            await self._disconnect()
        finally:
            self._task = None

    async def _send(self, bodies: list[str]) -> None:
        if self._connection is not None:
            try:
                await self._connection.execute(_SEND, [CHANNEL, bodies])
                return
            except psycopg.OperationalError:
                await self._disconnect()  # it was lost while nothing was sent
        self._connection = await psycopg.AsyncConnection.connect(
            conninfo_of(self._database.engine.url), autocommit=True
        )
        await self._connection.execute(_SEND, [CHANNEL, bodies])

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def conninfo_of(url: URL) -> str:
    """The psycopg connection string for SQLAlchemy's URL of a database."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)
