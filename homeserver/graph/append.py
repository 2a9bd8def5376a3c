"""Writes to the event graph; nothing else does.

A room has one writer at a time. Jobs for a room wait in line. All that wait run one after the other, each on the head
that the one before leaves behind, and the events that they compose are written in one transaction. If another process
was faster, the head is read again and the jobs run again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from immutables import Map

from homeserver.errors import MatrixError
from homeserver.graph.events import Events
from homeserver.graph.state import RoomHead, RoomHeads, StateReader, StateSnapshot
from homeserver.graph.working_head import LEVEL_KEYS, Job, SentInBatch, WorkingHead
from homeserver.notifier import Change, Notifier, StateEffect, Stream
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.room_versions import RoomVersion
from homeserver.storage import event_graph
from homeserver.storage.appends import AlreadySent, Appended, NewAlias, NewRoom, StaleHead, TransactionKey
from homeserver.storage.database import Database, context_for_everybody
from homeserver.storage.event_graph import StoredEvent, Verdict
from homeserver.storage.graph_writes import GraphWriter, event_of_transaction

JOBS_PER_APPEND_MAX = 64
"""How many jobs of one room share a transaction."""
APPEND_ATTEMPTS_MAX = 20
"""How often jobs run again because another process was faster."""
RACES_MAX = 3
"""After this many attempts, the room is locked against other processes."""


ReplacementJob = Callable[[WorkingHead], Awaitable[WorkingHead | None]]
"""Adds the last events of the old room and all events of the new room, one by one, and returns the new room's head,
which it made from ``empty``. May run more than once. Returns None if nothing is to be written."""


@dataclass(slots=True)
class _Waiting:
    """A job in line, or an action that needs the room for itself."""

    job: Job | None
    alone: Callable[[], Awaitable[Any]] | None
    future: asyncio.Future[Any]
    events: list[Event] = field(default_factory=list)


@dataclass(slots=True)
class _Line:
    """The line of jobs for a room."""

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
        self._watchers: list[Callable[[str, list[str]], None]] = []
        self._arrival_watchers: list[Callable[[str, Iterable[Event]], None]] = []
        self._departure_watchers: list[Callable[[str, list[str]], None]] = []

    def watch_power_levels(self, watcher: Callable[[str, list[str]], None]) -> None:
        """Register a function that is called with a room and the m.room.power_levels events that have just lost there.

        These are events that were replaced by an event that does not follow them. Only for what this process writes.
        """
        self._watchers.append(watcher)

    def watch_events(self, watcher: Callable[[str, Iterable[Event]], None]) -> None:
        """Register a function that is called with a room and the events that were stored in it, outliers included.

        Only for what this process writes. It is called while the room is locked for writing, and must be quick.
        """
        self._arrival_watchers.append(watcher)

    def watch_departures(self, watcher: Callable[[str, list[str]], None]) -> None:
        """Register a function that is called with a room and the users, of any server, who have just left it.

        It is called after the commit, and only for what this process writes.
        """
        self._departure_watchers.append(watcher)

    async def submit(self, room_id: str, job: Job) -> list[StoredEvent]:
        """Run a job when the room is free, and append the events that it composes.

        Returns the committed events in the job's order. Raises ``NotFound`` if this server is not in the room, and the
        errors of the job.
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
        """Create a room from the events that a job composes on an empty head.

        Nobody knows the room before this is committed. Raises ``AliasTaken`` if another room has the alias.
        """
        working = self.empty(room_id, version)
        composed = await working.run(job)
        append, groups = working.to_append()
        append.new_room = NewRoom(room_id, version.identifier, now_ms, published, alias)
        appended = await self._database.write_batched(self._graph.append, append)
        stored = self._committed(working, appended, groups)
        return [stored[event.event_id] for event in composed]

    async def replace(self, room_id: str, job: ReplacementJob) -> None:
        """Write the events that a job composes for a room together with the new room that replaces it: both or neither.

        The new room gets the aliases that this server has for the old one. Raises ``NotFound`` if this server is not in
        the room, and the errors of the job.
        """
        await self.alone(room_id, lambda: self._replace(room_id, job))

    async def _replace(self, room_id: str, job: ReplacementJob) -> None:
        for attempt in range(APPEND_ATTEMPTS_MAX):
            async with self._attempt(room_id, attempt):
                head = await self._heads.get(room_id)
                old = self.look_at(head)
                try:
                    new = await job(old)
                except MatrixError:
                    if await self._heads.is_outdated(head):
                        continue
                    raise
                if new is None:
                    return
                # The new room gets its positions first, so that clients that see the end of the old room find it.
                workings = (new, old)
                composed = [working.to_append() for working in workings]
                create = new.written[0].new.event
                composed[0][0].new_room = NewRoom(
                    create.room_id, create.version.identifier, create.origin_server_ts, replaces=room_id
                )
                try:
                    appended = await self._database.write(
                        self._graph.append_together, [append for append, _ in composed]
                    )
                except StaleHead:
                    self._heads.forget(room_id)
                    continue
                for working, done, (_, groups) in zip(workings, appended, composed, strict=True):
                    self._committed(working, done, groups)
                return
        raise RuntimeError(f"cannot replace {room_id}: other processes are always faster")

    async def alone(self, room_id: str, action: Callable[[], Awaitable[Any]]) -> Any:
        """Run an action while nothing else in this process writes to the room."""
        return await self._enter(room_id, _Waiting(None, action, _future()))

    async def _enter(self, room_id: str, waiting: _Waiting) -> Any:
        line = self._lines.get(room_id)
        if line is None:
            line = self._lines[room_id] = _Line()
        line.waiting.append(waiting)
        if line.worker is None:
            work = self._work(room_id, line)
            line.worker = asyncio.get_running_loop().create_task(work, context=context_for_everybody())
        # A client that disconnects must not cancel a half-done append.
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

    @contextlib.asynccontextmanager
    async def _races_over(self, room_id: str) -> AsyncIterator[None]:
        """Lock out other processes from this room, and from all others, for the transaction."""
        async with self._database.no_other_writers():
            self._heads.forget(room_id)
            yield

    def _attempt(self, room_id: str, number: int) -> AbstractAsyncContextManager[None]:
        # A process that sends all the time has the head cached, and would win every race with one that must read it.
        return contextlib.nullcontext() if number < RACES_MAX else self._races_over(room_id)

    async def _run(self, room_id: str, batch: list[_Waiting]) -> None:
        for attempt in range(APPEND_ATTEMPTS_MAX):
            async with self._attempt(room_id, attempt):
                head = await self._heads.get(room_id)
                working = WorkingHead(head, self._events, self._states, self._is_local)
                failed: list[tuple[_Waiting, Exception]] = []
                for waiting in batch:
                    if waiting.future.done():
                        continue
                    assert waiting.job is not None
                    try:
                        waiting.events = await working.run(waiting.job)
                    except SentInBatch as repeated:
                        waiting.events = [repeated.event]
                    except Exception as error:
                        failed.append((waiting, error))
                # A write checks that the head is the newest one. If nothing is written, that must be checked here.
                refused = any(isinstance(failure, MatrixError) for _, failure in failed)
                is_unchecked = refused or not (working.written or self._database.is_sqlite)
                if is_unchecked and await self._heads.is_outdated(head):
                    continue
                for waiting, failure in failed:
                    _fail(waiting, failure)
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
                original=event,
                event_nid=appended.nids[event.event_id],
                room_nid=appended.room_nid,
                verdict=new.verdict,
                stream_position=position,
                state_group=None if after is None else (after.group or numbers[id(after)]),
                place=appended.places.get(event.event_id),
                replaces_nid=replaced.get(written.replaces) if written.replaces else None,
                txn=(new.txn.user_id, new.txn.device_id, new.txn.txn_id) if new.txn else None,
                is_idle_redaction=event.type == "m.room.redaction" and not written.redaction_applied,
            )
            if position is not None and position > 0:
                effect = effects.get(event.event_id, StateEffect.NONE)
                if event.event_id in appended.after_gaps:
                    # A timeline starts after missing history, which only the database knows about.
                    effect = StateEffect.UNKNOWN
                changes.append(
                    Change(
                        position=position,
                        stream=Stream.EVENTS,
                        room_id=event.room_id,
                        users=written.users,
                        wakes_room=new.verdict == Verdict.ACCEPTED,
                        event_id=event.event_id,
                        effect=effect,
                    )
                )
        for snapshot in groups:
            snapshot.stored_as(numbers[id(snapshot)])
        self._graph.remember(appended.state_keys)
        self._keep(working, appended, stored)
        self._notifier.publish(changes)
        for arrival_watcher in self._arrival_watchers:
            arrival_watcher(working.head.room_id, (written.new.event for written in working.written))
        if departed := working.departed():
            for watcher in self._departure_watchers:
                watcher(working.head.room_id, departed)
        if overtaken := working.overtaken_power_levels():
            for watcher in self._watchers:
                watcher(working.head.room_id, overtaken)
        return stored

    def _replaced_nids(self, working: WorkingHead, appended: Appended) -> dict[str, int]:
        found: dict[str, int] = {}
        for written in working.written:
            if written.replaces is None:
                continue
            nid = appended.nids.get(written.replaces)
            if nid is None and (known := self._events.cached(working.head.room_id, written.replaces)) is not None:
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
                self._events.forget(event.event_id)  # read it back with what it replaces
            else:
                self._events.keep(stored[event.event_id])
            if written.redaction_applied and event.redacts is not None:
                redacted.append((event.redacts, event))
        for target, redaction in redacted:
            self._events.redacted(target, redaction)
        for target, redaction_id in working.applied_redactions:
            self._events.forget(target)  # read it back in its redacted form
            self._events.forget(redaction_id)  # and read this one back as having taken effect

    async def _answer(self, batch: Iterable[_Waiting], stored: Mapping[str, StoredEvent]) -> None:
        for waiting in batch:
            missing = [e for e in waiting.events if e.event_id not in stored]
            more = await self._events.by_id(missing[0].room_id, [e.event_id for e in missing]) if missing else {}
            if not waiting.future.done():
                waiting.future.set_result([stored.get(e.event_id) or more[e.event_id] for e in waiting.events])

    async def _answer_repeated(self, batch: Iterable[_Waiting], sent: Mapping[str, int]) -> None:
        """Answer jobs whose transaction ID was used before with the event of that time."""
        old = await self._events.by_nid(sent.values())
        for waiting in batch:
            if any(event.event_id in sent for event in waiting.events) and not waiting.future.done():
                waiting.future.set_result([old[sent[e.event_id]] for e in waiting.events if e.event_id in sent])

    def look_at(self, head: RoomHead) -> WorkingHead:
        """A head for composing events while the room is not locked; they may become a branch of their own."""
        return WorkingHead(head, self._events, self._states, self._is_local)

    def empty(self, room_id: str, version: RoomVersion) -> WorkingHead:
        """The head of an empty room, for composing its first events."""
        return self.look_at(
            RoomHead(
                room_id=room_id,
                room_nid=0,
                version=version,
                generation=0,
                extremities=(),
                snapshot=StateSnapshot.whole({}),
                joined=Map(),
                joined_local=Map(),
                joined_servers=Map(),
                invited=Map(),
            )
        )

    async def stored(self, room_id: str, event_id: str) -> StoredEvent:
        """An event that is known to exist here."""
        found = await self._events.get(room_id, event_id)
        assert found is not None
        return found

    async def is_of_another_room(self, event_id: str, room_id: str) -> bool:
        """Whether the event is known here as part of another room."""
        return await self._database.read(event_graph.is_of_another_room, event_id, room_id)

    async def sent_before(self, txn: TransactionKey) -> StoredEvent | None:
        """The event that was sent with a transaction ID, if there is one."""
        event_nid = await self._database.read(event_of_transaction, txn)
        return None if event_nid is None else (await self._events.by_nid([event_nid]))[event_nid]

    async def _settle_pending_redactions(self, working: WorkingHead) -> None:
        """Apply redactions that arrived before their targets, which have arrived now, as far as they are allowed."""
        arrived = working.arrived()
        if not arrived:
            return
        pending: list[tuple[Event, Mapping[StateKey, str]]] = []
        for redaction in await self._database.read(event_graph.pending_redactions, working.head.room_nid, arrived):
            if redaction.visible and redaction.state_group is not None:
                before = await self._states.lookup(redaction.state_group, LEVEL_KEYS)
                pending.append((redaction.original, before))
        await working.settle_redactions(pending)

    async def idle(self) -> None:
        """Wait until nothing is being written (for a clean stop)."""
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
        waiting.future.exception()  # the caller may be gone; without this, asyncio would warn
