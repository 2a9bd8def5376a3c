"""Sends events of this server to the other servers in their rooms.

A reader follows the event stream. What can be sent at once, which is nearly everything, needs no database write: only
the position up to which everything is delivered is stored from time to time. An event that a server has not accepted
within ``PATIENCE_S`` becomes a row of ``outbound_pdus``. After a crash the reader starts from the stored position: some
events are sent once more, which is harmless, and none is lost.

Of all processes on a database, one delivers: the one that holds the lease.

https://spec.matrix.org/v1.19/server-server-api/#transactions
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import structlog

from homeserver.clock import Clock
from homeserver.federation.destination_queue import DestinationQueue, EventSource, Means, TransactionSender
from homeserver.federation.destinations import Destinations
from homeserver.federation.outbound_edus import Receipt
from homeserver.notifier import Change, Notifier, StateEffect, Stream
from homeserver.storage import delivery as store
from homeserver.storage.database import Database
from homeserver.storage.delivery import Checkpoint, DeliveryLease, OutboundPdu, Reachability

logger = structlog.get_logger(__name__)

EVENTS_PER_READ_MAX = 500
READ_INTERVAL_S = 0.025
"""The least time between two reads of the stream: when there are many events, each read finds more of them."""
CHECKPOINT_INTERVAL_S = 1.0
PATIENCE_S = 5.0
"""How long sending an event may take before it is stored as owed."""
LEASE_RETRY_S = 5.0
FAILURE_PAUSE_S = 1.0
STOP_GRACE_S = 3.0
"""How long a stop waits for transactions in progress."""
HOUSEKEEPING_INTERVAL_S = 3600.0
GIVE_UP_AFTER_MS = 90 * 24 * 3600 * 1000
"""After a server has been unreachable for this long, what is owed to it is deleted."""
NOT_TO_SEND_MAX = 1000
CATCH_UP_SECONDS_MAX = 5.0
CATCH_UP_POLL_S = 0.005


class LeaseLost(Exception):
    """Another process may deliver now."""


class Delivery:
    """Sends our events, receipts and typing notifications to other servers."""

    def __init__(
        self,
        *,
        database: Database,
        notifier: Notifier,
        events: EventSource,
        destinations: Destinations,
        sender: TransactionSender,
        clock: Clock,
        enabled: bool = True,
    ) -> None:
        self._database = database
        self._notifier = notifier
        self._destinations = destinations
        self._clock = clock
        self._enabled = enabled
        self._lease = DeliveryLease(database)
        self._queues: dict[str, DestinationQueue] = {}
        self._position = 0
        self._stored_position = 0
        self._task: asyncio.Task[None] | None = None
        self._delivers = False
        self._not_to_send: dict[str, None] = {}
        counter = itertools.count(1)
        self._means = Means(
            database=database,
            events=events,
            sender=sender,
            clock=clock,
            next_transaction_id=lambda: f"{clock.now_ms()}-{next(counter)}",
            checkpoint_lock=asyncio.Lock(),
            on_idle=self._drop_if_idle,
        )

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start delivering as soon as this process holds the lease: the first time, all that happens from then on."""
        if self._enabled:
            await self._database.write(store.start_position)
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Give transactions in progress some time to finish, and store what is left."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        try:
            while True:
                try:
                    if await self._holds_lease():
                        await self._deliver()
                    await asyncio.sleep(LEASE_RETRY_S)
                except LeaseLost:
                    logger.warning("another process delivers now")
                except Exception:
                    logger.exception("delivery failed")
                    await asyncio.sleep(FAILURE_PAUSE_S)
        finally:
            self._lease.release()

    async def _holds_lease(self) -> bool:
        return await asyncio.get_running_loop().run_in_executor(None, self._lease.hold)

    async def _deliver(self) -> None:
        """Deliver until the lease is lost or the server stops."""
        await self._load()
        self._delivers = True
        tasks = [asyncio.ensure_future(part) for part in (self._read(), self._write(), self._forget_unreachable())]
        is_ours = True
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except LeaseLost:
            is_ours = False
            raise
        finally:
            self._delivers = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(queue.stop(STOP_GRACE_S) for queue in list(self._queues.values())))
            if is_ours:
                await self._last_checkpoint()
            self._queues.clear()

    async def _last_checkpoint(self) -> None:
        try:
            await self._checkpoint(patience_s=0)
        except Exception:
            # The stored position is an earlier one, so what is missing is sent again.
            logger.exception("cannot store what is left to deliver")

    async def _load(self) -> None:
        self._position = self._stored_position = await self._database.write(store.start_position)
        counts = await self._database.read(store.owed_counts)
        failing = {row.server_name: row for row in await self._database.read(store.unreachable_servers)}
        for server_name in counts.keys() | failing.keys():
            reachability = failing.get(server_name) or Reachability(server_name)
            queue = DestinationQueue(self._means, reachability, counts.get(server_name, 0))
            self._queues[server_name] = queue
            if queue.owed:
                queue.wake()

    # -- events --------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Follow the event stream."""
        wake = self._notifier.reader()
        while True:
            wake.clear()
            if self._nothing_for_others():
                # The read may have gone beyond the notifier's position: never go back.
                self._position = max(self._position, self._notifier.position)
                await wake.wait()
                continue
            began = self._clock.monotonic()
            cached = self._from_memory()
            if cached is not None:
                found, upto = cached
            else:
                found, upto = await self._database.read(store.events_after, self._position, EVENTS_PER_READ_MAX)
            if found:
                await self._distribute(found)
            self._position = max(self._position, upto)
            if len(found) < EVENTS_PER_READ_MAX:
                await wake.wait()
                if (early_s := began + READ_INTERVAL_S - self._clock.monotonic()) > 0:
                    await asyncio.sleep(early_s)

    def _nothing_for_others(self) -> bool:
        """Whether none of the new changes concerns other servers, so that there is nothing to read."""
        changes = self._notifier.changes_since(self._position)
        return changes is not None and not any(self._may_be_for_others(change) for change in changes)

    def _from_memory(self) -> tuple[list[OutboundPdu], int] | None:
        """The result of ``events_after`` if memory holds all of it, otherwise None."""
        changes = self._notifier.changes_since(self._position)
        if not changes or len(changes) >= EVENTS_PER_READ_MAX:
            return None
        found: list[OutboundPdu] = []
        for change in changes:
            if change.stream is Stream.EVENTS:
                stored = self._means.events.cached_of(change)
                if stored is None or stored.stream_position != change.position:
                    return None
                if stored.visible:
                    found.append(OutboundPdu(change.position, stored.room_nid, stored.event_nid))
        return found, changes[-1].position

    def _may_be_for_others(self, change: Change) -> bool:
        if change.stream is not Stream.EVENTS:
            return False
        if change.effect is not StateEffect.NONE or change.room_id is None:
            return True  # a membership may concern a server that is not in the room any more
        return self._destinations.may_have_some(change.room_id)

    async def _distribute(self, found: list[OutboundPdu]) -> None:
        stored = await self._means.events.by_nid([pdu.event_nid for pdu in found])
        for pdu in found:
            if (event := stored.get(pdu.event_nid)) is None:
                continue
            if event.event.event_id not in self._not_to_send:
                for server_name in await self._destinations.of_event(event):
                    self._queue_for(server_name).add(pdu)
            self._position = pdu.stream_position

    def do_not_send(self, event_id: str) -> None:
        """Do not send an event of ours: the server through which our user joins passes the join on to all others."""
        self._not_to_send[event_id] = None
        if len(self._not_to_send) > NOT_TO_SEND_MAX:
            del self._not_to_send[next(iter(self._not_to_send))]

    async def caught_up(self, server_name: str) -> None:
        """Wait until a server has got all that was queued for it so far, for at most ``CATCH_UP_SECONDS_MAX``.

        For requests that bypass the queue, and that queued events would undo.
        """
        if not self._delivers:
            return
        position = self._notifier.position
        self.sign_of_life(server_name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP_SECONDS_MAX):
                while self._position < position or self._is_behind(server_name):  # noqa: ASYNC110 - two things, rarely
                    await asyncio.sleep(CATCH_UP_POLL_S)

    def _is_behind(self, server_name: str) -> bool:
        queue = self._queues.get(server_name)
        return queue is not None and bool(queue.fresh or queue.owed)

    def _queue_for(self, server_name: str) -> DestinationQueue:
        queue = self._queues.get(server_name)
        if queue is None:
            queue = self._queues[server_name] = DestinationQueue(self._means, Reachability(server_name))
        return queue

    def _drop_if_idle(self, queue: DestinationQueue) -> None:
        if queue.is_idle and self._queues.get(queue.server_name) is queue:
            del self._queues[queue.server_name]

    # -- receipts and typing -------------------------------------------------------------------------------------------

    @property
    def delivers(self) -> bool:
        """Whether this process is the one that delivers."""
        return self._delivers

    async def send_receipt(self, receipt: Receipt) -> None:
        """Tell the other servers in the room that one of our users has read up to an event. Best effort."""
        for queue in await self._queues_for_room(receipt.room_id):
            if (edus := queue.edus()) is not None:
                edus.add_receipt(receipt)

    async def send_typing(self, room_id: str, user_id: str, typing: bool) -> None:
        """Tell the other servers in the room that one of our users types, or has stopped. Best effort."""
        for queue in await self._queues_for_room(room_id):
            if (edus := queue.edus()) is not None:
                edus.add_typing(room_id, user_id, typing)

    async def _queues_for_room(self, room_id: str) -> list[DestinationQueue]:
        if not self._delivers:
            return []
        others = await self._destinations.of_room(room_id)
        return [self._queue_for(server_name) for server_name in others] if self._delivers else []

    def sign_of_life(self, server_name: str) -> None:
        """A server has made an authenticated request: if it was unreachable before, try it again now."""
        if (queue := self._queues.get(server_name)) is not None:
            queue.sign_of_life()

    # -- writing down --------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        while True:
            await asyncio.sleep(CHECKPOINT_INTERVAL_S)
            if not self._database.is_sqlite and not await self._holds_lease():
                raise LeaseLost
            await self._checkpoint(PATIENCE_S)

    async def _checkpoint(self, patience_s: float) -> None:
        """Store how far everything is delivered, and the events whose sending takes too long."""
        async with self._means.checkpoint_lock:
            position, owed = self._find_undelivered(patience_s)
            changed = [queue for queue in self._queues.values() if not queue.is_reachability_stored]
            if position == self._stored_position and not owed and not changed:
                return
            reachability = [queue.reachability for queue in changed]
            rows = [(server_name, pdu) for server_name, pdus in owed.items() for pdu in pdus]
            await self._database.write(store.write_checkpoint, Checkpoint(position, rows, reachability))
            self._stored_position = position
            for queue, written in zip(changed, reachability, strict=True):
                queue.is_reachability_stored = queue.reachability == written
            for server_name, pdus in owed.items():
                queue = self._queues[server_name]
                queue.moved_to_database(pdus[-1].stream_position, len(pdus))
                await queue.limit_owed()
        for queue in list(self._queues.values()):
            self._drop_if_idle(queue)

    def _find_undelivered(self, patience_s: float) -> tuple[int, dict[str, list[OutboundPdu]]]:
        """The position up to which all is delivered, and by server the events that must be stored for that to hold."""
        position = self._position
        owed: dict[str, list[OutboundPdu]] = {}
        too_old = self._clock.monotonic() - patience_s
        for queue in self._queues.values():
            if not queue.fresh:
                continue
            oldest, since = queue.fresh[0]
            if queue.is_failing or queue.owed or since <= too_old:
                owed[queue.server_name] = [pdu for pdu, _ in queue.fresh]
            else:
                position = min(position, oldest.stream_position - 1)
        return position, owed

    async def _forget_unreachable(self) -> None:
        while True:
            await self._database.write(store.forget_destinations, self._clock.now_ms() - GIVE_UP_AFTER_MS)
            await asyncio.sleep(HOUSEKEEPING_INTERVAL_S)
