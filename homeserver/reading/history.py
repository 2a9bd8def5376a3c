"""What clients read of a room beside /sync: its messages page by page, single events, its state and members.

https://spec.matrix.org/v1.19/client-server-api/#getting-events-for-a-room
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from homeserver.clock import Clock
from homeserver.errors import Forbidden, NotFound
from homeserver.graph.events import Events
from homeserver.graph.outdated_heads import refuses_by_newest_state
from homeserver.graph.state import RoomHeads, StateReader
from homeserver.protocol.events import StateKey
from homeserver.protocol.redaction import redact_event
from homeserver.reading.client_events import ClientEvents, OnBehalfOf, dumps
from homeserver.reading.paging import Backfiller, Page, PageRequest, Pages
from homeserver.reading.room_access import Access, RoomAccess
from homeserver.reading.visible_events import SeenEvent, VisibleEvents
from homeserver.storage import history as store
from homeserver.storage import past_states
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.history import JoinedMember

LIMIT_MAX = 1_000


class History:
    """Reads rooms for clients."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        events: Events,
        states: StateReader,
        client_events: ClientEvents,
        visible: VisibleEvents,
        access: RoomAccess,
        backfiller: Backfiller,
        clock: Clock,
    ) -> None:
        self._database = database
        self._heads = heads
        self._events = events
        self._states = states
        self._client_events = client_events
        self._visible = visible
        self._access = access
        self._clock = clock
        self._pages = Pages(database, events, visible, backfiller, clock)

    # -- messages ------------------------------------------------------------------------------------------------------

    async def messages(self, requester: OnBehalfOf, room_id: str, request: PageRequest) -> Page:
        """One page of a room's history. Raises ``Forbidden`` for who may read nothing of it.

        https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages
        """
        access = await self._access.of(requester.user_id, room_id)
        found, start, end = await self._pages.read(access, request)
        state = await self._senders_members(found) if request.filter.lazy_load_members else []
        return Page(found, start, end, state)

    async def _senders_members(self, found: Sequence[SeenEvent]) -> list[StoredEvent]:
        """The member events of the senders, as of the first event."""
        senders: dict[StateKey, None] = {("m.room.member", seen.stored.event.sender): None for seen in found}
        if not senders:
            return []
        event_ids: dict[StateKey, str] = {}
        for seen in (found[0], found[-1]):
            missing = [key for key in senders if key not in event_ids]
            if missing and seen.stored.state_group is not None:
                event_ids.update(await self._states.lookup(seen.stored.state_group, missing))
        members = await self._events.by_id(found[0].stored.event.room_id, event_ids.values())
        return [members[event_id] for event_id in event_ids.values() if event_id in members]

    async def render_page(self, requester: OnBehalfOf, page: Page) -> bytes:
        """The answer of /messages."""
        await self._client_events.prepare([*(seen.stored for seen in page.events), *page.state])
        now = self._clock.now_ms()
        render = self._client_events.render
        chunk = b",".join(
            [
                render(s.stored, now_ms=now, with_room_id=True, requester=requester, membership=s.membership)
                for s in page.events
            ]
        )
        answer = [b'{"chunk":[', chunk, b'],"start":"', page.start.encode(), b'"']
        if page.end is not None:
            answer += [b',"end":"', page.end.encode(), b'"']
        if page.state:
            answer += [b',"state":', self._render_list(page.state, now)]
        return b"".join([*answer, b"}"])

    # -- single events and state ---------------------------------------------------------------------------------------

    async def event(self, requester: OnBehalfOf, room_id: str, event_id: str) -> bytes:
        """One event, rendered. Raises ``NotFound`` if it is not there or may not be seen."""
        try:
            access = await self._access.of(requester.user_id, room_id)
        except Forbidden:
            raise NotFound("There is no such event, or you may not see it") from None
        stored = await self._events.get(room_id, event_id)
        if stored is None:
            raise NotFound("There is no such event, or you may not see it")
        if stored.stream_position is None:
            stored = (await self._events.by_nid_anew([stored]))[stored.event_nid]
        seen = await self._visible.of([stored], access.viewer)
        if not seen:
            raise NotFound("There is no such event, or you may not see it")
        await self._client_events.prepare([stored])
        return self._client_events.render(
            stored,
            now_ms=self._clock.now_ms(),
            with_room_id=True,
            requester=requester,
            membership=seen[0].membership,
        )

    async def state(self, user_id: str, room_id: str) -> bytes:
        """All state events of a room, rendered as a list: now, or when the user left. Raises ``Forbidden``."""
        access = await self._access.of(user_id, room_id)
        state = access.head.state
        if access.departure is not None and access.departure.state_group is not None:
            state = (await self._states.snapshot(access.departure.state_group)).state
        return await self._rendered_events(room_id, state.values())

    async def state_event(self, user_id: str, room_id: str, key: StateKey) -> StoredEvent:
        """One state event of a room: now, or when the user left. Raises ``Forbidden``, ``NotFound``."""
        access = await self._access.of(user_id, room_id)
        if access.departure is not None and access.departure.state_group is not None:
            event_id = (await self._states.lookup(access.departure.state_group, [key])).get(key)
        else:
            event_id = access.head.state.get(key)
        stored = await self._events.get(room_id, event_id) if event_id is not None else None
        if stored is None:
            raise NotFound("The room has no such state")
        return stored

    async def render_event(self, stored: StoredEvent) -> bytes:
        """An event in the format for clients."""
        await self._client_events.prepare([stored])
        return self._client_events.render(stored, now_ms=self._clock.now_ms(), with_room_id=True)

    def render_content(self, stored: StoredEvent) -> bytes:
        """The content of an event, or what is left of it."""
        return dumps(redact_event(stored.event).content if stored.redacted_by is not None else stored.event.content)

    # -- members -------------------------------------------------------------------------------------------------------

    async def members(
        self,
        user_id: str,
        room_id: str,
        *,
        at: int | None = None,
        membership: str | None = None,
        not_membership: str | None = None,
    ) -> bytes:
        """The m.room.member events of a room, rendered as a list: now, at a place, or when the user left.

        Raises ``Forbidden``.
        """
        access = await self._access.of(user_id, room_id)
        stored = await self._members_at(access, at)
        chosen = [event for event in stored if _is_chosen(event.event.membership, membership, not_membership)]
        await self._client_events.prepare(chosen)
        return self._render_list(chosen, self._clock.now_ms())

    async def _members_at(self, access: Access, at: int | None) -> Iterable[StoredEvent]:
        departure = access.departure
        if departure is not None and (at is None or departure.place is None or at >= departure.place):
            return await self._members_of_group(access.head.room_id, departure.state_group)
        if at is None:
            members = [event_id for key, event_id in access.head.state.items() if key[0] == "m.room.member"]
            return (await self._events.by_id(access.head.room_id, members)).values()
        point = await self._database.read(past_states.point_at, access.head.room_nid, at)
        if isinstance(point, past_states.StreamPoint):
            nids = await self._database.read(past_states.members_at, access.head.room_nid, point.position)
            return (await self._events.by_nid(nids)).values()
        if not point.is_before:
            return await self._members_of_group(access.head.room_id, point.state_group)
        event = (await self._events.by_nid([point.event_nid]))[point.event_nid]
        members_after = await self._members_of_group(access.head.room_id, point.state_group)
        replaced = [event.replaces_nid] if event.event.type == "m.room.member" and event.replaces_nid else []
        return [
            *(member for member in members_after if member.event_nid != event.event_nid),
            *(await self._events.by_nid(replaced)).values(),
        ]

    async def _members_of_group(self, room_id: str, state_group: int | None) -> Iterable[StoredEvent]:
        if state_group is None:
            return ()
        state = (await self._states.snapshot(state_group)).state
        members = [event_id for key, event_id in state.items() if key[0] == "m.room.member"]
        return (await self._events.by_id(room_id, members)).values()

    @refuses_by_newest_state
    async def joined_members(self, user_id: str, room_id: str) -> list[JoinedMember]:
        """The joined users of a room that the user is in. Raises ``Forbidden``."""
        head = await self._heads.find(room_id)
        if head is None or user_id not in head.joined_local:
            raise Forbidden("You are not in this room")
        return await self._database.read(store.joined_members, head.room_nid)

    async def joined_rooms(self, user_id: str) -> list[str]:
        """The IDs of the rooms that the user is in."""
        return await self._database.read(store.joined_room_ids, user_id)

    async def _rendered_events(self, room_id: str, event_ids: Iterable[str]) -> bytes:
        stored = list((await self._events.by_id(room_id, event_ids)).values())
        await self._client_events.prepare(stored)
        return self._render_list(stored, self._clock.now_ms())

    def _render_list(self, stored: Iterable[StoredEvent], now_ms: int) -> bytes:
        render = self._client_events.render
        return b"[" + b",".join([render(event, now_ms=now_ms, with_room_id=True) for event in stored]) + b"]"


def _is_chosen(value: str | None, membership: str | None, not_membership: str | None) -> bool:
    """ "the two parameters create an 'or' condition: either the membership is the same as membership or is not the
    same as not_membership."
    """
    if membership is None and not_membership is None:
        return True
    return (membership is not None and value == membership) or (not_membership is not None and value != not_membership)
