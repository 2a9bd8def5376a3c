"""One attack, measured and judged."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tests.abuse.attack import Attack
from tests.abuse.stage import Stage
from tests.abuse.watching import Waits, Watch

INNOCENT = ("send", "sync")
TABLES_SHOWN = 4


@dataclass(frozen=True)
class Bars:
    """What must hold while a server is attacked."""

    quiet_seconds: float
    """How long the innocent user is watched before."""
    after_seconds: float
    """And how long after the attack has ended."""
    probe_seconds: float
    """The longest that anybody may wait for ``/versions``."""
    innocent_seconds: float
    """The most that the 99th percentile of the innocent user's requests may be."""
    times_quiet: float
    """And how many times its quiet value, ..."""
    floor_seconds: float
    """... if that is more than this: what is quick anyway may vary."""
    memory_mib: float
    """How much more memory than an attack's own bar it may take."""

    def innocent_max(self, quiet_seconds: float) -> float:
        """The bar for a request whose quiet 99th percentile is this."""
        return min(self.innocent_seconds, max(self.floor_seconds, self.times_quiet * quiet_seconds))


FULL = Bars(4.0, 1.0, 0.1, 0.25, 5, 0.1, 0)
"""Those of ``make abuse``, on a machine that does nothing else."""
QUICK = Bars(1.0, 0.5, 0.8, 1.5, 100, 1.5, 32)
"""Those of ``make test``: the machine runs other tests beside them."""


@dataclass(frozen=True)
class Result:
    """What came of an attack."""

    attack: Attack
    quiet: Waits
    waits: Waits
    memory_mib: float | None
    rows: Mapping[str, int]
    """What it left in each table, without what the innocent user wrote."""
    seconds: float
    error: str
    faults: tuple[str, ...]

    @property
    def rows_written(self) -> int:
        """In all tables."""
        return sum(self.rows.values())

    def line(self) -> str:
        """All figures in a line."""
        memory = "" if self.memory_mib is None else f"  memory +{self.memory_mib:4.0f} MiB"
        innocent = "".join(f"  {k} {ms(self.waits.p99(k))} ({ms(self.quiet.p99(k))})" for k in INNOCENT)
        tables = sorted(self.rows.items(), key=lambda each: -each[1])[:TABLES_SHOWN]
        rows = ", ".join(f"{name} {count}" for name, count in tables) if self.rows_written else ""
        return (
            f"probe {ms(self.waits.longest('probe'))} ({ms(self.quiet.longest('probe'))}){innocent}{memory}"
            f"  rows {self.rows_written}{f' ({rows})' if rows else ''}"
            f"  machine {ms(self.waits.longest('machine'))}  in {self.seconds:.1f} s"
        )


def ms(seconds: float) -> str:
    """In milliseconds."""
    return f"{seconds * 1000:.0f} ms"


def measure(attack: Attack, stage: Stage, watch: Watch, bars: Bars) -> Result:
    """Prepare the attack, watch the innocent user without and with it, and judge.

    The innocent user sends, and so writes, at all times: what it writes is known from the quiet time.
    """
    course = attack.course(stage)
    try:
        next(course)
        before_quiet = stage.rows()
        watch.start()
        time.sleep(bars.quiet_seconds)
        quiet = watch.stop()
        before = stage.rows()
        stage.forget_peak()
        idle = stage.memory_mib()
        log_size = stage.server.log_size()
        watch.start()
        began = time.perf_counter()
        error = ""
        try:
            with contextlib.suppress(StopIteration):
                next(course)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"[:500]
        took = time.perf_counter() - began
        time.sleep(bars.after_seconds)
        waits = watch.stop()
        peak = stage.memory_mib()
        after = stage.rows()
    finally:
        course.close() if hasattr(course, "close") else None
        stage.end()
    sends = len(quiet.seconds["send"]), len(waits.seconds["send"])
    own = {table: (before[table] - before_quiet.get(table, 0)) * sends[1] / max(1, sends[0]) for table in before}
    # The innocent user's share is an estimate: a few rows more or less are no news.
    slack = max(5, sends[1] // 5)
    rows = {t: round(n - before.get(t, 0) - own.get(t, 0)) for t, n in after.items()}
    rows = {table: count for table, count in rows.items() if count > slack}
    memory = None if peak is None or idle is None else peak[1] - idle[0]
    logged = stage.server.log_size() - log_size
    faults = _faults(attack, bars, quiet, waits, memory, sum(rows.values()), logged)
    if error:
        faults.append(error)
    return Result(attack, quiet, waits, memory, rows, took, error, tuple(faults))


LOG_BYTES_MAX = 1024 * 1024


def _faults(
    attack: Attack, bars: Bars, quiet: Waits, waits: Waits, memory: float | None, rows: int, logged: int
) -> list[str]:
    faults = []
    if waits.longest("probe") > bars.probe_seconds:
        faults.append(f"/versions waited {ms(waits.longest('probe'))}, and may {ms(bars.probe_seconds)}")
    for kind in INNOCENT:
        allowed = bars.innocent_max(quiet.p99(kind))
        if waits.p99(kind) > allowed:
            faults.append(f"the innocent user's {kind} took {ms(waits.p99(kind))} (p99), and may {ms(allowed)}")
    if waits.failures:
        faults.append(f"{len(waits.failures)} requests of the innocent user failed: {waits.failures[0]}")
    memory_max = attack.memory_mib_max + bars.memory_mib
    if memory is not None and memory > memory_max:
        faults.append(f"memory rose by {memory:.0f} MiB, and may by {memory_max:.0f}")
    if rows > attack.rows_max:
        faults.append(f"{rows} rows were written, and may {attack.rows_max}")
    if logged > LOG_BYTES_MAX:
        faults.append(f"{logged} bytes were logged, and may {LOG_BYTES_MAX}")
    return faults
