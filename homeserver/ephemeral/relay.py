"""Receipts and typing of our users that other processes took in, on their way to other servers.

Of all processes on a database one delivers. What its own clients say it sends on as they say it; what those of another
process say is in the database by then, and is read from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog
from sqlalchemy import Connection

from homeserver.federation.outbound_edus import Receipt
from homeserver.storage import receipts, typing
from homeserver.storage.changes import WrittenChange
from homeserver.storage.database import Database
from homeserver.storage.receipts import StoredReceipt
from homeserver.storage.typing import TypingUser

logger = structlog.get_logger(__name__)

READ = "m.read"
POSITIONS_MAX = 2_000
"""Receipts and typing notices that wait to be read; the oldest go first, as others will follow them."""


class EphemeralDelivery(Protocol):
    """Tells other servers, in the process that delivers."""

    @property
    def delivers(self) -> bool:
        """Whether this is that process."""

    async def send_receipt(self, receipt: Receipt) -> None:
        """Tell the other servers in the room that one of our users has read up to an event. Best effort."""

    async def send_typing(self, room_id: str, user_id: str, typing: bool) -> None:
        """Tell the other servers in the room that one of our users types, or has stopped. Best effort."""


class OwnReceipts(Protocol):
    """Knows the receipts that this process took in, which are sent on already."""

    def recent(self, position: int) -> StoredReceipt | None:
        """The receipt at a position, if it is at hand."""


class EphemeralRelay:
    """Sends on what other processes took in, where it is this process that delivers.

    Best effort: now and then something goes twice, which says nothing new to those who get it.
    """

    def __init__(
        self, database: Database, delivery: EphemeralDelivery, own: OwnReceipts, is_local: Callable[[str], bool]
    ) -> None:
        self._database = database
        self._delivery = delivery
        self._own = own
        self._is_local = is_local
        self._positions: list[int] = []
        self._task: asyncio.Task[None] | None = None

    def note(self, changes: Iterable[WrittenChange]) -> None:
        """Send on, soon, what of this is for other servers."""
        if self._database.is_sqlite or not self._delivery.delivers:
            return
        self._positions += [change.position for change in changes if change.stream in ("receipts", "typing")]
        del self._positions[:-POSITIONS_MAX]
        if self._positions and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Leave off."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while self._positions:
                positions, self._positions = self._positions, []
                await self._send_on(*await self._database.read(_written_at, positions))
        except Exception:
            logger.exception("receipts and typing of another process were not sent on")
        finally:
            self._task = None

    async def _send_on(self, read: Iterable[StoredReceipt], typing: Iterable[TypingUser]) -> None:
        for receipt in read:
            is_for_others = receipt.receipt_type == READ and self._is_local(receipt.user_id)
            if is_for_others and self._own.recent(receipt.position) is None:
                await self._delivery.send_receipt(
                    Receipt(receipt.room_id, receipt.user_id, receipt.event_id, receipt.ts, receipt.thread_id or None)
                )
        for user in typing:
            if self._is_local(user.user_id):
                await self._delivery.send_typing(user.room_id, user.user_id, user.expires_ts > 0)


def _written_at(connection: Connection, positions: list[int]) -> tuple[list[StoredReceipt], list[TypingUser]]:
    return receipts.receipts_at(connection, positions), typing.typing_at(connection, positions)
