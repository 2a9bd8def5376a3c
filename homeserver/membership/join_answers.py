"""Checks the answer of a server to a join: the events that this server's copy of the room will be based on.

https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_joinroomideventid
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import structlog

from homeserver.errors import HomeserverError, InvalidEvent, InvalidSignature, NotAuthorized, RemoteError
from homeserver.federation.client import FederationClient
from homeserver.graph.given_events import GivenEvents, GivenRoom
from homeserver.graph.incoming_events import Dropped, IncomingEvents
from homeserver.graph.judgement import auth_event_ids_first, judge_alone
from homeserver.protocol.authorization import auth_event_keys, authorize
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.events import CREATE, Event, StateKey, create_version
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import RoomVersion

logger = structlog.get_logger(__name__)

ABSENT_MAX = 50
"""How many auth events are fetched if the answer to a join lacks them."""
ABSENT_ROUNDS_MAX = 5
REQUESTS_AT_ONCE_MAX = 8
EVENTS_AT_A_STRETCH = 40
"""How many events are handled before other requests may run."""


class UnusableAnswer(HomeserverError):
    """The answer of another server is wrong, or incomplete."""

    def __init__(self, server_name: str, reason: str) -> None:
        super().__init__(f"{server_name}: {reason}")
        self.destination = server_name
        self.message = reason


@dataclass(frozen=True, slots=True)
class JoinedRoom:
    """A room as another server sent it, checked."""

    join: Event
    """Our user's join, with the signatures that the other server has added."""
    room: GivenRoom
    create: Event
    """The create event, from which the room's version comes."""


class JoinAnswers:
    """Checks the answers to joins."""

    def __init__(self, incoming: IncomingEvents, client: FederationClient) -> None:
        self._incoming = incoming
        self._client = client
        self._slots = asyncio.Semaphore(REQUESTS_AT_ONCE_MAX)

    def turn(self, server_name: str, answer: JsonObject) -> AbstractAsyncContextManager[None]:
        """A context in which an answer is checked and imported: one large answer at a time. Raises ``RemoteError``."""
        return self._incoming.large_turn(server_name, len(answer["state"]) + len(answer["auth_chain"]))

    async def check(self, server_name: str, version: RoomVersion, join: Event, answer: JsonObject) -> JoinedRoom:
        """The room that the answer describes. Raises ``UnusableAnswer``."""
        room_id = join.room_id
        if answer.get("members_omitted") is True:
            raise UnusableAnswer(server_name, "the members were left out, which we did not ask for")
        given = GivenEvents(version, room_id)
        named = dict.fromkeys(await self._incoming.take(server_name, given, answer["state"]))
        await self._incoming.take(server_name, given, answer["auth_chain"])
        if join.event_id in named:
            # This is the state after the join. Before it stood the membership that the join cites, if any.
            del named[join.event_id]
            named.update((cited, None) for cited in join.auth_events if _has_key(given.get(cited), join.key))
        given.discard(join.event_id)
        for event in (await self._absent(server_name, join, given)).values():
            given.add(event)
        await self._incoming.verify_given(given)
        # In a thread, since this takes long for a large room and other requests must not wait.
        everything = given.as_plain()
        order = await asyncio.to_thread(auth_event_ids_first, everything)
        rejected = await _rejected(order, everything, version, room_id)
        before: dict[StateKey, str] = {}
        async for event in _some_at_a_time(everything, (event_id for event_id in named if event_id in everything)):
            if event.event_id in rejected or not event.is_state:
                continue
            if event.key in before:
                raise UnusableAnswer(server_name, f"the state has two events for {event.key}")
            before[event.key] = event.event_id
        create = _check_create(server_name, version, before, everything)
        signed = await self.signed_join(server_name, join, answer)
        _check_join(server_name, signed, create, before, everything, rejected)
        for event_id in rejected:
            given.discard(event_id)
        accepted = [event_id for event_id in order if event_id not in rejected]
        return JoinedRoom(signed, GivenRoom(before, given.as_plain(), accepted), create)

    async def _absent(self, server_name: str, join: Event, given: GivenEvents) -> dict[str, Event]:
        """Fetch the auth events that an answer lacks, one by one. Raises ``UnusableAnswer`` if some cannot be had.

        State events that cannot be checked without them would be left out of the room's state, and later events that
        depend on those would be rejected for ever. The ``join`` itself may cite what is in no state any more: an
        earlier join, for instance, that the server accepted just before we crashed.
        """
        found: dict[str, Event] = {}
        absent = _cited([join])
        async for event in _some_at_a_time(given.as_plain(), given):
            absent.update(event.auth_events)
        absent -= given.keys()
        for _ in range(ABSENT_ROUNDS_MAX):
            if not absent:
                return found
            if len(absent) + len(found) > ABSENT_MAX:
                break
            pdus = await asyncio.gather(*(self._fetch(server_name, event_id) for event_id in sorted(absent)))
            new = await self._incoming.parse([pdu for pdu in pdus if pdu is not None], given.version, join.room_id)
            if not absent <= new.keys():
                break
            found.update(new)
            absent = _cited(new.values()) - given.keys() - found.keys()
        raise UnusableAnswer(server_name, f"{len(absent)} events are missing that others cite")

    async def _fetch(self, server_name: str, event_id: str) -> JsonObject | None:
        async with self._slots:
            try:
                return await self._client.get_event(server_name, event_id)
            except RemoteError as error:
                logger.info("auth event not returned", server=server_name, event_id=event_id, reason=error.message)
                return None

    async def signed_join(self, server_name: str, join: Event, answer: JsonObject) -> Event:
        """Our join with the other server's signature, or without if the answer does not hold the join.

        Raises ``UnusableAnswer`` if a signature is missing that all other servers require.
        """
        given = answer.get("event")
        signed = join
        if isinstance(given, dict):
            try:
                returned = parse_event(given, join.version, room_id=join.room_id)
            except InvalidEvent as error:
                raise UnusableAnswer(server_name, f"the join that was returned is no event: {error}") from error
            if returned.event_id == join.event_id and returned.content == join.content:
                signatures = {**returned.pdu["signatures"], **join.pdu["signatures"]}
                signed = Event({**join.pdu, "signatures": signatures}, join.version, join.event_id, join.room_id)
        (outcome,) = await self._incoming.verify([signed])
        if isinstance(outcome, InvalidSignature) and signed is not join:
            (outcome,) = await self._incoming.verify([join])
            signed = join
        if isinstance(outcome, InvalidSignature):
            raise UnusableAnswer(server_name, f"the join is not signed as it must be: {outcome}")
        return signed


def _has_key(event: Event | None, key: StateKey) -> bool:
    return event is not None and event.is_state and event.key == key


def _cited(events: Iterable[Event]) -> set[str]:
    return {event_id for event in events for event_id in event.auth_events}


async def _some_at_a_time(given: Mapping[str, Event], event_ids: Iterable[str]) -> AsyncIterator[Event]:
    """These events one after the other, while other requests may run."""
    for index, event_id in enumerate(event_ids):
        if index % EVENTS_AT_A_STRETCH == EVENTS_AT_A_STRETCH - 1:
            await asyncio.sleep(0)
        yield given[event_id]


async def _rejected(order: Iterable[str], given: Mapping[str, Event], version: RoomVersion, room_id: str) -> set[str]:
    """The IDs of the events that are not allowed by their auth events; ``order`` has auth events first."""
    rejected: set[str] = set()
    judged: set[str] = set()
    dropped = Dropped("events left out of a join", room_id)
    create = given.get("$" + room_id[1:]) if version.room_id_is_create_hash else None
    async for event in _some_at_a_time(given, order):
        # Events that cite each other, which is only possible with forged event IDs of version 1, have no order.
        known = (
            given
            if judged.issuperset(event.auth_events)
            else {name: given[name] for name in judged & set(event.auth_events)}
        )
        failure = judge_alone(event, known, rejected, create=create)
        judged.add(event.event_id)
        if failure is not None:
            dropped.add(str(failure), event.event_id)
            rejected.add(event.event_id)
    dropped.log()
    return rejected


def _check_create(
    server_name: str, version: RoomVersion, state: Mapping[StateKey, str], given: Mapping[str, Event]
) -> Event:
    create_id = state.get(CREATE)
    if create_id is None:
        raise UnusableAnswer(server_name, "the state has no create event")
    create = given[create_id]
    if create_version(create) != version.identifier:
        raise UnusableAnswer(server_name, "the create event is of another room version")
    return create


def _check_join(
    server_name: str,
    join: Event,
    create: Event,
    state: Mapping[StateKey, str],
    given: Mapping[str, Event],
    rejected: set[str],
) -> None:
    """Checks 4 and 5 for our own event."""
    failure: HomeserverError | None = judge_alone(join, given, rejected, create=create)
    if failure is None:
        keys = auth_event_keys(join.type, join.sender, join.state_key, join.content, join.version)
        try:
            authorize(join, {key: given[state[key]] for key in keys if key in state}, create=create)
        except NotAuthorized as error:
            failure = error
    if failure is not None:
        raise UnusableAnswer(server_name, f"the state that it sent does not allow the join: {failure}")
