"""Accepting member events of other servers' users into rooms that this server is in, with its signature.

https://spec.matrix.org/v1.19/server-server-api/#joining-rooms
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from homeserver.errors import Forbidden, InvalidParam, InvalidSignature
from homeserver.graph.append import RoomWriters
from homeserver.graph.events import Events
from homeserver.graph.incoming_events import IncomingEvents
from homeserver.graph.judgement import MissingAncestors
from homeserver.graph.placement import Placer
from homeserver.graph.policy_servers import Opinions, PolicyServers, Unasked
from homeserver.graph.state import StateReader, StateSnapshot
from homeserver.graph.working_head import Job, NewEvent, WorkingHead
from homeserver.protocol.compose import add_signature
from homeserver.protocol.event_format import PDU_BYTES_MAX
from homeserver.protocol.events import Event, Signer
from homeserver.storage.event_graph import StoredEvent, Verdict


@dataclass(frozen=True, slots=True)
class AcceptedMember:
    """A member event that was appended to the room, and the state before it."""

    event: Event
    before: StateSnapshot


class Countersigning:
    """Signs and appends member events of other servers' users."""

    def __init__(
        self,
        events: Events,
        states: StateReader,
        writers: RoomWriters,
        placer: Placer,
        incoming: IncomingEvents,
        policy: PolicyServers,
        signer: Signer,
    ) -> None:
        self._events = events
        self._states = states
        self._writers = writers
        self._placer = placer
        self._incoming = incoming
        self._policy = policy
        self._signer = signer

    async def accept(self, event: Event) -> AcceptedMember:
        """Add our signature to a member event of another server's user, and append it to the room.

        Raises ``InvalidParam`` if its prev_events are unknown, ``Forbidden`` if its signature is wrong or if it is not
        allowed, by the state before it or by the current state, and the errors of the room's policy server.
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
                raise opinions.objection_to(signed) or Forbidden(sentence(new.reason or "The event is not allowed"))
            taken.append(new)
            return (new,)

        await self._submit(signed, job, opinions)
        for new in taken:
            assert new.before is not None
            return AcceptedMember(new.event, new.before)
        return await self._accepted_before(signed)

    async def _submit(self, signed: Event, job: Job, opinions: Opinions) -> None:
        while True:
            try:
                await self._writers.submit(signed.room_id, job)
            except MissingAncestors as error:
                raise InvalidParam("The event does not follow events of the room that are known here") from error
            except Unasked as unasked:
                # We send the event to the other servers in the room, so it needs the policy server's signature first.
                await self._policy.ask_about(unasked.server, [signed], opinions)
            else:
                return

    async def _accepted_before(self, event: Event) -> AcceptedMember:
        """The answer to a repeated request, whose event has been accepted already."""
        stored: StoredEvent | None = await self._events.get(event.room_id, event.event_id)
        if stored is None or stored.verdict != Verdict.ACCEPTED:
            raise Forbidden("The event was not accepted")
        return AcceptedMember(stored.original, await self._states.before(stored))


def sentence(text: str) -> str:
    """The reason of a refusal, beginning with a capital letter."""
    return text[:1].upper() + text[1:]
