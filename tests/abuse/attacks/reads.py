"""Reads that take the database's threads: the whole state of a large room, again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from urllib.parse import quote

from tests.abuse.attack import attack
from tests.abuse.attacks.answers import large_room
from tests.abuse.http import User
from tests.abuse.stage import Stage

MEMBERS = 5_000
AT_ONCE = 40
PAGE_SECONDS_MAX = 2.0


def _longest_page_during(stage: Stage, reader: User, room_id: str, ask: Callable[[int], object]) -> float:
    """How long somebody else's page of history takes at most while all ask at once."""
    attacker = threading.Thread(target=stage.at_once, args=(AT_ONCE, ask))
    attacker.start()
    waits = [0.0]
    while attacker.is_alive():
        waits.append(reader.call("GET", f"/rooms/{quote(room_id)}/messages?dir=b&limit=50").seconds)
    return max(waits)


def _room(stage: Stage) -> tuple[User, str, str, Callable[[str], object]]:
    mallory, user = stage.remote(), stage.user()
    room, answer = large_room(mallory, MEMBERS)
    mallory.on("PUT", "/send_join/", lambda _: answer)
    mallory.let_join(user, room)
    event_id = user.ok("PUT", f"/rooms/{quote(room.room_id)}/send/m.room.message/1", {"body": "x"})["event_id"]

    def request(target: str) -> object:
        return mallory.request(stage.server, "GET", target)

    return user, room.room_id, event_id, request


@attack(databases=("sqlite", "postgresql"))
def states_for_a_peer(stage: Stage) -> Iterator[None]:
    """A peer asks 40 times at once for the whole state of a room with 5,000 members; a user pages in a room of his."""
    _, room_id, event_id, request = _room(stage)
    reader = stage.user("reader")
    own = reader.ok("POST", "/createRoom", {})["room_id"]
    target = f"/_matrix/federation/v1/state/{quote(room_id)}?event_id={quote(event_id)}"
    yield
    longest = _longest_page_during(stage, reader, own, lambda _: request(target))
    assert longest < PAGE_SECONDS_MAX, f"a page of history of somebody else took {longest:.1f} s"


@attack(databases=("sqlite", "postgresql"))
def states_for_a_user(stage: Stage) -> Iterator[None]:
    """A user asks 40 times at once for the whole state of a room with 5,000 members; another one pages."""
    user, room_id, _, _ = _room(stage)
    reader = stage.user("reader")
    own = reader.ok("POST", "/createRoom", {})["room_id"]
    yield
    longest = _longest_page_during(
        stage, reader, own, lambda _: user.another().call("GET", f"/rooms/{quote(room_id)}/state")
    )
    assert longest < PAGE_SECONDS_MAX, f"a page of history of somebody else took {longest:.1f} s"
