"""How far users have read: receipts from our clients and from other servers, sent on to both.

A receipt means "up to here": the newest of several counts, and a receipt never moves back.

https://spec.matrix.org/v1.19/client-server-api/#receipts
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from homeserver.caches import WeightedCache
from homeserver.clock import Clock
from homeserver.ephemeral.local_updates import is_user_of, rooms_of_edus
from homeserver.errors import Forbidden, InvalidParam
from homeserver.federation.outbound_edus import Receipt
from homeserver.graph.events import Events
from homeserver.graph.outdated_heads import refuses_by_newest_state
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.notifier import Change, Notifier, Stream
from homeserver.protocol.events import Event
from homeserver.protocol.identifiers import is_hash_event_id, is_valid_event_id
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import EventIdFormat, RoomVersion
from homeserver.storage import receipts as store
from homeserver.storage.database import Database
from homeserver.storage.receipts import NewReceipt, StoredReceipt

READ = "m.read"
READ_PRIVATE = "m.read.private"
FULLY_READ = "m.fully_read"
MAIN_THREAD = "main"
UNTHREADED = ""
RELATION_HOPS_MAX = 3
"""How many relations are followed from an event to its thread: "a maximum of 3 hops is recommended"."""
RECENT_BYTES_MAX = 4 * 2**20
"""How much memory the recent receipts may use, which are kept for the requests that they wake."""
ENTRIES_PER_TRANSACTION_MAX = 5_000
"""How many rooms, users and event IDs the receipts of one transaction may name, all together; the rest is left out."""
EVENT_IDS_PER_RECEIPT_MAX = 20
IDENTIFIER_CHARACTERS_MAX = 255


def _weigh(receipt: StoredReceipt) -> int:
    return 250 + 2 * sum(map(len, (receipt.room_id, receipt.user_id, receipt.event_id, receipt.thread_id)))


@dataclass(frozen=True, slots=True)
class _Named:
    """A receipt as another server gives it."""

    room_id: str
    user_id: str
    event_ids: list[str]
    data: JsonObject


class ReceiptDelivery(Protocol):
    """Sends receipts to other servers."""

    async def send_receipt(self, receipt: Receipt) -> None:
        """Tell the other servers in the room that one of our users has read up to an event. Best effort."""


class Receipts:
    """The receipts of all rooms. If ``enabled`` is off, nothing is stored or sent, and received ones are dropped."""

    def __init__(
        self,
        database: Database,
        notifier: Notifier,
        heads: RoomHeads,
        events: Events,
        delivery: ReceiptDelivery,
        clock: Clock,
        *,
        enabled: bool = True,
    ) -> None:
        self._database = database
        self._notifier = notifier
        self._heads = heads
        self._events = events
        self._delivery = delivery
        self._clock = clock
        self.enabled = enabled
        self._recent: WeightedCache[int, StoredReceipt] = WeightedCache("receipts", RECENT_BYTES_MAX, _weigh)
        """By position; read with ``peek``, so that those that were written first are dropped first."""

    # -- from our clients ----------------------------------------------------------------------------------------------

    @refuses_by_newest_state
    async def post(
        self, user_id: str, room_id: str, receipt_type: str, event_id: str, thread_id: str | None = None
    ) -> None:
        """Store and send on that one of our users has read up to an event, in a thread if one is given.

        Raises ``Forbidden`` if the user is not in the room, ``InvalidParam`` for types other than m.read and
        m.read.private, and for an event that is not in the room or not in the thread.
        """
        if receipt_type not in (READ, READ_PRIVATE):
            raise InvalidParam("The receipt type must be m.read, m.read.private or m.fully_read")
        head, event = await self.find_event(user_id, room_id, event_id)
        if thread_id is not None and not await self._is_in_thread(event, thread_id):
            raise InvalidParam("The event is not related to the thread")
        if not self.enabled:
            return
        now = self._clock.now_ms()
        new = NewReceipt(head.room_nid, receipt_type, user_id, thread_id or UNTHREADED, event_id, now)
        stored = await self._store([(head, new)])
        if stored and receipt_type == READ:
            await self._delivery.send_receipt(Receipt(room_id, user_id, event_id, now, thread_id))

    async def find_event(self, user_id: str, room_id: str, event_id: str) -> tuple[RoomHead, Event]:
        """A room that one of our users is in, and one of its events. Raises ``Forbidden``, ``InvalidParam``."""
        head = await self._heads.find(room_id)
        if head is None or user_id not in head.joined_local:
            raise Forbidden("You are not in this room")
        stored = await self._events.get(room_id, event_id) if len(event_id) <= IDENTIFIER_CHARACTERS_MAX else None
        if stored is None or stored.stream_position is None:
            raise InvalidParam("There is no such event in the room")
        return head, stored.event

    async def _is_in_thread(self, event: Event, thread_id: str) -> bool:
        """Whether an event belongs to a thread. The root of a thread belongs to it and to ``main``."""
        return event.event_id == thread_id or await self.thread_of(event) == thread_id

    async def thread_of(self, event: Event) -> str:
        """The thread that an event belongs to: the ID of its root, or ``main``.

        https://spec.matrix.org/v1.19/client-server-api/#threaded-read-receipts
        """
        current: Event | None = event
        for _ in range(RELATION_HOPS_MAX + 1):
            relation = _relation(current)
            if relation is None:
                break
            rel_type, target = relation
            if rel_type == "m.thread":
                return target
            stored = await self._events.get(event.room_id, target)
            current = stored.event if stored is not None else None
        # "Events not in a thread but still in the room are considered to be in the main timeline."
        return MAIN_THREAD

    # -- from other servers --------------------------------------------------------------------------------------------

    async def receive(self, origin: str, *edus: JsonObject) -> None:
        """Store the receipts of the m.receipt EDUs of a transaction; invalid ones are dropped.

        https://spec.matrix.org/v1.19/server-server-api/#receipts
        """
        if not self.enabled:
            return
        named = _named(edus, origin)
        heads = await rooms_of_edus(self._heads, [receipt.room_id for receipt in named], origin)
        by_room: dict[str, list[_Named]] = {}
        for receipt in named:
            head = heads.get(receipt.room_id)
            if head is not None and receipt.user_id in head.joined:
                by_room.setdefault(receipt.room_id, []).append(receipt)
        new = [(heads[i], each) for i, some in by_room.items() for each in await self._placed(heads[i], some)]
        if new:
            await self._store(new)

    async def _placed(self, head: RoomHead, received: Sequence[_Named]) -> list[NewReceipt]:
        """Receipts of one room, each for the latest of the events that it names."""
        known = await self._events.by_id(head.room_id, {event_id for r in received for event_id in r.event_ids})
        now = self._clock.now_ms()
        new: list[NewReceipt] = []
        for receipt in received:
            in_room = [known[i] for i in receipt.event_ids if i in known]
            placed = [stored for stored in in_room if stored.stream_position is not None]
            if placed:
                event_id = max(placed, key=lambda stored: stored.stream_position or 0).event_id
            elif unknown := [event_id for event_id in receipt.event_ids if event_id not in known]:
                event_id = unknown[-1]  # a receipt for an event that has not arrived yet
            else:
                continue
            thread_id, ts = _data(receipt.data, head.version, now)
            if thread_id is not None:
                new.append(NewReceipt(head.room_nid, READ, receipt.user_id, thread_id, event_id, ts))
        return new

    # -- both ----------------------------------------------------------------------------------------------------------

    async def _store(self, new: Sequence[tuple[RoomHead, NewReceipt]]) -> list[StoredReceipt]:
        """Store receipts, wake the /sync requests that they concern, and return those that changed something."""
        positions = await self._database.write_batched(store.store, [receipt for _, receipt in new])
        stored = [
            StoredReceipt(head.room_id, r.receipt_type, r.user_id, r.thread_id, r.event_id, r.ts, position)
            for (head, r), position in zip(new, positions, strict=True)
            if position is not None
        ]
        changes: list[Change] = []
        for receipt in stored:
            self._recent.put(receipt.position, receipt)
            is_private = receipt.receipt_type == READ_PRIVATE
            users = (receipt.user_id,) if is_private else ()
            changes.append(Change(receipt.position, Stream.RECEIPTS, receipt.room_id, users, wakes_room=not is_private))
        self._notifier.publish(changes)
        return stored

    def recent(self, position: int) -> StoredReceipt | None:
        """The receipt at a position if it is in memory, otherwise None."""
        return self._recent.peek(position)


def receipt_content(receipts: Iterable[StoredReceipt]) -> JsonObject:
    """The content of the m.receipt event for clients that holds these receipts.

    It can hold only one receipt per event, type and user, and the last one counts: see ``split_by_thread``.
    """
    content: dict[str, dict[str, dict[str, JsonObject]]] = {}
    for receipt in receipts:
        data: dict[str, Any] = {"ts": receipt.ts}
        if receipt.thread_id != UNTHREADED:
            data["thread_id"] = receipt.thread_id
        content.setdefault(receipt.event_id, {}).setdefault(receipt.receipt_type, {})[receipt.user_id] = data
    return content


def split_by_thread(receipts: Iterable[StoredReceipt]) -> list[list[StoredReceipt]]:
    """Split receipts into one batch per thread, each of which fits into one event.

    "For efficiency, receipts SHOULD be batched into one event per room and thread".
    """
    threads: dict[str, list[StoredReceipt]] = {}
    for receipt in receipts:
        threads.setdefault(receipt.thread_id, []).append(receipt)
    return list(threads.values())


def _relation(event: Event | None) -> tuple[str, str] | None:
    relates_to = event.content.get("m.relates_to") if event is not None else None
    if not isinstance(relates_to, dict):
        return None
    rel_type, target = relates_to.get("rel_type"), relates_to.get("event_id")
    if not isinstance(rel_type, str) or not isinstance(target, str) or len(target) > IDENTIFIER_CHARACTERS_MAX:
        return None
    return rel_type, target


def _named(edus: Iterable[JsonObject], origin: str) -> list[_Named]:
    """The receipts that EDUs hold, up to ``ENTRIES_PER_TRANSACTION_MAX``. What is invalid counts, too."""
    named: list[_Named] = []
    budget = ENTRIES_PER_TRANSACTION_MAX
    contents = [content for edu in edus if isinstance(content := edu.get("content"), dict)]
    for room_id, by_type in (entry for content in contents for entry in content.items()):
        budget -= 1
        by_user = by_type.get(READ) if isinstance(by_type, dict) else None
        for user_id, receipt in by_user.items() if isinstance(by_user, dict) else ():
            budget -= 1
            if budget <= 0:
                return named
            if not isinstance(receipt, dict) or not is_user_of(user_id, origin):
                continue
            event_ids = _event_ids(receipt)
            budget -= len(event_ids)
            data = receipt.get("data")
            if event_ids:
                named.append(_Named(room_id, user_id, event_ids, data if isinstance(data, dict) else {}))
        if budget <= 0:
            break
    return named


def _event_ids(receipt: JsonObject) -> list[str]:
    event_ids = receipt.get("event_ids")
    if not isinstance(event_ids, list):
        return []
    return [
        event_id
        for event_id in event_ids[-EVENT_IDS_PER_RECEIPT_MAX:]
        if isinstance(event_id, str) and event_id.startswith("$") and len(event_id) <= IDENTIFIER_CHARACTERS_MAX
    ]


def _data(data: JsonObject, version: RoomVersion, now_ms: int) -> tuple[str | None, int]:
    """The thread ID and time of a receipt. The thread ID is None if the receipt is invalid."""
    ts = data.get("ts")
    if type(ts) is not int or not 0 <= ts <= now_ms:
        ts = now_ms
    if "thread_id" not in data:
        return UNTHREADED, ts
    thread_id = data["thread_id"]
    is_usable = isinstance(thread_id, str) and (thread_id == MAIN_THREAD or _may_be_event_id(thread_id, version))
    return (thread_id if is_usable else None), ts


def _may_be_event_id(text: str, version: RoomVersion) -> bool:
    if version.event_id_format is EventIdFormat.IN_EVENT:
        return is_valid_event_id(text)
    return is_hash_event_id(text)
