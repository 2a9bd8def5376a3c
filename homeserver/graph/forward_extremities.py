"""Which forward extremities a new event of ours follows, and the state there.

https://spec.matrix.org/v1.19/server-server-api/#pdus
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from homeserver.graph.state import RESOLVED_TOGETHER_MAX, Extremity, RoomHead, StateSnapshot
from homeserver.graph.working_head import WorkingHead
from homeserver.protocol.events import StateKey

CANDIDATES_MAX = 100
"""How many forward extremities are considered if there are more than one event can follow."""


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a new event of ours in the graph."""

    extremities: Sequence[Extremity]
    before: StateSnapshot
    """The state before the event, resolved from the extremities."""


async def next_place(working: WorkingHead, keys: Collection[StateKey]) -> Place:
    """The position of the next event, whose auth events are under ``keys`` of the state.

    Other servers check the event by the resolved state of the extremities that it names. If it cannot name all of them,
    those are chosen in whose states the sender has the permissions that it has by the room's state.
    """
    head = working.head
    named = _to_be_named(head)
    if head.is_exact:
        return Place(sorted(named, key=lambda e: e.depth, reverse=True), head.snapshot)
    candidates = deepest_and_longest_waiting(named, CANDIDATES_MAX)
    best = await _nearest(working, candidates, keys)
    others = [extremity for extremity in candidates if extremity is not best]
    chosen = [best, *deepest_and_longest_waiting(others, RESOLVED_TOGETHER_MAX - 1)]
    return Place(chosen, await working.resolve([await working.state_after(extremity) for extremity in chosen]))


def cited_in_template(head: RoomHead) -> list[Extremity]:
    """The forward extremities for an event that another server will sign."""
    return deepest_and_longest_waiting(_to_be_named(head), RESOLVED_TOGETHER_MAX)


def _to_be_named(head: RoomHead) -> Sequence[Extremity]:
    """The forward extremities that are not late: the late ones come before them."""
    return [extremity for extremity in head.extremities if not extremity.is_late] or head.extremities


def deepest_and_longest_waiting(extremities: Iterable[Extremity], count: int) -> list[Extremity]:
    """Some forward extremities, the deepest first.

    Half of them are the oldest ones, so that a server that makes ever deeper branches cannot keep others from being
    merged.
    """
    by_depth = sorted(extremities, key=lambda extremity: extremity.depth, reverse=True)
    if len(by_depth) <= count:
        return by_depth
    deepest, rest = by_depth[: count - count // 2], by_depth[count - count // 2 :]
    waiting = sorted(rest, key=_arrival)[: count // 2]
    return [*deepest, *sorted(waiting, key=lambda extremity: extremity.depth, reverse=True)]


def _arrival(extremity: Extremity) -> tuple[bool, int]:
    return extremity.event_nid == 0, extremity.event_nid  # 0: the event is being appended right now


async def _nearest(working: WorkingHead, candidates: Sequence[Extremity], keys: Collection[StateKey]) -> Extremity:
    """The extremity whose state has most of the keys as the room's state has them."""
    now = {key: event_id for key in keys if (event_id := working.head.state.get(key)) is not None}
    best, agrees_best = candidates[0], -1
    for extremity in candidates:
        there = await working.lookup_after(extremity, now)
        agrees = sum(there.get(key) == event_id for key, event_id in now.items())
        if agrees > agrees_best:
            best, agrees_best = extremity, agrees
        if agrees == len(now):
            break
    return best
