"""What jobs compose events on: the head of their room, with the events of earlier jobs in the same batch.

See ``append``, which runs the jobs and writes their results.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from homeserver.errors import HomeserverError
from homeserver.graph.current_state import change_members, differing_keys, overtaken
from homeserver.graph.events import Events
from homeserver.graph.state import RESOLVED_TOGETHER_MAX, Extremity, RoomHead, StateReader, StateSnapshot
from homeserver.notifier import StateEffect
from homeserver.protocol.authorization import redaction_applies
from homeserver.protocol.events import CREATE, POWER_LEVELS, Event, StateKey
from homeserver.protocol.power_levels import power_levels_of, to_build_on
from homeserver.protocol.redaction import redact_event
from homeserver.protocol.room_versions import RoomVersion
from homeserver.storage.appends import (
    Appended,
    CurrentChange,
    EventWrite,
    GroupRef,
    GroupWrite,
    RoomAppend,
    TransactionKey,
)
from homeserver.storage.event_graph import Verdict

LOOKED_THROUGH_MAX = 200
"""How many events before an event are examined to find what it follows."""


@dataclass(slots=True)
class NewEvent:
    """An event that a job wants to append, already checked."""

    event: Event
    before: StateSnapshot | None
    """The state before it; None for an outlier."""
    verdict: Verdict = Verdict.ACCEPTED
    reason: str | None = None
    """Why it was rejected or soft-failed."""
    extends: bool = True
    """Whether it becomes a forward extremity; not if known events already follow it."""
    is_late: bool = False
    """Whether known events follow it already. It then becomes a late forward extremity (see ``Extremity``) if the
    room's state would be another one without it."""
    txn: TransactionKey | None = None
    backfilled: bool = False
    place: int | None = None
    """The place in the room's history that a backfilled event has been given."""


@dataclass(slots=True)
class WrittenEvent:
    """A new event on its way into the database."""

    new: NewEvent
    after: StateSnapshot | None
    replaces: str | None
    redaction_applied: bool
    users: tuple[str, ...] = ()
    """Our users whose membership the event may have changed."""


@dataclass(slots=True)
class _Draft:
    """What the jobs of a batch have composed so far. Small, so that it can be restored when a job fails."""

    head: RoomHead
    written: tuple[WrittenEvent, ...] = ()
    changes: tuple[CurrentChange, ...] = ()
    applied_redactions: tuple[tuple[str, str], ...] = ()


class SentInBatch(HomeserverError):
    """An event cannot be appended because it is sent already, by the same request made twice or by a policy server."""

    def __init__(self, event: Event) -> None:
        super().__init__("transaction ID used in this batch")
        self.event = event


class WorkingHead:
    """The head that a job sees: the room's, with the events of earlier jobs in the same batch."""

    def __init__(self, head: RoomHead, events: Events, states: StateReader, is_local: Callable[[str], bool]) -> None:
        self._events = events
        self._states = states
        self._is_local = is_local
        self._base = head
        self._draft = _Draft(head)
        self._unstored: dict[str, Event] = {}

    @property
    def head(self) -> RoomHead:
        """The head as an immutable value."""
        return self._draft.head

    async def with_verdicts(self, event_ids: Iterable[str]) -> dict[str, tuple[Event, Verdict]]:
        """The same as ``events``, each with its verdict. Both are from one read: an event whose verdict the cache has
        dropped meanwhile must not pass for an accepted one.
        """
        wanted = set(event_ids)
        found: dict[str, tuple[Event, Verdict]] = {}
        if not wanted.isdisjoint(self._unstored):
            own = ((written.new.event, written.new.verdict) for written in self._draft.written)
            found = {event.event_id: (event, verdict) for event, verdict in own if event.event_id in wanted}
        stored = await self._events.by_id(self._base.room_id, wanted - found.keys())
        return found | {event_id: (event.original, event.verdict) for event_id, event in stored.items()}

    async def events(self, event_ids: Iterable[str]) -> dict[str, Event]:
        """Events of the room by ID as they were signed, including those of the batch. Not for clients."""
        found: dict[str, Event] = {}
        missing: list[str] = []
        for event_id in event_ids:
            event = self._unstored.get(event_id)
            if event is None and (stored := self._events.cached(self._base.room_id, event_id)) is not None:
                event = stored.original
            if event is not None:
                found[event_id] = event
            else:
                missing.append(event_id)
        if missing:
            found.update(
                (i, stored.original) for i, stored in (await self._events.by_id(self._base.room_id, missing)).items()
            )
        return found

    async def state_events(
        self, keys: Iterable[StateKey], state: Mapping[StateKey, str] | None = None
    ) -> dict[StateKey, Event]:
        """The events under some keys of the current state, or of another one."""
        state = self.head.state if state is None else state
        wanted = {key: event_id for key in keys if (event_id := state.get(key)) is not None}
        found = await self.events(wanted.values())
        return {key: found[event_id] for key, event_id in wanted.items() if event_id in found}

    async def shown_state_events(self, keys: Iterable[StateKey]) -> dict[StateKey, Event]:
        """Events of the current state in the form for clients: redacted if they have been, also by this batch."""
        state = self.head.state
        wanted = {key: event_id for key in keys if (event_id := state.get(key)) is not None}
        shown = await self._shown(wanted.values())
        return {key: shown[event_id] for key, event_id in wanted.items() if event_id in shown}

    async def power_levels_to_build_on(self) -> Event | None:
        """The current m.room.power_levels, as a new one may repeat it (see ``to_build_on``); None without one."""
        original = (await self.state_events([POWER_LEVELS])).get(POWER_LEVELS)
        if original is None:
            return None
        return to_build_on(original, (await self.shown_state_events([POWER_LEVELS])).get(POWER_LEVELS, original))

    async def _shown(self, event_ids: Iterable[str]) -> dict[str, Event]:
        wanted = list(event_ids)
        shown = {name: self._unstored[name] for name in wanted if name in self._unstored}
        missing = [name for name in wanted if name not in shown]
        if missing:
            stored = await self._events.by_id(self._base.room_id, missing)
            shown.update((event_id, event.event) for event_id, event in stored.items())
        redacted = {written.new.event.redacts for written in self._draft.written if written.redaction_applied}
        redacted.update(target for target, _ in self._draft.applied_redactions)
        return {name: redact_event(event) if name in redacted else event for name, event in shown.items()}

    async def resolve(self, snapshots: Sequence[StateSnapshot], version: RoomVersion | None = None) -> StateSnapshot:
        """The resolution of several states of the room, which may have events of the batch.

        ``version`` is given to use another algorithm than the room's.
        """
        room = self.head if version is None else replace(self.head, version=version)
        return await self._states.resolve(room, snapshots, self._unstored)

    async def state_after(self, extremity: Extremity) -> StateSnapshot:
        """The state after a forward extremity."""
        return await self._states.after_extremity(extremity)

    async def lookup_after(self, extremity: Extremity, keys: Iterable[StateKey]) -> Mapping[StateKey, str]:
        """At least these entries of the state after a forward extremity."""
        after = extremity.after
        return after.state if isinstance(after, StateSnapshot) else await self._states.lookup(after, keys)

    def snapshot_after(self, event_id: str) -> StateSnapshot | None:
        """The state after an event of this batch, or after an extremity whose state is the room's."""
        for written in reversed(self._draft.written):
            if written.new.event.event_id == event_id:
                return written.after
        return None

    def knows(self, event_id: str) -> bool:
        """Whether an event is part of this batch."""
        return event_id in self._unstored

    # -- for RoomWriters -----------------------------------------------------------------------------------------------

    async def run(self, job: Job) -> list[Event]:
        """Run a job and add its events; restores everything if the job fails."""
        mark = self._draft
        names_before = len(self._unstored)
        try:
            for event in await job(self):
                await self.take_in(event)
        except BaseException:
            self._draft = mark
            self._unstored = dict(itertools.islice(self._unstored.items(), names_before))
            raise
        return [written.new.event for written in self._draft.written[len(mark.written) :]]

    async def take_in(self, new: NewEvent) -> None:
        """Add an event to the batch, so that what a job composes next follows it.

        The events that a job returns are added too; a job calls this only if it composes several events.
        """
        event, head = new.event, self.head
        if new.txn is not None:
            for earlier in self._draft.written:
                if earlier.new.txn == new.txn:
                    raise SentInBatch(earlier.new.event)
        accepted = not new.verdict & (Verdict.REJECTED | Verdict.OUTLIER)
        after, replaces = new.before, None
        if new.before is not None and accepted and event.is_state:
            replaces = new.before.state.get(event.key)
            after = new.before.changed({event.key: event.event_id})
        written = WrittenEvent(new, after, replaces, await self._redaction_applies(new))
        self._unstored[event.event_id] = event
        draft = self._draft
        self._draft = _Draft(draft.head, (*draft.written, written), draft.changes, draft.applied_redactions)
        if new.before is None or new.backfilled or new.verdict != Verdict.ACCEPTED:
            return
        assert after is not None
        mine = Extremity(event.event_id, 0, event.depth, after, new.is_late) if new.extends or new.is_late else None
        changes_before = len(self._draft.changes)
        head = await self._follow(head, event, mine)
        written.users = self._users_concerned(event, self._draft.changes[changes_before:])
        self._draft.head = head

    async def _follow(self, head: RoomHead, event: Event, mine: Extremity | None) -> RoomHead:
        """The head with an accepted event in the graph.

        The event becomes a forward extremity (``mine``) unless others follow it; the events that it follows are no
        longer extremities.
        """
        followed = await self._followed_by(event)
        extremities = tuple(e for e in head.extremities if e.event_id not in followed)
        if mine is not None and (not mine.is_late or await self._is_needed(head, extremities, mine, event)):
            extremities = (*extremities, mine)
        if not extremities or extremities == head.extremities:
            return head
        current = await self._state_where_they_meet(head, extremities, event)
        head = replace(head, extremities=extremities)
        if current is head.snapshot:
            return head
        return await self._change_state(head, current, event)

    async def _is_needed(self, head: RoomHead, others: tuple[Extremity, ...], late: Extremity, event: Event) -> bool:
        """Whether the state of the room is another one without this late event.

        What follows it was judged while it was missing, by what some server said of the state between them. If that
        left the event or its ancestors out, only an extremity of its own brings them into the state.
        """
        if not others:
            return False
        without = await self._state_where_they_meet(head, others, event)
        with_it = await self._state_where_they_meet(head, (*others, late), event)
        return with_it is not without and with_it.state != without.state

    async def _followed_by(self, event: Event) -> set[str]:
        """The events that an accepted event follows, also through rejected and soft-failed ones, which never are
        extremities, and the late extremities among its ancestors."""
        reached = {extremity.event_id for extremity in self.head.extremities}
        followed = set(event.prev_events)
        todo = followed - reached
        while todo and len(followed) < LOOKED_THROUGH_MAX:
            judged = (await self.with_verdicts(todo)).values()
            refused = [other for other, verdict in judged if verdict & (Verdict.SOFT_FAILED | Verdict.REJECTED)]
            todo = {prev for other in refused for prev in other.prev_events} - followed
            followed |= todo
            todo -= reached
        followed.update(extremity.event_id for extremity in await self.late_before(event))
        return followed

    async def late_before(self, event: Event) -> list[Extremity]:
        """The late forward extremities that are ancestors of an event.

        The states after its prev_events may lack them, as those were judged earlier.
        """
        late = [extremity for extremity in self.head.extremities if extremity.is_late]
        if not late or self.head.is_followed_completely_by(event.prev_events):
            return late
        start, todo = set[str](), set(event.prev_events)
        while todo:
            event_id = todo.pop()
            start.add(event_id)
            if (unstored := self._unstored.get(event_id)) is not None:
                todo.update(prev for prev in unstored.prev_events if prev not in start)
        wanted = {extremity.event_id for extremity in late}
        found = await self._events.ancestors_among(self._base.room_nid, start, wanted)
        return [extremity for extremity in late if extremity.event_id in found]

    async def _state_where_they_meet(
        self, head: RoomHead, extremities: Sequence[Extremity], event: Event
    ) -> StateSnapshot:
        """The room's state at its new forward extremities; see ``RoomHead.is_exact``."""
        if len(extremities) > RESOLVED_TOGETHER_MAX:
            if not event.is_state:
                return head.snapshot
            return await self.resolve([head.snapshot, head.snapshot.changed({event.key: event.event_id})])
        met = {extremity.state_identity for extremity in head.extremities}
        if head.is_exact and met == {extremity.state_identity for extremity in extremities}:
            return head.snapshot
        # With only one before, the room's state is the state after it, and need not be read.
        single = len(head.extremities) == 1
        states = [
            head.snapshot if single and e in head.extremities else await self._states.after_extremity(e)
            for e in extremities
        ]
        return states[0] if len(states) == 1 else await self.resolve(states)

    async def _change_state(self, head: RoomHead, current: StateSnapshot, at: Event) -> RoomHead:
        if current.state is head.state:
            return replace(head, snapshot=current)
        keys = differing_keys(head.snapshot, current)
        found = await self._shown([i for key in keys if (i := current.state.get(key)) is not None])
        changes = [
            CurrentChange(key, found[i] if (i := current.state.get(key)) is not None else None, at.event_id)
            for key in sorted(keys)
        ]
        self._draft = replace(self._draft, changes=(*self._draft.changes, *changes))
        return change_members(replace(head, snapshot=current), changes, self._is_local)

    def _users_concerned(self, event: Event, changes: Iterable[CurrentChange]) -> tuple[str, ...]:
        """Our users whose membership an event sets, or changes by its effect on the current state."""
        keys = {change.key for change in changes}
        if not keys and event.state_key is None:
            return ()
        if event.type == "m.room.member" and event.state_key is not None:
            keys.add(event.key)
        return tuple(sorted({key[1] for key in keys if key[0] == "m.room.member" and self._is_local(key[1])}))

    async def _redaction_applies(self, new: NewEvent) -> bool:
        """Whether this is a redaction that may take effect now."""
        event = new.event
        # A soft-failed redaction is not shown, so it must not take effect.
        if new.verdict != Verdict.ACCEPTED or new.before is None or event.redacts is None:
            return False
        target = (await self.events([event.redacts])).get(event.redacts)
        if target is None:
            return False
        return _redaction_applies(event, target, await self.state_events(LEVEL_KEYS, new.before.state))

    def arrived(self) -> set[str]:
        """The events of the batch that known events may have named before they arrived: not those made just now."""
        return {
            written.new.event.event_id
            for written in self._draft.written
            if written.after is not None and (written.new.backfilled or not self._is_local(written.new.event.sender))
        }

    async def settle_redactions(self, pending: Iterable[tuple[Event, Mapping[StateKey, str]]]) -> None:
        """Apply the redactions that arrived before their targets and are allowed by the state given with each."""
        waiting = [
            *pending,
            *(
                (written.new.event, written.new.before.state)
                for written in self._draft.written
                if written.new.verdict == Verdict.ACCEPTED
                and written.new.before is not None
                and written.new.event.redacts in self._unstored
                and not written.redaction_applied
            ),
        ]
        pairs: list[tuple[str, str]] = []
        for redaction, state in waiting:
            target = self._unstored.get(redaction.redacts or "")
            if target is not None:
                levels = await self.state_events(LEVEL_KEYS, state)
                if _redaction_applies(redaction, target, levels):
                    pairs.append((target.event_id, redaction.event_id))
        self._draft = replace(self._draft, applied_redactions=(*self._draft.applied_redactions, *pairs))

    @property
    def written(self) -> tuple[WrittenEvent, ...]:
        """What the batch has composed so far."""
        return self._draft.written

    @property
    def applied_redactions(self) -> tuple[tuple[str, str], ...]:
        """Redactions that arrived before their targets and take effect now: ``(redacted, redaction)`` event IDs."""
        return self._draft.applied_redactions

    def effects(self) -> dict[str, StateEffect]:
        """How each event changed the current state; events that are not named left it unchanged."""
        effects: dict[str, StateEffect] = {}
        for change in self._draft.changes:
            is_own = change.event is not None and change.event.event_id == change.at and change.at not in effects
            effects[change.at] = StateEffect.OWN if is_own else StateEffect.OTHER
        return effects

    def departed(self) -> list[str]:
        """The users, of any server, who were in the room before this batch and are not any more."""
        before, after = self._base.joined, self.head.joined
        changed = dict.fromkeys(change.key[1] for change in self._draft.changes if change.key[0] == "m.room.member")
        return [user_id for user_id in changed if user_id in before and user_id not in after]

    def overtaken_power_levels(self) -> list[str]:
        """The m.room.power_levels events, the room's or our users', that were replaced by an event that does not follow
        them."""
        changes = [change for change in self._draft.changes if change.key == POWER_LEVELS]
        found = overtaken(POWER_LEVELS, self._base.state.get(POWER_LEVELS), changes) if changes else []
        for written in self._draft.written:
            new, event = written.new, written.new.event
            if event.type == "m.room.power_levels" and event.state_key == "" and self._is_local(event.sender):
                is_placed = new.verdict == Verdict.ACCEPTED and not new.backfilled
                # An event that the policy server signed late may have become a branch that never won.
                if is_placed and not any(change.event is event for change in changes):
                    found.append(event.event_id)
        return found

    def to_append(self) -> tuple[RoomAppend, list[StateSnapshot]]:
        """The transaction for the composed events, and the states that it stores."""
        draft, base = self._draft, self._base
        groups: list[StateSnapshot] = []
        append = RoomAppend(
            room_nid=base.room_nid,
            generation=base.generation,
            changes=list(draft.changes),
            applied_redactions=list(draft.applied_redactions),
            known={e.event_id: e.event_nid for e in base.extremities},
        )
        for written in draft.written:
            new = written.new
            append.events.append(
                EventWrite(
                    event=new.event,
                    verdict=new.verdict,
                    state=_reference(written.after, groups, append) if written.after is not None else None,
                    replaces=written.replaces,
                    reason=new.reason,
                    txn=new.txn,
                    backfilled=new.backfilled,
                    place=new.place,
                    # Other servers cannot have named events that we have only just made.
                    awaited=new.backfilled or not new.extends or not self._is_local(new.event.sender),
                    redaction_applied=written.redaction_applied,
                )
            )
        if draft.head.snapshot is not base.snapshot:
            append.current = _reference(draft.head.snapshot, groups, append)
        before = frozenset(e.event_id for e in base.extremities)
        after = frozenset(e.event_id for e in draft.head.extremities)
        if before != after:
            append.extremities = (before, after)
        return append, groups

    def finished(self, appended: Appended) -> RoomHead:
        """The head after the commit."""
        head = self._draft.head
        return replace(
            head,
            room_nid=appended.room_nid,
            generation=self._base.generation + 1,
            extremities=tuple(
                replace(e, event_nid=appended.nids.get(e.event_id, e.event_nid)) for e in head.extremities
            ),
        )


Job = Callable[[WorkingHead], Awaitable[Sequence[NewEvent]]]
"""Reads the head and composes new events, which it returns or adds one by one. May run more than once; its errors go to
its own caller only."""


LEVEL_KEYS: tuple[StateKey, ...] = (CREATE, POWER_LEVELS)


def _redaction_applies(redaction: Event, target: Event, state: Mapping[StateKey, Event]) -> bool:
    levels = power_levels_of(redaction.version, *(state.get(key) for key in LEVEL_KEYS))
    return redaction_applies(redaction, target, levels)


def _reference(snapshot: StateSnapshot, groups: list[StateSnapshot], append: RoomAppend) -> GroupRef:
    """The group of a state; adds it, after the states that it is based on, to the append if it is not stored yet."""
    line: list[StateSnapshot] = []
    step: StateSnapshot | None = snapshot
    while step is not None and step.group is None and not any(step is other for other in groups):
        line.append(step)
        step = step.base
    for new in reversed(line):
        base = new.base
        predecessor: GroupRef | None = None
        if base is not None:
            predecessor = GroupRef(base.group) if base.group is not None else GroupRef(index=_index(groups, base))
        assert new.delta is not None
        append.groups.append(GroupWrite(predecessor, new.delta))
        groups.append(new)
    return GroupRef(snapshot.group) if snapshot.group is not None else GroupRef(index=_index(groups, snapshot))


def _index(groups: Sequence[StateSnapshot], wanted: StateSnapshot) -> int:
    return next(index for index, snapshot in enumerate(groups) if snapshot is wanted)
