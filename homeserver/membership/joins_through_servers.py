"""Joining a room through one other server.

https://spec.matrix.org/v1.19/server-server-api/#joining-rooms
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from homeserver.errors import HomeserverError, RemoteError, RemoteRefused
from homeserver.federation.client import FederationClient
from homeserver.federation.delivery import Delivery
from homeserver.graph.imports import RoomImports
from homeserver.graph.placement import Placer
from homeserver.graph.state import RoomHeads
from homeserver.membership.attempts import Attempts
from homeserver.membership.earlier_stays import EarlierStays
from homeserver.membership.handshakes import Handshakes
from homeserver.membership.join_answers import JoinAnswers, UnusableAnswer
from homeserver.protocol.events import CREATE, Event
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.storage.event_graph import Verdict

logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class VainJoins:
    """Joins that servers have accepted, or may have accepted, but whose answers we cannot use."""

    event_ids: dict[str, str] = field(default_factory=dict)
    """The event ID of the join that each server was sent, by server name."""
    is_uncertain: bool = False
    """Whether a server may have accepted one without saying so."""

    def failed(self, server_name: str, error: RemoteError) -> None:
        """Note that a server did not accept a join, or did not answer."""
        if isinstance(error, RemoteRefused) and error.status < 500:
            del self.event_ids[server_name]
        else:
            self.is_uncertain = True


class JoinsThroughServers:
    """Brings our users into rooms through given servers."""

    def __init__(
        self,
        handshakes: Handshakes,
        heads: RoomHeads,
        imports: RoomImports,
        answers: JoinAnswers,
        placer: Placer,
        client: FederationClient,
        delivery: Delivery,
        earlier_stays: EarlierStays,
    ) -> None:
        self._handshakes = handshakes
        self._heads = heads
        self._imports = imports
        self._answers = answers
        self._placer = placer
        self._client = client
        self._delivery = delivery
        self._earlier_stays = earlier_stays

    async def join_through_one(
        self,
        candidates: Sequence[str],
        room_id: str,
        user_id: str,
        content: JsonObject,
        was_resident: bool,
        vain: VainJoins,
        attempts: Attempts,
    ) -> bool:
        """Try the servers in this order. Returns whether one worked; adds the failures to ``attempts`` and ``vain``."""
        for server_name in candidates:
            try:
                await self._join_through(server_name, room_id, user_id, content, was_resident, vain)
            except (RemoteError, UnusableAnswer) as error:
                logger.info("join not possible", room_id=room_id, server=server_name, reason=str(error))
                attempts.failed(server_name, error)
            else:
                return True
        return False

    async def _join_through(
        self,
        server_name: str,
        room_id: str,
        user_id: str,
        content: JsonObject,
        is_resident: bool,
        vain: VainJoins,
    ) -> None:
        answer = await self._make_join(server_name, room_id, user_id, is_resident)
        version, event = self._handshakes.finish(server_name, answer, room_id, user_id, content)
        vain.event_ids[server_name] = event.event_id
        if is_resident:
            await self._join_resident_room(server_name, event, vain)
            return
        # From now on the server may send us events of the room.
        async with self._imports.joining(room_id, user_id, version):
            answer = await self._send_join(server_name, event, vain)
            async with self._answers.turn(server_name, answer):
                joined = await self._answers.check(server_name, version, event, answer)
                known = await self._heads.find(room_id)
                if known is not None and known.state.get(CREATE) != joined.create.event_id:
                    # The server that made the room ID could make a second create event for it, but we know the first.
                    raise UnusableAnswer(server_name, "the room has another create event than the one known here")
                imported = await self._imports.import_room(version, joined.join, joined.room)
        if not imported:
            # Another process has imported the room meanwhile: add the join to it.
            await self._place_join(server_name, joined.join)

    async def _make_join(self, server_name: str, room_id: str, user_id: str, is_resident: bool) -> JsonObject:
        """Ask for a template, after the server has been told how our users' last stay ended, if it should know that.

        It should if it was in the room when we left, or if its template shows that it knows of that stay alone. Anybody
        else could claim to be in the room. Raises ``RemoteError`` if there is no template.
        """
        known = None if is_resident else await self._heads.find(room_id)
        if known is not None and server_name in known.joined_servers:
            await self._earlier_stays.tell(server_name, known)
        answer = await self._client.make_join(server_name, room_id, user_id, ROOM_VERSIONS)
        if known is None or not await self._earlier_stays.is_behind(known, answer["event"]):
            return answer
        if await self._earlier_stays.tell(server_name, known):
            return await self._client.make_join(server_name, room_id, user_id, ROOM_VERSIONS)
        return answer  # the departure still waits to be sent, and state resolution will decide

    async def _join_resident_room(self, server_name: str, join: Event, vain: VainJoins) -> None:
        joined = await self._send_join(server_name, join, vain)
        await self._place_join(server_name, await self._answers.signed_join(server_name, join, joined))

    async def _send_join(self, server_name: str, join: Event, vain: VainJoins) -> JsonObject:
        try:
            joined = await self._client.send_join(server_name, join.room_id, join.event_id, join.pdu)
        except RemoteError as error:
            vain.failed(server_name, error)
            raise
        # The server through which we join sends the join to the other servers.
        self._delivery.do_not_send(join.event_id)
        return joined

    async def _place_join(self, server_name: str, join: Event) -> None:
        """Add our user's join to a room that is here already, after fetching missing ancestors."""
        outcome = await self._placer.place_with_ancestors(server_name, join)
        if isinstance(outcome, HomeserverError):
            raise UnusableAnswer(server_name, str(outcome)) from outcome
        if outcome is not None and outcome.verdict != Verdict.ACCEPTED:
            raise UnusableAnswer(server_name, "the join is not allowed by the state of the room that is known here")
