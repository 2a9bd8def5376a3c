"""The one door into the event graph.

A room has one writer at a time. Jobs for a room wait in line; all that wait are run one after the other, each on the
head that the one before leaves behind, and what they compose is written in one transaction. If another process was
faster, the head is read again and the jobs are run anew.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from immutables import Map

from homeserver.errors import HomeserverError
from homeserver.notifier import Change, Notifier, StateEffect, Stream
from homeserver.protocol.authorization import redaction_applies
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.identifiers import server_of
from homeserver.protocol.power_levels import power_levels_of
from homeserver.protocol.room_versions import RoomVersion
from homeserver.rooms.events import Events
from homeserver.rooms.state import Extremity, RoomHead, RoomHeads, StateReader, StateSnapshot
from homeserver.storage import event_graph
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent, Verdict
from homeserver.storage.graph_writes import (
    AlreadySent,
    Appended,
    CurrentChange,
    EventWrite,
    GraphWriter,
    GroupRef,
    GroupWrite,
    NewAlias,
    NewRoom,
    RoomAppend,
    StaleHead,
    TransactionKey,
    event_of_transaction,
)

JOBS_PER_APPEND_MAX = 64
"""Jobs of one room that share a transaction."""
APPEND_ATTEMPTS_MAX = 20
"""How often jobs are run anew because another process was faster."""


@dataclass(slots=True)
class NewEvent:
    """An event that a job wants to append, judged already."""

    event: Event
    before: StateSnapshot | None
    """The state before it; None for an outlier."""
    verdict: Verdict = Verdict.ACCEPTED
    reason: str | None = None
    """Why it was rejected or soft-failed."""
    extends: bool = True
    """Whether it becomes a forward extremity; not if events that are here already follow it."""
    txn: TransactionKey | None = None
    backfilled: bool = False


@dataclass(slots=True)
class _Written:
    """A new event on its way into the database."""

    new: NewEvent
    after: StateSnapshot | None
    replaces: str | None
    redaction_applied: bool
    audience: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Draft:
    """What the jobs of a batch have composed so far. Small, so that it can be set back when a job fails."""

    head: RoomHead
    written: tuple[_Written, ...] = ()
    changes: tuple[CurrentChange, ...] = ()
    applied_redactions: tuple[tuple[str, str], ...] = ()


class _SentInBatch(HomeserverError):
    """A job of the same batch sends an event with the same transaction ID: the same request, twice at once."""

    def __init__(self, event: Event) -> None:
        super().__init__("transaction ID used in this batch")
        self.event = event


class WorkingHead:
    """The head that a job sees: the room's, with what the jobs before it in the same batch have composed."""

    def __init__(self, head: RoomHead, events: Events, states: StateReader, is_local: Callable[[str], bool]) -> None:
        self._events = events
        self._states = states
        self._is_local = is_local
        self._base = head
        self._draft = _Draft(head)
        self._unstored: dict[str, Event] = {}

    @property
    def head(self) -> RoomHead:
        """The head as a frozen value."""
        return self._draft.head

    async def events(self, event_ids: Iterable[str]) -> dict[str, Event]:
        """Events by ID, those of the batch included."""
        found: dict[str, Event] = {}
        missing: list[str] = []
        for event_id in event_ids:
            event = self._unstored.get(event_id)
            if event is None and (stored := self._events.cached(event_id)) is not None:
                event = stored.event
            if event is not None:
                found[event_id] = event
            else:
                missing.append(event_id)
        if missing:
            found.update((i, stored.event) for i, stored in (await self._events.by_id(missing)).items())
        return found

    async def state_events(
        self, keys: Iterable[StateKey], state: Mapping[StateKey, str] | None = None
    ) -> dict[StateKey, Event]:
        """The events under some keys of the current state, or of another one."""
        state = self.head.state if state is None else state
        wanted = {key: event_id for key in keys if (event_id := state.get(key)) is not None}
        found = await self.events(wanted.values())
        return {key: found[event_id] for key, event_id in wanted.items() if event_id in found}

    async def resolve(self, snapshots: Sequence[StateSnapshot]) -> StateSnapshot:
        """The resolution of several states of the room, which may name events of the batch."""
        return await self._states.resolve(self.head.version, snapshots, self._unstored)

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
        """Run a job and take in its events; leaves everything as it was if the job fails."""
        mark = self._draft
        names = set(self._unstored)
        try:
            for event in await job(self):
                await self.take_in(event)
        except BaseException:
            self._draft = mark
            self._unstored = {name: self._unstored[name] for name in names}
            raise
        return [written.new.event for written in self._draft.written[len(mark.written) :]]

    async def take_in(self, new: NewEvent) -> None:
        """Add an event to the batch, so that what a job composes next builds on it.

        What a job returns is taken in as well; a job uses this only where it composes several events.
        """
        event, head = new.event, self.head
        if new.txn is not None:
            for earlier in self._draft.written:
                if earlier.new.txn == new.txn:
                    raise _SentInBatch(earlier.new.event)
        accepted = not new.verdict & (Verdict.REJECTED | Verdict.OUTLIER)
        after, replaces = new.before, None
        if new.before is not None and accepted and event.is_state:
            replaces = new.before.state.get(event.key)
            after = new.before.changed({event.key: event.event_id})
        written = _Written(new, after, replaces, await self._redaction_applies(new))
        self._unstored[event.event_id] = event
        self._draft = replace(self._draft, written=(*self._draft.written, written))
        if new.before is None or new.backfilled or new.verdict != Verdict.ACCEPTED:
            return
        assert after is not None
        mine = (Extremity(event.event_id, 0, event.depth, after),) if new.extends else ()
        head = await self._follow(head, event, mine)
        written.audience = self._audience(event, self._draft.head, head)
        self._draft = replace(self._draft, head=head)

    async def _follow(self, head: RoomHead, event: Event, mine: tuple[Extremity, ...]) -> RoomHead:
        """The head with an accepted event in the graph, which is a forward extremity itself unless others follow it.

        What it follows is none any longer, in either case.
        """
        extremities = (*(e for e in head.extremities if e.event_id not in event.prev_events), *mine)
        if not extremities or extremities == head.extremities:
            return head
        single = len(head.extremities) == 1  # then the room's state is the state after it
        states = [
            head.snapshot if single and e in head.extremities else await self._states.after_extremity(e)
            for e in extremities
        ]
        current = states[0] if len(states) == 1 else await self.resolve(states)
        head = replace(head, extremities=extremities)
        if current is head.snapshot:
            return head
        return await self._change_state(head, current, event)

    async def _change_state(self, head: RoomHead, current: StateSnapshot, at: Event) -> RoomHead:
        if current.state is head.state:
            return replace(head, snapshot=current)
        keys = _differing_keys(head.snapshot, current)
        found = await self.events([i for key in keys if (i := current.state.get(key)) is not None])
        changes = [
            CurrentChange(key, found[i] if (i := current.state.get(key)) is not None else None, at.event_id)
            for key in sorted(keys)
        ]
        self._draft = replace(self._draft, changes=(*self._draft.changes, *changes))
        return change_members(replace(head, snapshot=current), changes, self._is_local)

    def _audience(self, event: Event, before: RoomHead, after: RoomHead) -> frozenset[str]:
        audience = after.joined_local
        if before.joined_local is not audience:
            audience |= before.joined_local
        if event.type == "m.room.member" and event.state_key and self._is_local(event.state_key):
            audience |= {event.state_key}
        return audience

    async def _redaction_applies(self, new: NewEvent) -> bool:
        """Whether this is a redaction that may take effect now."""
        event = new.event
        # A soft-failed redaction is not to be seen, and neither is what it would do.
        if new.verdict != Verdict.ACCEPTED or new.before is None or event.redacts is None:
            return False
        target = (await self.events([event.redacts])).get(event.redacts)
        if target is None:
            return False
        return _redaction_applies(event, target, await self.state_events(_LEVEL_KEYS, new.before.state))

    def arrived(self) -> set[str]:
        """The events of the batch that other servers made: events here may have named them before they came."""
        return {
            written.new.event.event_id
            for written in self._draft.written
            if written.after is not None and not self._is_local(written.new.event.sender)
        }

    async def settle_redactions(self, pending: Iterable[tuple[Event, Mapping[StateKey, str]]]) -> None:
        """Apply those redactions that came before their targets and are allowed by the state given with each."""
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
                levels = await self.state_events(_LEVEL_KEYS, state)
                if _redaction_applies(redaction, target, levels):
                    pairs.append((target.event_id, redaction.event_id))
        self._draft = replace(self._draft, applied_redactions=(*self._draft.applied_redactions, *pairs))

    @property
    def written(self) -> tuple[_Written, ...]:
        """What the batch has composed so far."""
        return self._draft.written

    @property
    def applied_redactions(self) -> tuple[tuple[str, str], ...]:
        """Redactions that came before their targets and take effect now: ``(redacted, redaction)`` event IDs."""
        return self._draft.applied_redactions

    def effects(self) -> dict[str, StateEffect]:
        """What each event did to the current state; those that are not named left it as it was."""
        effects: dict[str, StateEffect] = {}
        for change in self._draft.changes:
            is_own = change.event is not None and change.event.event_id == change.at and change.at not in effects
            effects[change.at] = StateEffect.OWN if is_own else StateEffect.OTHER
        return effects

    def to_append(self) -> tuple[RoomAppend, list[StateSnapshot]]:
        """The transaction for what was composed, and the states that it stores."""
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
                    # Others can only have named what is not of our own making just now.
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
"""Looks at the head and composes new events, which it returns or takes in one by one.

It may run more than once; what it raises goes to its own caller only.
"""


_LEVEL_KEYS: tuple[StateKey, ...] = (("m.room.create", ""), ("m.room.power_levels", ""))


def _redaction_applies(redaction: Event, target: Event, state: Mapping[StateKey, Event]) -> bool:
    levels = power_levels_of(redaction.version, *(state.get(key) for key in _LEVEL_KEYS))
    return redaction_applies(redaction, target, levels)


def _differing_keys(old: StateSnapshot, new: StateSnapshot) -> set[StateKey]:
    keys: set[StateKey] = set()
    step: StateSnapshot | None = new
    while step is not None and step is not old:
        if step.base is None or step.delta is None:
            # No common line: compare them whole.
            return {k for k in {*old.state, *new.state} if old.state.get(k) != new.state.get(k)}
        keys.update(step.delta)
        step = step.base
    return {key for key in keys if old.state.get(key) != new.state.get(key)}


def _reference(snapshot: StateSnapshot, groups: list[StateSnapshot], append: RoomAppend) -> GroupRef:
    """A state's group, put into the append if it is not stored yet, those that it builds on first."""
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


def change_members(head: RoomHead, changes: Iterable[CurrentChange], is_local: Callable[[str], bool]) -> RoomHead:
    """The head with its lists of members brought in line with changes of the state."""
    joined, servers = head.joined, head.joined_servers
    local, invited = set(head.joined_local), set(head.invited)
    touched = False
    for change in changes:
        if change.key[0] != "m.room.member":
            continue
        touched = True
        user_id = change.key[1]
        membership = change.event.membership if change.event else None
        if (membership == "join") != (user_id in joined):
            server = server_of(user_id)  # who joins has a valid user ID; who is banned need not have one
            count = servers.get(server, 0) + (1 if membership == "join" else -1)
            servers = servers.set(server, count) if count > 0 else servers.delete(server)
            joined = joined.set(user_id, True) if membership == "join" else joined.delete(user_id)
            if is_local(user_id):
                (local.add if membership == "join" else local.discard)(user_id)
        (invited.add if membership == "invite" else invited.discard)(user_id)
    if not touched:
        return head
    return replace(
        head,
        joined=joined,
        joined_servers=servers,
        joined_local=frozenset(local),
        invited=frozenset(invited),
    )


@dataclass(slots=True)
class _Waiting:
    """A job in line, or something that wants the room for itself."""

    job: Job | None
    alone: Callable[[], Awaitable[Any]] | None
    future: asyncio.Future[Any]
    events: list[Event] = field(default_factory=list)


@dataclass(slots=True)
class _Line:
    """Who waits to write to a room."""

    waiting: deque[_Waiting] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None


class RoomWriters:
    """The writers of all rooms."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        events: Events,
        states: StateReader,
        notifier: Notifier,
        graph: GraphWriter,
        is_local: Callable[[str], bool],
    ) -> None:
        self._database = database
        self._heads = heads
        self._events = events
        self._states = states
        self._notifier = notifier
        self._graph = graph
        self._is_local = is_local
        self._lines: dict[str, _Line] = {}

    async def submit(self, room_id: str, job: Job) -> list[StoredEvent]:
        """Run a job when it is the room's turn, and append what it composes.

        Returns the events in the job's order, committed. Raises ``NotFound`` where this server has no part in the
        room, and what the job raises.
        """
        found: list[StoredEvent] = await self._enter(room_id, _Waiting(job, None, _future()))
        return found

    async def create(
        self,
        room_id: str,
        version: RoomVersion,
        job: Job,
        now_ms: int,
        *,
        published: bool = False,
        alias: NewAlias | None = None,
    ) -> list[StoredEvent]:
        """Make a new room of what a job composes on an empty head. Nobody else knows the room before this is over.

        Raises ``AliasTaken`` where another room has the alias that it was to get.
        """
        head = RoomHead(
            room_id=room_id,
            room_nid=0,
            version=version,
            generation=0,
            extremities=(),
            snapshot=StateSnapshot.whole({}),
            joined=Map(),
            joined_local=frozenset(),
            joined_servers=Map(),
            invited=frozenset(),
        )
        working = WorkingHead(head, self._events, self._states, self._is_local)
        composed = await working.run(job)
        append, groups = working.to_append()
        append.new_room = NewRoom(room_id, version.identifier, now_ms, published, alias)
        appended = await self._database.write_batched(self._graph.append, append)
        stored = self._committed(working, appended, groups)
        return [stored[event.event_id] for event in composed]

    async def alone(self, room_id: str, action: Callable[[], Awaitable[Any]]) -> Any:
        """Run something while nobody else in this process writes to the room."""
        return await self._enter(room_id, _Waiting(None, action, _future()))

    async def _enter(self, room_id: str, waiting: _Waiting) -> Any:
        line = self._lines.get(room_id)
        if line is None:
            line = self._lines[room_id] = _Line()
        line.waiting.append(waiting)
        if line.worker is None:
            line.worker = asyncio.get_running_loop().create_task(self._work(room_id, line))
        # Who goes away does not take back what may be half done.
        return await asyncio.shield(waiting.future)

    async def _work(self, room_id: str, line: _Line) -> None:
        try:
            while line.waiting:
                first = line.waiting.popleft()
                if first.alone is not None:
                    await _settle(first, first.alone)
                    continue
                batch = [first]
                while line.waiting and line.waiting[0].job and len(batch) < JOBS_PER_APPEND_MAX:
                    batch.append(line.waiting.popleft())
                try:
                    await self._run(room_id, batch)
                except BaseException as error:
                    for waiting in batch:
                        _fail(waiting, error)
                    if not isinstance(error, Exception):
                        raise
        finally:
            line.worker = None
            if not line.waiting:
                self._lines.pop(room_id, None)

    async def _run(self, room_id: str, batch: list[_Waiting]) -> None:
        for _ in range(APPEND_ATTEMPTS_MAX):
            head = await self._heads.get(room_id)
            working = WorkingHead(head, self._events, self._states, self._is_local)
            for waiting in batch:
                if waiting.future.done():
                    continue
                assert waiting.job is not None
                try:
                    waiting.events = await working.run(waiting.job)
                except _SentInBatch as repeated:
                    waiting.events = [repeated.event]
                except Exception as error:
                    _fail(waiting, error)
            batch = [waiting for waiting in batch if not waiting.future.done()]
            if not working.written:
                await self._answer(batch, {})
                return
            await self._settle_pending_redactions(working)
            append, groups = working.to_append()
            try:
                appended = await self._database.write_batched(self._graph.append, append)
            except StaleHead:
                self._heads.forget(room_id)
            except AlreadySent as already:
                await self._answer_repeated(batch, already.sent)
            else:
                await self._answer(batch, self._committed(working, appended, groups))
                return
        raise RuntimeError(f"cannot append to {room_id}: other processes are always faster")

    def _committed(
        self, working: WorkingHead, appended: Appended, groups: Sequence[StateSnapshot]
    ) -> dict[str, StoredEvent]:
        numbers = {id(snapshot): group for snapshot, group in zip(groups, appended.groups, strict=True)}
        replaced = self._replaced_nids(working, appended)
        stored: dict[str, StoredEvent] = {}
        changes: list[Change] = []
        effects = working.effects()
        for written in working.written:
            new, event = written.new, written.new.event
            position = appended.positions.get(event.event_id)
            after = written.after
            stored[event.event_id] = StoredEvent(
                event=event,
                event_nid=appended.nids[event.event_id],
                room_nid=appended.room_nid,
                verdict=new.verdict,
                stream_position=position,
                state_group=None if after is None else (after.group or numbers[id(after)]),
                replaces_nid=replaced.get(written.replaces) if written.replaces else None,
                txn=(new.txn.user_id, new.txn.device_id, new.txn.txn_id) if new.txn else None,
            )
            if position is not None and position > 0:
                effect = effects.get(event.event_id, StateEffect.NONE)
                changes.append(
                    Change(position, Stream.EVENTS, event.room_id, None, written.audience, event.event_id, effect)
                )
        for snapshot in groups:
            snapshot.stored_as(numbers[id(snapshot)])
        self._graph.remember(appended.state_keys)
        self._keep(working, appended, stored)
        self._notifier.publish(changes)
        return stored

    def _replaced_nids(self, working: WorkingHead, appended: Appended) -> dict[str, int]:
        found: dict[str, int] = {}
        for written in working.written:
            if written.replaces is None:
                continue
            nid = appended.nids.get(written.replaces)
            if nid is None and (known := self._events.cached(written.replaces)) is not None:
                nid = known.event_nid
            if nid is not None:
                found[written.replaces] = nid
        return found

    def _keep(self, working: WorkingHead, appended: Appended, stored: Mapping[str, StoredEvent]) -> None:
        head = working.finished(appended)
        self._heads.keep(head)
        redacted: list[tuple[str, Event]] = []
        for written in working.written:
            event = written.new.event
            if written.replaces is not None and stored[event.event_id].replaces_nid is None:
                self._events.forget(event.event_id)  # what it replaces is read back with it
            else:
                self._events.keep(stored[event.event_id])
            if written.redaction_applied and event.redacts is not None:
                redacted.append((event.redacts, event))
        for target, redaction in redacted:
            self._events.redacted(target, redaction)
        for target, _ in working.applied_redactions:
            self._events.forget(target)  # it is read back as redacted

    async def _answer(self, batch: Iterable[_Waiting], stored: Mapping[str, StoredEvent]) -> None:
        for waiting in batch:
            missing = [e.event_id for e in waiting.events if e.event_id not in stored]
            more = await self._events.by_id(missing) if missing else {}
            if not waiting.future.done():
                waiting.future.set_result([stored.get(e.event_id) or more[e.event_id] for e in waiting.events])

    async def _answer_repeated(self, batch: Iterable[_Waiting], sent: Mapping[str, int]) -> None:
        """Jobs whose transaction ID was used before get the event of that time."""
        old = await self._events.by_nid(sent.values())
        for waiting in batch:
            if any(event.event_id in sent for event in waiting.events) and not waiting.future.done():
                waiting.future.set_result([old[sent[e.event_id]] for e in waiting.events if e.event_id in sent])

    def look_at(self, head: RoomHead) -> WorkingHead:
        """A head to compose on outside of the room's turn; what is composed so becomes a branch of its own."""
        return WorkingHead(head, self._events, self._states, self._is_local)

    async def stored(self, event_id: str) -> StoredEvent:
        """An event that is known to be here."""
        found = await self._events.get(event_id)
        assert found is not None
        return found

    async def sent_before(self, txn: TransactionKey) -> StoredEvent | None:
        """The event that was sent under a transaction ID, if there is one."""
        event_nid = await self._database.read(event_of_transaction, txn)
        return None if event_nid is None else (await self._events.by_nid([event_nid]))[event_nid]

    async def _settle_pending_redactions(self, working: WorkingHead) -> None:
        """Apply the redactions that came before their targets, which have come now, as far as they are allowed."""
        arrived = working.arrived()
        if not arrived:
            return
        pending: list[tuple[Event, Mapping[StateKey, str]]] = []
        for redaction in await self._database.read(event_graph.pending_redactions, arrived):
            if redaction.visible and redaction.state_group is not None:
                before = await self._states.lookup(redaction.state_group, _LEVEL_KEYS)
                pending.append((redaction.event, before))
        await working.settle_redactions(pending)

    async def idle(self) -> None:
        """Wait until nobody writes (for a clean stop)."""
        while workers := [line.worker for line in self._lines.values() if line.worker is not None]:
            await asyncio.gather(*workers, return_exceptions=True)


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


async def _settle(waiting: _Waiting, action: Callable[[], Awaitable[Any]]) -> None:
    try:
        result = await action()
    except Exception as error:
        _fail(waiting, error)
    else:
        if not waiting.future.done():
            waiting.future.set_result(result)


def _fail(waiting: _Waiting, error: BaseException) -> None:
    if not waiting.future.done():
        waiting.future.set_exception(error)
        waiting.future.exception()  # its caller may be gone, which is no reason for a warning
