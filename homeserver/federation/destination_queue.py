"""The queue of one server, and sending it: one transaction at a time, with backoff while the server does not answer.

https://spec.matrix.org/v1.19/server-server-api/#transactions
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from homeserver.clock import Clock
from homeserver.errors import RemoteError, RemoteRefused
from homeserver.federation.outbound_edus import EduBuffer
from homeserver.notifier import Change
from homeserver.protocol.json_types import JsonObject
from homeserver.storage import delivery as store
from homeserver.storage.database import Database
from homeserver.storage.delivery import OutboundPdu, Reachability
from homeserver.storage.event_graph import StoredEvent

logger = structlog.get_logger(__name__)

PDUS_PER_TRANSACTION_MAX = 50
EDUS_PER_TRANSACTION_MAX = 100
RETRY_INTERVAL_MS_MIN = 1_000
RETRY_INTERVAL_MS_MAX = 3_600_000
RETRY_FACTOR = 2
EARLY_RETRY_INTERVAL_MS = 10_000
"""How often a request from the server may cut the backoff short."""
CATCH_UP_AFTER_MS = 15 * 60 * 1000
"""After an outage of this length a server gets only the latest event of each room, and fetches what it misses."""
OWED_PDUS_MAX = 1_000
"""How many events are kept for a server; beyond that, only the latest of each room."""
EDU_DELAY_S = 0.05
"""How long receipts and typing notifications wait to be sent together, if no event takes them along."""
_CANNOT_BE_READ = frozenset({400, 413})
"""Statuses by which a server refuses a transaction for good, however often it is sent."""


class EventSource(Protocol):
    """Reads stored events; the event store implements it."""

    async def by_nid(self, nids: Iterable[int]) -> Mapping[int, StoredEvent]:
        """Events by numeric ID; missing ones are left out."""

    def cached_of(self, change: Change) -> StoredEvent | None:
        """The event of a change, if it has one and that is cached."""


class TransactionSender(Protocol):
    """Sends a transaction to another server; the federation client implements it."""

    async def send_transaction(
        self, destination: str, transaction_id: str, *, pdus: Sequence[bytes], edus: Sequence[JsonObject]
    ) -> JsonObject:
        """Send a transaction and return the answer. Raises ``RemoteError``."""


@dataclass(frozen=True, slots=True)
class Means:
    """The services that all queues share."""

    database: Database
    events: EventSource
    sender: TransactionSender
    clock: Clock
    next_transaction_id: Callable[[], str]
    checkpoint_lock: asyncio.Lock
    """Held while rows of ``outbound_pdus`` are written, so that others neither read nor delete rows meanwhile."""
    on_idle: Callable[[DestinationQueue], None]


class DestinationQueue:
    """The queue of one server.

    ``fresh`` holds events in memory. The next checkpoint moves those that could not be sent at once into the database;
    ``owed`` counts these, which are all older than the fresh ones.
    """

    def __init__(self, means: Means, reachability: Reachability, owed: int = 0) -> None:
        self._means = means
        self.reachability = reachability
        self.is_reachability_stored = True
        self.owed = owed
        self.fresh: deque[tuple[OutboundPdu, float]] = deque()
        self._edus = EduBuffer()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._batch_max = PDUS_PER_TRANSACTION_MAX
        self._early_retry_ts = 0
        self._is_stopped = False

    @property
    def server_name(self) -> str:
        """The server that this queue is for."""
        return self.reachability.server_name

    @property
    def is_failing(self) -> bool:
        """Whether sending the last transaction failed."""
        return self.reachability.failing_since_ts is not None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to send and no failure to remember."""
        is_empty = not self.fresh and not self.owed and not self._edus
        return is_empty and self._task is None and not self.is_failing and self.is_reachability_stored

    # -- filling -------------------------------------------------------------------------------------------------------

    def add(self, pdu: OutboundPdu) -> None:
        """Queue an event for sending."""
        self.fresh.append((pdu, self._means.clock.monotonic()))
        self.wake()

    def edus(self) -> EduBuffer | None:
        """The buffer for EDUs to this server, and wake the queue soon; None while the server is unreachable, as EDUs
        are not kept.
        """
        if self.is_failing or self._is_stopped:
            return None
        if self._task is None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(EDU_DELAY_S, self._on_timer)
        return self._edus

    def wake(self) -> None:
        """Start sending, unless that is in progress already or the backoff has not ended."""
        if self._task is not None or self._is_stopped:
            return
        if self.is_failing:
            self._wait_for_retry()
            return
        self._start()

    def sign_of_life(self) -> None:
        """The server has sent a request: try it again now."""
        now = self._means.clock.now_ms()
        if not self.is_failing or self._task is not None or now - self._early_retry_ts < EARLY_RETRY_INTERVAL_MS:
            return
        self._early_retry_ts = now
        self._start()

    async def stop(self, grace_s: float) -> None:
        """Wait for the transaction in progress, for at most ``grace_s``."""
        self._is_stopped = True
        self._cancel_timer()
        if (task := self._task) is not None:
            done, _ = await asyncio.wait({task}, timeout=grace_s)
            if not done:
                task.cancel()
                await asyncio.wait({task})

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._cancel_timer()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def _wait_for_retry(self) -> None:
        if self._timer is None:
            wait_ms = max(0, (self.reachability.retry_at_ts or 0) - self._means.clock.now_ms())
            self._timer = asyncio.get_running_loop().call_later(wait_ms / 1000, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._task is None and not self._is_stopped:
            self._start()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- sending -------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while not self._is_stopped and (self.fresh or self.owed or self._edus):
                if not await self._send_one():
                    break
        except Exception:
            logger.exception("delivery failed", server=self.server_name)
            self._failed()
        finally:
            self._task = None
        if self._is_stopped:
            return
        if self.is_failing:
            if self.fresh or self.owed:
                self._wait_for_retry()
        elif self.fresh or self.owed or self._edus:
            self.wake()
        else:
            self._means.on_idle(self)

    async def _send_one(self) -> bool:
        """Send one transaction. False if that failed."""
        batch = await self._next_batch()
        stored = await self._means.events.by_nid([pdu.event_nid for pdu in batch])
        pdus = [_wire_bytes(stored[pdu.event_nid]) for pdu in batch if pdu.event_nid in stored]
        edus = self._edus.take(EDUS_PER_TRANSACTION_MAX)
        if pdus or edus:
            try:
                answer = await self._means.sender.send_transaction(
                    self.server_name, self._means.next_transaction_id(), pdus=pdus, edus=edus
                )
            except RemoteError as error:
                if not self._can_send_less(error, len(batch)):
                    logger.info("server not reached", server=self.server_name, reason=error.message)
                    self._failed()
                    return False
                if len(batch) > 1:
                    self._batch_max = 1
                    return True
                logger.warning("event refused by server", server=self.server_name, reason=error.message)
            else:
                self._log_refusals(answer)
                self._batch_max = PDUS_PER_TRANSACTION_MAX
                self._succeeded()
        if batch:
            await self._forget(batch)
        return True

    def _can_send_less(self, error: RemoteError, pdus: int) -> bool:
        """Whether the server refuses one of the events, and is not unreachable."""
        return isinstance(error, RemoteRefused) and error.status in _CANNOT_BE_READ and pdus > 0

    async def _next_batch(self) -> list[OutboundPdu]:
        if not self.owed:
            return [self.fresh[index][0] for index in range(min(self._batch_max, len(self.fresh)))]
        async with self._means.checkpoint_lock:
            if self._is_long_gone() and self.owed > 1:
                await self._thin_out()
            rows = await self._means.database.read(store.owed_pdus, self.server_name, self._batch_max)
            if not rows:
                self.owed = 0
        return rows or await self._next_batch()

    def _is_long_gone(self) -> bool:
        since = self.reachability.failing_since_ts
        return since is not None and self._means.clock.now_ms() - since > CATCH_UP_AFTER_MS

    async def limit_owed(self) -> None:
        """Enforce the bound on what is kept for the server. The caller must hold the checkpoint lock."""
        if self.owed > OWED_PDUS_MAX:
            await self._thin_out()

    async def _thin_out(self) -> None:
        self.owed = await self._means.database.write(store.thin_out, self.server_name, OWED_PDUS_MAX // 2)

    async def _forget(self, batch: Sequence[OutboundPdu]) -> None:
        """Remove events that the server has got."""
        if self.owed or self._means.checkpoint_lock.locked():
            async with self._means.checkpoint_lock:
                self._drop_fresh(batch[-1].stream_position)
                if self.owed:
                    positions = [pdu.stream_position for pdu in batch]
                    self.owed = await self._means.database.write(store.remove_owed, self.server_name, positions)
        else:
            self._drop_fresh(batch[-1].stream_position)

    def _drop_fresh(self, upto: int) -> None:
        while self.fresh and self.fresh[0][0].stream_position <= upto:
            self.fresh.popleft()

    def moved_to_database(self, upto: int, owed: int) -> None:
        """Called when a checkpoint has stored the fresh events up to a position in the database."""
        self._drop_fresh(upto)
        self.owed += owed

    # -- success and failure -------------------------------------------------------------------------------------------

    def _succeeded(self) -> None:
        if self.is_failing:
            logger.info("server reached again", server=self.server_name)
            self.reachability = Reachability(self.server_name, last_success_ts=self._means.clock.now_ms())
            self.is_reachability_stored = False

    def _failed(self) -> None:
        """Begin or double the backoff, starting with a second."""
        now = self._means.clock.now_ms()
        longer = self.reachability.retry_interval_ms * RETRY_FACTOR
        interval = min(max(longer, RETRY_INTERVAL_MS_MIN), RETRY_INTERVAL_MS_MAX)
        self.reachability = replace(
            self.reachability,
            failing_since_ts=self.reachability.failing_since_ts or now,
            # Spread the retries, so that servers cut off by the same outage are not all retried at the same moment.
            retry_at_ts=now + int(interval * random.uniform(0.8, 1.2)),
            retry_interval_ms=interval,
        )
        self.is_reachability_stored = False
        self._batch_max = PDUS_PER_TRANSACTION_MAX
        self._edus.clear()

    def _log_refusals(self, answer: JsonObject) -> None:
        results = answer.get("pdus")
        if not isinstance(results, dict):
            return
        for event_id, result in list(results.items())[:PDUS_PER_TRANSACTION_MAX]:
            if isinstance(result, dict) and (reason := result.get("error")):
                logger.info("event not accepted", server=self.server_name, event_id=event_id, reason=str(reason)[:200])


def _wire_bytes(stored: StoredEvent) -> bytes:
    """The PDU as it is sent: redacted if the event has been redacted."""
    return stored.event.json
