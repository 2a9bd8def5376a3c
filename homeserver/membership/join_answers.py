"""Checks the answer of a server to a join: the events that this server's copy of the room will be based on.

https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_joinroomideventid
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from homeserver.errors import HomeserverError, InvalidEvent, InvalidSignature, NotAuthorized, RemoteError
from homeserver.federation.client import FederationClient
from homeserver.graph.incoming_events import EVENTS_AT_A_STRETCH, IncomingEvents
from homeserver.graph.judgement import auth_events_first, judge_alone
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


class UnusableAnswer(HomeserverError):
    """The answer of another server is wrong, or incomplete."""

    def __init__(self, server_name: str, reason: str) -> None:
        super().__init__(f"{server_name}: {reason}")
        self.destination = server_name
        self.message = reason


@dataclass(frozen=True, slots=True)
class JoinedRoom:
    """The events of a room as another server sent them, checked."""

    join: Event
    """Our user's join, with the signatures that the other server has added."""
    state: Mapping[StateKey, Event]
    """The state before the join."""
    auth_chain: Sequence[Event]

    @property
    def create(self) -> Event:
        """The create event, from which the room's version comes."""
        return self.state[CREATE]


class JoinAnswers:
    """Checks the answers to joins."""

    def __init__(self, incoming: IncomingEvents, client: FederationClient) -> None:
        self._incoming = incoming
        self._client = client
        self._slots = asyncio.Semaphore(REQUESTS_AT_ONCE_MAX)

    async def check(self, server_name: str, version: RoomVersion, join: Event, answer: JsonObject) -> JoinedRoom:
        """The room that the answer describes. Raises ``UnusableAnswer``."""
        room_id = join.room_id
        if answer.get("members_omitted") is True:
            raise UnusableAnswer(server_name, "the members were left out, which we did not ask for")
        named = await self._incoming.parse(answer["state"], version, room_id)
        chain = await self._incoming.parse(answer["auth_chain"], version, room_id)
        if named.pop(join.event_id, None) is not None:
            # This is the state after the join. Before it stood the membership that the join cites, if any.
            named.update((cited, chain[cited]) for cited in join.auth_events if _has_key(chain.get(cited), join.key))
        given = {**chain, **named}
        given.pop(join.event_id, None)
        given.update(await self._absent(server_name, version, join, given))
        checked = await self._incoming.verify_each(list(given.values()))
        everything = {event.event_id: event for event in checked if isinstance(event, Event)}
        state = [everything[event_id] for event_id in named if event_id in everything]
        rejected = await _rejected(everything, version, room_id)
        before: dict[StateKey, Event] = {}
        for event in state:
            if event.event_id in rejected or not event.is_state:
                continue
            if event.key in before:
                raise UnusableAnswer(server_name, f"the state has two events for {event.key}")
            before[event.key] = event
        _check_create(server_name, version, before)
        signed = await self.signed_join(server_name, join, answer)
        _check_join(server_name, signed, before, everything, rejected)
        auth_chain = [event for event_id, event in everything.items() if event_id not in rejected]
        return JoinedRoom(signed, before, auth_chain)

    async def _absent(
        self, server_name: str, version: RoomVersion, join: Event, given: Mapping[str, Event]
    ) -> dict[str, Event]:
        """Fetch the auth events that an answer lacks, one by one. Raises ``UnusableAnswer`` if some cannot be had.

        State events that cannot be checked without them would be left out of the room's state, and later events that
        depend on those would be rejected for ever. The ``join`` itself may cite what is in no state any more: an
        earlier join, for instance, that the server accepted just before we crashed.
        """
        found: dict[str, Event] = {}
        absent = _cited([join, *given.values()]) - given.keys()
        for _ in range(ABSENT_ROUNDS_MAX):
            if not absent:
                return found
            if len(absent) + len(found) > ABSENT_MAX:
                break
            pdus = await asyncio.gather(*(self._fetch(server_name, event_id) for event_id in sorted(absent)))
            new = await self._incoming.parse([pdu for pdu in pdus if pdu is not None], version, join.room_id)
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


async def _rejected(events: Mapping[str, Event], version: RoomVersion, room_id: str) -> set[str]:
    """The IDs of the events that are not allowed by their auth events."""
    rejected: set[str] = set()
    known: dict[str, Event] = {}
    create = events.get("$" + room_id[1:]) if version.room_id_is_create_hash else None
    # In a thread, since this takes long for a large room and other requests must not wait.
    for index, event in enumerate(await asyncio.to_thread(auth_events_first, events)):
        if index % EVENTS_AT_A_STRETCH == EVENTS_AT_A_STRETCH - 1:
            await asyncio.sleep(0)
        failure = judge_alone(event, known, rejected, create=create)
        known[event.event_id] = event
        if failure is not None:
            logger.info("event left out of a join", event_id=event.event_id, reason=str(failure)[:200])
            rejected.add(event.event_id)
    return rejected


def _check_create(server_name: str, version: RoomVersion, state: Mapping[StateKey, Event]) -> None:
    create = state.get(CREATE)
    if create is None:
        raise UnusableAnswer(server_name, "the state has no create event")
    if create_version(create) != version.identifier:
        raise UnusableAnswer(server_name, "the create event is of another room version")


def _check_join(
    server_name: str,
    join: Event,
    state: Mapping[StateKey, Event],
    known: Mapping[str, Event],
    rejected: set[str],
) -> None:
    """Checks 4 and 5 for our own event."""
    create = state[CREATE]
    failure: HomeserverError | None = judge_alone(join, known, rejected, create=create)
    if failure is None:
        keys = auth_event_keys(join.type, join.sender, join.state_key, join.content, join.version)
        try:
            authorize(join, {key: state[key] for key in keys if key in state}, create=create)
        except NotAuthorized as error:
            failure = error
    if failure is not None:
        raise UnusableAnswer(server_name, f"the state that it sent does not allow the join: {failure}")
