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

logger = structlog.get_logger(__name__)


class EarlierStays:
    """Sends other servers the events by which our users left a room."""

    def __init__(self, events: Events, client: FederationClient, clock: Clock, server_name: str) -> None:
        self._events = events
        self._client = client
        self._clock = clock
        self._server_name = server_name
        self._counter = itertools.count(1)

    async def tell(self, server_name: str, head: RoomHead) -> None:
        """Send a server our users' memberships that are the last events here of a room which they have all left.

        The server may not have got them yet: they wait in its queue after an outage. A user who came back through it
        would then still be a member there, and the new join would not follow the departure. The departure would arrive
        later, at that server alone, and state resolution could drop the user there while the user stays in the room
        here. Nothing is sent of what was said in the room: the server asks for events that it misses and may see.

        Never fails: whether the server can be reached shows with the request to join.
        """
        extremities = await self._events.by_id(head.room_id, [extremity.event_id for extremity in head.extremities])
        ours = [
            stored.event.json
            for stored in extremities.values()
            if stored.event.type == "m.room.member" and stored.event.sender_domain == self._server_name
        ]
        if not ours:
            return
        transaction_id = f"stay-{self._clock.now_ms()}-{next(self._counter)}"
        try:
            await self._client.send_transaction(
                server_name, transaction_id, pdus=ours[:PDUS_PER_TRANSACTION_MAX], edus=[]
            )
        except RemoteError as error:
            logger.info("departures not told", room_id=head.room_id, server=server_name, reason=error.message)
