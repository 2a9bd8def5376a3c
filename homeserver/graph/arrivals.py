"""Handles the received events of one room, once they have passed checks 1 to 3.

An event that follows known events is placed at once. For others, the events in between are fetched first. Events that
cannot be judged even then wait; see ``waiting_events`` and docs/decisions/0010-missing-ancestors.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from weakref import WeakValueDictionary

import orjson

from homeserver.errors import RemoteError
from homeserver.graph.ancestors import Ancestors
from homeserver.graph.events import Events
from homeserver.graph.judgement import MissingAncestors, prev_events_first
from homeserver.graph.past_states import ATTEMPTS_BEFORE_BELIEF
from homeserver.graph.placement import Outcome, Placer
from homeserver.graph.restoring import Restorer, better_copy
from homeserver.graph.server_access import ServerAccess
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.graph.unhelpful_servers import UnhelpfulServers
from homeserver.graph.waiting_events import WaitingEvents
from homeserver.protocol.events import Event
from homeserver.storage.event_graph import Verdict
from homeserver.storage.waiting_events import WaitingEvent


class Arrivals:
    """Handles events that other servers send to rooms that this server is in."""

    def __init__(
        self,
        heads: RoomHeads,
        events: Events,
        ancestors: Ancestors,
        placer: Placer,
        unhelpful: UnhelpfulServers,
        waiting: WaitingEvents,
        restorer: Restorer,
        access: ServerAccess,
    ) -> None:
        self._heads = heads
        self._events = events
        self._ancestors = ancestors
        self._placer = placer
        self._unhelpful = unhelpful
        self._waiting = waiting
        self._restorer = restorer
        self._access = access
        self._gap_locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def receive(self, origin: str, head: RoomHead, events: Mapping[str, Event]) -> Mapping[str, Outcome]:
        """Place events, or keep those that lack others. Returns the outcome of each; None can also mean kept."""
        known: dict[str, Outcome] = {event_id: None for event_id in events if self._is_known(head.room_id, event_id)}
        if known:
            await self._restorer.restore(events[event_id] for event_id in known)
        new = {event_id: event for event_id, event in events.items() if event_id not in known}
        if not new:
            return known
        if _is_connected(head, new):
            may_ask = self._unhelpful.may_ask(head.room_id, origin)
            outcomes: Mapping[str, Outcome] = await self._place(origin, head.room_id, list(new.values()), may_ask)
        else:
            outcomes = await self._receive_with_gap(origin, head.room_id, new)
        lacking = [(new[event_id], _lacks(new[event_id], o)) for event_id, o in outcomes.items() if _lacks_something(o)]
        kept = await self._waiting.keep(origin, lacking, head.joined_servers) if lacking else set()
        return {**known, **{event_id: None if event_id in kept else outcomes[event_id] for event_id in outcomes}}

    async def keep_until_joined(self, origin: str, events: Mapping[str, Event]) -> set[str]:
        """Keep events of a room that one of our users is joining. Returns the IDs of those that are kept."""
        lacking = [(event, frozenset(event.prev_events)) for event in events.values()]
        return await self._waiting.keep(origin, lacking, {origin})

    async def retry(
        self, room_id: str, origin: str, waiting: Sequence[WaitingEvent], is_last_resort: bool
    ) -> Mapping[str, frozenset[str]]:
        """Retry events that have been waiting. Returns what each event that must go on waiting lacks (a ``Retry``)."""
        head = await self._heads.find(room_id)
        if head is None or not head.joined_local:
            if await self._access.is_being_joined(room_id):
                return {event.event_id: event.lacks for event in waiting}
            return {}  # none of our users is in the room any more
        events = {
            kept.event_id: Event(orjson.loads(kept.json), head.version, kept.event_id, room_id, kept.json)
            for kept in waiting
        }
        believed = {kept.event_id for kept in waiting if kept.attempts >= ATTEMPTS_BEFORE_BELIEF}
        outcomes = await self._receive_with_gap(origin, room_id, events, is_last_resort, believed)
        return {
            event_id: _lacks(events[event_id], outcome)
            for event_id, outcome in outcomes.items()
            if _lacks_something(outcome)
        }

    def _is_known(self, room_id: str, event_id: str) -> bool:
        stored = self._events.cached(room_id, event_id)
        return stored is not None and not stored.verdict & Verdict.OUTLIER

    async def _receive_with_gap(
        self,
        origin: str,
        room_id: str,
        events: Mapping[str, Event],
        is_last_resort: bool = False,
        believed: AbstractSet[str] = frozenset(),
    ) -> Mapping[str, Outcome]:
        # One at a time for each room and server: the next one may find the gap closed. Other servers are not delayed.
        lock = self._gap_locks.setdefault((room_id, origin), asyncio.Lock())
        async with lock:
            head = await self._heads.get(room_id)
            placed = await self._ancestors.placed(room_id, events)
            known: dict[str, Outcome] = dict.fromkeys(placed)
            new = {event_id: event for event_id, event in events.items() if event_id not in placed}
            if placed:
                await self._restorer.restore(events[event_id] for event_id in placed)
            if not new:
                return known
            may_ask = self._unhelpful.may_ask(room_id, origin)
            between: list[Event] = []
            if may_ask:
                helpers = self._ancestors.helpers(head, origin, next(iter(new.values())))
                between = await self._ancestors.close_gap(origin, helpers, head, list(new.values()))
            found = {**{event.event_id: event for event in between}, **new}
            stored = await self._events.by_id(room_id, found)  # as outliers
            ordered = prev_events_first({name: better_copy(stored.get(name), event) for name, event in found.items()})
            if believed >= new.keys():
                believed = found.keys()  # what comes before them has been missing for as long
            outcomes = await self._place(origin, room_id, ordered, may_ask, is_last_resort, believed)
            if may_ask and not any(map(_lacks_something, outcomes.values())):
                self._unhelpful.helped(room_id, origin)
        return {**known, **{event_id: outcomes.get(event_id) for event_id in new}}

    async def _place(
        self,
        origin: str,
        room_id: str,
        events: Sequence[Event],
        may_ask: bool,
        is_last_resort: bool = False,
        believed: AbstractSet[str] = frozenset(),
    ) -> dict[str, Outcome]:
        outcomes = await self._placer.place(
            origin, room_id, events, may_ask=may_ask, is_last_resort=is_last_resort, believed=believed
        )
        if may_ask and any(map(_lacks_something, outcomes.values())):
            self._unhelpful.did_not_help(room_id, origin)
        return outcomes


def _is_connected(head: RoomHead, events: Mapping[str, Event]) -> bool:
    """Whether each event follows the room's forward extremities, or one that comes before it."""
    reached = {extremity.event_id for extremity in head.extremities}
    for event in events.values():
        if not event.prev_events or not reached.issuperset(event.prev_events):
            return False
        reached.add(event.event_id)
    return True


def _lacks_something(outcome: Outcome) -> bool:
    """Whether an event cannot be placed because something that it depends on is missing."""
    return isinstance(outcome, (MissingAncestors, RemoteError))


def _lacks(event: Event, outcome: Outcome) -> frozenset[str]:
    """The IDs of the events that are needed to judge this one."""
    if isinstance(outcome, MissingAncestors):
        return outcome.auth | outcome.prev
    return frozenset(event.prev_events) | frozenset(event.auth_events)
