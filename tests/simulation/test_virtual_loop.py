"""The loop on which everything is simulated."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.simulation.virtual_loop import Life, NothingLeftToHappen, VirtualLoop


def run(story: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    loop = VirtualLoop(random.Random(1))
    try:
        return loop.run_until_complete(story())
    finally:
        loop.close()


def test_time_passes_at_once() -> None:
    async def story() -> float:
        await asyncio.sleep(1_000_000)
        return asyncio.get_running_loop().time()

    assert run(story) == pytest.approx(1_000_000)


def test_a_deadlock_shows() -> None:
    async def story() -> None:
        await asyncio.Event().wait()

    with pytest.raises(NothingLeftToHappen):
        run(story)


def test_work_for_threads_runs_in_the_loop_in_an_order_of_the_seed() -> None:
    done: list[int] = []

    async def story() -> None:
        await asyncio.gather(*(asyncio.to_thread(done.append, number) for number in range(20)))

    run(story)
    assert sorted(done) == list(range(20))
    first, done[:] = list(done), []
    run(story)
    assert done == first != list(range(20))


def test_nothing_is_cleaned_up_when_a_life_ends() -> None:
    happened: list[str] = []

    async def live() -> None:
        try:
            happened.append("begins")
            await asyncio.sleep(1)
            happened.append("goes on")
        finally:
            happened.append("cleans up")

    async def story() -> Any:
        life = Life("a life")
        task = life.spawn(live())
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        life.tell_at_end(told)
        await asyncio.sleep(0.5)
        life.end()
        await asyncio.sleep(10)
        with pytest.raises(ConnectionError):
            await told
        assert not task.done()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        return task  # kept: what the garbage collector cleans up is no part of this

    task = run(story)
    assert happened == ["begins"]
    del task


def test_a_life_can_end_at_any_step() -> None:
    steps: list[int] = []
    crashed: list[bool] = []

    async def live() -> None:
        for number in range(10):
            steps.append(number)
            await asyncio.sleep(0)

    async def story() -> Any:
        life = Life("a life", lambda: crashed.append(True))
        life.dies_after = 4
        task = life.spawn(live())
        await asyncio.sleep(1)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        return task

    task = run(story)
    assert steps == [0, 1, 2, 3]
    assert crashed == [True]
    del task
