"""History that only a server which means harm could give."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.abuse.attack import attack
from tests.abuse.stage import Stage

PAGES = 4


@attack()
def history_that_hangs(stage: Stage) -> Iterator[None]:
    """A user pages across a gap, again and again, and the only server that could fill it never answers."""
    mallory = stage.remote()
    room = mallory.room()
    for number in range(20):
        room.send("creator", f"before {number}")
    user = stage.user()
    mallory.let_join(user, room)
    mallory.on("GET", "/backfill/", lambda _: None)
    yield
    waits = []
    for _ in range(PAGES):
        began = time.perf_counter()
        user.ok("GET", f"/rooms/{room.room_id}/messages?dir=b&limit=50")
        waits.append(time.perf_counter() - began)
    assert waits[0] < 6, f"the first page took {waits[0]:.1f} s"
    assert max(waits[1:]) < 1, f"a later page took {max(waits[1:]):.1f} s"
