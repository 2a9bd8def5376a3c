"""Doing what is allowed, but too much of it."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

from tests.abuse.attack import attack
from tests.abuse.http import NoAnswer
from tests.abuse.stage import Stage

SECONDS = 5.0
LOGIN_SECONDS_MAX = 5.0
"""How long the user may wait: with two hashes at once this is many turns, even on a busy machine."""
PASSWORD = "correct horse battery staple 1"


def log_in(stage: Stage, address: str, user_id: str, password: str) -> int:
    """The status of a login from an address of this machine."""
    url = urlsplit(stage.base_url)
    connection = http.client.HTTPConnection("127.0.0.1", url.port or 80, timeout=60, source_address=(address, 0))
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": user_id}, "password": password}
    try:
        connection.request("POST", "/_matrix/client/v3/login", json.dumps(body))
        return connection.getresponse().status
    finally:
        connection.close()


@attack(quick=True)
def logins_of_120_connections(stage: Stage) -> Iterator[None]:
    """120 connections of one address guess a user's password all the time; the user logs in from elsewhere."""
    user = stage.user()
    yield
    until = time.monotonic() + SECONDS

    def guess(_: int) -> None:
        while time.monotonic() < until:
            log_in(stage, "127.0.0.2", user.user_id, "guess")
            time.sleep(0.05)

    guessing = stage.in_background(lambda: stage.at_once(120, guess))
    waits = []
    for _ in range(5):
        time.sleep(0.5)
        began = time.monotonic()
        assert log_in(stage, "127.0.0.3", user.user_id, PASSWORD) == 200
        waits.append(time.monotonic() - began)
    guessing.join(60)
    assert max(waits) < LOGIN_SECONDS_MAX, f"the user waited {max(waits):.1f} s to log in"


@attack(quick=True, rows_max=1500)
def large_events(stage: Stage) -> Iterator[None]:
    """A user sends events of 60 KB on ten connections, as fast as they are taken."""
    user = stage.user()
    room_id = user.ok("POST", "/createRoom", {"preset": "private_chat"})["room_id"]
    yield
    until = time.monotonic() + SECONDS

    def send(number: int) -> None:
        own, sent = user.another(), 0
        stage.closing(own.close)
        while time.monotonic() < until:
            path = f"/rooms/{quote(room_id)}/send/m.room.message/{number}-{sent}"
            try:
                own.call("PUT", path, {"body": "x" * 60_000, "msgtype": "m.text"})
            except NoAnswer:
                return
            sent += 1

    stage.at_once(10, send)
