"""Times, CPU seconds and memory, and what is made of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

from benchmarks.http import Answer

WARM_UP_SECONDS = 1.0
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value."""

    name: str
    value: float
    unit: str


class Meter:
    """Wall time and the CPU time of some processes, children included, between enter and exit."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self.wall_seconds = 0.0
        self.cpu_seconds = 0.0

    def __enter__(self) -> Self:
        self._cpu_before = sum(map(cpu_seconds, self._pids))
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.wall_seconds = time.perf_counter() - self._began
        self.cpu_seconds = sum(map(cpu_seconds, self._pids)) - self._cpu_before

    def cpu_per(self, count: int, what: str) -> list[Figure]:
        """The CPU time for each of ``count`` things, in milliseconds; nothing if no process is known."""
        if not self._pids:
            return []
        return [Figure(f"server CPU per {what}", self.cpu_seconds / max(1, count) * 1000, "ms")]


def cpu_seconds(pid: int) -> float:
    """What a process and its children have used so far."""
    process = psutil.Process(pid)
    times = [member.cpu_times() for member in (process, *process.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))


def resident_mib(pid: int) -> float:
    """The resident memory of a process and its children."""
    process = psutil.Process(pid)
    return float(sum(member.memory_info().rss for member in (process, *process.children(recursive=True))) / MIB)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def latencies(seconds: Sequence[float], name: str = "latency") -> list[Figure]:
    """Median and 99th percentile in milliseconds."""
    return [
        Figure(f"{name} p50", percentile(seconds, 0.5) * 1000, "ms"),
        Figure(f"{name} p99", percentile(seconds, 0.99) * 1000, "ms"),
    ]


async def repeat(
    actions: Sequence[Callable[[], Awaitable[Answer]]], seconds: float, pids: Sequence[int]
) -> tuple[list[float], Meter]:
    """Each action again and again, all beside each other, for this long after a warm-up; how long each took."""
    await _repeat(actions, min(WARM_UP_SECONDS, seconds))
    with Meter(pids) as meter:
        took = await _repeat(actions, seconds)
    return took, meter


async def _repeat(actions: Sequence[Callable[[], Awaitable[Answer]]], seconds: float) -> list[float]:
    took: list[float] = []
    deadline = time.perf_counter() + seconds

    async def one(action: Callable[[], Awaitable[Answer]]) -> None:
        while time.perf_counter() < deadline:
            took.append((await action()).seconds)

    await asyncio.gather(*map(one, actions))
    return took
