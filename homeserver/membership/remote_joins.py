"""Joining rooms that this server is not in: which servers to try, how often, and what to undo afterwards.

https://spec.matrix.org/v1.19/server-server-api/#joining-rooms
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from homeserver.clock import Clock
from homeserver.errors import Forbidden
from homeserver.graph.events import Events
from homeserver.graph.send import Sender
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.membership.attempts import Attempts
from homeserver.membership.handshakes import Handshakes
from homeserver.membership.joins import is_out_of_band
from homeserver.membership.joins_through_servers import JoinsThroughServers, VainJoins
from homeserver.membership.owed_requests import UNDO_JOIN, OwedRequests
from homeserver.membership.remote_leaves import RemoteLeaves
from homeserver.protocol.events import EventDraft
from homeserver.protocol.identifiers import server_of
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.user_rooms import Standing

FRESH_MS = 10 * 60 * 1000
"""An invitation that is not older than this is kept, even if its server refuses the user."""
REFUSAL_RETRIES_S = (0.2, 0.5, 1.0, 2.0)
"""The pauses before a server that refuses a fresh invitation of its own is asked again."""
UNDO_UNCERTAIN_JOIN_MS = 60_000
"""How long to wait before undoing a join that a server did not answer in time: it may still be about to accept it."""


class RemoteJoins:
    """Lets our users join rooms with the help of other servers."""

    def __init__(
        self,
        handshakes: Handshakes,
        through: JoinsThroughServers,
        heads: RoomHeads,
        events: Events,
        sender: Sender,
        leaves: RemoteLeaves,
        owed: OwedRequests,
        clock: Clock,
    ) -> None:
        self._handshakes = handshakes
        self._through = through
        self._heads = heads
        self._events = events
        self._sender = sender
        self._leaves = leaves
        self._owed = owed
        self._clock = clock

    async def join(self, room_id: str, user_id: str, content: JsonObject, servers: Sequence[str]) -> None:
        """Join a room through one of these servers, or one that is known from an invitation or the room's state.

        A server that refuses its own fresh invitation is asked again for a few seconds: it may not have stored it yet.
        Raises ``Forbidden`` if the room does not let the user in, ``NotFound`` if no server knows the room,
        ``IncompatibleRoomVersion``, ``RefusedElsewhere``, and ``RemoteFailed`` or ``RemoteTimedOut`` if no server
        could help.
        """
        before = await self._heads.find(room_id)
        was_resident = self._is_resident(before)
        known = list(before.joined_servers) if before is not None else []
        async with self._handshakes.turn(room_id):
            if not was_resident and self._is_resident(await self._heads.find(room_id)):
                # Another of our users has joined meanwhile: this server is in the room now.
                if await self._join_here(room_id, user_id, content):
                    return
                was_resident = True
            standing = await self._handshakes.standing(user_id, room_id)
            inviter = server_of(standing.sender) if standing is not None and standing.membership == "invite" else None
            is_fresh = inviter is not None and standing is not None and await self._is_fresh(standing)
            candidates = self._handshakes.candidates(room_id, servers, standing, known)
            vain = VainJoins()
            try:
                for delay_s in (*REFUSAL_RETRIES_S, None):
                    attempts = Attempts("join the room")
                    if await self._through.join_through_one(
                        candidates, room_id, user_id, content, was_resident, vain, attempts
                    ):
                        vain.event_ids.clear()
                        await self._owed.cancel(room_id, user_id)
                        return
                    if delay_s is None or inviter is None or not is_fresh or not attempts.forbade(inviter):
                        break
                    await asyncio.sleep(delay_s)
                    candidates = [inviter]
            finally:
                await self._owe_leave_after(vain, room_id, user_id)
        if standing is not None and inviter is not None and attempts.all_forbade(inviter) and not is_fresh:
            # No server lets the user in, not even the one that sent the invitation: it is no longer valid.
            await self._leaves.leave_here(standing, user_id, None)
            raise Forbidden("The invitation is no longer valid")
        raise attempts.error()

    async def _join_here(self, room_id: str, user_id: str, content: JsonObject) -> bool:
        """Join a room that this server is in.

        Returns False if the room's state here does not have the user's invitation yet: it arrived while the room was
        imported, and only other servers can let the user in. Raises ``Forbidden``.
        """
        try:
            await self._sender.send(room_id, EventDraft("m.room.member", user_id, content, user_id))
        except Forbidden:
            standing = await self._handshakes.standing(user_id, room_id)
            head = await self._heads.get(room_id)
            if standing is None or standing.membership != "invite" or not is_out_of_band(standing, head, user_id):
                raise
            return False
        return True

    async def _is_fresh(self, invitation: Standing) -> bool:
        """Whether an invitation came so recently that its server may not have stored it yet.

        By our own clock where possible: that of the other server may be wrong.
        """
        if invitation.received_ts is not None:
            return invitation.received_ts > self._clock.now_ms() - FRESH_MS
        event = (await self._events.by_nid([invitation.event_nid]))[invitation.event_nid].event
        return event.origin_server_ts > self._clock.now_ms() - FRESH_MS

    def _is_resident(self, head: RoomHead | None) -> bool:
        return head is not None and self._handshakes.server_name in head.joined_servers

    async def _owe_leave_after(self, vain: VainJoins, room_id: str, user_id: str) -> None:
        """Undo joins that failed here, so that other servers do not count our user as a member."""
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
        """Undo a join of our user that a server accepted but that failed here (a ``Handshake``).

        Returns False if there is nothing to undo: the user's membership is not one of the ``joins`` of ``details``, but
        for instance still an invitation. Raises ``RemoteError``, ``UnusableAnswer``.
        """
        async with self._handshakes.turn(room_id, is_patient=True):
            standing = await self._handshakes.standing(user_id, room_id)
            if standing is not None and standing.membership == "join":
                return True
            event = await self._leaves.leave_event(server_name, room_id, user_id, {"membership": "leave"})
            # The leave cites the membership that it ends.
            if not set(details["joins"]).intersection(event.auth_events):
                return False
            await self._leaves.send(server_name, event)
            return True
