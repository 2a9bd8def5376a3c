"""Makes an update from news: applies filters, history visibility and limits, whichever reader the news come from.

https://spec.matrix.org/v1.19/client-server-api/#syncing
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import orjson

from homeserver.ephemeral.receipts import Receipts, receipt_content, split_by_thread
from homeserver.ephemeral.typing import Typing
from homeserver.graph.events import Events
from homeserver.graph.state import RoomHeads, StateReader
from homeserver.reading.visible_events import VisibleEvents
from homeserver.storage.account_data import GLOBAL
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.places import place_of
from homeserver.storage.receipts import StoredReceipt
from homeserver.sync import room_states
from homeserver.sync.loaded_events import LoadedEvents
from homeserver.sync.members import MembersAndSummaries
from homeserver.sync.news import News
from homeserver.sync.rendering import event_bytes
from homeserver.sync.sent_members import Members
from homeserver.sync.stripped_rooms import StrippedRooms
from homeserver.sync.timelines import RoomDraft, Timelines
from homeserver.sync.updates import RoomUpdate, SyncRequest, Update


class Composer:
    """Makes updates from news."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        events: Events,
        states: StateReader,
        visible: VisibleEvents,
        typing: Typing,
        receipts: Receipts,
    ) -> None:
        self._events = events
        self._states = states
        self._typing = typing
        self._receipts = receipts
        self._timelines = Timelines(database, visible)
        self._members = MembersAndSummaries(database, heads, events)
        self._stripped = StrippedRooms(heads, events)

    async def compose(
        self, request: SyncRequest, news: News, known_members: Mapping[str, Members], loaded: LoadedEvents
    ) -> Update:
        """The answer to a request, section by section.

        ``known_members`` are the member events that the device has been sent before; ``loaded`` holds the events that
        the reader of the news has already found.
        """
        update = Update(news.position)
        drafts = [RoomDraft(room) for room in news.rooms]
        await self._timelines.add(request, news, drafts, loaded)
        # Most updates only tell a client about a message; they skip what follows.
        changed = [draft for draft in drafts if draft.news.state is not None or draft.news.changes]
        left = [draft for draft in drafts if draft.news.has_left]
        if changed or left:
            await self._add_states(request, changed, left, loaded)
        if changed or request.is_lazy:
            await self._members.add(request, news, drafts, known_members, loaded)
        for draft in drafts:
            if draft.state or draft.members or draft.news.has_left:
                await self._finish_state(request, draft, loaded)
            if draft.news.receipts and not draft.news.has_left:
                self._add_receipts(request, draft)
        if news.account_data:
            _add_account_data(request, news, drafts, update)
        for draft in drafts:
            if draft.news.has_left:
                update.left.append(draft.update)  # a left room is always reported
            elif draft.update.says_something:
                update.joined.append(draft.update)
        if news.invited or news.knocked:
            update.invited = await self._stripped.of(request.user_id, news.invited, news.stripped)
            update.knocked = await self._stripped.of(request.user_id, news.knocked, news.stripped)
        self._add_typing(request, news.joined, update)
        return update

    # -- state ---------------------------------------------------------------------------------------------------------

    async def _add_states(
        self, request: SyncRequest, changed: Sequence[RoomDraft], left: Sequence[RoomDraft], loaded: LoadedEvents
    ) -> None:
        for draft in left:
            if draft.news.is_fresh and draft.news.departure is not None:
                draft.news.state = await self._state_at(request, draft.news.departure)
                changed = [*changed, draft]
        await loaded.load(nid for draft in changed for nid in draft.news.state or ())
        # The state events that state events in the timelines replaced.
        await loaded.load(
            seen.stored.replaces_nid
            for draft in changed
            for seen in draft.update.timeline
            if seen.stored.replaces_nid is not None
        )
        for draft in changed:
            news, timeline = draft.news, draft.timeline_nids
            if news.state is None and request.state_after:
                draft.state = room_states.changes_after(news.changes)
            elif news.state is None:
                draft.state = room_states.changes_before(news.changes, timeline, draft.start)
            elif request.state_after:
                draft.state = list(news.state)
            else:
                draft.state = room_states.whole_before(news.state, timeline, loaded.predecessor)

    async def _state_at(self, request: SyncRequest, departure: StoredEvent) -> list[int]:
        assert departure.state_group is not None
        state = (await self._states.snapshot(departure.state_group)).state
        wanted = [i for key, i in state.items() if not request.is_lazy or key[0] != "m.room.member"]
        return [stored.event_nid for stored in (await self._events.by_id(departure.event.room_id, wanted)).values()]

    async def _finish_state(self, request: SyncRequest, draft: RoomDraft, loaded: LoadedEvents) -> None:
        """Turn the numeric IDs into the events that the filter lets through."""
        wanted = dict.fromkeys([*draft.state, *draft.members.values()])
        if draft.news.has_left:
            wanted = _with_own_standing(request, draft, wanted, loaded)
        await loaded.load(wanted)
        allows = request.filter.room.state.allows
        draft.update.state = [
            stored
            for stored in loaded.all(wanted)
            if allows(stored.event.type, stored.event.sender, draft.room_id, stored.event.content)
        ]

    # -- receipts and typing -------------------------------------------------------------------------------------------

    def _add_receipts(self, request: SyncRequest, draft: RoomDraft) -> None:
        if self._receipts.enabled and _allows_ephemeral(request, "m.receipt", draft.room_id):
            draft.update.ephemeral += _receipt_events(draft.news.receipts)

    def compose_typing(self, request: SyncRequest, position: int, joined: Collection[str]) -> Update:
        """The answer to a request if nothing happened up to a position, except that somebody may have begun to type."""
        update = Update(position)
        self._add_typing(request, joined, update)
        return update

    def _add_typing(self, request: SyncRequest, joined: Collection[str], update: Update) -> None:
        """Add who is typing now. Nothing is awaited after this, so the token says exactly what the client was told."""
        update.typing = self._typing.token(joined)
        fresh = {room.room_id for room in update.joined if room.is_fresh}
        if request.since is None:
            told: Collection[str] = self._typing.active(joined)
        elif request.typing_since != update.typing:
            told = self._typing.to_tell(request.typing_since, joined)
        elif fresh:
            told = ()
        else:
            return  # nearly always
        by_id = {room.room_id: room for room in update.joined}
        for room_id in dict.fromkeys([*told, *self._typing.active(fresh)]):
            if not request.filter.room.allows_room(room_id) or not _allows_ephemeral(request, "m.typing", room_id):
                continue
            room = by_id.get(room_id)
            # A client that knows nothing of the room need not be told that nobody is typing.
            if room_id in fresh and not self._typing.users_in(room_id):
                continue
            if room is None:
                room = RoomUpdate(room_id, place_of(update.next_batch))
                update.joined.append(room)
            room.ephemeral.append(self._typing.event_in(room_id))


def _with_own_standing(
    request: SyncRequest, draft: RoomDraft, wanted: Mapping[int, None], loaded: LoadedEvents
) -> dict[int, None]:
    """Add the user's own member event to the state: with ``state_after``, or if the timeline does not hold it."""
    standing = draft.news.standing_nid
    if standing in draft.timeline_nids and not request.state_after:
        return dict(wanted)
    own_key = ("m.room.member", request.user_id)
    kept = {nid: None for nid in wanted if (e := loaded.get(nid)) is None or e.event.key != own_key}
    return {**kept, standing: None}


def _allows_ephemeral(request: SyncRequest, event_type: str, room_id: str) -> bool:
    return request.filter.room.ephemeral.allows(event_type, None, room_id, {})


def _receipt_events(receipts: Sequence[StoredReceipt]) -> list[bytes]:
    """The m.receipt events that hold these receipts, which come in the order of their positions."""
    # A user may have sent several receipts in the window: only the newest counts.
    newest = {(receipt.receipt_type, receipt.user_id, receipt.thread_id): receipt for receipt in receipts}
    batches = split_by_thread(newest.values())
    return [event_bytes("m.receipt", orjson.dumps(receipt_content(batch))) for batch in batches]


def _add_account_data(request: SyncRequest, news: News, drafts: Sequence[RoomDraft], update: Update) -> None:
    by_id = {draft.room_id: draft for draft in drafts}
    for room_id, event_type, content, _ in news.account_data:
        if room_id == GLOBAL:
            if request.filter.account_data.allows(event_type, None):
                update.account_data.append(event_bytes(event_type, content))
        elif (draft := by_id.get(room_id)) is not None:
            allowed = request.filter.room.account_data
            if allowed.is_everything or allowed.allows(event_type, None, room_id, orjson.loads(content)):
                draft.update.account_data.append(event_bytes(event_type, content))
