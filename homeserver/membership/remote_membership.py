"""Memberships of our users that other servers have to help with.

Joining a room that this server is not in goes through one that is; so do leaving and knocking. An invitation of another
server's user is signed by that server before it exists here.

https://spec.matrix.org/v1.19/server-server-api/#joining-rooms
https://spec.matrix.org/v1.19/server-server-api/#leaving-rooms-rejecting-invites
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakValueDictionary

import structlog

from homeserver.clock import Clock
from homeserver.errors import (
    Forbidden,
    HomeserverError,
    IncompatibleRoomVersion,
    InvalidEvent,
    InvalidSignature,
    RemoteError,
    RemoteFailed,
    RemoteRefused,
    RemoteUnreachable,
    UnsupportedRoomVersion,
)
from homeserver.federation.client import FederationClient
from homeserver.federation.delivery import Delivery
from homeserver.federation.refusals import as_matrix_error
from homeserver.graph.events import Events
from homeserver.graph.imports import RoomImports
from homeserver.graph.incoming_events import IncomingEvents
from homeserver.graph.placement import Placer
from homeserver.graph.send import Sender, new_event_id_localpart
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.membership.attempts import Attempts
from homeserver.membership.join_answers import JoinAnswers, UnusableAnswer
from homeserver.membership.out_of_band import servers_in
from homeserver.membership.owed_requests import LEAVE, UNDO_JOIN, OwedRequests
from homeserver.membership.resident import shown_to_outsiders
from homeserver.protocol.compose import compose_event, finish_template
from homeserver.protocol.event_format import depth_after, parse_event
from homeserver.protocol.events import Event, EventDraft, Signer
from homeserver.protocol.hashes import reference_hash, unpadded_base64
from homeserver.protocol.identifiers import is_valid_server_name, server_of
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.reading.client_events import stripped_event
from homeserver.storage import delivery as store
from homeserver.storage import user_rooms
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict
from homeserver.storage.user_rooms import Standing

logger = structlog.get_logger(__name__)

CANDIDATES_MAX = 10
"""Servers that are asked one after the other."""
KNOCK_STATE_MAX = 100
UNDO_UNCERTAIN_JOIN_MS = 60_000
"""A server that did not answer to a join in time may be about to accept it yet."""


@dataclass(slots=True)
class _VainJoins:
    """Joins that servers have accepted, or may have, whose answers we cannot build on."""

    event_ids: dict[str, str] = field(default_factory=dict)
    """Of each server the join that it got."""
    is_uncertain: bool = False
    """Whether a server may have accepted one without saying so."""

    def failed(self, server_name: str, error: RemoteError) -> None:
        """A server did not answer to a join as it should."""
        if isinstance(error, RemoteRefused) and error.status < 500:
            del self.event_ids[server_name]
        else:
            self.is_uncertain = True


class RemoteMembership:
    """Has other servers help with the memberships of our users."""

    def __init__(
        self,
        server_name: str,
        database: Database,
        heads: RoomHeads,
        events: Events,
        imports: RoomImports,
        incoming: IncomingEvents,
        placer: Placer,
        sender: Sender,
        client: FederationClient,
        delivery: Delivery,
        owed: OwedRequests,
        signer: Signer,
        clock: Clock,
    ) -> None:
        self._server_name = server_name
        self._database = database
        self._heads = heads
        self._events = events
        self._imports = imports
        self._incoming = incoming
        self._placer = placer
        self._sender = sender
        self._client = client
        self._delivery = delivery
        self._owed = owed
        self._signer = signer
        self._clock = clock
        self._join_answers = JoinAnswers(incoming, client)
        self._joining: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # -- joining -------------------------------------------------------------------------------------------------------

    async def join(self, room_id: str, user_id: str, content: JsonObject, servers: Sequence[str]) -> None:
        """Join a room through one of these servers, or one that is known from an invitation.

        Raises ``Forbidden`` where the room does not let the user in, ``NotFound`` where no server knows the room,
        ``IncompatibleRoomVersion``, and ``RemoteFailed`` or ``RemoteTimedOut`` where nobody could help.
        """
        before = await self._heads.find(room_id)
        was_resident = self._is_resident(before)
        lock = self._joining.setdefault(room_id, asyncio.Lock())
        async with lock:
            if not was_resident and self._is_resident(await self._heads.find(room_id)):
                # Another of our users was faster, and brought the room along.
                await self._sender.send(room_id, EventDraft("m.room.member", user_id, content, user_id))
                return
            standing = await self._standing(user_id, room_id)
            attempts = Attempts("join the room")
            vain = _VainJoins()
            try:
                for server_name in self._candidates(room_id, servers, standing):
                    try:
                        await self._join_through(server_name, room_id, user_id, content, was_resident, vain)
                    except (RemoteError, UnusableAnswer) as error:
                        logger.info("join not possible", room_id=room_id, server=server_name, reason=str(error))
                        attempts.failed(server_name, error)
                    else:
                        vain.event_ids.clear()
                        await self._database.write(store.cancel_requests, room_id, user_id)
                        return
            finally:
                await self._owe_leave_after(vain, room_id, user_id)
        if (
            standing is not None
            and standing.membership == "invite"
            and attempts.all_forbade(server_of(standing.sender))
        ):
            # Nobody lets the user in, not even the server that the invitation came from: it is no longer good.
            await self._leave_here(standing, user_id, None)
            raise Forbidden("The invitation is no longer valid")
        raise attempts.error()

    def _is_resident(self, head: RoomHead | None) -> bool:
        return head is not None and self._server_name in head.joined_servers

    async def _join_through(
        self,
        server_name: str,
        room_id: str,
        user_id: str,
        content: JsonObject,
        is_resident: bool,
        vain: _VainJoins,
    ) -> None:
        answer = await self._client.make_join(server_name, room_id, user_id, ROOM_VERSIONS)
        version, event = self._finish(server_name, answer, room_id, user_id, content)
        vain.event_ids[server_name] = event.event_id
        try:
            joined = await self._client.send_join(server_name, room_id, event.event_id, event.pdu)
        except RemoteError as error:
            vain.failed(server_name, error)
            raise
        # The server through which we join sends the join on to the others.
        self._delivery.do_not_send(event.event_id)
        if is_resident:
            signed = await self._join_answers.signed_join(event, joined)
            outcome = (await self._placer.place(server_name, room_id, [signed])).get(event.event_id)
            if isinstance(outcome, HomeserverError):
                raise UnusableAnswer(server_name, str(outcome)) from outcome
            if outcome is not None and outcome.verdict & Verdict.REJECTED:
                raise UnusableAnswer(server_name, "by what we know of the room, the join is not allowed")
            return
        room = await self._join_answers.check(server_name, version, event, joined)
        await self._imports.import_room(version, room.join, room.state, room.auth_chain)

    def _finish(
        self, server_name: str, answer: JsonObject, room_id: str, user_id: str, content: JsonObject
    ) -> tuple[RoomVersion, Event]:
        """Our event, made of a template. Raises ``UnusableAnswer``."""
        version = ROOM_VERSIONS.get(answer["room_version"])
        if version is None:
            raise UnusableAnswer(server_name, f"unknown room version {str(answer['room_version'])[:20]}")
        template = answer["event"]
        given = template.get("content")
        # "the sending server MUST verify that: the room_id is equal to the roomId path parameter; both the sender and
        # state_key are equal to the userId path parameter; the type of the event is m.room.member; the membership field
        # inside content is" what was asked for.
        if (
            template.get("room_id") != room_id
            or template.get("sender") != user_id
            or template.get("state_key") != user_id
            or template.get("type") != "m.room.member"
            or not isinstance(given, dict)
            or given.get("membership") != content["membership"]
        ):
            raise UnusableAnswer(server_name, "the template is for something else")
        ours = dict(content)
        if isinstance(authorising := given.get("join_authorised_via_users_server"), str):
            ours["join_authorised_via_users_server"] = authorising
        try:
            event = finish_template(
                {**template, "content": ours},
                version,
                self._signer,
                self._clock.now_ms(),
                new_event_id_localpart(version),
            )
        except InvalidEvent as error:
            raise UnusableAnswer(server_name, f"the template is not an event: {error}") from error
        return version, event

    # -- knocking ------------------------------------------------------------------------------------------------------

    async def knock(self, room_id: str, user_id: str, content: JsonObject, servers: Sequence[str]) -> None:
        """Knock on a room through one of these servers. Raises as ``join`` does."""
        standing = await self._standing(user_id, room_id)
        attempts = Attempts("knock on the room")
        for server_name in self._candidates(room_id, servers, standing):
            try:
                answer = await self._client.make_knock(server_name, room_id, user_id, ROOM_VERSIONS)
                version, event = self._finish(server_name, answer, room_id, user_id, content)
                answer = await self._client.send_knock(server_name, room_id, event.event_id, event.pdu)
            except (RemoteError, UnusableAnswer) as error:
                attempts.failed(server_name, error)
                continue
            # "Entries which are improperly signed or formatted SHOULD be removed by the server"
            shown = await self._incoming.check(answer["knock_room_state"][:KNOCK_STATE_MAX], version, room_id)
            stripped = [stripped_event(entry) for entry in shown if entry.is_state]
            await self._imports.out_of_band(version, event, stripped)
            return
        raise attempts.error()

    # -- leaving -------------------------------------------------------------------------------------------------------

    async def leave(self, standing: Standing, user_id: str, reason: str | None) -> None:
        """Leave a room that this server is not in: reject an invitation, take back a knock.

        The user is rid of it at once. The other servers are told as soon as one of them can be reached.
        """
        content: JsonObject = {"membership": "leave", **({"reason": reason} if reason is not None else {})}
        candidates = self._candidates(standing.room_id, (), standing)
        if candidates:
            await self._owed.owe(LEAVE, standing.room_id, user_id, candidates, content)
        await self._leave_here(standing, user_id, reason)

    async def _leave_here(self, standing: Standing, user_id: str, reason: str | None) -> None:
        """End how the user stands to the room, with an event that is nobody's but ours."""
        version = ROOM_VERSIONS[standing.version]
        ended = (await self._events.by_id([standing.event_id]))[standing.event_id].event
        reference = (ended.event_id, unpadded_base64(reference_hash(ended.pdu, version)))
        content: JsonObject = {"membership": "leave", **({"reason": reason} if reason is not None else {})}
        event = compose_event(
            EventDraft("m.room.member", user_id, content, user_id),
            version,
            room_id=standing.room_id,
            prev_events=[reference],
            auth_events=[reference],
            depth=depth_after([ended.depth], version),
            origin_server_ts=self._clock.now_ms(),
            signer=self._signer,
            event_id_localpart=new_event_id_localpart(version),
        )
        await self._imports.out_of_band(version, event)

    async def finish_leave(self, server_name: str, room_id: str, user_id: str, content: JsonObject) -> bool:
        """Tell a server that our user leaves (a ``Handshake``). Raises ``RemoteError``, ``UnusableAnswer``."""
        event = await self._leave_event(server_name, room_id, user_id, content)
        await self._client.send_leave(server_name, room_id, event.event_id, event.pdu)
        return True

    async def _leave_event(self, server_name: str, room_id: str, user_id: str, content: JsonObject) -> Event:
        answer = await self._client.make_leave(server_name, room_id, user_id)
        _, event = self._finish(server_name, answer, room_id, user_id, content)
        return event

    async def _owe_leave_after(self, vain: _VainJoins, room_id: str, user_id: str) -> None:
        """Other servers must not take our user for a member who is none here."""
        if vain.event_ids:
            await self._owed.owe(
                UNDO_JOIN,
                room_id,
                user_id,
                vain.event_ids,
                {"joins": list(vain.event_ids.values())},
                delay_ms=UNDO_UNCERTAIN_JOIN_MS if vain.is_uncertain else 0,
            )

    async def undo_join(self, server_name: str, room_id: str, user_id: str, details: JsonObject) -> bool:
        """Have our user leave again whose join came to nothing here (a ``Handshake``).

        Only one of those ``joins`` is undone. Where none was accepted, or it is past, there is nothing to tell: an
        invitation, for instance, stays open. Raises ``RemoteError``, ``UnusableAnswer``.
        """
        async with self._joining.setdefault(room_id, asyncio.Lock()):
            standing = await self._standing(user_id, room_id)
            if standing is not None and standing.membership == "join":
                return True
            event = await self._leave_event(server_name, room_id, user_id, {"membership": "leave"})
            # The leave cites the membership that it ends.
            if not set(details["joins"]).intersection(event.auth_events):
                return False
            await self._client.send_leave(server_name, room_id, event.event_id, event.pdu)
            return True

    # -- inviting ------------------------------------------------------------------------------------------------------

    async def invite(self, working: WorkingHead, invitation: NewEvent) -> NewEvent:
        """Have the invited user's server sign an invitation.

        Raises ``Forbidden`` (or ``InviteBlocked``, ``NotFound``, ``UnsupportedRoomVersion``) where that server does
        not agree, ``RemoteFailed`` and ``RemoteTimedOut`` where it does not answer sensibly.
        """
        event, head = invitation.event, working.head
        server_name = server_of(event.state_key or "")
        shown = await shown_to_outsiders(self._heads, head, event.sender)
        if event.key in head.state:
            # How the user stood to the room has ended before. Some servers take the news of that, if it comes after
            # the new invitation, for the end of this one.
            await self._delivery.caught_up(server_name)
        try:
            answer = await self._client.send_invite(
                server_name,
                head.room_id,
                event.event_id,
                event.pdu,
                head.version.identifier,
                [entry.pdu for entry in shown],
            )
        except (RemoteRefused, RemoteUnreachable) as error:
            answer_to_user = as_matrix_error(error, f"invite {event.state_key}")
            if isinstance(answer_to_user, IncompatibleRoomVersion):
                # "One or more users being invited to the room are residents of a homeserver which does not support the
                # requested room version. The errcode will be M_UNSUPPORTED_ROOM_VERSION in these cases."
                raise UnsupportedRoomVersion(answer_to_user.message) from error
            raise answer_to_user from error
        return replace(invitation, event=await self._countersigned(event, server_name, answer))

    async def _countersigned(self, event: Event, server_name: str, answer: JsonObject) -> Event:
        """Our event with the other server's signature, if that is all that was added. Raises ``RemoteFailed``."""
        try:
            given = parse_event(answer, event.version, room_id=event.room_id)
            if {**given.pdu, "signatures": {}} != {**event.pdu, "signatures": {}}:
                raise InvalidEvent("the server changed the event")
            # The server may be the room's policy server too, and has signed as such before.
            ours = event.pdu["signatures"]
            theirs = {**given.pdu["signatures"].get(server_name, {}), **ours.get(server_name, {})}
            signatures = {**ours, server_name: theirs}
            signed = parse_event({**event.pdu, "signatures": signatures}, event.version, room_id=event.room_id)
            await self._incoming.check_signature_of(signed, server_name)
        except (InvalidEvent, InvalidSignature) as error:
            raise RemoteFailed(f"{server_name} did not sign the invitation as it should: {error}") from error
        return signed

    # -- whom to ask ---------------------------------------------------------------------------------------------------

    async def _standing(self, user_id: str, room_id: str) -> Standing | None:
        return await self._database.read(user_rooms.standing_of, user_id, room_id)

    def _candidates(self, room_id: str, servers: Iterable[str], standing: Standing | None) -> list[str]:
        """The servers to ask: who invited, whom the client names, who was seen in the room, who made its ID."""
        ranked: list[str] = []
        if standing is not None and standing.membership == "invite":
            ranked.append(server_of(standing.sender))
        ranked.extend(servers)
        if standing is not None:
            ranked.extend(servers_in(standing.stripped_state))
        if ":" in room_id:
            ranked.append(server_of(room_id))
        usable = (name for name in ranked if name != self._server_name and is_valid_server_name(name))
        return list(dict.fromkeys(usable))[:CANDIDATES_MAX]
