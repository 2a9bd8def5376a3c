"""Invitations that were taken back by another user than the one who sent them.

This server is not in the room, so it cannot know who may do that. But it can ask the server that sent the invitation
for the template of a join: it refuses if the invitation is no longer valid. The request changes nothing there.

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
"""How many servers are asked at the same time; further invitations stay until the user tries to accept them."""


class MakesJoins(Protocol):
    """Asks other servers for templates."""

    async def make_join(self, destination: str, room_id: str, user_id: str, versions: Collection[str]) -> JsonObject:
        """The template of a join. Raises ``RemoteError``."""


class DoubtfulRevocations:
    """Asks the inviting servers, in the background."""

    def __init__(self, client: MakesJoins) -> None:
        self._client = client
        self._asking: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def stop(self) -> None:
        """Stop the background work."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def settle(self, standing: Standing, user_id: str, end: Callable[[], Awaitable[None]]) -> None:
        """Ask the server that sent the invitation, and call ``end`` if it no longer lets the user in."""
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
