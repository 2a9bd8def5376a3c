"""What clients read of a room's history besides /sync: pages of events, and single events.

https://spec.matrix.org/v1.19/client-server-api/#getting-events-for-a-room
"""

from __future__ import annotations

from collections.abc import Sequence

from homeserver.clock import Clock
from homeserver.errors import Forbidden, NotFound
from homeserver.graph.events import Events
from homeserver.graph.state import StateReader
from homeserver.protocol.events import StateKey
from homeserver.reading.client_events import ClientEvents, OnBehalfOf
from homeserver.reading.paging import Page, PageRequest, Pages
from homeserver.reading.room_access import RoomAccess
from homeserver.reading.visible_events import SeenEvent, VisibleEvents
from homeserver.storage.event_graph import StoredEvent

LIMIT_MAX = 1_000


class History:
    """Reads the history of rooms for clients."""

    def __init__(
        self,
        pages: Pages,
        events: Events,
        states: StateReader,
        client_events: ClientEvents,
        visible: VisibleEvents,
        access: RoomAccess,
        clock: Clock,
    ) -> None:
        self._pages = pages
        self._events = events
        self._states = states
        self._client_events = client_events
        self._visible = visible
        self._access = access
        self._clock = clock

    async def messages(self, requester: OnBehalfOf, room_id: str, request: PageRequest) -> Page:
        """One page of a room's history. Raises ``Forbidden`` if the user may read nothing of the room.

        https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages
        """
        access = await self._access.of(requester.user_id, room_id)
        found, start, end = await self._pages.read(access, request)
        state = await self._senders_members(found) if request.filter.lazy_load_members else []
        return Page(found, start, end, state)

    async def _senders_members(self, found: Sequence[SeenEvent]) -> list[StoredEvent]:
        """The member events of the senders, as of the first event or, if they were not members then, the last one."""
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
        """The response body of /messages."""
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
            answer += [b',"state":', self._client_events.render_list(page.state, now)]
        return b"".join([*answer, b"}"])

    async def event(self, requester: OnBehalfOf, room_id: str, event_id: str) -> bytes:
        """One event as JSON. Raises ``NotFound`` if it is unknown or the user may not see it."""
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
