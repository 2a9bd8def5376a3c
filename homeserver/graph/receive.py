"""Receives events of other servers.

Checks 1 to 3 are in ``incoming_events``. Events that pass them go to ``arrivals``, which fetches missing events; checks
4 to 6 are in ``judgement``, and ``placement`` appends the checked events.

https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from homeserver.errors import HomeserverError, InvalidEvent, LimitExceeded
from homeserver.graph.arrivals import Arrivals
from homeserver.graph.events import Events
from homeserver.graph.incoming_events import IncomingEvents
from homeserver.graph.internal_errors import as_outcome
from homeserver.graph.placement import Outcome
from homeserver.graph.restoring import better_copy
from homeserver.graph.server_access import ServerAccess
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.events import Event
from homeserver.protocol.hashes import event_id_of
from homeserver.protocol.identifiers import server_of
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.storage.event_graph import Verdict

Results: TypeAlias = dict[str, JsonObject]
"""Event ID to ``{}``, or to ``{"error": text}`` if the event was refused."""

ERROR_TEXT_MAX = 200
EARLY_RETRY_MS = 10_000
"""When a server should send the events of a room again that takes long to join."""


class OutsideEvents(Protocol):
    """Handles memberships of our users in rooms that this server is not in."""

    async def version_for(self, room_id: str, user_id: str | None) -> str | None:
        """The room version for events about a user's membership in a room that this server is not in."""

    async def receive(self, origin: str, event: Event) -> None:
        """Handle an event, with valid signatures, of a room that this server is not in. Raises ``HomeserverError``."""


@dataclass(slots=True)
class _Batch:
    """The events of one transaction that belong to one room."""

    head: RoomHead | None
    version: RoomVersion
    events: dict[str, Event] = field(default_factory=dict)


_Batches: TypeAlias = dict[tuple[str, str], _Batch]
"""By room ID and, for rooms that this server is not in, the claimed version."""


class Receiver:
    """Receives events from other servers."""

    def __init__(
        self,
        heads: RoomHeads,
        events: Events,
        incoming: IncomingEvents,
        arrivals: Arrivals,
        outside: OutsideEvents,
        access: ServerAccess,
    ) -> None:
        self._heads = heads
        self._events = events
        self._incoming = incoming
        self._arrivals = arrivals
        self._outside = outside
        self._access = access

    async def receive(self, origin: str, pdus: Sequence[Any]) -> Results:
        """Receive the PDUs of a transaction. Returns the result of each PDU that has an event ID.

        An event that causes an internal error is answered like any other, and does not keep the others out.

        https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1sendtxnid
        """
        results: Results = {}
        batches: _Batches = {}
        early: dict[str, list[Any]] = {}
        for pdu in pdus:
            try:
                if await self._comes_early(pdu, batches, early):
                    continue
                await self._sort_in(origin, pdu, batches, results)
            except Exception as error:
                self._answer_internal_error(pdu, batches, error, results)
        await self._check_signatures(origin, batches.values(), results)
        filled = {key: batch for key, batch in batches.items() if batch.events}
        received = (self._receive_in_room(origin, batch) for batch in filled.values())
        answers = await asyncio.gather(*received, return_exceptions=True)
        for ((room_id, _), batch), outcomes in zip(filled.items(), answers, strict=True):
            if isinstance(outcomes, BaseException):
                failure = as_outcome(outcomes, room_id=room_id, event_id=None)
                outcomes = dict.fromkeys(batch.events, failure)
            for event_id, outcome in outcomes.items():
                # An event that was received before gets the same answer, as far as that is remembered.
                results[event_id] = _result(self._events.cached(room_id, event_id) if outcome is None else outcome)
        for room_id, waiting in early.items():
            results.update(await self._receive_after_join(origin, room_id, waiting))
        return results

    async def _comes_early(self, pdu: Any, batches: _Batches, early: dict[str, list[Any]]) -> bool:
        """Whether an event belongs to a room that one of our users is just joining; it is then put aside."""
        room_id = pdu.get("room_id") if isinstance(pdu, dict) else None
        if not isinstance(room_id, str) or any(room_id == of_room for of_room, _ in batches):
            return False
        if room_id not in early and (
            await self._resident_head(room_id) or not await self._access.is_being_joined(room_id)
        ):
            return False
        early.setdefault(room_id, []).append(pdu)
        return True

    async def _receive_after_join(self, origin: str, room_id: str, pdus: Sequence[Any]) -> Results:
        """Receive events once the room is here; if that takes long, keep them in the database until it is.

        If they were refused before, their server would not send them again, and they would be lost. If they cannot be
        kept, ``LimitExceeded`` is raised, and that server tries again later.
        """
        if await self._access.wait_for_join(room_id):
            return await self.receive(origin, pdus)
        version = ROOM_VERSIONS.get(await self._access.version_being_joined(room_id) or "")
        if version is None:
            raise LimitExceeded("The room is still being joined", retry_after_ms=EARLY_RETRY_MS)
        results: Results = {}
        batch = _Batch(None, version)
        for pdu in pdus:
            if (event := _parse(batch, pdu, room_id, results)) is not None:
                batch.events.setdefault(event.event_id, event)
        await self._check_signatures(origin, [batch], results)
        kept = await self._arrivals.keep_until_joined(origin, batch.events)
        if len(kept) < len(batch.events):
            raise LimitExceeded("The room is still being joined", retry_after_ms=EARLY_RETRY_MS)
        return results | {event_id: {} for event_id in kept}

    # -- checks 1 to 3 -------------------------------------------------------------------------------------------------

    async def _sort_in(self, origin: str, pdu: Any, batches: _Batches, results: Results) -> None:
        """Do check 1, and check whether the origin may send into the room at all."""
        room_id = pdu.get("room_id") if isinstance(pdu, dict) else None
        if not isinstance(room_id, str):
            return  # without a room there is no version, without a version no event ID to answer for
        batch = await self._batch_of(room_id, pdu, batches)
        if batch is None:
            _refuse(pdu, None, "This server is not in the room", results)
            return
        event = _parse(batch, pdu, room_id, results)
        if event is None:
            return
        objection = await self._objection(batch, origin, event)
        if objection is not None:
            # "the PDU MUST be ignored with an appropriate error included in the response for the respective event ID"
            results[event.event_id] = {"error": objection}
            return
        batch.events.setdefault(event.event_id, event)

    async def _objection(self, batch: _Batch, origin: str, event: Event) -> str | None:
        """Why a server may not send us an event, by the newest head of its room; None if it may."""
        objection = None if batch.head is None else await self._objection_by(batch.head, origin, event)
        if batch.head is None or objection is None or not await self._heads.is_outdated(batch.head):
            return objection
        batch.head = await self._heads.get(event.room_id)
        return await self._objection_by(batch.head, origin, event)

    async def _objection_by(self, head: RoomHead, origin: str, event: Event) -> str | None:
        if not await self._access.is_allowed(head, origin):
            return "Your server is not allowed in the room"
        return None if _may_send(head, origin, event) else "Your server is not in the room"

    async def _resident_head(self, room_id: str) -> RoomHead | None:
        """The head of a room that this server is in; another process may have joined it just now."""
        return await self._heads.newest_where(room_id, lambda head: bool(head.joined_local))

    def _answer_internal_error(self, pdu: Any, batches: _Batches, error: Exception, results: Results) -> None:
        """Add the result of a PDU that caused an internal error before it was parsed."""
        room_id = pdu.get("room_id")
        batch = next((batch for (of_room, _), batch in batches.items() if of_room == room_id), None)
        failure = as_outcome(error, room_id=room_id, event_id=None)
        event_id = _refuse(pdu, batch.version if batch is not None else None, str(failure), results)
        if event_id is not None:
            self._incoming.note_internal_error(event_id)

    async def _batch_of(self, room_id: str, pdu: JsonObject, batches: _Batches) -> _Batch | None:
        # First, without looking for the newest head: it is the same for all events of a transaction.
        if (known := batches.get((room_id, ""))) is not None:
            return known
        head = await self._resident_head(room_id)
        if head is not None:
            return batches.setdefault((room_id, ""), _Batch(head, head.version))
        # The version of a room that this server is not in is only known from its user's invitation.
        user_id = pdu.get("state_key")
        claimed = await self._outside.version_for(room_id, user_id if isinstance(user_id, str) else None)
        version = ROOM_VERSIONS.get(claimed or "")
        return None if version is None else batches.setdefault((room_id, version.identifier), _Batch(None, version))

    async def _check_signatures(self, origin: str, batches: Iterable[_Batch], results: Results) -> None:
        """Checks 2 and 3, for the whole transaction at once.

        Check 3 redacts an event whose content was altered. NOTSPEC: if another server than its sender's passes on such
        an event, it is refused, so that the real event, when it arrives, does not find a copy without content here.
        """
        waiting = [(batch, event) for batch in batches for event in batch.events.values()]
        outcomes = await self._incoming.verify_each([event for _, event in waiting])
        for (batch, event), outcome in zip(waiting, outcomes, strict=True):
            if isinstance(outcome, Event) and outcome is not event and server_of(event.sender) != origin:
                del batch.events[event.event_id]
                results[event.event_id] = {"error": "The content does not match the event's hash"}
            elif isinstance(outcome, Event) and outcome is not event:
                batch.events[event.event_id] = better_copy(
                    await self._events.get(event.room_id, event.event_id), outcome
                )
            elif isinstance(outcome, Event):
                batch.events[event.event_id] = outcome
            else:
                del batch.events[event.event_id]
                results[event.event_id] = _result(outcome)

    # -- the rest ------------------------------------------------------------------------------------------------------

    async def _receive_in_room(self, origin: str, batch: _Batch) -> Mapping[str, Outcome]:
        if batch.head is not None:
            return await self._arrivals.receive(origin, batch.head, batch.events)
        return {event_id: await self._receive_outside(origin, event) for event_id, event in batch.events.items()}

    async def _receive_outside(self, origin: str, event: Event) -> Outcome:
        try:
            await self._outside.receive(origin, event)
        except Exception as error:
            return as_outcome(error, room_id=event.room_id, event_id=event.event_id)
        return None


def _may_send(head: RoomHead, origin: str, event: Event) -> bool:
    """Whether a server may send us an event of a room: events of its own users, and others while it is in the room.

    Events of its own users are checked by their own auth events: among them are those by which a server leaves, and
    those by which it joined, which we may not know yet. A resident server passes on the joins that were made through
    it.
    """
    return server_of(event.sender) == origin or origin in head.joined_servers


def _parse(batch: _Batch, pdu: JsonObject, room_id: str, results: Results) -> Event | None:
    """The event that a PDU is; None, with an error in the results, if it is not a valid one."""
    try:
        return parse_event(pdu, batch.version, room_id=room_id)
    except InvalidEvent as error:
        _refuse(pdu, batch.version, str(error), results)
        return None


def _refuse(pdu: JsonObject, version: RoomVersion | None, reason: str, results: Results) -> str | None:
    """Add the refusal of a PDU that is not a valid event to the results; returns its event ID if it has one."""
    try:
        event_id = pdu.get("event_id") if version is None else event_id_of(pdu, version)
    except Exception:  # invalid, and without an event ID to answer for
        return None
    if not isinstance(event_id, str) or not event_id.startswith("$"):
        return None
    results[event_id] = {"error": reason[:ERROR_TEXT_MAX]}
    return event_id


def _result(outcome: Outcome) -> JsonObject:
    if isinstance(outcome, HomeserverError):
        return {"error": str(outcome)[:ERROR_TEXT_MAX]}
    if outcome is not None and outcome.verdict & Verdict.REJECTED:
        return {"error": "You are not allowed to send this event to the room"}
    return {}
