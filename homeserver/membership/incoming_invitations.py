"""Invitations that other servers send by PUT /invite, also into rooms that this server is in already.

Some servers send such an invitation in no other way, so it is added to the room at once, after the same checks as if it
had come in a transaction. If it comes in a transaction too, that is the same event and known already.

https://spec.matrix.org/v1.19/server-server-api/#inviting-to-a-room
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import structlog

from homeserver.errors import Forbidden
from homeserver.graph.events import Events
from homeserver.graph.state import RoomHeads
from homeserver.membership.out_of_band_invitations import OutOfBandInvitations
from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.event_graph import Verdict

logger = structlog.get_logger(__name__)

TAKE_IN_S_MAX = 15.0
"""How long the other server has to wait while the invitation is added to the room; its ancestors may be missing."""

ReceivePdus: TypeAlias = Callable[[str, Sequence[Any]], Awaitable[Mapping[str, JsonObject]]]
"""Receives ``(origin, pdus)``, like the PDUs of a transaction; returns the result of each."""


class IncomingInvitations:
    """Accepts invitations of our users from other servers."""

    def __init__(
        self, heads: RoomHeads, events: Events, invitations: OutOfBandInvitations, receive: ReceivePdus
    ) -> None:
        self._heads = heads
        self._events = events
        self._invitations = invitations
        self._receive = receive
        self._receiving: set[asyncio.Future[Mapping[str, JsonObject]]] = set()

    async def receive(
        self, origin: str, room_id: str, event_id: str, pdu: JsonObject, room_version: str, room_state: Sequence[Any]
    ) -> Event:
        """Accept an invitation of one of our users; returns it with our signature.

        Raises ``Forbidden`` if we are in the room and it does not allow the invitation, and the errors of
        ``OutOfBandInvitations.receive_invite``.
        """
        signed = await self._invitations.receive_invite(origin, room_id, event_id, pdu, room_version, room_state)
        head = await self._heads.find(room_id)
        if head is not None and head.joined_local:
            await self._take_in(origin, signed)
        return signed

    async def _take_in(self, origin: str, invitation: Event) -> None:
        task = asyncio.ensure_future(self._receive(origin, [invitation.pdu]))
        self._receiving.add(task)
        task.add_done_callback(self._receiving.discard)
        done, _ = await asyncio.wait({task}, timeout=TAKE_IN_S_MAX)
        if not done:
            return  # the task continues; if the event also comes by /send, it is the same event
        stored = await self._events.get(invitation.room_id, invitation.event_id)
        refusal = task.result().get(invitation.event_id, {}).get("error")
        if refusal is not None and stored is None:
            raise Forbidden(f"The room does not allow this invitation: {refusal}")
        if stored is None or stored.verdict & Verdict.OUTLIER:
            # Its ancestors are missing. As far as we can tell it is valid nevertheless, and it may be sent again.
            logger.info(
                "invitation not added to the room yet", room_id=invitation.room_id, event_id=invitation.event_id
            )
        elif stored.verdict != Verdict.ACCEPTED:
            raise Forbidden("The room does not allow this invitation")
