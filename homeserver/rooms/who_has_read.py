"""Who has read an event, as far as read receipts say.

A receipt says "up to here": it counts for all events before it that its user was in the room for, in the order in
which this server got them. For an event of a thread the receipts of that thread and those of no thread count. Private
receipts never do, and neither does that somebody has said something since.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import TypedDict

from homeserver.errors import Forbidden, NotFound
from homeserver.rooms.ephemeral import is_user_of
from homeserver.rooms.events import Events
from homeserver.rooms.listings import PageRequest, place_of, room_of_member, token_of
from homeserver.rooms.receipts import IDENTIFIER_CHARACTERS_MAX, UNTHREADED, Receipts
from homeserver.rooms.state import RoomHead, RoomHeads, StateReader
from homeserver.rooms.visible_events import Viewer, VisibleEvents
from homeserver.storage import read_receipts as store
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.read_receipts import ReadUpTo


class ListedReceipt(TypedDict):
    """A user who has read up to an event or past it."""

    user_id: str
    display_name: str | None
    ts: int
    """When, by the earliest receipt that says so."""
    thread_id: str | None
    is_remote: bool


class ReceiptList(TypedDict, total=False):
    """Who has read an event; whose receipt came last goes first."""

    receipts: list[ListedReceipt]
    next: str
    """Only there if there is more."""


class WhoHasRead:
    """Answers who has read what."""

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

    async def of_event(self, user_id: str, room_id: str, event_id: str, page: PageRequest) -> ReceiptList:
        """Who has read an event, for a member of the room who may see it.

        Raises ``Forbidden`` for others, and for everybody where the administrator has switched receipts off,
        ``NotFound`` for events that are not there or not to be seen, ``InvalidParam``.
        """
        if not self._receipts.enabled:
            raise Forbidden("Read receipts are switched off on this server")
        after = place_of(page.after, (int,)) if page.after is not None else None
        head = await room_of_member(self._heads, user_id, room_id)
        stored = await self._seen_event(head, user_id, event_id)
        thread_ids = {UNTHREADED, event_id, await self._receipts.thread_of(stored.event)}
        found = await self._database.read(store.read_receipts_of, head.room_nid, thread_ids)
        listed = await self._readers(head, stored, found)
        start = 0 if after is None else next((i for i, r in enumerate(listed) if (r.position,) < after), len(listed))
        end = len(listed) if page.limit is None else min(len(listed), start + page.limit)
        answer: ReceiptList = {"receipts": [self._shown(receipt) for receipt in listed[start:end]]}
        if end < len(listed):
            answer["next"] = token_of((listed[end - 1].position,))
        return answer

    async def _seen_event(self, head: RoomHead, user_id: str, event_id: str) -> StoredEvent:
        stored = await self._events.get(event_id) if len(event_id) <= IDENTIFIER_CHARACTERS_MAX else None
        in_room = stored is not None and stored.room_nid == head.room_nid and stored.stream_position is not None
        if stored is None or not in_room or not await self._visible.of([stored], Viewer(user_id, None)):
            raise NotFound("There is no such event, or you may not see it")
        return stored

    async def _readers(self, head: RoomHead, stored: StoredEvent, receipts: Iterable[ReadUpTo]) -> list[ReadUpTo]:
        """Of the users who have read an event the receipt that says so: of several the earliest, by then it was read.

        Who was not in the room at the event has read it only if the receipt names it: who joins later and reads on has
        not read what was before, whatever the history shows.
        """
        position = stored.stream_position or 0
        past = [r for r in receipts if r.event_position is not None and r.event_position >= position]
        absent = await self._absent_at(stored, head, {r.user_id for r in past if r.event_position != position})
        earliest: dict[str, ReadUpTo] = {}
        for receipt in past:
            user_id = receipt.user_id
            if receipt.event_position != position and user_id in absent:
                continue
            known = earliest.get(user_id)
            if known is None or receipt.ts < known.ts:
                earliest[user_id] = receipt
        return sorted(earliest.values(), key=attrgetter("position"), reverse=True)

    async def _absent_at(self, stored: StoredEvent, head: RoomHead, user_ids: Iterable[str]) -> set[str]:
        """Those of the users who were not in the room right after an event."""
        assert stored.state_group is not None
        if stored.state_group == head.snapshot.group:
            return {user_id for user_id in user_ids if user_id not in head.joined}
        then, now = (await self._states.snapshot(stored.state_group)).state, head.state
        absent: set[str] = set()
        changed: dict[str, str] = {}
        for user_id in user_ids:
            key = ("m.room.member", user_id)
            member_id = then.get(key)
            if member_id is not None and member_id != now.get(key):
                changed[user_id] = member_id
            elif member_id is None or user_id not in head.joined:
                absent.add(user_id)
        members = await self._events.by_id(changed.values())
        for user_id, member_id in changed.items():
            member = members.get(member_id)
            if member is None or member.event.membership != "join":
                absent.add(user_id)
        return absent

    def _shown(self, receipt: ReadUpTo) -> ListedReceipt:
        return {
            "user_id": receipt.user_id,
            "display_name": receipt.display_name,
            "ts": receipt.ts,
            "thread_id": receipt.thread_id or None,
            "is_remote": not is_user_of(receipt.user_id, self._server_name),
        }
