"""Handshakes that this server still has to carry out with other servers, retried until one of them accepts.

https://spec.matrix.org/v1.19/server-server-api/#leaving-rooms-rejecting-invites
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeAlias

import orjson
import structlog

from homeserver.clock import Clock
from homeserver.errors import RemoteError, RemoteRefused
from homeserver.membership.join_answers import UnusableAnswer
from homeserver.protocol.json_types import JsonObject
from homeserver.storage import delivery as store
from homeserver.storage.database import Database
from homeserver.storage.delivery import OwedRequest

logger = structlog.get_logger(__name__)

RETRY_MS_MIN = 5_000
RETRY_MS_MAX = 6 * 3600 * 1000
GIVE_UP_AFTER_MS = 30 * 24 * 3600 * 1000
REQUESTS_AT_ONCE = 20
REQUESTS_PER_SERVER = 3
"""Requests at once that begin with the same server, so that a slow server does not delay the others."""
DUE_READ_MAX = 500
"""How many due requests are read to find those that may be sent now."""
SLEEP_S_MAX = 300.0
LEAVE = "leave"
"""A user rejects an invitation or takes back a knock; ``details`` are the content of the event."""
UNDO_JOIN = "undo_join"
"""A user has to leave again, as a join that another server accepted has failed here; see ``RemoteJoins.undo_join``."""

Handshake: TypeAlias = Callable[[str, str, str, JsonObject], Awaitable[bool]]
"""Carries out a request with one server: ``(server_name, room_id, user_id, details)``.

Returns whether that settles it; False if there is nothing to tell this server. Raises ``RemoteError``,
``UnusableAnswer``.
"""


class OwedRequests:
    """Stores owed handshakes in the database and carries them out, also after a restart."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._handshakes: Mapping[str, Handshake] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._under_way: dict[int, tuple[str, asyncio.Task[None]]] = {}
        """By request number: the server that is asked first, and the task."""

    async def start(self, handshakes: Mapping[str, Handshake]) -> None:
        """Start to carry out what is owed; ``handshakes`` has the function for each kind."""
        self._handshakes = handshakes
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stop the background work; the rest is done after the next start."""
        if self._task is not None:
            self._task.cancel()
            tasks = [self._task, *(task for _, task in self._under_way.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._task = None

    async def owe(
        self,
        kind: str,
        room_id: str,
        user_id: str,
        candidates: Iterable[str],
        details: JsonObject,
        *,
        delay_ms: int = 0,
    ) -> None:
        """Owe one of these servers a handshake of some kind; it replaces an earlier one for the user and the room."""
        await self._database.write(
            store.owe_request,
            kind,
            room_id,
            user_id,
            orjson.dumps(list(candidates)),
            orjson.dumps(details),
            self._clock.now_ms() + delay_ms,
        )
        self._wake.set()

    async def is_owed(self, kind: str, room_id: str, user_id: str) -> bool:
        """Whether such a handshake is still owed; a later membership may have cancelled it."""
        return await self._database.read(store.is_owed, kind, room_id, user_id)

    async def cancel(self, room_id: str, user_id: str) -> None:
        """Forget what is owed for a user and a room, because the membership has changed since."""
        await self._database.write(store.cancel_requests, room_id, user_id)

    async def _run(self) -> None:
        while True:
            try:
                self._wake.clear()
                wait_s = await self._work()
            except Exception:
                logger.exception("internal error while sending owed requests")
                wait_s = SLEEP_S_MAX
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def _work(self) -> float:
        """Begin the due requests. Returns how many seconds to wait; the end of a request ends the wait too."""
        now = self._clock.now_ms()
        for request in await self._database.read(store.due_requests, now, DUE_READ_MAX):
            self._begin(request)
        next_ts = await self._database.read(store.next_request_ts, now)
        if next_ts is None:
            return SLEEP_S_MAX
        return min(SLEEP_S_MAX, max(0.0, (next_ts - self._clock.now_ms()) / 1000))

    def _begin(self, request: OwedRequest) -> None:
        """Begin a request, unless it is under way or has to wait for others."""
        first = next(iter(orjson.loads(request.candidates)), "")
        of_server = sum(server_name == first for server_name, _ in self._under_way.values())
        is_full = len(self._under_way) >= REQUESTS_AT_ONCE or of_server >= REQUESTS_PER_SERVER
        if is_full or request.request_nid in self._under_way:
            return
        task = asyncio.get_running_loop().create_task(self._try_logged(request))
        self._under_way[request.request_nid] = (first, task)

    async def _try_logged(self, request: OwedRequest) -> None:
        try:
            await self._try(request)
        except Exception:
            logger.exception("internal error while sending an owed request", room_id=request.room_id)
            # The request is still due: without a pause it would begin again at once.
            await asyncio.sleep(RETRY_MS_MIN / 1000)
        finally:
            del self._under_way[request.request_nid]
            self._wake.set()

    async def _try(self, request: OwedRequest) -> None:
        if await self._is_settled(request):
            await self._database.write(store.remove_request, request.request_nid)
            return
        now = self._clock.now_ms()
        if now - request.created_ts > GIVE_UP_AFTER_MS:
            logger.warning(
                "no server could be told that our user left", room_id=request.room_id, user_id=request.user_id
            )
            await self._database.write(store.remove_request, request.request_nid)
            return
        wait_ms = min(RETRY_MS_MIN * 2 ** min(request.attempts, 20), RETRY_MS_MAX)
        await self._database.write(store.postpone_request, request.request_nid, request.attempts + 1, now + wait_ms)

    async def _is_settled(self, request: OwedRequest) -> bool:
        """Whether a server has accepted the request, or all of them answer that it is not needed."""
        handshake = self._handshakes[request.kind]
        details = orjson.loads(request.content)
        nothing_to_tell = True
        for server_name in orjson.loads(request.candidates):
            try:
                if await handshake(server_name, request.room_id, request.user_id, details):
                    return True
            except RemoteRefused as error:
                nothing_to_tell = nothing_to_tell and error.status in (400, 403, 404)
            except (RemoteError, UnusableAnswer) as error:
                logger.info("leave not sent", room_id=request.room_id, server=server_name, reason=str(error))
                nothing_to_tell = False
        return nothing_to_tell
