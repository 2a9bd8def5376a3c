"""Sends receipts that other processes have stored on to other servers.

Of all processes on a database, one delivers to other servers. It sends what its own clients report at once, and reads
what the clients of other processes report from the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from homeserver.federation.outbound_edus import Receipt
from homeserver.storage import receipts
from homeserver.storage.changes import WrittenChange
from homeserver.storage.database import Database
from homeserver.storage.receipts import StoredReceipt

logger = structlog.get_logger(__name__)

READ = "m.read"
POSITIONS_MAX = 2_000
"""How many receipts may wait to be read; above that the oldest are dropped: newer ones follow."""


class EphemeralDelivery(Protocol):
    """Sends to other servers, in the process that delivers."""

    @property
    def delivers(self) -> bool:
        """Whether this process is the one that delivers."""

    async def send_receipt(self, receipt: Receipt) -> None:
        """Tell the other servers in the room that one of our users has read up to an event. Best effort."""


class OwnReceipts(Protocol):
    """Knows the receipts that this process has stored, which are sent already."""

    def recent(self, position: int) -> StoredReceipt | None:
        """The receipt at a position if it is in memory, otherwise None."""


class EphemeralRelay:
    """Sends what other processes have stored, if this process is the one that delivers.

    Best effort: sometimes a receipt is sent twice, which changes nothing for the receiver.
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
        """Take note of changes by other processes, to send receipts on soon."""
        if self._database.is_sqlite or not self._delivery.delivers:
            return
        self._positions += [change.position for change in changes if change.stream == "receipts"]
        del self._positions[:-POSITIONS_MAX]
        if self._positions and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stop the background work."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while self._positions:
                positions, self._positions = self._positions, []
                await self._send_on(await self._database.read(receipts.receipts_at, positions))
        except Exception:
            logger.exception("receipts of another process were not sent on")
        finally:
            self._task = None

    async def _send_on(self, read: Iterable[StoredReceipt]) -> None:
        for receipt in read:
            is_for_others = receipt.receipt_type == READ and self._is_local(receipt.user_id)
            if is_for_others and self._own.recent(receipt.position) is None:
                await self._delivery.send_receipt(
                    Receipt(receipt.room_id, receipt.user_id, receipt.event_id, receipt.ts, receipt.thread_id or None)
                )
