"""Helping other servers' users into rooms that this server is in, and out of them.

``handshake_templates`` makes the templates of their member events; this module answers when the signed events come.

https://spec.matrix.org/v1.19/server-server-api/#joining-rooms
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson
from sqlalchemy import Connection

from homeserver.errors import Forbidden, InvalidParam
from homeserver.graph.incoming_events import parse_submitted
from homeserver.graph.server_access import ServerAccess
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.membership.countersigning import Countersigning
from homeserver.membership.restricted_joins import RestrictedJoins
from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import RoomVersion
from homeserver.reading.client_events import STRIPPED_STATE_TYPES
from homeserver.storage import federation_queries
from homeserver.storage.database import Database


class Resident:
    """Answers the member events that servers outside of a room send to get their users in or out."""

    def __init__(
        self,
        server_name: str,
        database: Database,
        heads: RoomHeads,
        access: ServerAccess,
        restricted: RestrictedJoins,
        countersigning: Countersigning,
    ) -> None:
        self._server_name = server_name
        self._database = database
        self._heads = heads
        self._access = access
        self._restricted = restricted
        self._countersigning = countersigning

    async def send_join(
        self, origin: str, room_id: str, event_id: str, pdu: JsonObject, *, omit_members: bool = False
    ) -> bytes:
        """Accept a join into the room; returns the JSON of the answer of version 2.

        ``omit_members`` leaves events out of the auth chain that are in the state already; no members are omitted.

        https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_joinroomideventid
        """
        head = await self._room_of(origin, room_id, pdu)
        event = _parse_member_event(head.version, origin, room_id, event_id, pdu, "join")
        await self._check_authorising_user(head, event)
        accepted = await self._countersigning.accept(event)
        state_ids = list(accepted.before.state.values())
        servers = sorted(head.joined_servers)
        return await self._database.read(_join_answer, head, accepted.event, state_ids, servers, omit_members)

    async def _room_of(self, origin: str, room_id: str, pdu: JsonObject) -> RoomHead:
        user_id = pdu.get("state_key")
        return await self._access.room_for_handshake(room_id, user_id if isinstance(user_id, str) else "", origin)

    async def _check_authorising_user(self, head: RoomHead, event: Event) -> None:
        """Check what our signature on the join confirms: that the user met a condition of the restricted room."""
        authorising = event.content.get("join_authorised_via_users_server")
        if not event.version.restricted_join_rule or authorising is None:
            return
        if not isinstance(authorising, str) or authorising.partition(":")[2] != self._server_name:
            return  # another server's signature is needed, which the checks on receipt verify
        if await self._restricted.needs_authorisation(head, event.sender):
            await self._restricted.authorising_user(head, event.sender)

    async def send_leave(self, origin: str, room_id: str, event_id: str, pdu: JsonObject) -> None:
        """Accept a leave into the room.

        https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_leaveroomideventid
        """
        head = await self._room_of(origin, room_id, pdu)
        await self._countersigning.accept(_parse_member_event(head.version, origin, room_id, event_id, pdu, "leave"))

    async def send_knock(self, origin: str, room_id: str, event_id: str, pdu: JsonObject) -> bytes:
        """Accept a knock into the room; returns the JSON of the answer.

        https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1send_knockroomideventid
        """
        head = await self._room_of(origin, room_id, pdu)
        if not head.version.knock_join_rule:
            raise Forbidden("This room cannot be knocked on")
        await self._countersigning.accept(_parse_member_event(head.version, origin, room_id, event_id, pdu, "knock"))
        shown = await shown_to_outsiders(self._heads, head)
        return b'{"knock_room_state":[%s]}' % b",".join(event.json for event in shown)


async def shown_to_outsiders(heads: RoomHeads, head: RoomHead, *user_ids: str) -> list[Event]:
    """The state that describes a room to users who are not in it, with the member events of some users.

    https://spec.matrix.org/v1.19/client-server-api/#stripped-state
    """
    keys = [(event_type, "") for event_type in STRIPPED_STATE_TYPES]
    keys += [("m.room.member", user_id) for user_id in user_ids]
    found: Mapping[tuple[str, str], Event] = await heads.state_events(head, keys)
    return [found[key] for key in keys if key in found]


def _parse_member_event(
    version: RoomVersion, origin: str, room_id: str, event_id: str, pdu: JsonObject, membership: str
) -> Event:
    """Parse and check the event of a send_join, send_leave or send_knock.

    Raises ``BadJson``, ``InvalidParam``, and ``Forbidden`` for an event of another server's user.
    """
    event = parse_submitted(pdu, version, room_id, event_id)
    if event.type != "m.room.member" or event.membership != membership:
        raise InvalidParam(f"Not a {membership} event")
    if event.state_key != event.sender:
        raise InvalidParam("The event is not about its sender's own membership")
    if event.sender_domain != origin:
        raise Forbidden("The sender is not a user of your server")
    return event


def _join_answer(
    connection: Connection,
    head: RoomHead,
    join: Event,
    state_ids: Sequence[str],
    servers: Sequence[str],
    omit_members: bool,
) -> bytes:
    """The answer to a join, put together from the stored JSON of the events without parsing it."""
    room_nid, version = head.room_nid, head.version
    state = federation_queries.pdus_by_id(connection, room_nid, version, state_ids)
    chain = federation_queries.auth_chain_of(
        connection, room_nid, [*state_ids, join.event_id], besides=not omit_members
    )
    auth_chain = federation_queries.pdus_by_nid(connection, room_nid, version, chain)
    return b'{"auth_chain":[%s],"event":%s,"members_omitted":false,"servers_in_room":%s,"state":[%s]}' % (
        b",".join(auth_chain),
        join.json,
        orjson.dumps(servers),
        b",".join(state),
    )
