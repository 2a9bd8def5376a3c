"""What is true of a room, by the letter of the specification: which events are rejected, and what the state is.

It shares the rules of authorization with the server, which have tests of their own, and nothing else: not the graph,
not the cache of states, not state resolution, of which it uses a slow and literal reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from homeserver.errors import NotAuthorized
from homeserver.protocol.authorization import auth_event_keys, authorize, check_auth_events
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.room_versions import StateResolution
from tests.properties.reference_resolution import resolve_by_the_book, resolve_version_1_by_the_book

State = Mapping[StateKey, str]
_Frozen = frozenset[tuple[StateKey, str]]


class Oracle:
    """One room, of which ``events`` are known to somebody."""

    def __init__(self, events: Iterable[Event]) -> None:
        given = {event.event_id: event for event in events}
        self.create = next(event for event in given.values() if event.type == "m.room.create")
        self.version = self.create.version
        self.rejected: dict[str, str] = {}
        """Event ID to reason."""
        self.events: dict[str, Event] = {}
        """Those all of whose ancestors are known, ancestors first."""
        self.before: dict[str, State] = {}
        self.after: dict[str, State] = {}
        self._resolved: dict[frozenset[_Frozen], State] = {}
        self._given = given
        self._alone: dict[str, bool] = {}
        for event in _ancestors_first(given):
            self._judge(event)

    def state(self, extremities: Iterable[str]) -> State:
        """The state after some events together."""
        return self._resolve(self.after[event_id] for event_id in extremities)

    def ancestors(self, event_ids: Iterable[str]) -> set[str]:
        """These events and all before them."""
        found: set[str] = set()
        todo = list(event_ids)
        while todo:
            event_id = todo.pop()
            if event_id not in found and event_id in self.events:
                found.add(event_id)
                todo.extend(self.events[event_id].prev_events)
        return found

    def _judge(self, event: Event) -> None:
        before = self._resolve(self.after[prev] for prev in event.prev_events)
        self.events[event.event_id] = event
        self.before[event.event_id] = self.after[event.event_id] = before
        try:
            self._check(event, before)
        except NotAuthorized as error:
            self.rejected[event.event_id] = str(error)
            return
        if event.is_state:
            self.after[event.event_id] = {**before, event.key: event.event_id}

    def _check(self, event: Event, before: State) -> None:
        if not event.prev_events and event is not self.create:
            raise NotAuthorized("it comes after nothing")
        create = self._check_citations(event)
        keys = auth_event_keys(event.type, event.sender, event.state_key, event.content, self.version)
        authorize(event, {key: self.events[before[key]] for key in keys if key in before}, create=create)

    def _check_citations(self, event: Event) -> Event | None:
        cited = [self._given[auth] for auth in event.auth_events if auth in self._given]
        if len(cited) < len(event.auth_events):
            raise NotAuthorized("it cites what nobody knows")
        create = self.create if self.version.room_id_is_create_hash and event is not self.create else None
        check_auth_events(event, cited, {auth.event_id for auth in cited if self._is_rejected(auth)}, create=create)
        authorize(event, {auth.key: auth for auth in cited}, create=create)
        return create

    def _is_rejected(self, event: Event) -> bool:
        """Whether an event that another cites was rejected: by its own citations alone, where it has no place."""
        if event.event_id in self.events:
            return event.event_id in self.rejected
        if event.event_id not in self._alone:
            self._alone[event.event_id] = False
            try:
                self._check_citations(event)
            except NotAuthorized:
                self._alone[event.event_id] = True
        return self._alone[event.event_id]

    def _resolve(self, states: Iterable[State]) -> State:
        different = {frozenset(state.items()): state for state in states}
        if len(different) < 2:
            return next(iter(different.values()), {})
        key = frozenset(different)
        if key not in self._resolved:
            sets = [dict(state) for state in different.values()]
            if self.version.state_resolution is StateResolution.V1:
                self._resolved[key] = resolve_version_1_by_the_book(sets, self._given)
            else:
                self._resolved[key] = resolve_by_the_book(self.version, sets, self._given, self.create)
        return self._resolved[key]


def _ancestors_first(given: Mapping[str, Event]) -> list[Event]:
    """The events all of whose ancestors, down to one that has none, are known; after all that they cite of those."""
    whole = _sorted({event_id: set(event.prev_events) for event_id, event in given.items()})
    after = {event_id: {*given[event_id].prev_events, *given[event_id].auth_events} & set(whole) for event_id in whole}
    return [given[event_id] for event_id in _sorted(after)]


def _sorted(after: Mapping[str, set[str]]) -> list[str]:
    """Keys in an order in which each comes after those that it is to come after; those that cannot are left out."""
    followers: dict[str, list[str]] = {}
    lacking = {name: len(earlier) for name, earlier in after.items()}
    for name, earlier in after.items():
        for before in sorted(earlier):
            followers.setdefault(before, []).append(name)
    ordered = [name for name, count in lacking.items() if count == 0]
    for name in ordered:  # which grows meanwhile
        for follower in followers.get(name, ()):
            lacking[follower] -= 1
            if lacking[follower] == 0:
                ordered.append(follower)
    return ordered
