"""Bounds how many expensive requests are answered at the same time: for each server, and for all of them.

A server that has missed something asks for states and history in quick succession, and a hostile one may ask all the
time. Requests beyond the bounds wait in a queue; when the queue of a server is full, its further requests get
M_LIMIT_EXCEEDED.

https://spec.matrix.org/v1.19/client-server-api/#rate-limiting
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from homeserver.errors import LimitExceeded
from homeserver.storage.database import reads_for_large_answers

AT_ONCE_MAX = 2
"""How many requests of all servers together are answered at the same time."""
AT_ONCE_PER_SERVER_MAX = 1
"""Two at once would end no sooner, because most of the work is Python's, and would keep our users waiting longer."""
WAITING_PER_SERVER_MAX = 60
"""How many requests of one server may wait."""
RETRY_AFTER_MS = 2_000


@dataclass(slots=True)
class _Server:
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE_PER_SERVER_MAX))
    requests: int = 0
    """How many requests wait or are being answered."""


class ExpensiveRequests:
    """Queues the expensive requests of other servers."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE_MAX)
        self._servers: dict[str, _Server] = {}

    @contextlib.asynccontextmanager
    async def turn(self, origin: str, *, may_wait_for_others: bool = False) -> AsyncIterator[None]:
        """Wait until a request of a server may run, and count it as running while the context lasts.

        ``may_wait_for_others`` is for requests that wait for third servers while they are answered: they count for
        their own server only, so that they cannot block all others. The other requests read on the threads for large
        answers. Raises ``LimitExceeded`` if too many requests of that server wait.
        """
        server = self._servers.setdefault(origin, _Server())
        if server.requests >= AT_ONCE_PER_SERVER_MAX + WAITING_PER_SERVER_MAX:
            raise LimitExceeded("Too many requests of your server wait for an answer", retry_after_ms=RETRY_AFTER_MS)
        server.requests += 1
        try:
            async with server.turns:
                if may_wait_for_others:
                    yield
                else:
                    async with self._turns:
                        with reads_for_large_answers():
                            yield
        finally:
            server.requests -= 1
            if not server.requests:
                del self._servers[origin]
