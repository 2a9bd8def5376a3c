"""Answers of /sync out of memory: for clients that are up to date but for what happened lately.

``look`` says without waiting for anything what there may be to tell, so that a request that finds nothing can begin to
wait at once. Whatever is not plain (a gap, the user's own standing, branches that meet, anything that is not at hand)
is left to ``gathering``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from homeserver.ephemeral.receipts import READ_PRIVATE, Receipts
from homeserver.ephemeral.typing import Typing
from homeserver.graph.events import Events
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.notifier import Change, StateEffect, Stream
from homeserver.protocol.events import StateKey
from homeserver.reading.visible_events import SeenEvent, Viewer, VisibleEvents
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.receipts import StoredReceipt
from homeserver.sync.pieces import allows_ephemeral, is_name, receipt_events, summary
from homeserver.sync.recent_changes import RecentChanges
from homeserver.sync.sent_members import Members
from homeserver.sync.updates import RoomUpdate, SyncRequest, Update
from homeserver.sync.views import View, Views


class NotAtHand(Exception):
    """The database has to be asked."""


@dataclass(frozen=True, slots=True)
class Window:
    """What may have happened for a user between two positions."""

    since: int
    upto: int
    view: View
    rooms: Sequence[str]
    """The rooms of the user in which something happened."""


@dataclass(slots=True)
class _Happened:
    """What happened in one room."""

    events: list[StoredEvent]
    receipts: list[StoredReceipt]
    state: dict[StateKey, StoredEvent]
    """What the state has by now of those events."""
    typing_position: int = 0
    members_changed: bool = False


class Quick:
    """Answers from memory."""

    def __init__(
        self,
        heads: RoomHeads,
        events: Events,
        visible: VisibleEvents,
        typing: Typing,
        receipts: Receipts,
        recent: RecentChanges,
        views: Views,
    ) -> None:
        self._heads = heads
        self._events = events
        self._visible = visible
        self._typing = typing
        self._receipts = receipts
        self._recent = recent
        self._views = views

    def look(self, user_id: str, since: int) -> Window | None:
        """What may have happened after a position; None if only the database knows."""
        recent = self._recent
        recent.advance()
        view = self._views.get(user_id)
        # A position that was read from the database may be ahead of what this process has been told of.
        if since < recent.floor or view is None:
            return None
        if recent.last_of_user(user_id) > min(since, view.position):
            return None
        return Window(since, max(since, recent.position), view, recent.rooms_changed(view.joined, since))

    async def update(self, request: SyncRequest, window: Window, known_members: Mapping[str, Members]) -> Update:
        """The answer, and which member events are in it. Raises ``NotAtHand``."""
        update = Update(window.upto)
        for room_id in window.rooms:
            if not request.filter.room.allows_room(room_id):
                continue
            happened = self._happened(request, self._recent.in_room(room_id, window.since), window.upto)
            room = await self._room(request, window, room_id, happened)
            if happened.members_changed:
                room.summary = await self._summary(room_id)
            if request.is_lazy and room.timeline:
                await self._add_members(request, room, known_members.get(room_id, {}), window.upto)
            if room.says_something:
                update.joined.append(room)
        return update

    def _happened(self, request: SyncRequest, changes: Sequence[Change], upto: int) -> _Happened:
        happened = _Happened([], [], {})
        for change in changes:
            if change.position > upto:
                break
            if change.stream is Stream.EVENTS:
                self._take_in_event(change, happened)
            elif change.stream is Stream.RECEIPTS:
                receipt = self._receipts.recent(change.position)
                if receipt is None:
                    raise NotAtHand
                if receipt.receipt_type != READ_PRIVATE or receipt.user_id == request.user_id:
                    happened.receipts.append(receipt)
            else:
                happened.typing_position = change.position
        return happened

    def _take_in_event(self, change: Change, happened: _Happened) -> None:
        stored = self._events.cached(change.event_id) if change.event_id is not None else None
        if stored is None or change.effect not in (StateEffect.NONE, StateEffect.OWN):
            raise NotAtHand
        if not stored.visible:
            return
        happened.events.append(stored)
        if change.effect is StateEffect.OWN:
            happened.state[stored.event.key] = stored
            event_type = stored.event.type
            if event_type in ("m.room.name", "m.room.canonical_alias"):
                raise NotAtHand  # rare, and it decides about heroes
            happened.members_changed |= event_type == "m.room.member"

    async def _room(self, request: SyncRequest, window: Window, room_id: str, happened: _Happened) -> RoomUpdate:
        timeline = await self._timeline(request, window, room_id, happened.events)
        first = timeline[0].stored.stream_position if timeline else None
        room = RoomUpdate(room_id, window.upto if first is None else first - 1, timeline)
        room.state = self._state(request, room_id, timeline, happened.state)
        if happened.typing_position and allows_ephemeral(request, "m.typing", room_id):
            if not self._typing.is_fresh(room_id, happened.typing_position):
                await self._typing.refresh(room_id, happened.typing_position)
            room.ephemeral.append(self._typing.event_in(room_id))
        if happened.receipts and self._receipts.enabled:
            room.ephemeral += receipt_events(request, room_id, happened.receipts)
        return room

    async def _timeline(
        self, request: SyncRequest, window: Window, room_id: str, events: Sequence[StoredEvent]
    ) -> list[SeenEvent]:
        allowed, ignored = request.filter.room.timeline, window.view.ignored
        wanted = [
            stored
            for stored in events
            if allowed.allows(stored.event.type, stored.event.sender, room_id, stored.event.content)
            and (stored.event.sender not in ignored or stored.event.is_state)
        ]
        if not wanted:
            return []
        seen = await self._visible.of(wanted, Viewer(request.user_id, None))
        if len(seen) > request.timeline_limit:
            raise NotAtHand
        return seen

    @staticmethod
    def _state(
        request: SyncRequest, room_id: str, timeline: Sequence[SeenEvent], changed: Mapping[StateKey, StoredEvent]
    ) -> list[StoredEvent]:
        """What changed of the state: at the end of the timeline all, at its start what is not in it."""
        if not changed:
            return []
        shown = frozenset[int]() if request.state_after else {seen.stored.event_nid for seen in timeline}
        return [s for s in changed.values() if s.event_nid not in shown and _is_wanted(request, room_id, s)]

    async def _summary(self, room_id: str) -> dict[str, object]:
        head = await self._heads.get(room_id)
        names = await self._heads.state_events(head, [("m.room.name", ""), ("m.room.canonical_alias", "")])
        if not any(is_name(event) for event in names.values()):
            raise NotAtHand
        return summary(len(head.joined), len(head.invited), None)

    async def _add_members(self, request: SyncRequest, room: RoomUpdate, known: Members, upto: int) -> None:
        """Add the member events of the senders that the device does not have."""
        senders = {seen.stored.event.sender for seen in room.timeline}
        if not request.sends_redundant_members:
            senders.difference_update(known)
        if not senders:
            return
        head = await self._heads.get(room.room_id)
        changing = {seen.stored.event.state_key for seen in room.timeline if seen.stored.event.type == "m.room.member"}
        if not senders.isdisjoint(changing):
            raise NotAtHand  # what was before is not what is now
        present = {stored.event_nid for stored in room.state}
        members = await self._members(head, senders, upto)
        room.state = [
            *room.state,
            *(m for m in members if m.event_nid not in present and _is_wanted(request, room.room_id, m)),
        ]

    async def _members(self, head: RoomHead, user_ids: set[str], upto: int) -> list[StoredEvent]:
        event_ids = [i for user_id in user_ids if (i := head.state.get(("m.room.member", user_id))) is not None]
        found = list((await self._events.by_id(event_ids)).values())
        if any((stored.stream_position or 0) > upto for stored in found):
            raise NotAtHand
        return found


def _is_wanted(request: SyncRequest, room_id: str, stored: StoredEvent) -> bool:
    event = stored.event
    return request.filter.room.state.allows(event.type, event.sender, room_id, event.content)
