"""Periodic work: deleting old rows, noticing changed key files."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Chore:
    """A piece of work that is done every ``interval_s`` seconds."""

    name: str
    interval_s: float
    do: Callable[[], Awaitable[object]]


class Housekeeping:
    """Runs chores in the background, each in its own task. A chore that fails is logged and runs again after its
    interval.
    """

    def __init__(self, chores: Sequence[Chore]) -> None:
        self._chores = chores
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start; each chore runs for the first time after its interval."""
        self._tasks = [asyncio.get_running_loop().create_task(self._repeat(chore)) for chore in self._chores]

    async def stop(self) -> None:
        """Stop the background work."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @staticmethod
    async def _repeat(chore: Chore) -> None:
        while True:
            await asyncio.sleep(chore.interval_s)
            try:
                await chore.do()
            except Exception:
                logger.exception("chore failed", chore=chore.name)
