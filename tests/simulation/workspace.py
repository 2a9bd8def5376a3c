"""The directory that one process of the simulator and its runs use, and what is left of killed ones.

It holds the databases. It is removed however the process ends; where it is killed with SIGKILL, the next process that
starts removes it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from homeserver.storage import migrate

PREFIX = "simulation-"
UNLOCKED_S_MAX = 600.0
"""A directory without a lock is being made by another process, or left over if it is older than this."""
PR_SET_PDEATHSIG = 1

children: set[int] = set()
"""The process IDs of runs that are under way."""


def parent_directory() -> Path:
    """Where directories are made: where the environment says, or in memory, where the system has such a place."""
    if given := os.environ.get("SIMULATION_DIR"):
        return Path(given)
    return Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())


@cache
def workspace() -> Path:
    """The directory of this process, for it and the processes that it forks. Removes what others have left behind."""
    remove_leftovers()
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent_directory()))
    # The lock is held for as long as this process or one of its forks lives.
    fcntl.flock(os.open(directory / "lock", os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)
    atexit.register(_clean_up, directory)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # otherwise nothing registered would run
    return directory


@cache
def template() -> Path:
    """A migrated database, for all runs of this process."""
    file = workspace() / "template.db"
    migrate.upgrade(f"sqlite:///{file}")
    return file


def begin_run(parent: int) -> None:
    """Call in a process that was just forked for a run: ``parent`` ends it, and takes care of its files."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it was killed before that took effect


def remove_leftovers() -> None:
    """Remove the directories of processes that were killed."""
    for directory in parent_directory().glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if _is_left_over(directory):
                shutil.rmtree(directory, ignore_errors=True)


def _is_left_over(directory: Path) -> bool:
    try:
        lock = os.open(directory / "lock", os.O_RDWR)
    except FileNotFoundError:
        return time.time() - directory.stat().st_mtime > UNLOCKED_S_MAX
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _clean_up(directory: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # whoever sends another one must not interrupt this
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in children:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    shutil.rmtree(directory, ignore_errors=True)
