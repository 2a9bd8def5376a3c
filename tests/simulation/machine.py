"""A machine whose time, randomness, threads and log are what the seed makes of them.

What a server takes from outside is replaced here for the whole process, rather than object by object, so that new code
cannot bring in an unseeded clock or unseeded randomness by oversight.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import secrets
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import structlog
from sqlalchemy import event
from sqlalchemy.engine import Engine

from homeserver.clock import SystemClock
from homeserver.graph import other_processes
from homeserver.storage import database as database_module
from homeserver.storage.database import GROUP_MAX, Database
from tests.factories.rooms import START_TS
from tests.simulation.virtual_loop import VirtualLoop

LOOK_FOR_OTHER_PROCESSES_S = 600.0
"""No other process shares a database here: looking every other second would be most of what a run does."""


FRAMES_SHOWN = 4


class Log:
    """What servers log that they should not have to: errors."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def __call__(self, _logger: Any, method: str, entry: dict[str, Any]) -> dict[str, Any]:
        if method in ("error", "exception", "critical"):
            self.errors.append(f"{entry['event']}: {_last_frames(sys.exc_info()[1])}")
        raise structlog.DropEvent


def _last_frames(error: BaseException | None) -> str:
    """What was raised, and from where, in one line."""
    if error is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES_SHOWN:]
    return f"{error!r} in " + " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))


@contextlib.contextmanager
def machine(seed: int, loop: VirtualLoop) -> Iterator[Log]:
    """Replace what servers take from the machine, as long as the context lasts."""
    chance = random.Random(f"machine {seed}")
    log = Log()
    random.seed(seed)
    structlog.configure(processors=[log], cache_logger_on_first_use=False)
    logging.disable(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        replace = lambda target, name, value: stack.enter_context(mock.patch.object(target, name, value))  # noqa: E731
        replace(SystemClock, "now_ms", lambda _: START_TS + int(loop.now * 1000))
        replace(SystemClock, "monotonic", lambda _: loop.now)
        replace(secrets, "token_bytes", lambda size=32: chance.randbytes(size or 32))
        replace(secrets, "choice", chance.choice)
        replace(os, "urandom", chance.randbytes)
        replace(other_processes, "POLL_S", LOOK_FOR_OTHER_PROCESSES_S)
        replace(Database, "_start_writer", lambda _: None)
        replace(Database, "_stop_writer", lambda _: None)
        replace(Database, "_hand_over", _hand_over)
        replace(database_module.time, "sleep", _no_sleep)
        # The contexts of TLS take longer to make than all else that a server starts with, and nobody uses them here.
        stack.enter_context(mock.patch("homeserver.outbound.http.create_ssl_context", return_value=None))
        event.listen(Engine, "connect", _do_not_wait_for_the_disk)
        try:
            yield log
        finally:
            event.remove(Engine, "connect", _do_not_wait_for_the_disk)
            logging.disable(logging.NOTSET)
            structlog.reset_defaults()


def _do_not_wait_for_the_disk(connection: Any, _record: Any) -> None:
    """What was committed stays when a simulated process crashes: it is the machine that goes on."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=OFF")
    cursor.close()


def _no_sleep(_seconds: float) -> None:
    raise AssertionError("a database that belongs to one process is never locked")


def _hand_over(database: Any, job: Any) -> None:
    """Take a job for the writer, which runs in the event loop: group by group, like the thread."""
    waiting = database.__dict__.setdefault("_simulated_jobs", [])
    waiting.append(job)
    if not database.__dict__.get("_simulated_writer"):
        database._simulated_writer = True
        job.loop.later(_write, database, job.loop)


def _write(database: Any, loop: VirtualLoop) -> None:
    group, database._simulated_jobs = database._simulated_jobs[:GROUP_MAX], database._simulated_jobs[GROUP_MAX:]
    outcomes = database._run_group(group)
    # The answer takes its time: a crash in between leaves committed what nobody was told of.
    loop.later(_answer, database, loop, group, outcomes)


def _answer(database: Any, loop: VirtualLoop, group: list[Any], outcomes: list[Any]) -> None:
    database_module._answer(group, outcomes)
    if database._simulated_jobs:
        loop.later(_write, database, loop)
    else:
        database._simulated_writer = False
