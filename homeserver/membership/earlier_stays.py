"""Telling a server how our users' last stay in a room ended, before one of them joins the room again through it."""

from __future__ import annotations

import itertools

import structlog

from homeserver.clock import Clock
from homeserver.errors import RemoteError
from homeserver.federation.client import FederationClient
from homeserver.federation.destination_queue import PDUS_PER_TRANSACTION_MAX
from homeserver.graph.events import Events
from homeserver.graph.state import RoomHead
from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject

logger = structlog.get_logger(__name__)


class EarlierStays:
    """Sends other servers the events by which our users left a room."""

    def __init__(self, events: Events, client: FederationClient, clock: Clock, server_name: str) -> None:
        self._events = events
        self._client = client
        self._clock = clock
        self._server_name = server_name
        self._counter = itertools.count(1)

    async def tell(self, server_name: str, head: RoomHead) -> bool:
        """Send a server our users' memberships that are the last events here of a room which they have all left.

        The server may not have got them yet: they wait in its queue after an outage. A user who came back through it
        would then still be a member there, and the new join would not follow the departure. The departure would arrive
        later, at that server alone, and state resolution could drop the user there while the user stays in the room
        here. Nothing is sent of what was said in the room: the server asks for events that it misses and may see.

        Returns whether the server got them, if there are any.
        """
        ours = [departure.json for departure in await self._departures(head)]
        if not ours:
            return True
        transaction_id = f"stay-{self._clock.now_ms()}-{next(self._counter)}"
        try:
            await self._client.send_transaction(
                server_name, transaction_id, pdus=ours[:PDUS_PER_TRANSACTION_MAX], edus=[]
            )
        except RemoteError as error:
            logger.info("departures not told", room_id=head.room_id, server=server_name, reason=error.message)
            return False
        return True

    async def is_behind(self, head: RoomHead, template: JsonObject) -> bool:
        """Whether a server's template for a join cites a membership of a user of ours that a departure here has ended.

        Such a server knows the room and does not know the departure. Others might only claim to know the room.
        """
        cited = _cited_in(template)
        ended = [auth for departure in await self._departures(head) for auth in departure.auth_events if auth in cited]
        found = await self._events.by_id(head.room_id, ended) if ended else {}
        return any(stored.event.type == "m.room.member" for stored in found.values())

    async def _departures(self, head: RoomHead) -> list[Event]:
        extremities = await self._events.by_id(head.room_id, [extremity.event_id for extremity in head.extremities])
        return [
            stored.event
            for stored in extremities.values()
            if stored.event.type == "m.room.member" and stored.event.sender_domain == self._server_name
        ]


def _cited_in(template: JsonObject) -> set[str]:
    """The auth events of a template: IDs, or pairs of an ID and hashes in the first room versions."""
    cited = template.get("auth_events")
    first = [auth[0] if isinstance(auth, list) and auth else auth for auth in cited] if isinstance(cited, list) else []
    return {auth for auth in first if isinstance(auth, str)}
