"""Checks 1 to 3 on receipt of a PDU: it is a valid event, it is signed, and its hash matches, or else it is redacted.

https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import structlog

from homeserver.errors import BadJson, HomeserverError, InvalidEvent, InvalidParam, InvalidSignature, NotCanonical
from homeserver.federation.caching import LruDict
from homeserver.graph.internal_errors import as_outcome
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.events import Event
from homeserver.protocol.hashes import has_intact_content
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.redaction import redact_event
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.signatures import VerifyKeyData, event_signatures, verify_event_signature

logger = structlog.get_logger(__name__)

INTERNAL_ERRORS_REMEMBERED_MAX = 1_000
EVENTS_AT_A_STRETCH = 40
"""How many events are handled before other requests may run."""


class EventVerifier(Protocol):
    """Checks signatures: the key ring."""

    async def verify_events(self, events: Sequence[Event]) -> list[InvalidSignature | None]:
        """For each event the error of its signatures, or None."""

    async def keys_for(self, wanted: Mapping[str, Mapping[str, int]]) -> Mapping[str, Mapping[str, VerifyKeyData]]:
        """Fetch keys: server name to key ID to the time until which the key must be valid."""


class IncomingEvents:
    """Turns PDUs of other servers into events with checked signatures and hashes."""

    def __init__(self, verifier: EventVerifier) -> None:
        self._verifier = verifier
        self._internal_errors: LruDict[str, bool] = LruDict(INTERNAL_ERRORS_REMEMBERED_MAX)

    async def check(self, pdus: Iterable[Any], version: RoomVersion, room_id: str | None) -> list[Event]:
        """The events that pass checks 1 to 3, without duplicates; other PDUs are dropped.

        ``room_id`` is the room that all must belong to.
        """
        parsed = await self.parse(pdus, version, room_id)
        outcomes = await self.verify_each(list(parsed.values()))
        return [outcome for outcome in outcomes if isinstance(outcome, Event)]

    async def parse(
        self, pdus: Iterable[Any], version: RoomVersion, room_id: str | None, *, is_history: bool = False
    ) -> dict[str, Event]:
        """Check 1 alone: the valid events among the PDUs, by event ID.

        ``is_history``: they are an answer to /backfill, which "MUST NOT be validated" on how many events each may refer
        to.
        """
        parsed: dict[str, Event] = {}
        for index, pdu in enumerate(pdus):
            if index % EVENTS_AT_A_STRETCH == EVENTS_AT_A_STRETCH - 1:
                await asyncio.sleep(0)
            try:
                event = parse_event(pdu, version, room_id=room_id, is_history=is_history)
            except InvalidEvent as error:
                logger.info("event dropped", room_id=room_id, reason=str(error)[:200])
                continue
            except Exception as error:
                as_outcome(error, room_id=room_id, event_id=None)
                continue
            parsed.setdefault(event.event_id, event)
        return parsed

    async def verify(self, events: Sequence[Event]) -> list[Event | InvalidSignature]:
        """Checks 2 and 3: each event, redacted if its hash does not match, or the error of its signatures."""
        failures = await self._verifier.verify_events(events)
        outcomes: list[Event | InvalidSignature] = []
        for index, (event, failure) in enumerate(zip(events, failures, strict=True)):
            if index % EVENTS_AT_A_STRETCH == EVENTS_AT_A_STRETCH - 1:
                await asyncio.sleep(0)
            if failure is not None:
                logger.info("event dropped", event_id=event.event_id, reason=str(failure)[:200])
                outcomes.append(failure)
            else:
                outcomes.append(intact_or_redacted(event))
        return outcomes

    async def verify_each(self, events: Sequence[Event]) -> Sequence[Event | HomeserverError]:
        """Checks 2 and 3, but an event that causes an internal error does not keep the others out."""
        try:
            return await self.verify(events)
        except Exception:
            return [await self._verify_alone(event) for event in events]

    async def _verify_alone(self, event: Event) -> Event | HomeserverError:
        try:
            (outcome,) = await self.verify([event])
        except Exception as error:
            self.note_internal_error(event.event_id)
            return as_outcome(error, room_id=event.room_id, event_id=event.event_id)
        return outcome

    def note_internal_error(self, event_id: str) -> None:
        """Remember that an internal error keeps an event out, so that events that follow it need not wait for it."""
        self._internal_errors.put(event_id, True)

    def met_internal_errors(self, event_ids: Iterable[str]) -> set[str]:
        """The IDs among these of events that were received but kept out by an internal error."""
        return {event_id for event_id in event_ids if self._internal_errors.get(event_id)}

    async def check_signature_of(self, event: Event, server_name: str) -> None:
        """Check that a server has signed an event, besides the required signatures. Raises ``InvalidSignature``."""
        wanted = dict.fromkeys(event_signatures(event, server_name), event.origin_server_ts)
        keys = await self._verifier.keys_for({server_name: wanted})
        verify_event_signature(event, server_name, keys.get(server_name, {}))


def parse_submitted(pdu: JsonObject, version: RoomVersion, room_id: str, event_id: str) -> Event:
    """Check 1 for the event of a request such as /send_join and /invite, and that its hash matches.

    ``event_id`` is the ID that the request names. Raises ``BadJson`` if it is not canonical JSON, otherwise
    ``InvalidParam``.
    """
    try:
        event = parse_event(pdu, version, room_id=room_id)
    except NotCanonical as error:
        raise BadJson(f"The event is not canonical JSON: {error}") from error
    except InvalidEvent as error:
        raise InvalidParam(f"Not an event of this room: {error}") from error
    if event.event_id != event_id:
        raise InvalidParam("The event has another ID")
    if not has_intact_content(event):
        raise InvalidParam("The event's content is not what its hash says")
    return event


def intact_or_redacted(event: Event) -> Event:
    """Check 3. "If the hash check fails, then it is assumed that […] we have only been given a redacted version".

    https://spec.matrix.org/v1.19/server-server-api/#validating-hashes-and-signatures-on-received-events
    """
    return event if has_intact_content(event) else redact_event(event)
