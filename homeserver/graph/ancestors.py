"""Fetching what an event builds on: the events before it, its auth chain, or the state before it.

All of it happens outside of the room's turn to write. What comes from other servers passes the same checks as any PDU;
how much is asked for and taken is bounded.

https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import structlog

from homeserver.errors import InvalidEvent, RemoteError, RemoteUnreachable
from homeserver.federation.client import FederationClient
from homeserver.graph.append import RoomWriters
from homeserver.graph.events import Events
from homeserver.graph.incoming_events import IncomingEvents
from homeserver.graph.judgement import auth_events_first, judge_alone
from homeserver.graph.state import RoomHead, StateSnapshot
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.events import CREATE, Event, StateKey
from homeserver.protocol.json_types import JsonObject
from homeserver.storage import event_graph, federation_queries
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict

logger = structlog.get_logger(__name__)

GAP_EVENTS_MAX = 200
"""Events that are fetched to close one gap; where that is not enough, the state is asked for."""
GAP_ROUNDS_MAX = 12
GAP_REQUEST_MAX = 50
"""Events that one request asks for."""
LATEST_EVENTS_MAX = 20
"""Events that one request names."""
SINGLE_EVENTS_MAX = 100
"""Missing events of a state up to which they are fetched one by one."""
REQUESTS_AT_ONCE_MAX = 8
OUTLIERS_PER_JOB = 250


class Ancestors:
    """Fetches what is missing, from the server that knows of it."""

    def __init__(
        self,
        client: FederationClient,
        incoming: IncomingEvents,
        events: Events,
        writers: RoomWriters,
        database: Database,
    ) -> None:
        self._client = client
        self._incoming = incoming
        self._events = events
        self._writers = writers
        self._database = database

    async def placed(self, event_ids: Iterable[str]) -> set[str]:
        """Those of the events that stand in the graph."""
        known = await self._database.read(event_graph.nids_and_verdicts, list(event_ids))
        return {event_id for event_id, (_, verdict) in known.items() if not verdict & Verdict.OUTLIER}

    # -- the events before ---------------------------------------------------------------------------------------------

    async def close_gap(self, origin: str, head: RoomHead, events: Sequence[Event]) -> list[Event]:
        """What the origin knows of the events between those that stand in the graph and these.

        A server that does not know our latest events goes on into what we have and beyond. Of what it offers only that
        is taken which these events build on, and nothing from before what we have of the room: that is for backfill.

        Never fails: what cannot be had is left out.
        """
        past = await self._database.read(federation_queries.depth_of_first_gap, head.room_nid)
        given = {event.event_id: event for event in events}
        offered: dict[str, Event] = {}
        taken = dict(given)
        placed = {extremity.event_id for extremity in head.extremities}
        for _ in range(GAP_ROUNDS_MAX):
            missing = await self._take_what_is_needed(taken, offered, placed)
            if not missing or len(taken) - len(given) >= GAP_EVENTS_MAX:
                break
            latest = [event.event_id for event in taken.values() if missing.intersection(event.prev_events)]
            new = await self._missing_events(origin, head, latest)
            new = {name: event for name, event in new.items() if name not in offered and event.depth >= past}
            if not new:
                break
            offered.update(new)
        return [event for event_id, event in taken.items() if event_id not in given]

    async def _take_what_is_needed(
        self, taken: dict[str, Event], offered: Mapping[str, Event], placed: set[str]
    ) -> set[str]:
        """Add to ``taken`` what it builds on of what is offered. Returns the prev_events that it still lacks."""
        missing: set[str] = set()
        while True:
            found = {prev for event in taken.values() for prev in event.prev_events} - taken.keys() - placed - missing
            if not found:
                return missing
            in_graph = await self.placed(found)
            placed |= in_graph
            missing |= found - in_graph - offered.keys()
            taken.update((event_id, offered[event_id]) for event_id in found - in_graph if event_id in offered)

    async def _missing_events(self, origin: str, head: RoomHead, latest: Sequence[str]) -> dict[str, Event]:
        try:
            pdus = await self._client.get_missing_events(
                origin,
                head.room_id,
                earliest_events=[extremity.event_id for extremity in head.extremities][:LATEST_EVENTS_MAX],
                latest_events=latest[:LATEST_EVENTS_MAX],
                limit=GAP_REQUEST_MAX,
            )
        except RemoteError as error:
            logger.info("missing events not given", room_id=head.room_id, server=origin, reason=error.message)
            return {}
        found = await self._incoming.check(pdus[:GAP_REQUEST_MAX], head.version, head.room_id)
        return {event.event_id: event for event in found}

    # -- auth chains ---------------------------------------------------------------------------------------------------

    async def fetch_auth_chain(self, origin: str, head: RoomHead, event: Event) -> None:
        """Store the part of an event's auth chain that is missing here, as outliers.

        Raises ``RemoteError``.
        """
        pdus = await self._client.get_event_auth(origin, head.room_id, event.event_id)
        await self._import(head, await self._unknown(head, pdus))

    async def _unknown(self, head: RoomHead, pdus: Sequence[Any]) -> dict[str, Event]:
        """The events that are not known here, checked. Those that are known are not checked again."""
        parsed: dict[str, Event] = {}
        for pdu in pdus:
            try:
                event = parse_event(pdu, head.version, room_id=head.room_id)
            except InvalidEvent:
                continue
            parsed[event.event_id] = event
        known = await self._database.read(event_graph.nids_of, list(parsed))
        outcomes = await self._incoming.verify([e for event_id, e in parsed.items() if event_id not in known])
        return {outcome.event_id: outcome for outcome in outcomes if isinstance(outcome, Event)}

    async def _import(self, head: RoomHead, new: Mapping[str, Event]) -> None:
        """Store events as outliers, judged by what they cite. Those whose citations are missing are left out."""
        if not new:
            return
        cited = {event_id for event in new.values() for event_id in event.auth_events}
        if head.version.room_id_is_create_hash:
            cited.add("$" + head.room_id[1:])
        known: dict[str, Event] = {}
        rejected: set[str] = set()
        for event_id, stored in (await self._events.by_id(cited - new.keys())).items():
            known[event_id] = stored.event
            if stored.verdict & Verdict.REJECTED:
                rejected.add(event_id)
        outliers: list[NewEvent] = []
        for event in auth_events_first(new):
            create = known.get("$" + head.room_id[1:]) if head.version.room_id_is_create_hash else None
            if any(event_id not in known for event_id in event.auth_events):
                continue
            failure = judge_alone(event, known, rejected, create=create)
            known[event.event_id] = event
            if failure is None:
                outliers.append(NewEvent(event, None, Verdict.OUTLIER))
            else:
                rejected.add(event.event_id)
                outliers.append(NewEvent(event, None, Verdict.OUTLIER | Verdict.REJECTED, str(failure)))
        for start in range(0, len(outliers), OUTLIERS_PER_JOB):
            await self._writers.submit(head.room_id, _job_of(outliers[start : start + OUTLIERS_PER_JOB]))

    # -- the state before ----------------------------------------------------------------------------------------------

    async def fetch_state_before(self, origin: str, head: RoomHead, event: Event) -> StateSnapshot:
        """The state before an event, as the origin sees it. Its events are stored as outliers where they were missing.

        Raises ``RemoteError``.
        """
        answer = await self._client.get_state_ids(origin, head.room_id, event.event_id)
        state_ids: list[str] = answer["pdu_ids"]
        wanted = {*state_ids, *answer["auth_chain_ids"]}
        known = await self._database.read(event_graph.nids_of, list(wanted))
        missing = wanted - known.keys()
        if len(missing) > SINGLE_EVENTS_MAX:
            whole = await self._client.get_state(origin, head.room_id, event.event_id)
            await self._import(head, await self._unknown(head, [*whole["auth_chain"], *whole["pdus"]]))
        elif missing:
            await self._import(head, await self._single_events(origin, head, missing))
        state = await self._state_of(head, state_ids)
        if CREATE not in state:
            raise RemoteUnreachable(origin, "the state that was given has no create event")
        return head.snapshot.towards(state)

    async def _single_events(self, origin: str, head: RoomHead, event_ids: Collection[str]) -> dict[str, Event]:
        slots = asyncio.Semaphore(REQUESTS_AT_ONCE_MAX)

        async def fetch(event_id: str) -> JsonObject | None:
            async with slots:
                try:
                    return await self._client.get_event(origin, event_id)
                except RemoteError:
                    return None

        pdus = await asyncio.gather(*(fetch(event_id) for event_id in sorted(event_ids)))
        found = await self._unknown(head, [pdu for pdu in pdus if pdu is not None])
        return {event_id: event for event_id, event in found.items() if event_id in event_ids}

    async def _state_of(self, head: RoomHead, state_ids: Iterable[str]) -> dict[StateKey, str]:
        state: dict[StateKey, str] = {}
        for event_id, stored in (await self._events.by_id(state_ids)).items():
            is_usable = stored.room_nid == head.room_nid and not stored.verdict & Verdict.REJECTED
            if is_usable and stored.event.is_state:
                state[stored.event.key] = event_id
        return state


def _job_of(outliers: Sequence[NewEvent]) -> Any:
    async def job(_: WorkingHead) -> Sequence[NewEvent]:
        return outliers

    return job
