"""``homeserver serve`` itself: what comes over a socket may not even be HTTP, and the log keeps secrets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from homeserver.cli import main
from homeserver.server import REQUEST_HEAD_BYTES_MAX
from tests.conformance.world import CORS, check_answer, fine
from tests.waiting import WAIT_S

ANSWER_SECONDS_MAX = 60.0
MEMORY_GROWTH_MAX = 64 * 1024 * 1024
"""For requests of some 64 MiB: nothing may be kept of them."""
PASSWORD, DISPLAY_NAME = "a-password-nobody-may-read", "a-name-that-is-none-of-their-business"
MESSAGE, REASON = "a-message-between-two-people", "a-reason-between-two-people"


class Served:
    """A server with open registration that logs everything it can."""

    def __init__(self, directory: Path) -> None:
        settings = {
            "HOMESERVER_LISTENERS__0__PORT": "0",
            "HOMESERVER_LOGGING__FORMAT": "json",
            "HOMESERVER_LOGGING__LEVEL": "debug",
            "HOMESERVER_REGISTRATION__ENABLED": "true",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "homeserver", "serve", "--config", str(directory / "homeserver.toml")],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings},
        )
        self.log: list[str] = []
        self.port = 0
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if '"listening"' in line:
                self.port = json.loads(line)["port"]
                break
        assert self.port, self.log
        self._reading = threading.Thread(target=self.log.extend, args=(self.process.stderr,), daemon=True)
        self._reading.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/_matrix/client/v3"

    def stop(self) -> str:
        """The whole log."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=WAIT_S) == 0
        self._reading.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return "".join(self.log)

    def say(self, *pieces: bytes) -> bytes:
        """What is answered to these bytes until the connection is closed."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_SECONDS_MAX) as connection:
            with contextlib.suppress(ConnectionError):  # it may have heard enough
                for piece in pieces:
                    connection.sendall(piece)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while chunk := connection.recv(65_536):
                    answer += chunk
            return answer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite_file: Path) -> Path:
    directory = tmp_path_factory.mktemp("served")
    assert main(["init", "--server-name", "example.org", "--data-dir", str(directory)]) == 0
    (directory / "homeserver.db").write_bytes(migrated_sqlite_file.read_bytes())
    return directory


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[Served]:
    served = Served(directory)
    yield served
    if served.process.poll() is None:
        log = served.stop()
        assert '"level": "error"' not in log


GET = b"GET /_matrix/client/versions HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /_matrix/client/v3/login HTTP/1.1\r\nHost: x\r\n"
CLOSE = b"Connection: close\r\n\r\n"
NOT_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"get / HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    POST + b"Content-Length: x\r\n\r\n", POST + b"Content-Length: -1\r\n\r\n",
    POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
    POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: gzip\r\n\r\nx", GET + b"X: a\x00b\r\n\r\n", GET + b"X: a\r\n b\r\n\r\n",
    GET + b"no colon\r\n\r\n", b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /_matrix/client/v3/profile/" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("said", NOT_HTTP, ids=[repr(said[-40:]) for said in NOT_HTTP])
def test_what_is_not_http(served: Served, said: bytes) -> None:
    answer = parsed(served.say(said))
    assert (answer.status_code, answer.json()["errcode"]) in [(400, "M_UNRECOGNIZED"), (431, "M_TOO_LARGE")]
    check_answer(answer)


def parsed(answer: bytes) -> httpx.Response:
    """The first answer in what a server has said."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = [tuple(line.split(b": ", 1)) for line in lines]
    request = httpx.Request("GET", "http://x/")
    return httpx.Response(int(status.split()[1]), headers=headers, content=body, request=request)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ([GET + CLOSE], 200),
        ([b"GET /_matrix/client/versions HTTP/1.0\r\n\r\n"], 200),
        ([GET[:10], GET[10:], CLOSE[:5], CLOSE[5:]], 200),
        ([b"GET http://evil.test/_matrix/client/versions HTTP/1.1\r\nHost: x\r\n" + CLOSE], 200),
        ([b"GET /_matrix/client/versions?a#b HTTP/1.1\r\nHost: x\r\n" + CLOSE], 200),
        ([GET + b"Upgrade: websocket\r\n" + CLOSE], 200),
        ([GET + b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n" + CLOSE], 200),
        ([b"OPTIONS * HTTP/1.1\r\nHost: x\r\n" + CLOSE], 204),
        ([b"PATCH /_matrix/client/versions HTTP/1.1\r\nHost: x\r\n" + CLOSE], 405),
        ([b"GET //_matrix/client/versions HTTP/1.1\r\nHost: x\r\n" + CLOSE], 404),
        ([b"GET /" + b"a/" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n" + CLOSE], 404),
        ([POST + b"Content-Length: 2\r\n" + CLOSE + b"{}"], 400),
        ([POST + b"Transfer-Encoding: chunked\r\n" + CLOSE, b"1\r\n{\r\n", b"1\r\n}\r\n0\r\n\r\n"], 400),
        ([POST + b"Content-Length: 999999999999\r\n" + CLOSE], 413),
        ([POST + b"Transfer-Encoding: chunked\r\n" + CLOSE, *[b"10000\r\n" + b"a" * 65_536 + b"\r\n"] * 20], 413),
    ],
    ids=range(15),
)
def test_odd_http(served: Served, said: list[bytes], status: int) -> None:
    answer = parsed(served.say(*said))
    assert answer.status_code == status
    check_answer(answer)


def test_requests_behind_each_other(served: Served) -> None:
    answer = served.say(*[GET + b"\r\n"] * 50, GET + CLOSE)
    assert answer.count(b"HTTP/1.1 200") == 51
    assert answer.count(next(iter(CORS)).encode()) == 51


def endless(start: bytes, more: bytes) -> Iterable[bytes]:
    yield start
    for _ in range(1_000):
        yield more


@pytest.mark.parametrize("more", [b"a" * 65_536, b"X: y\r\n" * 10_000, b"X-" + b"y" * 32_000 + b": z\r\n"])
def test_heads_without_end(served: Served, more: bytes) -> None:
    process = psutil.Process(served.process.pid)
    before = process.memory_info().rss
    answer = served.say(*endless(GET + b"X: ", more))
    assert process.memory_info().rss - before < MEMORY_GROWTH_MAX
    if answer:  # the connection may be cut before it could be read
        assert parsed(answer).status_code == 431
    # What fits is taken.
    assert parsed(served.say(GET, b"X: " + b"a" * (REQUEST_HEAD_BYTES_MAX // 2) + b"\r\n", CLOSE)).status_code == 200


def test_many_who_say_nothing_keep_nobody_out(served: Served) -> None:
    with contextlib.ExitStack() as connections:
        for said in [b"", GET, POST + b"Content-Length: 10\r\n\r\n{"] * 100:
            connection = connections.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            connection.sendall(said)
        assert parsed(served.say(GET + CLOSE)).status_code == 200


def test_the_log_keeps_secrets(served: Served, directory: Path) -> None:
    """The last test of this server: it reads the whole log, at debug level, of a life with all kinds of requests."""
    with httpx.Client(base_url=served.url, timeout=WAIT_S) as client:
        register = {"username": "alice", "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
        session = fine(client.post("/register", json={**register, "refresh_token": True}))
        token = session["access_token"]
        login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}}
        client.post("/login", json={**login, "password": PASSWORD + "x"})
        second = fine(client.post("/login", json={**login, "password": PASSWORD, "refresh_token": True}))
        refreshed = fine(client.post("/refresh", json={"refresh_token": second["refresh_token"]}))
        secrets = [PASSWORD, DISPLAY_NAME, MESSAGE, REASON, token, session["refresh_token"]]
        secrets += [second["access_token"], second["refresh_token"], *refreshed.values()]
        client.headers["Authorization"] = f"Bearer {token}"
        fine(client.get(f"/account/whoami?access_token={token}"))
        client.put("/profile/@alice:example.org/displayname", json={"displayname": DISPLAY_NAME})
        room = fine(client.post("/createRoom", json={"preset": "public_chat", "topic": MESSAGE}))["room_id"]
        fine(client.put(f"/rooms/{room}/send/m.room.message/1", json={"body": MESSAGE}))
        client.put(f"/rooms/{room}/send/m.room.message/2", content=b'{"body":"' + MESSAGE.encode())
        client.put(f"/rooms/{room}/send/m.room.message/3", json={"body": MESSAGE, "number": 1.5})
        client.post(f"/rooms/{room}/invite", json={"user_id": "@bob:gone.invalid", "reason": REASON})
        client.post(f"/join/!unknown:gone.invalid?access_token={token}", json={"reason": REASON})
        client.put(f"/user/@alice:example.org/account_data/a.b?access_token={token}", json={"a": MESSAGE})
        client.get("/profile/@bob:gone.invalid", headers={"Authorization": f"Bearer {token}"})
        client.get("/account/whoami", headers={"Authorization": f"Bearer {token}x"})
        client.post("/account/password", json={"new_password": PASSWORD})
        fine(client.get("/sync"))
        fine(client.post("/logout"))
        federation = f"http://127.0.0.1:{served.port}/_matrix/federation/v1/send/1"
        signature = "c2lnbmF0dXJlIHRoYXQgbm9ib2R5IG1heSByZWFk"
        header = f'X-Matrix origin="gone.invalid",destination="example.org",key="ed25519:1",sig="{signature}"'
        client.put(federation, json={"pdus": [{"body": MESSAGE}]}, headers={"Authorization": header})
    keys = [line.split()[-1] for file in (directory / "keys").iterdir() for line in file.read_text().splitlines()]
    assert keys
    log = served.stop()
    assert '"debug"' in log or '"info"' in log
    assert '"level": "error"' not in log
    assert [secret for secret in [*secrets, *keys, signature] if str(secret) in log] == []
