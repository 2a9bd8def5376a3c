"""Fetches what an event depends on: the events before it, its auth chain, or the state before it.

All of this happens while the room is not locked for writing. Events from other servers pass the same checks as any PDU,
and both requests and answers are bounded. An answer that lacks a part of what it names is not used: the next server is
asked, and in the end the event waits (docs/decisions/0010-missing-ancestors.md).

https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence, Set

import structlog

from homeserver.errors import IncompleteAnswer, RemoteError
from homeserver.federation.client import FederationClient
from homeserver.graph.events import Events
from homeserver.graph.given_events import affordable, parts, weight_of
from homeserver.graph.helpers import Helpers, servers_to_ask
from homeserver.graph.incoming_events import IncomingEvents
from homeserver.graph.outliers import Outliers
from homeserver.graph.state import RoomHead, StateSnapshot
from homeserver.protocol.events import CREATE, Event, StateKey
from homeserver.protocol.identifiers import server_of
from homeserver.protocol.json_types import JsonObject
from homeserver.storage import event_graph, federation_queries, waiting_events
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict

logger = structlog.get_logger(__name__)

GAP_EVENTS_MAX = 200
"""How many events are fetched to close one gap; if that is not enough, the state is requested."""
GAP_BYTES_MAX = 24 * 1024 * 1024
"""How much memory, roughly, the events may take that are fetched to close one gap."""
GAP_ROUNDS_MAX = 12
GAP_REQUEST_MAX = 50
"""How many events one request asks for."""
LATEST_EVENTS_MAX = 20
"""How many events one request names."""
SINGLE_EVENTS_MAX = 100
"""If a state lacks at most this many events, they are fetched one by one."""
IDS_PER_QUESTION = 2_000
"""How many event IDs of another server's state are looked up at a time."""
EVENTS_PER_QUESTION = 500
"""How many events of it are loaded at a time."""
REQUESTS_AT_ONCE_MAX = 8


class Ancestors:
    """Fetches missing events and states from the servers that may have them."""

    def __init__(
        self,
        client: FederationClient,
        incoming: IncomingEvents,
        events: Events,
        outliers: Outliers,
        database: Database,
        server_name: str,
    ) -> None:
        self._client = client
        self._incoming = incoming
        self._events = events
        self._outliers = outliers
        self._database = database
        self._server_name = server_name

    def helpers(self, head: RoomHead, origin: str, event: Event) -> Helpers:
        """The servers to ask for what an event lacks: its origin, its sender's server, and the largest in the room."""
        return Helpers(servers_to_ask(head, self._server_name, origin, server_of(event.sender)))

    async def placed(self, room_id: str, event_ids: Iterable[str]) -> set[str]:
        """The events, by ID, that are in the graph of a room."""
        return await self._database.read(event_graph.placed_ids, room_id, list(event_ids))

    # -- the events before ---------------------------------------------------------------------------------------------

    async def close_gap(self, origin: str, helpers: Helpers, head: RoomHead, events: Sequence[Event]) -> list[Event]:
        """The events that other servers have between the graph of the room and these events.

        A server that does not know our latest events may return events that we have, and older ones. Only ancestors of
        the given events are used, and none from before our users joined: those are for backfill. If the origin returns
        nothing, the other servers are asked for the missing events by name. Never raises: events that no server returns
        are left out.
        """
        arrival = await self._depth_of_our_arrival(head)
        given = {event.event_id: event for event in events}
        offered: dict[str, Event] = {}
        taken = dict(given)
        placed = {extremity.event_id for extremity in head.extremities}
        for _ in range(GAP_ROUNDS_MAX):
            missing = await self._take_what_is_needed(head.room_id, taken, offered, placed)
            if not missing or len(taken) - len(given) >= GAP_EVENTS_MAX:
                break
            if sum(map(weight_of, taken.values())) > GAP_BYTES_MAX:
                break
            latest = [event.event_id for event in taken.values() if missing.intersection(event.prev_events)]
            found = await self._missing_events(origin, head, latest)
            if not found and not offered:
                found = await self._missing_events_of_others(helpers, head, missing)
            new = {event.event_id: event for event in found if event.event_id not in offered and event.depth >= arrival}
            if not new:
                break
            offered.update(new)
        return [event for event_id, event in taken.items() if event_id not in given]

    async def _depth_of_our_arrival(self, head: RoomHead) -> int:
        """The least depth at which one of our users joined the room through another server; 0 if none did.

        The depths of other events are not used: the sender of an event chooses its depth, and could make new events
        look old.
        """
        nids = await self._database.read(federation_queries.joins_before_gaps, head.room_nid)
        joins = (stored.event for stored in (await self._events.by_nid(nids)).values())
        ours = (join.depth for join in joins if server_of(join.sender) == self._server_name)
        return min(ours, default=0)

    async def _take_what_is_needed(
        self, room_id: str, taken: dict[str, Event], offered: Mapping[str, Event], placed: set[str]
    ) -> set[str]:
        """Add the ancestors of the event that are in the answer to ``taken``. Returns the prev_events that are still
        missing."""
        missing: set[str] = set()
        while True:
            found = {prev for event in taken.values() for prev in event.prev_events} - taken.keys() - placed - missing
            if not found:
                return missing
            in_graph = await self.placed(room_id, found)
            placed |= in_graph
            missing |= found - in_graph - offered.keys()
            taken.update((event_id, offered[event_id]) for event_id in found - in_graph if event_id in offered)

    async def _missing_events(self, origin: str, head: RoomHead, latest: Sequence[str]) -> list[Event]:
        try:
            pdus = await self._client.get_missing_events(
                origin,
                head.room_id,
                earliest_events=[extremity.event_id for extremity in head.extremities][:LATEST_EVENTS_MAX],
                latest_events=latest[:LATEST_EVENTS_MAX],
                limit=GAP_REQUEST_MAX,
            )
        except RemoteError as error:
            logger.info("server returned no missing events", room_id=head.room_id, server=origin, reason=error.message)
            return []
        # The oldest come first. Of events that are too large for the memory, the next ones are left for another round.
        some = affordable(pdus, GAP_BYTES_MAX, from_the_end=True)
        return await self._incoming.check(some, head.version, head.room_id)

    async def _missing_events_of_others(
        self, helpers: Helpers, head: RoomHead, missing: Collection[str]
    ) -> list[Event]:
        """The missing events and their ancestors, from a server that need not know the events that follow them."""
        wanted = sorted(missing)[:LATEST_EVENTS_MAX]
        for server_name in helpers.others:
            try:
                pdus = await self._client.backfill(server_name, head.room_id, wanted, GAP_REQUEST_MAX)
            except RemoteError as error:
                logger.info(
                    "server returned no missing events", room_id=head.room_id, server=server_name, reason=error.message
                )
                continue
            found = await self._incoming.check(affordable(pdus, GAP_BYTES_MAX), head.version, head.room_id)
            if any(event.event_id in missing for event in found):
                return found
        return []

    async def show(self, helpers: Helpers, head: RoomHead, event_ids: Collection[str]) -> dict[str, Event]:
        """Those of the events that a server shows: returns with valid signatures, whether they are allowed or not."""
        given = await self._single_events(helpers, event_ids)
        shown = await self._incoming.check(given, head.version, head.room_id)
        return {event.event_id: event for event in shown if event.event_id in event_ids}

    async def unshown(
        self, helpers: Helpers, head: RoomHead, event_ids: Iterable[str], shown: dict[str, Event]
    ) -> set[str]:
        """The IDs of the events that no server can show: not this one, where they may be waiting, and no other one.

        Adds the events that other servers show to ``shown``.
        """
        wanted = set(event_ids)
        known = await self._database.read(event_graph.nids_of, head.room_nid, list(wanted))
        wanted -= known.keys()
        if wanted:
            wanted -= await self._database.read(waiting_events.known_of, head.room_id, list(wanted))
        wanted -= self._incoming.met_internal_errors(wanted)
        shown.update(await self.show(helpers, head, wanted - shown.keys()))
        return wanted - shown.keys() - self._incoming.met_internal_errors(wanted)

    # -- auth chains ---------------------------------------------------------------------------------------------------

    async def fetch_auth_chain(self, helpers: Helpers, head: RoomHead, event: Event) -> None:
        """Store the missing part of an event's auth chain, as outliers.

        Raises ``RemoteError`` if no server returns all of the event's auth events.
        """

        async def fetch(server_name: str) -> None:
            pdus = await self._client.get_event_auth(server_name, head.room_id, event.event_id)
            await self._outliers.take_in(head, server_name, pdus)
            known = await self._database.read(event_graph.nids_of, head.room_nid, event.auth_events)
            if len(known) < len(set(event.auth_events)):
                raise IncompleteAnswer(server_name, "the auth chain that was given lacks events")

        await helpers.ask(fetch)

    # -- the state before ----------------------------------------------------------------------------------------------

    async def fetch_state_before(
        self,
        helpers: Helpers,
        head: RoomHead,
        event_id: str,
        *,
        except_for: Collection[str] = (),
        without_unverifiable: bool = False,
    ) -> StateSnapshot:
        """The complete state before an event according to another server. Missing events of it are stored as outliers.

        The servers ``except_for`` are not asked. ``without_unverifiable`` leaves out events that cannot be checked
        because the keys of their signatures, or their auth events, have been unavailable for a long time. Raises
        ``RemoteError``.
        """

        async def fetch(server_name: str) -> StateSnapshot:
            answer = await self._client.get_state_ids(server_name, head.room_id, event_id)
            state_ids: list[str] = answer["pdu_ids"]
            missing = await self._missing_of(head, state_ids, answer.pop("auth_chain_ids"))
            given: set[str] = set()
            if len(missing) > SINGLE_EVENTS_MAX:
                whole = await self._client.get_state(server_name, head.room_id, event_id)
                given = await self._outliers.take_in(head, server_name, whole["auth_chain"], whole["pdus"])
            elif missing:
                single = await self._single_events(helpers, missing, server_name)
                given = await self._outliers.take_in(head, server_name, single)
            return await self._whole_state(server_name, head, state_ids, given if without_unverifiable else set())

        return await helpers.ask(fetch, except_for=except_for)

    async def _missing_of(self, head: RoomHead, *lists: Sequence[str]) -> set[str]:
        """The IDs in these lists of events that are not here; only the first ones if they are so many that all events
        of the state are fetched anyway."""
        missing: set[str] = set()
        standing = set(head.state.values())  # most of an earlier state still stands
        for event_ids in lists:
            for part in parts(event_ids, IDS_PER_QUESTION):
                unsure = [event_id for event_id in part if event_id not in standing]
                known = await self._database.read(event_graph.nids_of, head.room_nid, unsure)
                missing.update(event_id for event_id in unsure if event_id not in known)
                if len(missing) > SINGLE_EVENTS_MAX:
                    return missing
        return missing

    async def _single_events(
        self, helpers: Helpers, event_ids: Collection[str], first: str | None = None
    ) -> list[JsonObject]:
        """Fetch events by ID from any of the servers; events that none of them has are left out."""
        slots = asyncio.Semaphore(REQUESTS_AT_ONCE_MAX)

        async def fetch(event_id: str) -> JsonObject | None:
            async with slots:
                try:
                    return await helpers.ask(lambda server: self._client.get_event(server, event_id), first)
                except RemoteError:
                    return None

        pdus = await asyncio.gather(*(fetch(event_id) for event_id in sorted(event_ids)))
        return [pdu for pdu in pdus if pdu is not None]

    async def _whole_state(
        self, server_name: str, head: RoomHead, state_ids: Collection[str], dispensable: Set[str]
    ) -> StateSnapshot:
        """The state that consists of these events, without rejected ones.

        Raises ``IncompleteAnswer`` if an event is missing that is not dispensable, or if the events are not a valid
        state.
        """
        standing = {event_id: key for key, event_id in head.state.items()}
        state: dict[StateKey, str] = {standing[event_id]: event_id for event_id in state_ids if event_id in standing}
        others = set(state_ids).difference(state.values())
        for part in parts(list(others), EVENTS_PER_QUESTION):
            found = await self._events.by_id(head.room_id, part)
            lacking = set(part) - found.keys() - dispensable
            if lacking:
                raise IncompleteAnswer(server_name, f"{len(lacking)} events of the state that was given cannot be had")
            for event_id, stored in found.items():
                event = stored.original
                if not event.is_state:
                    raise IncompleteAnswer(server_name, "the state that was given has events that are no state of it")
                if stored.verdict & Verdict.REJECTED:
                    continue
                if event.key in state:
                    raise IncompleteAnswer(server_name, f"the state that was given has two events for {event.key}")
                state[event.key] = event_id
        if CREATE not in state:
            raise IncompleteAnswer(server_name, "the state that was given has no create event")
        return head.snapshot.towards(state)
