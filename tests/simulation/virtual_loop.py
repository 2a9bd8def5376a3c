"""An event loop whose time is virtual, and lives, which can end at any step.

The loop never waits: when nothing is ready, its time jumps to the next timer. Work for threads runs in the loop, at a
moment that the seed chooses, so a run has one order of steps and the seed decides it.

A *life* is one run of a server, from its start to its stop or crash. Every callback belongs to the life in whose
context it was scheduled. When a life has ended, its callbacks are dropped: no ``finally`` runs, nothing is cleaned up,
as when a process is killed.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

THREAD_S_MAX = 0.002
"""The longest time that a piece of work waits for its thread."""


class Life:
    """One run of a server. ``dies_after`` is the number of steps after which it crashes, if it is to."""

    def __init__(self, name: str, on_crash: Callable[[], None] | None = None) -> None:
        self.name = name
        self.is_over = False
        self.dies_after: int | None = None
        self._on_crash = on_crash
        self.context = contextvars.copy_context()
        self.context.run(_LIFE.set, self)
        self._mourners: list[asyncio.Future[Any]] = []

    def step(self, callback: Callable[..., object], *args: Any) -> None:
        """Run a callback of this life, unless the life is over."""
        if self.is_over:
            return
        if self.dies_after is not None:
            self.dies_after -= 1
            if self.dies_after < 0:
                self.end()
                if self._on_crash is not None:
                    self._on_crash()
                return
        callback(*args)

    def tell_at_end(self, future: asyncio.Future[Any]) -> None:
        """Have a future fail with ``ConnectionError`` when the life ends, unless it is done by then."""
        self._mourners = [waiting for waiting in self._mourners if not waiting.done()]
        self._mourners.append(future)

    def end(self) -> None:
        """Nothing more happens in this life."""
        self.is_over = True
        for future in self._mourners:
            if not future.done():
                future.set_exception(ConnectionError("the other side has crashed"))
        self._mourners.clear()

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task in this life."""
        return asyncio.get_running_loop().create_task(coroutine, context=self.context.copy())


_LIFE: contextvars.ContextVar[Life | None] = contextvars.ContextVar("life", default=None)


class NothingLeftToHappen(Exception):
    """Everybody waits, and nothing is scheduled: a deadlock."""


class _NoFiles(selectors.SelectSelector):
    """Waits for no files. The loop waits for time alone, which passes at once."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise NothingLeftToHappen
        self._loop.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """See above. ``now`` are the seconds since the run began."""

    def __init__(self, chance: random.Random) -> None:
        self.now = 0.0
        super().__init__(_NoFiles(self))
        self._clock_resolution = 1e-6
        self._chance = chance
        self.steps = 0

    def time(self) -> float:
        return self.now

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        self.steps += 1
        life = _LIFE.get() if context is None else context.get(_LIFE)
        if life is None:
            return super().call_soon(callback, *args, context=context)
        return super().call_soon(life.step, callback, *args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        life = _LIFE.get() if context is None else context.get(_LIFE)
        if life is None:
            return super().call_at(when, callback, *args, context=context)
        return super().call_at(when, life.step, callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Run a function as if on a thread: a little later, in one step."""
        future: asyncio.Future[T] = self.create_future()
        self.call_later(self._chance.uniform(0, THREAD_S_MAX), _work, future, func, args)
        return future

    def later(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call something after as long as a thread may take."""
        self.call_later(self._chance.uniform(0, THREAD_S_MAX), callback, *args)


def _work(future: asyncio.Future[Any], func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        result = func(*args)
    except Exception as error:
        if not future.done():
            future.set_exception(error)
    else:
        if not future.done():
            future.set_result(result)
