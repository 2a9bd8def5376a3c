"""Checks 1 to 3 on receipt of a PDU: it is a valid event, it is signed, and its hash matches, or else it is redacted.

https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

import structlog

from homeserver.errors import (
    BadJson,
    HomeserverError,
    IncompleteAnswer,
    InvalidEvent,
    InvalidParam,
    InvalidSignature,
    NotCanonical,
    RemoteUnreachable,
)
from homeserver.federation.caching import LruDict
from homeserver.graph.given_events import GivenEvents
from homeserver.graph.internal_errors import as_outcome
from homeserver.outbound.places import Purpose
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.events import Event
from homeserver.protocol.hashes import has_intact_content
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.redaction import redact_event
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.signatures import VerifyKeyData, event_signatures, verify_event_signature

logger = structlog.get_logger(__name__)

INTERNAL_ERRORS_REMEMBERED_MAX = 1_000
BYTES_AT_A_STRETCH = 32 * 1024
"""How many bytes of events are handled before other requests may run."""
BYTES_AT_LEAST = 256
"""What every event counts besides its JSON."""
EVENTS_PER_PART = 250
"""How many events of a large answer are in memory at a time."""
INVALID_EVENTS_MAX = 1_000
"""How many events of a large answer may be dropped before all of it is."""
LARGE_EVENTS_MIN = 2_000
"""From how many events on an answer has to wait for its turn."""
LARGE_WAIT_SECONDS_MAX = 120.0
KEYS_SECONDS_MAX = 300.0
"""How long the keys of a large answer may take; events whose keys are not there then are dropped."""
REASONS_LOGGED_MAX = 3


class Stretch:
    """Lets other requests run now and then while many events are handled, sooner if the events are large."""

    def __init__(self) -> None:
        self._bytes = 0

    def is_over(self, event: Event | None) -> bool:
        """Whether others should run now, after one more was handled; None for one that was invalid."""
        self._bytes += BYTES_AT_LEAST + (len(event.json) if event is not None else 0)
        if self._bytes <= BYTES_AT_A_STRETCH:
            return False
        self._bytes = 0
        return True


class Dropped:
    """Counts the events of an answer that are not used, and logs them together, with the first reasons."""

    def __init__(self, message: str, room_id: str | None) -> None:
        self.count = 0
        self._message = message
        self._room_id = room_id
        self._first: list[str] = []

    def add(self, reason: str, event_id: str = "") -> None:
        """Count one."""
        self.count += 1
        if len(self._first) < REASONS_LOGGED_MAX:
            self._first.append(f"{event_id} {reason}".strip()[:200])

    def log(self) -> None:
        """Write one line, unless nothing was dropped."""
        if self.count:
            logger.info(self._message, room_id=self._room_id, count=self.count, first=self._first)


class EventVerifier(Protocol):
    """Checks signatures: the key ring."""

    async def verify_events(self, events: Sequence[Event]) -> list[InvalidSignature | None]:
        """For each event the error of its signatures, or None."""

    async def fetch_keys_of(self, events: Iterable[Event]) -> None:
        """Fetch the keys that ``verify_events`` will need for these events."""

    async def keys_for(
        self, wanted: Mapping[str, Mapping[str, int]], purpose: Purpose
    ) -> Mapping[str, Mapping[str, VerifyKeyData]]:
        """Fetch keys: server name to key ID to the time until which the key must be valid."""


class IncomingEvents:
    """Turns PDUs of other servers into events with checked signatures and hashes."""

    def __init__(self, verifier: EventVerifier) -> None:
        self._verifier = verifier
        self._internal_errors: LruDict[str, bool] = LruDict(INTERNAL_ERRORS_REMEMBERED_MAX)
        self._large = asyncio.Lock()
        self._large_of: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

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
        dropped = Dropped("events dropped", room_id)
        stretch = Stretch()
        for pdu in pdus:
            event = _parsed(pdu, version, room_id, dropped, is_history=is_history)
            if event is not None:
                parsed.setdefault(event.event_id, event)
            if stretch.is_over(event):
                await asyncio.sleep(0)
        dropped.log()
        return parsed

    async def take(self, server_name: str, given: GivenEvents, pdus: Sequence[Any]) -> list[str]:
        """Check 1 for a list of a large answer: add its valid events to ``given``; returns their IDs.

        Raises ``IncompleteAnswer`` if too many are invalid.
        """
        event_ids: list[str] = []
        dropped = Dropped("events dropped", given.room_id)
        stretch = Stretch()
        for place, pdu in enumerate(pdus):
            event = _parsed(pdu, given.version, given.room_id, dropped)
            if event is not None:
                given.add(event, pdus, place)
                event_ids.append(event.event_id)
            elif dropped.count > INVALID_EVENTS_MAX:
                dropped.log()
                raise IncompleteAnswer(server_name, f"more than {INVALID_EVENTS_MAX} of its events are invalid")
            if stretch.is_over(event):
                await asyncio.sleep(0)
        dropped.log()
        return event_ids

    async def verify_given(self, given: GivenEvents, event_ids: Iterable[str] | None = None) -> None:
        """Checks 2 and 3 for the events of a large answer, or some of them: those that fail are taken out, those whose
        content does not match their hash are redacted."""
        wanted = list(given if event_ids is None else event_ids)
        if not given.are_held:
            # Fetch all keys first: fetching those of one part after the other would wait for each silent server anew.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KEYS_SECONDS_MAX):
                    await self._verifier.fetch_keys_of(given[event_id] for event_id in wanted)
        size = len(wanted) if given.are_held else EVENTS_PER_PART
        for start in range(0, len(wanted), max(1, size)):
            part = [given[event_id] for event_id in wanted[start : start + size]]
            for event, outcome in zip(part, await self.verify_each(part), strict=True):
                if not isinstance(outcome, Event):
                    given.discard(event.event_id)
                elif outcome is not event:
                    given.redact(event.event_id)

    @contextlib.asynccontextmanager
    async def large_turn(self, server_name: str, count: int) -> AsyncIterator[None]:
        """Let one large answer be worked on at a time, and no server have more than one that waits for its turn.

        ``count`` is how many events it has. Raises ``RemoteUnreachable`` if the turn does not come in time.
        """
        if count < LARGE_EVENTS_MIN:
            yield
            return
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(LARGE_WAIT_SECONDS_MAX):
                    await stack.enter_async_context(self._large_of.setdefault(server_name, asyncio.Lock()))
                    await stack.enter_async_context(self._large)
            except TimeoutError as error:
                raise RemoteUnreachable(server_name, "its answer is large, and other large ones come first") from error
            yield

    async def verify(self, events: Sequence[Event]) -> list[Event | InvalidSignature]:
        """Checks 2 and 3: each event, redacted if its hash does not match, or the error of its signatures."""
        failures = await self._verifier.verify_events(events)
        outcomes: list[Event | InvalidSignature] = []
        dropped = Dropped("events dropped", events[0].room_id if events else None)
        stretch = Stretch()
        for event, failure in zip(events, failures, strict=True):
            if stretch.is_over(event):
                await asyncio.sleep(0)
            if failure is not None:
                dropped.add(str(failure), event.event_id)
                outcomes.append(failure)
            else:
                outcomes.append(intact_or_redacted(event))
        dropped.log()
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
        keys = await self._verifier.keys_for({server_name: wanted}, Purpose.EVENT_KEYS)
        verify_event_signature(event, server_name, keys.get(server_name, {}))


def _parsed(
    pdu: Any, version: RoomVersion, room_id: str | None, dropped: Dropped, *, is_history: bool = False
) -> Event | None:
    """The event of a PDU; None if it is none, which is counted."""
    try:
        return parse_event(pdu, version, room_id=room_id, is_history=is_history)
    except InvalidEvent as error:
        dropped.add(str(error))
    except Exception as error:
        as_outcome(error, room_id=room_id, event_id=None)
        dropped.add("internal error")
    return None


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
