"""What joins, leaves and knocks through other servers have in common: which servers to ask, and the event to send.

https://spec.matrix.org/v1.19/server-server-api/#joining-rooms
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from weakref import WeakValueDictionary

from homeserver.clock import Clock
from homeserver.errors import InvalidEvent
from homeserver.graph.send import new_event_id_localpart
from homeserver.graph.state import RoomHeads
from homeserver.membership.join_answers import UnusableAnswer
from homeserver.membership.out_of_band_invitations import servers_in
from homeserver.protocol.compose import finish_template
from homeserver.protocol.events import Event, Signer
from homeserver.protocol.identifiers import is_valid_server_name, server_of
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.storage import user_rooms
from homeserver.storage.database import Database
from homeserver.storage.user_rooms import Standing

CANDIDATES_MAX = 10
"""How many servers are asked, one after the other."""
TURN_WAIT_S = 20.0
"""How long to wait for another membership of the room, such as a join that brings this server into the room. A server
that accepts a join and then never answers must not keep all other users out of the room."""


class Handshakes:
    """Chooses servers to help with the memberships of our users, and completes the templates that they give."""

    def __init__(self, server_name: str, database: Database, heads: RoomHeads, signer: Signer, clock: Clock) -> None:
        self.server_name = server_name
        self._database = database
        self._heads = heads
        self._signer = signer
        self._clock = clock
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def turn(self, room_id: str, *, is_patient: bool = False) -> AsyncIterator[None]:
        """Exclude other memberships of the room in this process; after ``TURN_WAIT_S`` go on anyway unless patient."""
        lock = self._turns.setdefault(room_id, asyncio.Lock())
        try:
            async with asyncio.timeout(None if is_patient else TURN_WAIT_S):
                await lock.acquire()
        except TimeoutError:
            yield  # an import of the room is protected by a lease of its own
            return
        try:
            yield
        finally:
            lock.release()

    async def standing(self, user_id: str, room_id: str) -> Standing | None:
        """The user's membership in a room, as this server knows it."""
        return await self._database.read(user_rooms.standing_of, user_id, room_id)

    def candidates(
        self, room_id: str, servers: Iterable[str], standing: Standing | None, known: Iterable[str] = ()
    ) -> list[str]:
        """The servers to ask, in this order, without this one.

        First ``servers``, which the client names, as it may know why. Then the server that invited the user, the
        servers of users who sent the state that came with the invitation, those that were in the room when we last were
        (``known``), and the one that made the room ID.
        """
        ranked: list[str] = list(servers)
        if standing is not None and standing.membership == "invite":
            ranked.append(server_of(standing.sender))
        if standing is not None:
            ranked.extend(servers_in(standing.stripped_state))
        ranked.extend(known)
        if ":" in room_id:
            ranked.append(server_of(room_id))
        usable = (name for name in ranked if name != self.server_name and is_valid_server_name(name))
        return list(dict.fromkeys(usable))[:CANDIDATES_MAX]

    def finish(
        self, server_name: str, answer: JsonObject, room_id: str, user_id: str, content: JsonObject
    ) -> tuple[RoomVersion, Event]:
        """Complete the template of an answer to make_join, make_leave or make_knock. Raises ``UnusableAnswer``."""
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
