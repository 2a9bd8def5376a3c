"""Templates of member events, for servers that are not in a room yet.

https://spec.matrix.org/v1.19/server-server-api/#joining-rooms
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from homeserver.clock import Clock
from homeserver.errors import Forbidden, IncompatibleRoomVersion, InvalidParam, NotAuthorized
from homeserver.graph.events import Events
from homeserver.graph.forward_extremities import cited_in_template
from homeserver.graph.outdated_heads import refuses_by_newest_state
from homeserver.graph.server_access import ServerAccess
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.membership.countersigning import sentence
from homeserver.membership.restricted_joins import RestrictedJoins
from homeserver.protocol.authorization import auth_event_keys, authorize
from homeserver.protocol.event_format import depth_after
from homeserver.protocol.events import CREATE, Event, references
from homeserver.protocol.hashes import reference_hash, unpadded_base64
from homeserver.protocol.identifiers import is_valid_user_id, server_of
from homeserver.protocol.json_types import JsonObject


class HandshakeTemplates:
    """Makes templates of joins, leaves and knocks for the users of other servers."""

    def __init__(
        self,
        server_name: str,
        heads: RoomHeads,
        events: Events,
        access: ServerAccess,
        restricted: RestrictedJoins,
        clock: Clock,
    ) -> None:
        self._server_name = server_name
        self._heads = heads
        self._events = events
        self._access = access
        self._restricted = restricted
        self._clock = clock

    @refuses_by_newest_state
    async def make_join(self, origin: str, room_id: str, user_id: str, versions: Collection[str]) -> JsonObject:
        """``{"room_version", "event"}``: the template of a join.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1make_joinroomiduserid
        """
        head = await self._room_for_handshake(origin, room_id, user_id)
        _check_version(head, versions, "join")
        content: JsonObject = {"membership": "join"}
        if await self._restricted.needs_authorisation(head, user_id):
            content["join_authorised_via_users_server"] = await self._restricted.authorising_user(head, user_id)
        return await self._template(head, user_id, content)

    @refuses_by_newest_state
    async def make_leave(self, origin: str, room_id: str, user_id: str) -> JsonObject:
        """``{"room_version", "event"}``: the template of a leave.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1make_leaveroomiduserid
        """
        head = await self._room_for_handshake(origin, room_id, user_id)
        return await self._template(head, user_id, {"membership": "leave"})

    @refuses_by_newest_state
    async def make_knock(self, origin: str, room_id: str, user_id: str, versions: Collection[str]) -> JsonObject:
        """``{"room_version", "event"}``: the template of a knock.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1make_knockroomiduserid
        """
        head = await self._room_for_handshake(origin, room_id, user_id)
        _check_version(head, versions, "knock on")
        if not head.version.knock_join_rule:
            raise Forbidden("This room cannot be knocked on")
        return await self._template(head, user_id, {"membership": "knock"})

    async def _room_for_handshake(self, origin: str, room_id: str, user_id: str) -> RoomHead:
        # "This MUST be a user ID on the origin server."
        if not is_valid_user_id(user_id):
            raise InvalidParam("Not a valid user ID")
        if server_of(user_id) != origin:
            raise Forbidden("The user is not one of your server")
        return await self._access.room_for_handshake(room_id, user_id, origin)

    async def _template(self, head: RoomHead, user_id: str, content: JsonObject) -> JsonObject:
        version = head.version
        keys = auth_event_keys("m.room.member", user_id, user_id, content, version)
        state = await self._heads.original_state_events(head, [*keys, CREATE])
        auth = {key: state[key] for key in keys if key in state}
        extremities = cited_in_template(head)
        pdu: JsonObject = {
            "auth_events": await self._references(head, [event.event_id for event in auth.values()]),
            "content": content,
            "depth": depth_after((extremity.depth for extremity in extremities), version),
            "origin": self._server_name,
            "origin_server_ts": self._clock.now_ms(),
            "prev_events": await self._references(head, [extremity.event_id for extremity in extremities]),
            "room_id": head.room_id,
            "sender": user_id,
            "state_key": user_id,
            "type": "m.room.member",
        }
        try:
            authorize(Event(pdu, version, "$template", head.room_id), auth, create=state.get(CREATE))
        except NotAuthorized as error:
            raise Forbidden(sentence(str(error))) from error
        return {"room_version": version.identifier, "event": pdu}

    async def _references(self, head: RoomHead, event_ids: Sequence[str]) -> list[Any]:
        version = head.version
        if not version.references_with_hashes:
            return list(event_ids)
        found = await self._events.by_id(head.room_id, event_ids)
        return references(
            version, [(name, unpadded_base64(reference_hash(found[name].original.pdu, version))) for name in event_ids]
        )


def _check_version(head: RoomHead, versions: Collection[str], verb: str) -> None:
    if head.version.identifier not in versions:
        raise IncompatibleRoomVersion(
            f"Your homeserver does not support the features required to {verb} this room",
            room_version=head.version.identifier,
        )
