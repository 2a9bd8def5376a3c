"""Reads that share a trip to the database thread with others like them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from sqlalchemy import Connection

from homeserver.storage.database import Database, context_for_everybody

Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")

KEYS_MAX = 500
"""How many keys are looked up by one read."""


class BatchedReads(Generic[Key, Row]):
    """Looks up single keys, all that are asked for at the same time by one read.

    Most of what such a read costs is the trip to a thread and back. There is one at a time; what is asked for meanwhile
    is read by the next one. So a result is never older than its question, and any number of questions takes only one
    of the database's threads.
    """

    def __init__(self, database: Database, find: Callable[[Connection, Sequence[Key]], Mapping[Key, Row]]) -> None:
        """``find`` returns what there is for some of the keys."""
        self._database = database
        self._find = find
        self._asked: list[tuple[Key, asyncio.Future[Row | None]]] = []
        self._reading: asyncio.Task[None] | None = None

    async def get(self, key: Key) -> Row | None:
        """What there is for a key, or None. Raises the errors of ``Database.read``."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Row | None] = loop.create_future()
        self._asked.append((key, future))
        if self._reading is None:
            self._reading = loop.create_task(self._read_all(), context=context_for_everybody())
        return await future

    async def _read_all(self) -> None:
        batch: list[tuple[Key, asyncio.Future[Row | None]]] = []
        try:
            while self._asked:
                batch, self._asked = self._asked[:KEYS_MAX], self._asked[KEYS_MAX:]
                await self._answer(batch)
        finally:
            self._reading = None
            for _, future in (*batch, *self._asked):
                future.cancel()  # only if this task was cancelled: otherwise all are done
            self._asked = []

    async def _answer(self, batch: Sequence[tuple[Key, asyncio.Future[Row | None]]]) -> None:
        try:
            found = await self._database.read(self._find, list(dict.fromkeys(key for key, _ in batch)))
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            for key, future in batch:
                if not future.done():
                    future.set_result(found.get(key))
