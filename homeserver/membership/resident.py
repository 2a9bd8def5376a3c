"""Helping other servers' users into rooms that this server is in, and out of them.

https://spec.matrix.org/v1.19/server-server-api/#joining-rooms
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection

from homeserver.clock import Clock
from homeserver.errors import (
    Forbidden,
    IncompatibleRoomVersion,
    InvalidParam,
    InvalidSignature,
    NotAuthorized,
)
from homeserver.graph.append import RoomWriters
from homeserver.graph.events import Events
from homeserver.graph.forward_extremities import cited_in_template
from homeserver.graph.incoming_events import IncomingEvents, parse_submitted
from homeserver.graph.judgement import MissingAncestors
from homeserver.graph.outdated_heads import refuses_by_newest_state
from homeserver.graph.placement import Placer
from homeserver.graph.policy_servers import Opinions, PolicyServers, Unasked
from homeserver.graph.server_access import ServerAccess
from homeserver.graph.state import RoomHead, RoomHeads, StateReader, StateSnapshot
from homeserver.graph.working_head import Job, NewEvent, WorkingHead
from homeserver.membership.restricted_joins import RestrictedJoins
from homeserver.protocol.authorization import auth_event_keys, authorize
from homeserver.protocol.compose import add_signature
from homeserver.protocol.event_format import PDU_BYTES_MAX, depth_after
from homeserver.protocol.events import CREATE, Event, Signer, references
from homeserver.protocol.hashes import reference_hash, unpadded_base64
from homeserver.protocol.identifiers import is_valid_user_id, server_of
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import RoomVersion
from homeserver.reading.client_events import STRIPPED_STATE_TYPES
from homeserver.storage import federation_queries
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent, Verdict


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A member event that was taken into the room, and the state before it."""

    event: Event
    before: StateSnapshot


class Resident:
    """Answers the handshakes of servers that are not in a room yet."""

    def __init__(
        self,
        server_name: str,
        database: Database,
        heads: RoomHeads,
        events: Events,
        states: StateReader,
        writers: RoomWriters,
        placer: Placer,
        incoming: IncomingEvents,
        access: ServerAccess,
        restricted: RestrictedJoins,
        policy: PolicyServers,
        signer: Signer,
        clock: Clock,
    ) -> None:
        self._server_name = server_name
        self._database = database
        self._heads = heads
        self._events = events
        self._states = states
        self._writers = writers
        self._placer = placer
        self._incoming = incoming
        self._access = access
        self._restricted = restricted
        self._policy = policy
        self._signer = signer
        self._clock = clock

    # -- templates -----------------------------------------------------------------------------------------------------

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
        """The same for a leave.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1make_leaveroomiduserid
        """
        head = await self._room_for_handshake(origin, room_id, user_id)
        return await self._template(head, user_id, {"membership": "leave"})

    @refuses_by_newest_state
    async def make_knock(self, origin: str, room_id: str, user_id: str, versions: Collection[str]) -> JsonObject:
        """The same for a knock.

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
        state = await self._heads.state_events(head, [*keys, CREATE])
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
            raise Forbidden(_sentence(str(error))) from error
        return {"room_version": version.identifier, "event": pdu}

    async def _references(self, head: RoomHead, event_ids: Sequence[str]) -> list[Any]:
        version = head.version
        if not version.references_with_hashes:
            return list(event_ids)
        found = await self._events.by_id(head.room_id, event_ids)
        return references(
            version, [(name, unpadded_base64(reference_hash(found[name].event.pdu, version))) for name in event_ids]
        )

    # -- member events -------------------------------------------------------------------------------------------------

    async def send_join(
        self, origin: str, room_id: str, event_id: str, pdu: JsonObject, *, omit_members: bool = False
    ) -> bytes:
        """Take a join into the room; returns the JSON of the answer of version 2.

        ``omit_members`` leaves out of the auth chain what is in the state already; members are not omitted.

        https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_joinroomideventid
        """
        head = await self._room_of(origin, room_id, pdu)
        event = _parse_member_event(head.version, origin, room_id, event_id, pdu, "join")
        await self._check_authorising_user(head, event)
        accepted = await self._accept(event)
        state_ids = list(accepted.before.state.values())
        servers = sorted(head.joined_servers)
        return await self._database.read(_join_answer, head, accepted.event, state_ids, servers, omit_members)

    async def _room_of(self, origin: str, room_id: str, pdu: JsonObject) -> RoomHead:
        user_id = pdu.get("state_key")
        return await self._access.room_for_handshake(room_id, user_id if isinstance(user_id, str) else "", origin)

    async def _check_authorising_user(self, head: RoomHead, event: Event) -> None:
        """What our signature would vouch for: that the user met a condition of the restricted room."""
        authorising = event.content.get("join_authorised_via_users_server")
        if not event.version.restricted_join_rule or authorising is None:
            return
        if not isinstance(authorising, str) or authorising.partition(":")[2] != self._server_name:
            return  # somebody else's signature is asked for by the checks on receipt
        if await self._restricted.needs_authorisation(head, event.sender):
            await self._restricted.authorising_user(head, event.sender)

    async def send_leave(self, origin: str, room_id: str, event_id: str, pdu: JsonObject) -> None:
        """Take a leave into the room.

        https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_leaveroomideventid
        """
        head = await self._room_of(origin, room_id, pdu)
        await self._accept(_parse_member_event(head.version, origin, room_id, event_id, pdu, "leave"))

    async def send_knock(self, origin: str, room_id: str, event_id: str, pdu: JsonObject) -> bytes:
        """Take a knock into the room; returns the JSON of the answer.

        https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1send_knockroomideventid
        """
        head = await self._room_of(origin, room_id, pdu)
        if not head.version.knock_join_rule:
            raise Forbidden("This room cannot be knocked on")
        await self._accept(_parse_member_event(head.version, origin, room_id, event_id, pdu, "knock"))
        shown = await shown_to_outsiders(self._heads, head)
        return b'{"knock_room_state":[%s]}' % b",".join(event.json for event in shown)

    async def _accept(self, event: Event) -> _Accepted:
        """Append a member event of another server's user with our signature beside its own.

        Raises ``InvalidParam`` for an unknown place in the graph, ``Forbidden`` for a bad signature and where it is not
        allowed, now or at its place, and what else keeps the room's policy server from signing it.
        """
        # "The resident homeserver then adds its signature to this event and accepts it into the room's event graph."
        signed = add_signature(event, self._signer)
        if len(signed.json) > PDU_BYTES_MAX:
            raise InvalidParam("The event is too large to be signed by another server")
        (outcome,) = await self._incoming.verify([signed])
        if isinstance(outcome, InvalidSignature):
            raise Forbidden(f"The event is not properly signed: {outcome}")
        runs = 0
        opinions = Opinions()
        taken: list[NewEvent] = []

        async def job(working: WorkingHead) -> Sequence[NewEvent]:
            nonlocal runs
            runs += 1
            taken.clear()
            if await self._placer.is_placed(working, signed, ask_database=runs > 1):
                return ()
            new = await self._placer.compose(working, signed, opinions)
            if new.verdict != Verdict.ACCEPTED:
                raise opinions.objection_to(signed) or Forbidden(_sentence(new.reason or "The event is not allowed"))
            taken.append(new)
            return (new,)

        await self._submit(signed, job, opinions)
        for new in taken:
            assert new.before is not None
            return _Accepted(new.event, new.before)
        return await self._accepted_before(signed)

    async def _submit(self, signed: Event, job: Job, opinions: Opinions) -> None:
        while True:
            try:
                await self._writers.submit(signed.room_id, job)
            except MissingAncestors as error:
                raise InvalidParam("The event does not follow events of the room that are known here") from error
            except Unasked as unasked:
                # What we take into the room, we send to the others: it needs the policy server's signature first.
                await self._policy.ask_about(unasked.server, [signed], opinions)
            else:
                return

    async def _accepted_before(self, event: Event) -> _Accepted:
        """A retry: the event has been accepted already."""
        stored: StoredEvent | None = await self._events.get(event.room_id, event.event_id)
        if stored is None or stored.verdict != Verdict.ACCEPTED:
            raise Forbidden("The event was not accepted")
        return _Accepted(stored.event, await self._states.before(stored))


async def shown_to_outsiders(heads: RoomHeads, head: RoomHead, *user_ids: str) -> list[Event]:
    """The state that tells somebody who is not in the room what it is, with the member events of some users.

    https://spec.matrix.org/v1.19/client-server-api/#stripped-state
    """
    keys = [(event_type, "") for event_type in STRIPPED_STATE_TYPES]
    keys += [("m.room.member", user_id) for user_id in user_ids]
    found: Mapping[tuple[str, str], Event] = await heads.state_events(head, keys)
    return [found[key] for key in keys if key in found]


def _check_version(head: RoomHead, versions: Collection[str], verb: str) -> None:
    if head.version.identifier not in versions:
        raise IncompatibleRoomVersion(
            f"Your homeserver does not support the features required to {verb} this room",
            room_version=head.version.identifier,
        )


def _parse_member_event(
    version: RoomVersion, origin: str, room_id: str, event_id: str, pdu: JsonObject, membership: str
) -> Event:
    """Check 1 and what the endpoints ask for beyond.

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
    """From the database to the wire, without parsing what is in between."""
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


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
