"""Transactions from other servers: their events and ephemeral data, each handled once.

A transaction that is repeated, because its answer was lost, gets the same answer. Answers are kept in memory and
written to the database a little later: losing some is harmless, since known events change nothing.

https://spec.matrix.org/v1.19/server-server-api/#transactions
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import orjson
import structlog

from homeserver.caches import WeightedCache
from homeserver.clock import Clock
from homeserver.federation.caching import SingleFlight
from homeserver.graph.receive import Receiver
from homeserver.protocol.canonical_json import compact
from homeserver.protocol.json_types import JsonObject
from homeserver.storage import delivery as store
from homeserver.storage.database import Database

logger = structlog.get_logger(__name__)

ANSWERS_IN_MEMORY_MAX = 5_000
"""How many answers are read when the server starts."""
ANSWERS_BYTES_MAX = 16 * 2**20
"""How much memory the answers may use; the database has those of the last day."""
ANSWER_BYTES_REMEMBERED_MAX = 16 * 1024
REMEMBER_MS = 24 * 3600 * 1000
WRITE_INTERVAL_S = 1.0
HOUSEKEEPING_INTERVAL_MS = 3600 * 1000

EduHandler: TypeAlias = Callable[..., Awaitable[None]]
"""Handles the EDUs of one type in a transaction of a server, and bounds what it does for all of them together:
``(origin, *edus)``.
"""


class ReceivedTransactions:
    """Receives transactions."""

    def __init__(
        self, database: Database, receiver: Receiver, edu_handlers: Mapping[str, EduHandler], clock: Clock
    ) -> None:
        self._database = database
        self._receiver = receiver
        self._edu_handlers = edu_handlers
        self._clock = clock
        self._answers: WeightedCache[tuple[str, str], bytes] = WeightedCache(
            "answers to transactions", ANSWERS_BYTES_MAX, len
        )
        self._flights: SingleFlight[tuple[str, str], bytes] = SingleFlight()
        self._unwritten: list[tuple[str, str, bytes, int]] = []
        self._task: asyncio.Task[None] | None = None
        self._cleaned_ts = 0

    async def start(self) -> None:
        """Read the latest answers, and start to write new ones."""
        latest = await self._database.read(store.latest_responses, ANSWERS_IN_MEMORY_MAX)
        for origin, txn_id, answer in latest:
            self._answers.put((origin, txn_id), answer)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Write the remaining answers."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
            await self._write()

    async def receive(self, origin: str, txn_id: str, pdus: Sequence[Any], edus: Sequence[Any]) -> bytes:
        """Receive a transaction; returns the JSON of the answer.

        https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1sendtxnid
        """
        key = (origin, txn_id)
        known = self._answers.get(key)
        if known is not None:
            return known
        # A sender that stops waiting does not stop the work, and one that repeats the request waits for the same work.
        return await self._flights.run(key, lambda: self._take_in(key, pdus, edus))

    async def receive_pdus(self, origin: str, pdus: Sequence[Any]) -> Mapping[str, JsonObject]:
        """Receive events that came in another way than in a transaction, with the same checks."""
        return await self._receiver.receive(origin, pdus)

    async def _take_in(self, key: tuple[str, str], pdus: Sequence[Any], edus: Sequence[Any]) -> bytes:
        origin, txn_id = key
        results = await self._receiver.receive(origin, pdus) if pdus else {}
        if edus:
            await self._take_in_edus(origin, edus)
        answer = compact(orjson.dumps({"pdus": results}))
        if len(answer) <= ANSWER_BYTES_REMEMBERED_MAX:
            self._answers.put(key, answer)
            self._unwritten.append((origin, txn_id, answer, self._clock.now_ms()))
        return answer

    async def _take_in_edus(self, origin: str, edus: Sequence[Any]) -> None:
        """Handle EDUs: different types at the same time, those of one type in their order."""
        by_type: dict[str, list[JsonObject]] = {}
        for edu in edus:
            edu_type = edu.get("edu_type") if isinstance(edu, dict) else None
            if isinstance(edu_type, str) and edu_type in self._edu_handlers:
                by_type.setdefault(edu_type, []).append(edu)

        async def take_in(edu_type: str, some: Sequence[JsonObject]) -> None:
            try:
                await self._edu_handlers[edu_type](origin, *some)
            except Exception:
                logger.exception("internal error while handling EDUs", origin=origin, edu_type=edu_type)

        await asyncio.gather(*(take_in(edu_type, some) for edu_type, some in by_type.items()))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(WRITE_INTERVAL_S)
            try:
                await self._write()
                await self._keep_house()
            except Exception:
                logger.exception("answers to transactions could not be stored")

    async def _write(self) -> None:
        waiting, self._unwritten = self._unwritten, []
        if waiting:
            await self._database.write(store.store_responses, waiting)

    async def _keep_house(self) -> None:
        now = self._clock.now_ms()
        if now - self._cleaned_ts > HOUSEKEEPING_INTERVAL_MS:
            self._cleaned_ts = now
            await self._database.write(store.forget_responses, now - REMEMBER_MS)
