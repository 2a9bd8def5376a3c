"""Checks 4 to 6 on receipt of a PDU: whether its auth events, the state before it and the current state allow it.

All of this runs while the room is locked for writing (see ``append``), on the newest head.

https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from homeserver.errors import HomeserverError, NotAuthorized
from homeserver.graph.events import Events
from homeserver.graph.state import RoomHead, StateReader, StateSnapshot
from homeserver.graph.working_head import WorkingHead
from homeserver.protocol.authorization import auth_event_keys, authorize, check_auth_events
from homeserver.protocol.events import CREATE, Event
from homeserver.protocol.room_versions import StateResolution
from homeserver.storage.event_graph import Verdict

DIFFERENCE_MAX = 50
"""A state that differs by more entries from the one that it is based on may be stored by its difference to another."""


class MissingAncestors(HomeserverError):
    """An event cannot be judged because other events are missing."""

    def __init__(self, event_id: str, *, auth: Iterable[str] = (), prev: Iterable[str] = ()) -> None:
        self.auth = frozenset(auth)
        """The IDs of auth_events that are not known."""
        self.prev = frozenset(prev)
        """The IDs of prev_events that are not in the graph."""
        super().__init__(f"{event_id}: {len(self.auth)} auth events and {len(self.prev)} prev events are missing")


@dataclass(frozen=True, slots=True)
class Ruling:
    """The result of the checks."""

    verdict: Verdict
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class GivenState:
    """What other servers say of the state before an event whose prev_events are missing: one of two things."""

    after: Mapping[str, StateSnapshot] = field(default_factory=dict)
    """The states after the missing prev_events, by event ID, according to servers that did not send the event."""
    before: StateSnapshot | None = None
    """The state before the event itself."""
    is_independent: bool = True
    """Whether ``before`` comes from a server that did not send the event."""


class Judge:
    """Applies the authorization rules to events from other servers."""

    def __init__(self, events: Events, states: StateReader) -> None:
        self._events = events
        self._states = states

    async def judge(
        self,
        working: WorkingHead,
        event: Event,
        before: StateSnapshot,
        *,
        is_past: bool = False,
        has_gap: bool = False,
    ) -> Ruling:
        """Checks 4 to 6; without check 6 for events of the past (``is_past``).

        ``has_gap`` says that prev_events are missing. Then check 6 uses the state before the event, resolved with the
        current state that is known here: otherwise users who joined within the gap could never send again. Raises
        ``MissingAncestors`` if auth events are missing.
        """
        try:
            # 4. "Passes authorisation rules based on the event's auth events, otherwise it is rejected."
            create = await self._check_citations(working, event)
            # 5. "Passes authorisation rules based on the state before the event, otherwise it is rejected."
            keys = auth_event_keys(event.type, event.sender, event.state_key, event.content, event.version)
            ids_before = {event_id for key in keys if (event_id := before.state.get(key)) is not None}
            if ids_before != set(event.auth_events):  # otherwise it is the same check again
                authorize(event, await working.state_events(keys, before.state), create=create)
        except NotAuthorized as error:
            return Ruling(Verdict.REJECTED, str(error))
        # 6. "Passes authorisation rules based on the current state of the room, otherwise it is soft failed."
        current = working.head.snapshot
        if is_past or current is before:
            return Ruling(Verdict.ACCEPTED)
        if has_gap:
            current = await _resolve_checked(working, [current, before])
        ids_now = {event_id for key in keys if (event_id := current.state.get(key)) is not None}
        if ids_now != ids_before:
            try:
                authorize(event, await working.state_events(keys, current.state), create=create)
            except NotAuthorized as error:
                return Ruling(Verdict.SOFT_FAILED, str(error))
        return Ruling(Verdict.ACCEPTED)

    async def _check_citations(self, working: WorkingHead, event: Event) -> Event | None:
        """Check 4. Returns the create event if the room version does not have it among the auth events."""
        wanted = list(dict.fromkeys(event.auth_events))
        create_id = None
        if event.version.room_id_is_create_hash and event.type != "m.room.create":
            create_id = "$" + event.room_id[1:]
            wanted.append(create_id)
        found = await working.with_verdicts(wanted)
        if len(found) < len(set(wanted)):
            raise MissingAncestors(event.event_id, auth=(name for name in wanted if name not in found))
        cited = [found[event_id][0] for event_id in event.auth_events]
        create = found[create_id][0] if create_id is not None else None
        rejected = {event_id for event_id, (_, verdict) in found.items() if verdict & Verdict.REJECTED}
        check_auth_events(event, cited, rejected, create=create)
        authorize(event, {(auth.type, auth.state_key or ""): auth for auth in cited}, create=create)
        return create

    async def state_before(
        self, working: WorkingHead, event: Event, given: GivenState | None = None, *, is_past: bool = False
    ) -> StateSnapshot:
        """The state before an event: the resolution of the states after its prev_events.

        ``given`` is what other servers say, and stands for missing prev_events. It is resolved with the states that are
        known here, and never replaces them. ``is_past`` says that the event is older than what this server has of the
        room. Raises ``MissingAncestors`` if prev_events are missing and nothing is ``given``.
        """
        head = working.head
        if not event.prev_events and head.state.get(CREATE) == event.event_id:
            return StateSnapshot.whole({})  # the beginning of the room, which history leads back to
        if head.is_exact and head.is_followed_completely_by(event.prev_events):
            return head.snapshot
        snapshots: list[StateSnapshot] = []
        missing: list[str] = []
        for event_id in sorted(set(event.prev_events)):
            snapshot = await self._state_after(working, event_id, is_past=is_past)
            if snapshot is None:
                missing.append(event_id)
            else:
                snapshots.append(snapshot)
        if not is_past:
            late = await working.late_before(event)
            snapshots += [await self._states.after_extremity(extremity) for extremity in late]
        if not missing and snapshots:
            return await working.resolve(snapshots)
        if given is not None and missing and given.after.keys() >= set(missing):
            return await working.resolve([*snapshots, *(given.after[event_id] for event_id in missing)])
        if given is None or given.before is None:
            raise MissingAncestors(event.event_id, prev=missing)
        before = given.before
        if is_past:
            return await _resolve_checked(working, [*snapshots, before])
        if not given.is_independent:
            if not snapshots and head.version.state_resolution is StateResolution.V1:
                snapshots.append(head.snapshot)  # events stored here, which version 1 does not check again
            before = _completed(before, head)
        # An event that follows a known event follows everything that the known event follows.
        absent = {key: i for known in snapshots for key, i in known.state.items() if key not in before.state}
        return await _resolve_checked(working, [*snapshots, before.changed(absent) if absent else before])

    async def based_on_nearer(self, state: StateSnapshot, state_group: int | None) -> StateSnapshot:
        """A state that is not stored yet, to be stored as its difference to another group if that is smaller.

        The state of an event from long ago would otherwise be stored by all in which it differs from that of now.
        """
        steps = 0
        base: StateSnapshot | None = state
        while base is not None and base.group is None:
            steps += len(base.delta or ())
            base = base.base
        if state_group is None or steps <= DIFFERENCE_MAX:
            return state
        nearer = (await self._states.snapshot(state_group)).towards(state.state)
        return nearer if len(nearer.delta or ()) < steps else state

    async def _state_after(self, working: WorkingHead, event_id: str, *, is_past: bool) -> StateSnapshot | None:
        if working.knows(event_id):
            return working.snapshot_after(event_id)
        for extremity in working.head.extremities:
            if extremity.event_id == event_id:
                return await self._states.after_extremity(extremity)
        stored = await self._events.get(working.head.room_id, event_id)
        if stored is None or stored.state_group is None:
            return None
        snapshot = await self._states.snapshot(stored.state_group)
        if not is_past and stored.stream_position is not None and stored.stream_position < 0:
            return _completed(snapshot, working.head)  # another server gave it, with fetched history
        return snapshot


async def _resolve_checked(working: WorkingHead, snapshots: Sequence[StateSnapshot]) -> StateSnapshot:
    """The resolution of states of which another server gave one.

    Version 1 of state resolution accepts entries without conflict, and the least deep of conflicting ones, unchecked:
    it cannot detect a forged state. Version 2 checks everything in which the states differ.
    """
    version = working.head.version
    if version.state_resolution is StateResolution.V1:
        version = replace(version, state_resolution=StateResolution.V2)
    return await working.resolve(snapshots, version)


def _completed(given: StateSnapshot, head: RoomHead) -> StateSnapshot:
    """A state that another server gave, completed with entries that only the room's state has.

    Entries never leave the state of a room. But state resolution checks entries that only one of the states has by the
    current rules: a member who joined while the room was public would be lost if it is private now and a server left
    them out. A state from before any of our users was in the room is not changed: our users must not look like members
    there, since other servers would reject an event of ours that follows only that state.
    """
    if not any(("m.room.member", user_id) in given.state for user_id in head.joined_local):
        return given
    absent = {key: event_id for key, event_id in head.state.items() if key not in given.state}
    return given.changed(absent) if absent else given


def judge_alone(
    event: Event, known: Mapping[str, Event], rejected: set[str], *, create: Event | None = None
) -> NotAuthorized | None:
    """Check 4 alone, for outliers: the error if the event's auth events, all of which are known, do not allow it.

    ``rejected`` holds the IDs of known events that were rejected.
    """
    cited = [known[event_id] for event_id in event.auth_events if event_id in known]
    try:
        if len(cited) < len(event.auth_events):
            raise NotAuthorized("the event cites events that nobody could show")
        check_auth_events(event, cited, rejected, create=create)
        authorize(event, {(auth.type, auth.state_key or ""): auth for auth in cited}, create=create)
    except NotAuthorized as error:
        return error
    return None


def auth_events_first(events: Mapping[str, Event]) -> list[Event]:
    """The events sorted so that auth events come before the events that cite them."""
    return [events[event_id] for event_id in auth_event_ids_first(events)]


def auth_event_ids_first(events: Mapping[str, Event]) -> list[str]:
    """The same, as event IDs: for events that are not all in memory at once."""
    return _ancestors_first(events, lambda event: event.auth_events)


def prev_events_first(events: Mapping[str, Event]) -> list[Event]:
    """The events sorted so that prev_events come before the events that follow them."""
    by_depth = {event.event_id: event for event in sorted(events.values(), key=lambda e: (e.depth, e.event_id))}
    return [by_depth[event_id] for event_id in _ancestors_first(by_depth, lambda event: event.prev_events)]


def _ancestors_first(events: Mapping[str, Event], ancestors: Callable[[Event], Sequence[str]]) -> list[str]:
    ordered: dict[str, None] = {}
    open_ids: set[str] = set()
    for start in events:
        stack = [start]
        while stack:
            event_id = stack[-1]
            if event_id in ordered:
                stack.pop()
                continue
            waiting = [
                name
                for name in ancestors(events[event_id])
                if name in events and name not in ordered and name not in open_ids
            ]
            if waiting:
                # A cycle, which is only possible with forged event IDs of version 1, ends at what is open.
                open_ids.add(event_id)
                stack.extend(waiting)
            else:
                ordered[stack.pop()] = None
    return list(ordered)
