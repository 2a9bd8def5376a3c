"""Invitations that somebody else has taken back than who sent them.

Out here it cannot be told who may do that in the room. But the server that the invitation came from can be asked: it
would not let the user in any more. That asks for a template only, and changes nothing anywhere.

https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1make_joinroomiduserid
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

import structlog

from homeserver.errors import Forbidden, RemoteError, RemoteRefused
from homeserver.protocol.identifiers import server_of
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.storage.user_rooms import Standing

logger = structlog.get_logger(__name__)

AT_ONCE_MAX = 50
"""Invitations that are asked about at the same time; beyond it they stay, until the user wants to accept."""


class MakesJoins(Protocol):
    """Asks other servers for templates."""

    async def make_join(self, destination: str, room_id: str, user_id: str, versions: Collection[str]) -> JsonObject:
        """The template of a join. Raises ``RemoteError``."""


class DoubtfulRevocations:
    """Asks about them, in the background."""

    def __init__(self, client: MakesJoins) -> None:
        self._client = client
        self._asking: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def stop(self) -> None:
        """Leave off."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def settle(self, standing: Standing, user_id: str, end: Callable[[], Awaitable[None]]) -> None:
        """Ask where the invitation came from, and end it if that server lets the user in no longer."""
        key = (standing.room_id, user_id)
        if key not in self._asking and len(self._asking) < AT_ONCE_MAX:
            task = asyncio.get_running_loop().create_task(self._ask(standing, user_id, end))
            self._asking[key] = task
            task.add_done_callback(lambda _: self._asking.pop(key, None))

    async def _ask(self, standing: Standing, user_id: str, end: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._client.make_join(server_of(standing.sender), standing.room_id, user_id, ROOM_VERSIONS)
        except RemoteRefused as error:
            if (error.status, error.errcode) == (Forbidden.status, Forbidden.errcode):
                await end()
        except RemoteError as error:
            logger.info("revocation not settled", room_id=standing.room_id, user_id=user_id, reason=str(error))
