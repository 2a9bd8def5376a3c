"""The innocent user and the probe: a process of its own, so that nothing but the server can make them wait.

Started by ``Watch``. Each of these runs in a thread with a connection of its own:

- the probe asks for ``/versions``;
- alice sends messages into a small room;
- bob, who is in it too, syncs;
- bob pages back;
- one thread only sleeps: what it oversleeps says how busy the machine is, whatever the server does.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote

from tests.abuse.http import Answer, Connection, NoAnswer, User

PAUSE_SECONDS = {"probe": 0.01, "send": 0.04, "sync": 0.04, "page": 0.1, "machine": 0.01}
"""How long each pauses between two requests."""
WARM_UP_ROUNDS = 20
STOP_SECONDS_MAX = 70.0


@dataclass
class Waits:
    """How long each request took, in seconds, by kind."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """Requests that got no answer, or an error."""

    def longest(self, kind: str) -> float:
        """The longest wait."""
        return max(self.seconds[kind], default=0.0)

    def p99(self, kind: str) -> float:
        """What 99 of 100 do not exceed."""
        values = sorted(self.seconds[kind])
        return values[min(len(values) - 1, int(len(values) * 0.99))] if values else 0.0


class Watch:
    """The process, as the harness sees it."""

    def __init__(self, base_url: str) -> None:
        command = [sys.executable, "-m", "tests.abuse.watching", base_url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with contextlib.suppress(OSError):
            self._process.communicate()

    def start(self) -> None:
        """Begin to send, sync, page and ask."""
        self._say("start")
        self._answer()

    def stop(self) -> Waits:
        """End it, when what is under way is answered; what was seen since ``start``."""
        self._say("stop")
        return Waits(**self._answer())

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the innocent user's process has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


class Innocents:
    """What the process does."""

    def __init__(self, base_url: str) -> None:
        self._probe = Connection(base_url)
        alice, bob = User.register(base_url, "innocent-alice"), User.register(base_url, "innocent-bob")
        self._alice, self._bob, self._reader = alice, bob, bob.another()
        self._room = quote(str(alice.ok("POST", "/createRoom", {"preset": "public_chat"})["room_id"]))
        bob.ok("POST", f"/join/{self._room}", {})
        self._since = str(bob.ok("GET", "/sync?timeout=0")["next_batch"])
        self._numbers = itertools.count()
        self._is_over = threading.Event()
        self._waits = Waits()
        self._threads: list[threading.Thread] = []
        for _ in range(WARM_UP_ROUNDS):
            for act in (self._ask, self._send, self._sync, self._page):
                act()

    def start(self) -> None:
        self._waits = Waits({kind: [] for kind in PAUSE_SECONDS})
        self._is_over.clear()
        acts = {"probe": self._ask, "send": self._send, "sync": self._sync, "page": self._page}
        self._threads = [threading.Thread(target=self._repeat, args=each, daemon=True) for each in acts.items()]
        self._threads.append(threading.Thread(target=self._sleep, daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> Waits:
        self._is_over.set()
        for thread in self._threads:
            thread.join(STOP_SECONDS_MAX)
        return self._waits

    def _repeat(self, kind: str, act: Callable[[], Answer]) -> None:
        seconds = self._waits.seconds[kind]
        while not self._is_over.wait(PAUSE_SECONDS[kind]):
            try:
                answer = act()
            except NoAnswer as error:
                seconds.append(error.seconds)
                self._waits.failures.append(f"{kind}: {error}")
                continue
            seconds.append(answer.seconds)
            if answer.status != 200:
                self._waits.failures.append(f"{kind}: {answer.status} {answer.body[:200]!r}")

    def _sleep(self) -> None:
        pause = PAUSE_SECONDS["machine"]
        while not self._is_over.is_set():
            began = time.perf_counter()
            time.sleep(pause)
            self._waits.seconds["machine"].append(time.perf_counter() - began - pause)

    def _ask(self) -> Answer:
        return self._probe.request("GET", "/_matrix/client/versions")

    def _send(self) -> Answer:
        path = f"/rooms/{self._room}/send/m.room.message/{next(self._numbers)}"
        return self._alice.call("PUT", path, {"msgtype": "m.text", "body": "Nothing happens here"})

    def _sync(self) -> Answer:
        answer = self._bob.call("GET", f"/sync?timeout=0&since={self._since}")
        if answer.status == 200:
            self._since = str(answer.json()["next_batch"])
        return answer

    def _page(self) -> Answer:
        return self._reader.call("GET", f"/rooms/{self._room}/messages?dir=b&limit=20")


def main() -> None:
    """Speak with ``Watch`` over standard input and output, a line of JSON for each answer."""
    sys.setswitchinterval(0.0005)
    innocents = Innocents(sys.argv[1])
    print("{}", flush=True)
    for line in sys.stdin:
        match line.strip():
            case "start":
                innocents.start()
                print("{}", flush=True)
            case "stop":
                waits = innocents.stop()
                print(json.dumps({"seconds": waits.seconds, "failures": waits.failures}), flush=True)


if __name__ == "__main__":
    main()
