"""Invitations that other servers bring by PUT /invite, also into rooms that this server is in already.

Some servers send such an invitation in no other way, so it is taken into the room at once, by the same checks as if it
had come in a transaction. Where it comes in a transaction too, it is the same event and known already.

https://spec.matrix.org/v1.19/server-server-api/#inviting-to-a-room
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import structlog

from homeserver.errors import Forbidden
from homeserver.graph.events import Events
from homeserver.graph.state import RoomHeads
from homeserver.membership.out_of_band import OutOfBand
from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.event_graph import Verdict

logger = structlog.get_logger(__name__)

TAKE_IN_S_MAX = 15.0
"""How long the other server waits for its answer while the invitation is taken in; what it builds on may be missing."""

ReceivePdus: TypeAlias = Callable[[str, Sequence[Any]], Awaitable[object]]
"""Receives PDUs of a server as those of a transaction: ``(origin, pdus)``."""


class IncomingInvitations:
    """Takes invitations of our users."""

    def __init__(self, heads: RoomHeads, events: Events, out_of_band: OutOfBand, receive: ReceivePdus) -> None:
        self._heads = heads
        self._events = events
        self._out_of_band = out_of_band
        self._receive = receive
        self._receiving: set[asyncio.Task[object]] = set()

    async def receive(
        self, origin: str, room_id: str, event_id: str, pdu: JsonObject, room_version: str, room_state: Sequence[Any]
    ) -> Event:
        """Take an invitation of one of our users; returns it with our signature.

        Raises ``Forbidden`` where the room that we are in does not allow it, and what ``OutOfBand.receive_invite``
        raises.
        """
        signed = await self._out_of_band.receive_invite(origin, room_id, event_id, pdu, room_version, room_state)
        head = await self._heads.find(room_id)
        if head is not None and head.joined_local:
            await self._take_in(origin, signed)
        return signed

    async def _take_in(self, origin: str, invitation: Event) -> None:
        task: asyncio.Task[object] = asyncio.ensure_future(self._receive(origin, [invitation.pdu]))
        self._receiving.add(task)
        task.add_done_callback(self._receiving.discard)
        done, _ = await asyncio.wait({task}, timeout=TAKE_IN_S_MAX)
        if not done:
            return  # it goes on, and what comes by /send is the same event
        stored = await self._events.get(invitation.room_id, invitation.event_id)
        if stored is None or stored.verdict & Verdict.OUTLIER:
            # What it builds on is missing. It is good all the same, as far as we can tell, and may come once more.
            logger.info("invitation not taken in", room_id=invitation.room_id, event_id=invitation.event_id)
        elif stored.verdict != Verdict.ACCEPTED:
            raise Forbidden("The room does not allow this invitation")
