"""tests/simulation/workspace.py: nothing stays behind, however a process ends."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.workspace import UNLOCKED_S_MAX, remove_leftovers

TIMEOUT_S = 60
PROCESS = """
import os, signal, sys, time
from tests.simulation.workspace import begin_run, children, workspace

# Where tests run in the background, the shell has everything that it starts ignore this.
signal.signal(signal.SIGINT, signal.default_int_handler)
directory = workspace()
(directory / "template.db").touch()
parent = os.getpid()
pid = os.fork()
if pid == 0:
    begin_run(parent)
    (directory / "1-run").mkdir()
    print("ready", flush=True)
    while True:
        signal.pause()
children.add(pid)
if sys.argv[1] == "end":
    os.read(0, 1)
elif sys.argv[1] == "fail":
    os.read(0, 1)
    raise ValueError
else:
    signal.pause()
"""


def begin(directory: Path, how: str) -> subprocess.Popen[str]:
    """A process with a run under way."""
    environment = {**os.environ, "SIMULATION_DIR": str(directory)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, how],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert len(list(directory.iterdir())) == 1
    return process


@pytest.mark.parametrize("how", ["end", "fail", "SIGINT", "SIGTERM"])
def test_it_is_removed(tmp_path: Path, how: str) -> None:
    process = begin(tmp_path, how)
    if how.startswith("SIG"):
        process.send_signal(signal.Signals[how])
    process.communicate("x", timeout=TIMEOUT_S)  # which waits for the run too, since that has the same output
    assert list(tmp_path.iterdir()) == []
    assert (process.returncode == 0) == (how == "end")


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = begin(tmp_path, "pause")
    monkeypatch.setenv("SIMULATION_DIR", str(tmp_path))
    remove_leftovers()
    (left,) = tmp_path.iterdir()  # nobody takes away what is in use
    process.kill()
    with (left / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the run ends with it
    process.communicate(timeout=TIMEOUT_S)
    (tmp_path / "another").mkdir()
    fresh, old = tmp_path / "simulation-fresh", tmp_path / "simulation-old"
    for directory in (fresh, old):
        directory.mkdir()
    ts = old.stat().st_mtime - UNLOCKED_S_MAX - 1
    os.utime(old, (ts, ts))
    remove_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == {"another", "simulation-fresh"}
