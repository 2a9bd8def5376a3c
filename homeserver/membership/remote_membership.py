"""Memberships of our users that other servers have to help with.

Joining a room that this server is not in goes through one that is; so do leaving and knocking. (Invitations are sent by
``sent_invitations``.)

https://spec.matrix.org/v1.19/server-server-api/#joining-rooms
https://spec.matrix.org/v1.19/server-server-api/#leaving-rooms-rejecting-invites
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import structlog

from homeserver.clock import Clock
from homeserver.errors import (
    Forbidden,
    HomeserverError,
    InvalidEvent,
    RemoteError,
    RemoteRefused,
)
from homeserver.federation.client import FederationClient
from homeserver.federation.delivery import Delivery
from homeserver.graph.events import Events
from homeserver.graph.imports import RoomImports
from homeserver.graph.incoming_events import IncomingEvents
from homeserver.graph.placement import Placer
from homeserver.graph.send import Sender, new_event_id_localpart
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.membership.attempts import Attempts
from homeserver.membership.join_answers import JoinAnswers, UnusableAnswer
from homeserver.membership.out_of_band import servers_in
from homeserver.membership.owed_requests import LEAVE, UNDO_JOIN, OwedRequests
from homeserver.protocol.compose import compose_event, finish_template
from homeserver.protocol.event_format import depth_after
from homeserver.protocol.events import CREATE, Event, EventDraft, Signer, create_version
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
FRESH_MS = 10 * 60 * 1000
"""An invitation that is not older than this is kept, though its server refuses the user."""
REFUSAL_RETRIES_S = (0.2, 0.5, 1.0, 2.0)
"""After how long a server is asked again that refuses a fresh invitation of its own."""
TURN_WAIT_S = 20.0
"""How long a join waits for another join of the room, which may bring the room along. A server that takes a join and
then never answers must not keep everybody else out of the room."""
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
        """Join a room through one of these servers, or else one that is known from an invitation or the room's state.

        A server that refuses an invitation that is fresh is asked again for a moment: it may not have stored it yet.
        Raises ``Forbidden`` where the room does not let the user in, ``NotFound`` where no server knows the room,
        ``IncompatibleRoomVersion``, ``RefusedElsewhere``, and ``RemoteFailed`` or ``RemoteTimedOut`` where nobody could
        help.
        """
        before = await self._heads.find(room_id)
        was_resident = self._is_resident(before)
        known = list(before.joined_servers) if before is not None else []
        async with self._turn(room_id, TURN_WAIT_S):
            if not was_resident and self._is_resident(await self._heads.find(room_id)):
                # Another of our users was faster, and brought the room along.
                await self._sender.send(room_id, EventDraft("m.room.member", user_id, content, user_id))
                return
            standing = await self._standing(user_id, room_id)
            inviter = server_of(standing.sender) if standing is not None and standing.membership == "invite" else None
            is_fresh = inviter is not None and standing is not None and await self._is_fresh(standing)
            candidates = self._candidates(room_id, servers, standing, known)
            vain = _VainJoins()
            try:
                for delay_s in (*REFUSAL_RETRIES_S, None):
                    attempts = Attempts("join the room")
                    if await self._join_through_one(
                        candidates, room_id, user_id, content, was_resident, vain, attempts
                    ):
                        vain.event_ids.clear()
                        await self._database.write(store.cancel_requests, room_id, user_id)
                        return
                    if delay_s is None or inviter is None or not is_fresh or not attempts.forbade(inviter):
                        break
                    await asyncio.sleep(delay_s)
                    candidates = [inviter]
            finally:
                await self._owe_leave_after(vain, room_id, user_id)
        if standing is not None and inviter is not None and attempts.all_forbade(inviter) and not is_fresh:
            # Nobody lets the user in, not even the server that the invitation came from: it is no longer good.
            await self._leave_here(standing, user_id, None)
            raise Forbidden("The invitation is no longer valid")
        raise attempts.error()

    @contextlib.asynccontextmanager
    async def _turn(self, room_id: str, at_most_s: float) -> AsyncIterator[None]:
        """Exclude other memberships of the room in this process; after ``at_most_s`` go on without."""
        lock = self._joining.setdefault(room_id, asyncio.Lock())
        try:
            async with asyncio.timeout(at_most_s):
                await lock.acquire()
        except TimeoutError:
            yield  # an import of the room is protected by a lease of its own
            return
        try:
            yield
        finally:
            lock.release()

    async def _join_through_one(
        self,
        candidates: Sequence[str],
        room_id: str,
        user_id: str,
        content: JsonObject,
        was_resident: bool,
        vain: _VainJoins,
        attempts: Attempts,
    ) -> bool:
        """Whether one of the servers has brought the user into the room; ``attempts`` gets the failures."""
        for server_name in candidates:
            try:
                await self._join_through(server_name, room_id, user_id, content, was_resident, vain)
            except (RemoteError, UnusableAnswer) as error:
                logger.info("join not possible", room_id=room_id, server=server_name, reason=str(error))
                attempts.failed(server_name, error)
            else:
                return True
        return False

    async def _is_fresh(self, invitation: Standing) -> bool:
        """Whether an invitation was made so recently that its server may not have stored it yet."""
        event = (await self._events.by_nid([invitation.event_nid]))[invitation.event_nid].event
        return event.origin_server_ts > self._clock.now_ms() - FRESH_MS

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
        if is_resident:
            await self._join_resident_room(server_name, event, vain)
            return
        # From now on that server may send us what happens in the room.
        async with self._imports.joining(room_id, user_id):
            joined = await self._send_join(server_name, event, vain)
            room = await self._join_answers.check(server_name, version, event, joined)
            known = await self._heads.find(room_id)
            if known is not None and known.state.get(CREATE) != room.create.event_id:
                # The server that made a room's ID can make a second create event for it, but we have the first one.
                raise UnusableAnswer(server_name, "the room has another create event than the one that is known here")
            imported = await self._imports.import_room(version, room.join, room.state, room.auth_chain)
        if not imported:
            # Meanwhile another process has brought the room along: there the join is one event more.
            await self._place_join(server_name, room.join)

    async def _join_resident_room(self, server_name: str, join: Event, vain: _VainJoins) -> None:
        joined = await self._send_join(server_name, join, vain)
        await self._place_join(server_name, await self._join_answers.signed_join(join, joined))

    async def _send_join(self, server_name: str, join: Event, vain: _VainJoins) -> JsonObject:
        try:
            joined = await self._client.send_join(server_name, join.room_id, join.event_id, join.pdu)
        except RemoteError as error:
            vain.failed(server_name, error)
            raise
        # The server through which we join sends the join on to the others.
        self._delivery.do_not_send(join.event_id)
        return joined

    async def _place_join(self, server_name: str, join: Event) -> None:
        """Put the join of our user into a room that is here already, after what it builds on."""
        outcome = await self._placer.place_with_ancestors(server_name, join)
        if isinstance(outcome, HomeserverError):
            raise UnusableAnswer(server_name, str(outcome)) from outcome
        if outcome is not None and outcome.verdict != Verdict.ACCEPTED:
            raise UnusableAnswer(server_name, "by what we know of the room, the join is not allowed")

    def _finish(
        self, server_name: str, answer: JsonObject, room_id: str, user_id: str, content: JsonObject
    ) -> tuple[RoomVersion, Event]:
        """Our event, made of a template. Raises ``UnusableAnswer``."""
        version = ROOM_VERSIONS.get(answer["room_version"])
        if version is None:
            raise UnusableAnswer(server_name, f"unknown room version {str(answer['room_version'])[:20]}")
        head = self._heads.cached(room_id)
        if head is not None and head.version is not version:
            raise UnusableAnswer(server_name, "the room has another version than what the template is for")
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
            if any(create_version(entry) != version.identifier for entry in shown if entry.type == "m.room.create"):
                shown = []  # it describes another room than the one that was knocked on
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
        head = await self._heads.find(standing.room_id)
        known = list(head.joined_servers) if head is not None else []
        candidates = self._candidates(standing.room_id, (), standing, known)
        if candidates:
            await self._owed.owe(LEAVE, standing.room_id, user_id, candidates, content)
        await self._leave_here(standing, user_id, reason)

    async def _leave_here(self, standing: Standing, user_id: str, reason: str | None) -> None:
        """End how the user stands to the room, with an event that is nobody's but ours."""
        version = ROOM_VERSIONS[standing.version]
        ended = (await self._events.by_nid([standing.event_nid]))[standing.event_nid].event
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
        async with self._turn(room_id, TURN_WAIT_S):
            # While that server made the template, the user may have been invited anew, or have joined: the leave would
            # end that.
            if await self._owed.is_owed(LEAVE, room_id, user_id):
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

    # -- whom to ask ---------------------------------------------------------------------------------------------------

    async def _standing(self, user_id: str, room_id: str) -> Standing | None:
        return await self._database.read(user_rooms.standing_of, user_id, room_id)

    def _candidates(
        self, room_id: str, servers: Iterable[str], standing: Standing | None, known: Iterable[str] = ()
    ) -> list[str]:
        """The servers to ask, in this order.

        Those that the client names: it may know why. Then the server that invited, those whose users have sent what
        was shown with the invitation, those that were in the room when we last were (``known``), and the one that made
        the room ID.
        """
        ranked: list[str] = list(servers)
        if standing is not None and standing.membership == "invite":
            ranked.append(server_of(standing.sender))
        if standing is not None:
            ranked.extend(servers_in(standing.stripped_state))
        ranked.extend(known)
        if ":" in room_id:
            ranked.append(server_of(room_id))
        usable = (name for name in ranked if name != self._server_name and is_valid_server_name(name))
        return list(dict.fromkeys(usable))[:CANDIDATES_MAX]
