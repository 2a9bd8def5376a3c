"""Repeats role changes of our users that were lost to changes made on another server at the same time.

Two owners on two servers each change a role. Neither server knows the other's m.room.power_levels event in time, so
both report success; when the branches merge, state resolution keeps only one event. The server of the user whose change
was lost sends it again, based on the winning event and in the name of the same user, as the owner was promised. It is
sent like any other event, so a user who may no longer make the change does not make it. For users whose level the
winning event changed too, that event counts. Only ``users`` is repeated: other changes of a lost event stay lost.

The process that appends the event by which a change is lost repeats the change. If that process ends before, the change
stays lost. It also forgets which changes it has repeated, which does no harm.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import structlog

from homeserver.errors import HomeserverError, MatrixError
from homeserver.governance.lost_role_changes import Entries, Fork, LevelChange, fork_of, left_to_apply, with_entries
from homeserver.graph.governed_events import GovernedEvents
from homeserver.graph.send import Recommended, Sender
from homeserver.graph.working_head import NewEvent, SentInBatch, WorkingHead
from homeserver.protocol.events import CREATE, POWER_LEVELS, Event, EventDraft
from homeserver.protocol.power_levels import power_levels_of

logger = structlog.get_logger(__name__)

LINE_MAX = 50
"""How many power levels events are followed back, on each branch, to find their last common one."""
ROUNDS_MAX = 5
"""How often a change is repeated if it is lost each time."""
AT_ONCE_MAX = 50
"""How many lost events are handled at the same time; further ones stay lost."""
REMEMBERED_MAX = 1_000
"""How many repeated events are remembered."""


class LostRoleChanges:
    """Repeats lost changes in the background."""

    def __init__(self, sender: Sender, governed: GovernedEvents, is_local: Callable[[str], bool]) -> None:
        self._sender = sender
        self._governed = governed
        self._is_local = is_local
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopped = False
        self._settled: OrderedDict[str, int] = OrderedDict()
        """The IDs of lost events that were handled; the values mean nothing."""
        self._rounds: OrderedDict[str, int] = OrderedDict()
        """The IDs of events that repeat a change, with the number of repetitions so far."""

    async def stop(self) -> None:
        """Stop the background work."""
        self._is_stopped = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def note(self, room_id: str, lost: Iterable[str]) -> None:
        """Handle m.room.power_levels events that were replaced by an event that does not follow them."""
        for event_id in lost:
            if self._is_stopped or event_id in self._settled:
                continue
            if len(self._tasks) >= AT_ONCE_MAX:
                logger.info("lost power levels not handled", room_id=room_id, event_id=event_id)
                continue
            task = asyncio.get_running_loop().create_task(self._make_again(room_id, event_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def idle(self) -> None:
        """Wait until all noted events are handled."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _make_again(self, room_id: str, lost_id: str) -> None:
        made: dict[str, str | None] = {}

        async def job(working: WorkingHead, recommended: Recommended) -> Sequence[NewEvent]:
            made.clear()
            fork = await _fork(working, lost_id)
            if fork is not None:
                closed = await self._closed_among(change.event.sender for change in fork.lost)
                for place, change in enumerate(fork.lost):
                    if self._is_to_be_made(change.event) and change.event.sender not in closed:
                        entries = left_to_apply(change, [*fork.won, *fork.lost[place + 1 :]])
                        new_id = await self._compose(working, recommended, change, entries)
                        made[change.event.event_id] = new_id
            return []

        try:
            await self._sender.submit(room_id, job)
        except HomeserverError as error:
            logger.info("lost role changes stay lost", room_id=room_id, event_id=lost_id, reason=str(error))
            return
        except Exception:
            logger.exception("internal error while repeating lost role changes", room_id=room_id, event_id=lost_id)
            return
        for event_id, new_id in made.items():
            if new_id is not None:
                logger.info("lost role changes repeated", room_id=room_id, event_id=event_id, again=new_id)
                _remember(self._rounds, new_id, 1 + self._rounds.get(event_id, 0))
            _remember(self._settled, event_id, 1)

    async def _closed_among(self, user_ids: Iterable[str]) -> set[str]:
        ours = {user_id for user_id in user_ids if self._is_local(user_id)}
        return await self._governed.closed_among(ours) if ours else set()

    def _is_to_be_made(self, event: Event) -> bool:
        if not self._is_local(event.sender) or event.event_id in self._settled:
            return False
        if self._rounds.get(event.event_id, 0) < ROUNDS_MAX:
            return True
        logger.info("role changes are lost again and again", room_id=event.room_id, event_id=event.event_id)
        return False

    async def _compose(
        self, working: WorkingHead, recommended: Recommended, change: LevelChange, entries: Entries
    ) -> str | None:
        """Repeat what is left of a change; returns the ID of the new event, or None if there is none."""
        sender = change.event.sender
        state = await working.state_events((CREATE, POWER_LEVELS))
        current = state[POWER_LEVELS]
        levels = power_levels_of(current.version, state.get(CREATE), current)
        content = with_entries(await working.power_levels_to_build_on() or current, levels, entries)
        if content is None:
            return None
        draft = EventDraft("m.room.power_levels", sender, content, "")
        try:
            new = await self._sender.compose_recommended(working, draft, recommended)
        except SentInBatch as passed_on:  # the policy server has already sent the event to the room
            return passed_on.event.event_id
        except MatrixError as error:
            logger.info(
                "lost role change stays lost",
                room_id=change.event.room_id,
                event_id=change.event.event_id,
                sender=sender,
                reason=error.message,
            )
            return None
        await working.take_in(new)
        return new.event.event_id


async def _fork(working: WorkingHead, lost_id: str) -> Fork | None:
    """The point at which the room's power levels and those of a lost event diverged; None if it is not found."""
    current = (await working.state_events([POWER_LEVELS])).get(POWER_LEVELS)
    lost = (await working.events([lost_id])).get(lost_id)
    if current is None or lost is None:
        return None
    lines: tuple[list[Event | None], list[Event | None]] = ([lost], [current])
    for _ in range(LINE_MAX):
        if (fork := fork_of(*lines)) is not None:
            return fork
        for line in lines:
            if (last := line[-1]) is not None:
                line.append(await _built_on(working, last))
    logger.info("power levels diverged too long ago", room_id=lost.room_id, event_id=lost_id)
    return None


async def _built_on(working: WorkingHead, power_levels: Event) -> Event | None:
    """The m.room.power_levels event among the auth events of another one."""
    cited = await working.events(power_levels.auth_events)
    return next((event for event in cited.values() if event.is_state and event.key == POWER_LEVELS), None)


def _remember(memory: OrderedDict[str, int], event_id: str, value: int) -> None:
    memory[event_id] = value
    if len(memory) > REMEMBERED_MAX:
        memory.popitem(last=False)
