"""homeserver/limits/fair_budget.py."""

from __future__ import annotations

import asyncio

import pytest

from homeserver.errors import LimitExceeded
from homeserver.limits.fair_budget import FairBudget
from tests.waiting import WAIT_S

pytestmark = pytest.mark.anyio


class Story:
    """Callers of a budget, and the order in which they got their share."""

    def __init__(self, budget: FairBudget) -> None:
        self.budget = budget
        self.order: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.done: dict[str, asyncio.Event] = {}

    async def come(self, name: str, amount: int = 1) -> None:
        """``a1`` is a request of the subject ``a``."""
        self.done[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._run(name, amount))
        await self.settle()

    async def _run(self, name: str, amount: int) -> None:
        async with self.budget.share(name[0], amount, seconds=WAIT_S):
            self.order.append(name)
            await self.done[name].wait()

    async def end(self, name: str) -> None:
        self.done[name].set()
        await self.tasks[name]
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def end_all(self) -> None:
        for event in self.done.values():
            event.set()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        assert (self.budget.used, self.budget.waiting) == (0, 0)
        assert not self.budget._used_by
        assert not self.budget._queues


async def test_those_who_wait_take_turns_by_subject() -> None:
    story = Story(FairBudget(1))
    for name in ("a1", "a2", "a3", "b1", "c1"):
        await story.come(name)
    for name in ("a1", "a2", "b1", "c1"):
        await story.end(name)
    assert story.order == ["a1", "a2", "b1", "c1", "a3"]
    await story.end_all()


async def test_a_flood_delays_others_by_one_turn_only() -> None:
    story = Story(FairBudget(1, waiting_per_subject_max=20))
    for number in range(20):
        await story.come(f"a{number}")
    await story.come("b")
    await story.end("a0")
    await story.end("a1")
    assert story.order[-1] == "b"
    await story.end_all()


async def test_one_subject_has_its_part_only_and_others_pass_it() -> None:
    story = Story(FairBudget(10, per_subject=4))
    for name, amount in (("a1", 3), ("a2", 2), ("b1", 4), ("c1", 3)):
        await story.come(name, amount)
    assert story.order == ["a1", "b1", "c1"]
    await story.come("d1", 1)
    assert story.order == ["a1", "b1", "c1"]  # the capacity is used up
    await story.end("a1")
    assert set(story.order[3:]) == {"a2", "d1"}
    await story.end_all()


async def test_a_large_share_gets_its_turn_among_small_ones() -> None:
    story = Story(FairBudget(4))
    await story.come("a1", 1)
    await story.come("b1", 4)
    for number in range(5):
        await story.come(f"c{number}", 1)
    assert story.order == ["a1"]
    await story.end("a1")
    assert story.order == ["a1", "b1"]
    await story.end("b1")
    assert story.order[2:] == ["c0", "c1", "c2", "c3"]
    await story.end_all()


async def test_more_than_one_may_have_counts_as_that() -> None:
    story = Story(FairBudget(4, per_subject=2))
    await story.come("a1", 1000)
    assert story.budget.used == 2
    await story.end_all()


async def test_queues_are_bounded_and_the_longest_gives_way() -> None:
    story = Story(FairBudget(1, waiting_max=4, waiting_per_subject_max=3))
    for number in range(5):
        await story.come(f"a{number}")
    assert isinstance(story.tasks["a4"].exception(), LimitExceeded)  # three wait already
    for name in ("b1", "c1"):
        await story.come(name)
    error = story.tasks["a3"].exception()
    assert isinstance(error, LimitExceeded)
    assert error.extra["retry_after_ms"] > 0
    for name in ("d1", "e1"):
        await story.come(name)
    assert isinstance(story.tasks["a2"].exception(), LimitExceeded)
    assert isinstance(story.tasks["e1"].exception(), LimitExceeded)  # no queue is longer than its own would be
    for name in ("a0", "a1", "b1", "c1", "d1"):
        await story.end(name)
    assert story.order == ["a0", "a1", "b1", "c1", "d1"]
    await story.end_all()


async def test_who_waits_too_long_is_refused() -> None:
    budget = FairBudget(1)
    async with budget.share("a"):
        with pytest.raises(LimitExceeded):
            await budget.take("b", seconds=0.001)
        assert budget.waiting == 0
    assert budget.used == 0


async def test_who_goes_away_holds_nothing() -> None:
    story = Story(FairBudget(2))
    for name, amount in (("a1", 2), ("b1", 2), ("c1", 1)):
        await story.come(name, amount)
    story.tasks["b1"].cancel()
    await story.settle()
    await story.end("a1")
    assert story.order == ["a1", "c1"]
    # One that is cancelled at the moment at which it gets its share gives it back.
    await story.come("d1", 2)
    story.done["c1"].set()
    story.budget.release("c", 1)
    story.tasks["d1"].cancel()
    story.budget._grant("c", 1)
    await story.settle()
    await story.end_all()
