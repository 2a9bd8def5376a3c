"""Who has read an event, according to read receipts.

A receipt means "up to here": it counts for all earlier events (in the order in which this server received them) that
happened while its user was in the room. For an event in a thread, receipts of that thread and unthreaded ones count.
Private receipts never count, nor do events that a user has sent since.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import NamedTuple, TypedDict

from homeserver.caches import WeightedCache
from homeserver.ephemeral.receipts import IDENTIFIER_CHARACTERS_MAX, UNTHREADED, Receipts
from homeserver.errors import Forbidden, NotFound
from homeserver.graph.events import Events
from homeserver.graph.state import RoomHead, RoomHeads, StateReader
from homeserver.protocol.events import StateKey
from homeserver.reading.listings import PageRequest, place_of, room_of_member, token_of
from homeserver.reading.visible_events import Viewer, VisibleEvents
from homeserver.storage import read_receipts as store
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.read_receipts import ReadUpTo

RECEIPTS_PER_READ_MIN = 100
"""How many receipts are read at once, at least, for a page of the list, since not all of them may count."""


ATTENDANCES_BYTES_MAX = 12 * 2**20
"""How much memory the cache of who was in rooms may use."""
USER_BYTES = 120
MEMBER = "m.room.member"


class ListedReceipt(TypedDict):
    """A user who has read up to an event or past it."""

    user_id: str
    display_name: str | None
    ts: int
    """When they read it, by the earliest such receipt."""
    thread_id: str | None
    is_remote: bool


class ReceiptList(TypedDict, total=False):
    """Who has read an event. The whole list is sorted from new to old receipts, pages of it by user ID."""

    receipts: list[ListedReceipt]
    next: str
    """The token of the next page, if there is one."""


class _Attendance(NamedTuple):
    """The users known to have been in the room, and not in it, in one of its states."""

    present: frozenset[str]
    absent: frozenset[str]


def _weigh(attendance: _Attendance) -> int:
    return 500 + USER_BYTES * (len(attendance.present) + len(attendance.absent))


class WhoHasRead:
    """Finds out who has read an event."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        events: Events,
        states: StateReader,
        visible: VisibleEvents,
        receipts: Receipts,
        server_name: str,
    ) -> None:
        self._database = database
        self._heads = heads
        self._events = events
        self._states = states
        self._visible = visible
        self._receipts = receipts
        self._server_name = server_name
        self._attendances: WeightedCache[int, _Attendance] = WeightedCache("attendances", ATTENDANCES_BYTES_MAX, _weigh)
        """By state group."""

    async def of_event(self, user_id: str, room_id: str, event_id: str, page: PageRequest) -> ReceiptList:
        """Who has read an event, for a member of the room who may see it.

        Raises ``Forbidden`` for users who are not in the room, and for everybody if receipts are switched off;
        ``NotFound`` for events that are unknown or may not be seen; ``InvalidParam`` for a wrong token.
        """
        if not self._receipts.enabled:
            raise Forbidden("Read receipts are switched off on this server")
        after = str(place_of(page.after, (str,))[0]) if page.after is not None else ""
        head = await room_of_member(self._heads, user_id, room_id)
        stored = await self._seen_event(head, user_id, event_id)
        thread_ids = {UNTHREADED, event_id, await self._receipts.thread_of(stored.event)}
        if page.limit is not None:
            return await self._part(head, stored, thread_ids, after, page.limit)
        found = await self._read(head, stored, thread_ids)
        readers = _readers(found, stored, await self._present(head, stored, found, is_whole=True))
        readers.sort(key=_receipt_position, reverse=True)
        return {"receipts": self._shown(readers)}

    async def _seen_event(self, head: RoomHead, user_id: str, event_id: str) -> StoredEvent:
        stored = await self._events.get(head.room_id, event_id) if len(event_id) <= IDENTIFIER_CHARACTERS_MAX else None
        if (
            stored is None
            or stored.stream_position is None
            or not await self._visible.of([stored], Viewer(user_id, None))
        ):
            raise NotFound("There is no such event, or you may not see it")
        return stored

    async def _part(
        self, head: RoomHead, stored: StoredEvent, thread_ids: Collection[str], after: str, limit: int
    ) -> ReceiptList:
        """The ``limit`` next readers after a user ID, sorted by user ID.

        Pages cannot be sorted by time: a receipt moves when its user reads on, and a client that pages through the list
        could miss it.
        """
        readers: list[ReadUpTo] = []
        # All receipts of a user must be read together: at most one per thread.
        most = max(limit + 1, RECEIPTS_PER_READ_MIN) + len(thread_ids)
        is_end = False
        while len(readers) <= limit and not is_end:
            found = await self._read(head, stored, thread_ids, after, most)
            is_end = len(found) < most
            if not is_end:
                found = _whole_users(found)
                after = found[-1][0]
            readers += _readers(found, stored, await self._present(head, stored, found, is_whole=False))
        answer: ReceiptList = {"receipts": self._shown(readers[:limit])}
        if len(readers) > limit:
            answer["next"] = token_of((readers[limit - 1][0],))
        return answer

    async def _read(
        self,
        head: RoomHead,
        stored: StoredEvent,
        thread_ids: Collection[str],
        after: str = "",
        most: int | None = None,
    ) -> Sequence[ReadUpTo]:
        position = stored.stream_position or 0
        return await self._database.read(store.read_receipts_of, head.room_nid, thread_ids, position, after, most)

    async def _present(
        self, head: RoomHead, stored: StoredEvent, receipts: Iterable[ReadUpTo], *, is_whole: bool
    ) -> Container[str]:
        """The users who were in the room right after an event; complete for the users of ``receipts``."""
        group = stored.state_group
        assert group is not None
        if group == head.snapshot.group:
            return head.joined
        known = self._attendances.get(group) or _Attendance(frozenset(), frozenset())
        asked = {receipt[0] for receipt in receipts}.difference(known.present, known.absent)
        if asked:
            if is_whole:
                then: Mapping[StateKey, str] = (await self._states.snapshot(group)).state
            else:
                then = await self._states.lookup(group, {(MEMBER, user_id) for user_id in asked})
            present = await self._joined(head, then, asked)
            known = _Attendance(known.present | present, known.absent | (asked - present))
            self._attendances.put(group, known)
        return known.present

    async def _joined(self, head: RoomHead, then: Mapping[StateKey, str], user_ids: Iterable[str]) -> set[str]:
        """The users out of ``user_ids`` who are joined in the state ``then`` of the room."""
        now = head.state
        joined: set[str] = set()
        changed: dict[str, str] = {}
        for user_id in user_ids:
            key = (MEMBER, user_id)
            member_id = then.get(key)
            if member_id is None:
                continue
            if member_id != now.get(key):
                changed[user_id] = member_id
            elif user_id in head.joined:
                joined.add(user_id)
        members = await self._events.by_id(head.room_id, changed.values())
        for user_id, member_id in changed.items():
            member = members.get(member_id)
            if member is not None and member.event.membership == "join":
                joined.add(user_id)
        return joined

    def _shown(self, readers: Iterable[ReadUpTo]) -> list[ListedReceipt]:
        return [
            {
                "user_id": user_id,
                "display_name": display_name,
                "ts": ts,
                "thread_id": thread_id or None,
                "is_remote": user_id.partition(":")[2] != self._server_name,
            }
            for user_id, thread_id, ts, _, _, display_name in readers
        ]


def _readers(receipts: Iterable[ReadUpTo], stored: StoredEvent, present: Container[str]) -> list[ReadUpTo]:
    """The earliest receipt of each user who has read an event.

    A user who was not ``present`` at the event has read it only if a receipt is for exactly this event: users who join
    later have not read what was before, even if they can see it.
    """
    position = stored.stream_position or 0
    earliest: dict[str, ReadUpTo] = {}
    for receipt in receipts:
        user_id, _, ts, _, event_position, _ = receipt
        if event_position is None or event_position < position:
            continue
        if event_position != position and user_id not in present:
            continue
        known = earliest.get(user_id)
        if known is None or ts < known[2]:
            earliest[user_id] = receipt
    return list(earliest.values())


def _whole_users(receipts: Sequence[ReadUpTo]) -> Sequence[ReadUpTo]:
    """The receipts without those of the last user, of whom more may not have been read."""
    last = receipts[-1][0]
    end = len(receipts)
    while end and receipts[end - 1][0] == last:
        end -= 1
    return receipts[:end]


def _receipt_position(receipt: ReadUpTo) -> int:
    return receipt[3]
