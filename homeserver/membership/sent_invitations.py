"""Invitations to users of other servers, which their server has to sign before the invitation is stored here.

That server may show the invitation to its user at once, and the user may accept it before it is stored here. So it is
marked as under way first, and a join that arrives meanwhile waits for it (``ServerAccess.room_for_handshake``).

https://spec.matrix.org/v1.19/server-server-api/#inviting-to-a-room
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeAlias

from homeserver.errors import (
    IncompatibleRoomVersion,
    InvalidEvent,
    InvalidSignature,
    RemoteBrokeOff,
    RemoteFailed,
    RemoteRefused,
    RemoteUnreachable,
    UnsupportedRoomVersion,
)
from homeserver.federation.client import FederationClient
from homeserver.federation.delivery import Delivery
from homeserver.federation.refusals import as_matrix_error
from homeserver.graph.incoming_events import IncomingEvents
from homeserver.graph.state import RoomHeads
from homeserver.graph.under_way import INVITATION, UnderWay
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.membership.resident import shown_to_outsiders
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.events import Event
from homeserver.protocol.identifiers import server_of
from homeserver.protocol.json_types import JsonObject

Append: TypeAlias = Callable[[NewEvent], Awaitable[None]]
"""Stores an invitation that the other server has signed."""


class SentInvitations:
    """Sends invitations to the servers of the invited users."""

    def __init__(
        self,
        heads: RoomHeads,
        incoming: IncomingEvents,
        client: FederationClient,
        delivery: Delivery,
        under_way: UnderWay,
    ) -> None:
        self._heads = heads
        self._incoming = incoming
        self._client = client
        self._delivery = delivery
        self._under_way = under_way

    async def send(self, working: WorkingHead, invitation: NewEvent, append: Append) -> None:
        """Get an invitation signed by the invited user's server, and pass it to ``append``.

        Raises ``Forbidden`` (or ``InviteBlocked``, ``NotFound``, ``UnsupportedRoomVersion``) if that server refuses,
        ``RemoteFailed`` and ``RemoteTimedOut`` if it gives no valid answer, and the errors of ``append``.
        """
        event = invitation.event
        async with self._under_way.marked(INVITATION, event.room_id, event.state_key or ""):
            await append(replace(invitation, event=await self._signed(working, event)))

    async def _signed(self, working: WorkingHead, event: Event) -> Event:
        head = working.head
        server_name = server_of(event.state_key or "")
        shown = await shown_to_outsiders(self._heads, head, event.sender)
        if event.key in head.state:
            # The user had a membership before. If the event that ended it arrives after the new invitation, some
            # servers believe that it ends the invitation.
            await self._delivery.caught_up(server_name)

        async def send() -> JsonObject:
            return await self._client.send_invite(
                server_name,
                head.room_id,
                event.event_id,
                event.pdu,
                head.version.identifier,
                [entry.pdu for entry in shown],
            )

        try:
            try:
                answer = await send()
            except RemoteBrokeOff:
                # The other server may show the invitation to its user by now. The same event again changes nothing.
                answer = await send()
        except (RemoteRefused, RemoteUnreachable) as error:
            answer_to_user = as_matrix_error(error, f"invite {event.state_key}")
            if isinstance(answer_to_user, IncompatibleRoomVersion):
                # "One or more users being invited to the room are residents of a homeserver which does not support the
                # requested room version. The errcode will be M_UNSUPPORTED_ROOM_VERSION in these cases."
                raise UnsupportedRoomVersion(answer_to_user.message) from error
            raise answer_to_user from error
        return await self._countersigned(event, server_name, answer)

    async def _countersigned(self, event: Event, server_name: str, answer: JsonObject) -> Event:
        """Our event with the other server's signature, if nothing else was changed. Raises ``RemoteFailed``."""
        try:
            given = parse_event(answer, event.version, room_id=event.room_id)
            if {**given.pdu, "signatures": {}} != {**event.pdu, "signatures": {}}:
                raise InvalidEvent("the server changed the event")
            # If the server is the room's policy server too, it has signed the event before.
            ours = event.pdu["signatures"]
            theirs = {**given.pdu["signatures"].get(server_name, {}), **ours.get(server_name, {})}
            signatures = {**ours, server_name: theirs}
            signed = parse_event({**event.pdu, "signatures": signatures}, event.version, room_id=event.room_id)
            await self._incoming.check_signature_of(signed, server_name)
        except (InvalidEvent, InvalidSignature) as error:
            raise RemoteFailed(f"{server_name} did not sign the invitation as it should: {error}") from error
        return signed
