"""Knocking on rooms that this server is not in.

https://spec.matrix.org/v1.19/server-server-api/#knocking-rooms
"""

from __future__ import annotations

from collections.abc import Sequence

from homeserver.errors import RemoteError
from homeserver.federation.client import FederationClient
from homeserver.graph.incoming_events import IncomingEvents
from homeserver.graph.out_of_band import OutOfBandMemberships
from homeserver.membership.attempts import Attempts
from homeserver.membership.handshakes import Handshakes
from homeserver.membership.join_answers import UnusableAnswer
from homeserver.protocol.events import create_version
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.reading.client_events import stripped_event

KNOCK_STATE_MAX = 100


class RemoteKnocks:
    """Lets our users knock through other servers."""

    def __init__(
        self,
        handshakes: Handshakes,
        incoming: IncomingEvents,
        client: FederationClient,
        memberships: OutOfBandMemberships,
    ) -> None:
        self._handshakes = handshakes
        self._incoming = incoming
        self._client = client
        self._memberships = memberships

    async def knock(self, room_id: str, user_id: str, content: JsonObject, servers: Sequence[str]) -> None:
        """Knock on a room through one of these servers or others. Raises the same errors as ``RemoteJoins.join``."""
        standing = await self._handshakes.standing(user_id, room_id)
        attempts = Attempts("knock on the room")
        for server_name in self._handshakes.candidates(room_id, servers, standing):
            try:
                answer = await self._client.make_knock(server_name, room_id, user_id, ROOM_VERSIONS)
                version, event = self._handshakes.finish(server_name, answer, room_id, user_id, content)
                answer = await self._client.send_knock(server_name, room_id, event.event_id, event.pdu)
            except (RemoteError, UnusableAnswer) as error:
                attempts.failed(server_name, error)
                continue
            # "Entries which are improperly signed or formatted SHOULD be removed by the server"
            shown = await self._incoming.check(answer["knock_room_state"][:KNOCK_STATE_MAX], version, room_id)
            if any(create_version(entry) != version.identifier for entry in shown if entry.type == "m.room.create"):
                shown = []  # it describes another room than the one that was knocked on
            stripped = [stripped_event(entry) for entry in shown if entry.is_state]
            await self._memberships.store(version, event, stripped)
            return
        raise attempts.error()
