"""Places events of other servers in the graph: checked, and after all events that they follow.

https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TypeAlias

import structlog

from homeserver.errors import HomeserverError, NotAuthorized
from homeserver.graph.ancestors import Ancestors
from homeserver.graph.append import RoomWriters
from homeserver.graph.events import Events
from homeserver.graph.internal_errors import as_outcome, is_internal_error
from homeserver.graph.judgement import GivenState, Judge, MissingAncestors, Ruling, prev_events_first
from homeserver.graph.past_states import Inquiry, PastStates
from homeserver.graph.policy_servers import Opinions, PolicyServers, Unasked
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.protocol.events import Event
from homeserver.storage import federation_queries, history_lanes
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent, Verdict

logger = structlog.get_logger(__name__)

STATES_ASKED_MAX = 4
"""How many states are requested while one batch of events is placed."""
AUTH_CHAINS_ASKED_MAX = 8
"""How many auth chains are requested while one batch is placed."""

Outcome: TypeAlias = StoredEvent | HomeserverError | None
"""The event as it was stored, the error that prevented it, or None if it was stored already."""


@dataclass(slots=True)
class _Help:
    """The remaining requests to other servers, and their answers, while one batch of events is placed."""

    origin: str
    may_ask: bool
    places: Mapping[str, int] | None
    """The places of events of the past, by event ID; None: the events are new."""
    is_last_resort: bool
    believed: Collection[str]
    """The IDs of events that have waited for so long that their senders are believed."""
    batch: frozenset[str]
    """The IDs of the events of the batch."""
    inquiry: Inquiry | None = None
    states_asked: int = 0
    states: dict[str, GivenState] = field(default_factory=dict)
    """What other servers say of the states before events, by event ID."""
    auth_chains_asked: set[str] = field(default_factory=set)
    """The IDs of events whose auth chains were requested."""
    opinions: Opinions = field(default_factory=Opinions)
    """The answers of the room's policy server."""

    def take_turn(self, event: Event, missing: MissingAncestors) -> None:
        """Count one more request. Raises ``MissingAncestors`` if the limit is reached."""
        if not self.may_ask:
            raise missing
        if missing.auth:
            if event.event_id in self.auth_chains_asked or len(self.auth_chains_asked) >= AUTH_CHAINS_ASKED_MAX:
                raise missing
            self.auth_chains_asked.add(event.event_id)
        else:
            if event.event_id in self.states or self.states_asked >= STATES_ASKED_MAX:
                raise missing
            self.states_asked += 1


class Placer:
    """Places events that have passed checks 1 to 3."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        events: Events,
        writers: RoomWriters,
        judge: Judge,
        ancestors: Ancestors,
        past: PastStates,
        policy: PolicyServers,
    ) -> None:
        self._database = database
        self._heads = heads
        self._events = events
        self._writers = writers
        self._judge = judge
        self._ancestors = ancestors
        self._past = past
        self._policy = policy

    async def place(
        self,
        origin: str,
        room_id: str,
        events: Sequence[Event],
        *,
        places: Mapping[str, int] | None = None,
        may_ask: bool = True,
        is_last_resort: bool = False,
        believed: Collection[str] = (),
    ) -> dict[str, Outcome]:
        """Check and append events, ancestors first; missing ones are fetched if this server ``may_ask``.

        All events that can be appended as they are share a transaction. Those that are not accepted are stored only
        if the origin is in the room; for others, a rejected event's outcome is ``NotAuthorized``. ``places`` are the
        places in the room's history, by event ID, of events from the past; None if the events are new.
        ``is_last_resort``: use a state that was given though some of it could not be verified for a long time.
        ``believed`` are events that have waited for a while: if no other server knows the state before them, what
        their senders say is used.
        """
        outcomes: dict[str, Outcome] = {}
        help_ = _Help(origin, may_ask, places, is_last_resort, believed, frozenset(e.event_id for e in events))
        placed = (
            await self._ancestors.placed(room_id, (event.event_id for event in events)) if places is not None else ()
        )
        todo = [event for event in events if event.event_id not in placed]
        while todo:
            waiting: list[tuple[Event, MissingAncestors | Unasked]] = []
            for event, outcome in zip(todo, await self._append_all(todo, help_), strict=True):
                if isinstance(outcome, MissingAncestors | Unasked):
                    waiting.append((event, outcome))
                else:
                    outcomes[event.event_id] = outcome
            todo = await self._help_one(waiting, help_, outcomes)
        if help_.inquiry is not None:
            await self._past.end(help_.inquiry)
        return outcomes

    async def place_with_ancestors(self, origin: str, event: Event) -> Outcome:
        """Place an event now or never, and before it the missing ancestors that the origin returns."""
        head = await self._heads.get(event.room_id)
        helpers = self._ancestors.helpers(head, origin, event)
        between = await self._ancestors.close_gap(origin, helpers, head, [event])
        ordered = prev_events_first({**{other.event_id: other for other in between}, event.event_id: event})
        believed = frozenset(other.event_id for other in ordered)  # they cannot wait until somebody else answers
        return (await self.place(origin, event.room_id, ordered, believed=believed)).get(event.event_id)

    async def _help_one(
        self, waiting: Sequence[tuple[Event, MissingAncestors | Unasked]], help_: _Help, outcomes: dict[str, Outcome]
    ) -> list[Event]:
        """Fetch what the first waiting event lacks, and return the events that are worth another attempt.

        Events that cannot be helped get their outcome. The policy server is asked about all events first, since some
        may lack nothing but its signature.
        """
        for _, unasked in waiting:
            if isinstance(unasked, Unasked):
                todo = [event for event, _ in waiting]
                await self._policy.ask_about(unasked.server, todo, help_.opinions)
                return todo
        for index, (event, missing) in enumerate(waiting):
            assert isinstance(missing, MissingAncestors)
            try:
                await self._help(event, missing, help_)
            except HomeserverError as error:
                logger.info(
                    "event not placed, as others are missing",
                    room_id=event.room_id,
                    event_id=event.event_id,
                    reason=str(error),
                )
                if not await self._do_without(event, missing, help_):
                    outcomes[event.event_id] = error
                    continue
            return [event for event, _ in waiting[index:]]
        return []

    async def _do_without(self, event: Event, missing: MissingAncestors, help_: _Help) -> bool:
        """Whether an event is checked by the current state of the room, since the state before it is not available.

        Many servers return nothing more of a room to a server whose last user they have removed. If that server was
        down at the time, it could not place the removal, and its user would stay in a silent room for ever.
        """
        if missing.auth or event.event_id in help_.states or event.type != "m.room.member":
            return False
        head = await self._heads.get(event.room_id)
        is_removal = event.membership in ("leave", "ban") and event.sender != event.state_key
        if not is_removal or event.state_key not in head.joined_local:
            return False
        help_.states[event.event_id] = GivenState(before=head.snapshot)
        return True

    async def _help(self, event: Event, missing: MissingAncestors, help_: _Help) -> None:
        """Fetch what an event lacks. Raises ``MissingAncestors`` or ``RemoteError`` if that is not possible."""
        help_.take_turn(event, missing)
        head = await self._heads.get(event.room_id)
        if (inquiry := help_.inquiry) is None:
            helpers = self._ancestors.helpers(head, help_.origin, event)
            inquiry = help_.inquiry = await self._past.begin(head, help_.origin, helpers, help_.is_last_resort)
        if missing.auth:
            await self._ancestors.fetch_auth_chain(inquiry.helpers, head, event)
        elif help_.places is not None:
            help_.states[event.event_id] = await self._past.before_old(inquiry, head, event, missing.prev)
        else:
            await self._check_shown(inquiry, head, event, missing.prev - help_.batch)
            help_.states[event.event_id] = await self._past.before_new(
                inquiry,
                head,
                event,
                missing.prev,
                may_believe=event.event_id in help_.believed,
            )

    async def _check_shown(self, inquiry: Inquiry, head: RoomHead, event: Event, missing: AbstractSet[str]) -> None:
        """Check that the missing prev_events of an event exist. Raises ``MissingAncestors`` if no server shows them.

        The event becomes a forward extremity, which our own events will name. Other servers would refuse our events if
        they had no way to get the ancestors. An event that has followers already is not named.
        """
        unshown = await self._ancestors.unshown(inquiry.helpers, head, missing, inquiry.shown)
        is_followed = federation_queries.is_followed_by_accepted
        if unshown and not await self._database.read(is_followed, head.room_nid, event.event_id):
            raise MissingAncestors(event.event_id, prev=unshown)

    async def _append_all(self, events: Sequence[Event], help_: _Help) -> list[StoredEvent | HomeserverError | None]:
        """Check and append, in one transaction, those of the events that can be."""
        jobs = (self._append(event, help_) for event in events)
        outcomes: list[StoredEvent | HomeserverError | None] = []
        for event, result in zip(events, await asyncio.gather(*jobs, return_exceptions=True), strict=True):
            if not isinstance(result, BaseException) or isinstance(result, HomeserverError):
                outcomes.append(result)
            elif is_internal_error(result):
                # An internal error with one event fails the whole transaction: then try each event by itself.
                outcomes.append(await self._append_alone(event, help_))
            else:
                raise result
        return outcomes

    async def _append_alone(self, event: Event, help_: _Help) -> StoredEvent | HomeserverError | None:
        try:
            return await self._append(event, help_)
        except Exception as error:
            return as_outcome(error, room_id=event.room_id, event_id=event.event_id)

    async def _append(self, event: Event, help_: _Help) -> StoredEvent | None:
        given = help_.states.get(event.event_id)
        place = help_.places[event.event_id] if help_.places is not None else None
        runs = 0

        async def job(working: WorkingHead) -> Sequence[NewEvent]:
            nonlocal runs
            runs += 1
            if await self.is_placed(working, event, ask_database=runs > 1):
                return ()
            new = await self.compose(working, event, help_.opinions, given, place)
            if new.verdict != Verdict.ACCEPTED and place is None and help_.origin not in working.head.joined_servers:
                # Anybody who knows the room's ID can make such events, without end. Where one of them is needed, as
                # an event of a member's server follows it, that server gives it.
                if new.verdict & Verdict.REJECTED:
                    raise NotAuthorized(new.reason or "the event is not allowed")
                return ()
            return (new,)

        stored = await self._writers.submit(event.room_id, job)
        return stored[0] if stored else None

    async def is_placed(self, working: WorkingHead, event: Event, *, ask_database: bool) -> bool:
        """Whether an event is in the graph already, according to the cache or else the database."""
        if working.knows(event.event_id):
            return True
        if ask_database:  # another request has placed this event already
            return bool(await self._ancestors.placed(event.room_id, [event.event_id]))
        stored = self._events.cached(event.room_id, event.event_id)
        return stored is not None and not stored.verdict & Verdict.OUTLIER

    async def compose(
        self,
        working: WorkingHead,
        event: Event,
        opinions: Opinions,
        given: GivenState | None = None,
        place: int | None = None,
    ) -> NewEvent:
        """Check an event on the head that it will be appended to.

        ``given`` is what other servers say of the state before it, if prev_events are missing. ``place`` is its place
        in the room's history if it is from the past; None for a new event. Raises ``MissingAncestors``, and ``Unasked``
        if the room's policy server has to be asked first.
        """
        is_past = place is not None
        before = await self._judge.state_before(working, event, given, is_past=is_past)
        if place is not None and before.group is None:
            above = await self._database.read(history_lanes.group_above, working.head.room_nid, place)
            before = await self._judge.based_on_nearer(before, above)
        ruling = await self._judge.judge(working, event, before, is_past=is_past, has_gap=given is not None)
        if ruling.verdict == Verdict.ACCEPTED and not is_past:
            # 7. "Is validated by the Policy Server, if the room is using a Policy Server, otherwise it is soft failed."
            opinion = await self._policy.opinion(working, event, opinions)
            if opinion is not None:
                event = opinion.event
                if opinion.objection is not None:
                    ruling = Ruling(Verdict.SOFT_FAILED, f"the policy server objects: {opinion.objection}")
        extends = is_late = False
        if ruling.verdict == Verdict.ACCEPTED and not is_past:
            # No known event can follow one that follows all forward extremities.
            is_last = working.head.is_followed_completely_by(event.prev_events)
            is_late = not is_last and await self._is_followed(working, event)
            extends = not is_late
        return NewEvent(
            event,
            before,
            ruling.verdict,
            ruling.reason,
            extends=extends,
            is_late=is_late,
            backfilled=is_past,
            place=place,
        )

    async def _is_followed(self, working: WorkingHead, event: Event) -> bool:
        """Whether a known accepted event follows this one."""
        if any(
            written.new.verdict == Verdict.ACCEPTED and event.event_id in written.new.event.prev_events
            for written in working.written
        ):
            return True
        return await self._database.read(
            federation_queries.is_followed_by_accepted, working.head.room_nid, event.event_id
        )
