"""Each seed in a process of its own, forked from one in which everything is imported.

So no run leaves anything behind for the next, a run is the same whether it comes first or last, and what a crash
leaves behind (tasks that never end, with clean-up that must not run) goes with the process.
"""

from __future__ import annotations

import os
import pickle
import selectors
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from tests.simulation.simulation import Outcome
from tests.simulation.workspace import begin_run, children, template

Run = Callable[[int], Outcome]


def run_all(seeds: Iterable[int], run: Run, jobs: int) -> Iterator[Outcome]:
    """The outcomes of runs, ``jobs`` of them at a time, in the order in which they end."""
    template()  # made once, before anybody forks
    waiting = deque(seeds)
    under_way = selectors.DefaultSelector()
    answers: dict[int, tuple[int, int, list[bytes]]] = {}
    while waiting or answers:
        while waiting and len(answers) < jobs:
            seed = waiting.popleft()
            pid, pipe = _fork(seed, run)
            answers[pipe] = (seed, pid, [])
            under_way.register(pipe, selectors.EVENT_READ)
        for key, _ in under_way.select():
            pipe = key.fd
            seed, pid, chunks = answers[pipe]
            if chunk := os.read(pipe, 1 << 20):
                chunks.append(chunk)
                continue
            under_way.unregister(pipe)
            os.close(pipe)
            os.waitpid(pid, 0)
            children.discard(pid)
            del answers[pipe]
            yield pickle.loads(b"".join(chunks)) if chunks else Outcome(seed, "?", "", {"the_process_lives": ["no"]})


def _fork(seed: int, run: Run) -> tuple[int, int]:
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        children.add(pid)
        os.close(writer)
        return pid, reader
    try:
        begin_run(parent)
        os.close(reader)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(pickle.dumps(run(seed)))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)  # without any clean-up
