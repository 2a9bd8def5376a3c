"""Requests to hosts that never answer, which strangers make the server send."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import quote

from tests.abuse.attack import attack
from tests.abuse.http import Connection, User
from tests.abuse.remote import RemoteServer
from tests.abuse.stage import Stage

HANGING_SECONDS_MAX = 8.0
"""How long the attackers wait."""
WAIT_SECONDS_MAX = 2.5
"""How long a healthy server may be kept waiting by others that hang."""


def hanging_hosts(stage: Stage, count: int) -> list[str]:
    """Names of servers that take connections, and then say nothing."""
    found = []
    for number in range(count):
        listener = socket.create_server((f"127.1.{number // 250}.{number % 250 + 1}", 0), backlog=128)
        stage.closing(listener.close)
        host, port = listener.getsockname()
        found.append(f"{host}:{port}")
    return found


def wait_for(remote: RemoteServer, what: str, count: int) -> float:
    """Wait until a remote server was asked for this so often; how long that took, or the most that it may."""
    began = time.perf_counter()
    while sum(what in asked.path for asked in list(remote.asked)) < count:
        if time.perf_counter() - began > HANGING_SECONDS_MAX:
            return HANGING_SECONDS_MAX
        time.sleep(0.01)
    return time.perf_counter() - began


def _delivered_during(
    stage: Stage, user: User, peer: RemoteServer, room_id: str, look_up: Callable[[int], None]
) -> float:
    """How long a message takes to a healthy server while 800 look-ups are under way."""
    # In two halves: together they are more than the threads of one ``at_once``.
    halves = (lambda number: look_up(2 * number), lambda number: look_up(2 * number + 1))
    attackers = [threading.Thread(target=stage.at_once, args=(400, half)) for half in halves]
    for attacker in attackers:
        attacker.start()
    time.sleep(3.5)
    sent = sum("/send/" in asked.path for asked in list(peer.asked))
    user.ok("PUT", f"/rooms/{quote(room_id)}/send/m.room.message/abuse", {"msgtype": "m.text", "body": "hello"})
    waited = wait_for(peer, "/send/", sent + 1)
    for attacker in attackers:
        attacker.join()
    return waited


@attack(quick=True)
def anonymous_profiles_of_a_hanging_host(stage: Stage) -> Iterator[None]:
    """800 look-ups of profiles at hosts that hang, without an access token; a healthy server waits for a message."""
    peer, user = stage.remote(), stage.user()
    room = peer.room()
    peer.let_join(user, room)
    hosts = hanging_hosts(stage, 200)

    def look_up(number: int) -> None:
        with Connection(stage.base_url, seconds_max=HANGING_SECONDS_MAX) as connection:
            connection.request("GET", f"/_matrix/client/v3/profile/{quote(f'@u{number}:{hosts[number % len(hosts)]}')}")

    yield
    waited = _delivered_during(stage, user, peer, room.room_id, look_up)
    assert waited < WAIT_SECONDS_MAX, f"a message to a healthy server waited for {waited:.1f} s"


@attack()
def a_users_look_ups_at_hanging_hosts(stage: Stage) -> Iterator[None]:
    """800 look-ups of profiles and aliases by a user of the server; a healthy server waits for a message."""
    peer, user, mallory = stage.remote(), stage.user(), stage.user("mallory")
    room = peer.room()
    peer.let_join(user, room)
    hosts = hanging_hosts(stage, 200)

    def look_up(number: int) -> None:
        host = hosts[number % len(hosts)]
        path = f"/profile/{quote(f'@u{number}:{host}')}" if number % 2 else f"/directory/room/{quote(f'#a:{host}')}"
        with Connection(stage.base_url, seconds_max=HANGING_SECONDS_MAX) as connection:
            connection.request("GET", f"/_matrix/client/v3{path}", None, mallory.headers)

    yield
    waited = _delivered_during(stage, user, peer, room.room_id, look_up)
    assert waited < WAIT_SECONDS_MAX, f"a message to a healthy server waited for {waited:.1f} s"


@attack(quick=True)
def a_notary_request_about_hanging_hosts(stage: Stage) -> Iterator[None]:
    """One request for the keys of 100 servers that hang; a new server's first request waits for its keys."""
    newcomer = stage.remote()
    hosts = hanging_hosts(stage, 200)
    body = {"server_keys": {host: {} for host in hosts[:100]}}

    def ask() -> None:
        with newcomer.connection(stage.server) as connection:
            connection.request("POST", "/_matrix/key/v2/query", body)

    yield
    stage.in_background(ask)
    time.sleep(0.5)
    answer = newcomer.send(stage.server)
    assert answer.status == 200, answer
    assert answer.seconds < WAIT_SECONDS_MAX, f"a new server's first request took {answer.seconds:.1f} s"
