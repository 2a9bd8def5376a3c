"""Bodies that strangers send, and answers that nobody reads."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from homeserver.federation.request_authentication import sign_request
from homeserver.protocol.hashes import unpadded_base64
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.signatures import sign_json
from tests.abuse.attack import attack
from tests.abuse.remote import FAR_FUTURE_TS, RemoteServer
from tests.abuse.stage import MIB, Stage
from tests.factories.rooms import server_key

SEND = "/_matrix/federation/v1/send/abuse"
HOLD_SECONDS = 8.0


def connect(stage: Stage, number: int = 0, *, federation: bool = False) -> socket.socket:
    """A connection from an address of its own: 127.0.0.2 and so on."""
    port = stage.server.listen_port if federation else urlsplit(stage.base_url).port or 80
    source = (f"127.0.{number // 200}.{2 + number % 200}", 0)
    connection = socket.create_connection(("127.0.0.1", port), timeout=30, source_address=source)
    if not federation:
        return connection
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(connection)


def head(method: str, target: str, length: int, **headers: str) -> bytes:
    """The head of a request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: x", f"Content-Length: {length}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


def pour(connection: socket.socket, size: int) -> None:
    """Send so many bytes of empty objects, as far as the other side takes them."""
    piece = b"{}," * 21_845  # 64 KiB
    with contextlib.suppress(OSError):
        connection.sendall(b'{"pdus":[')
        for _ in range(size // len(piece)):
            connection.sendall(piece)


@attack(quick=True)
def bodies_that_nobody_has_signed(stage: Stage) -> Iterator[None]:
    """Ten transactions of 9 MiB of empty objects at once, without a signature."""
    yield

    def send(number: int) -> None:
        with connect(stage, number, federation=True) as connection:
            connection.sendall(head("PUT", f"{SEND}{number}", 9 * MIB))
            pour(connection, 9 * MIB)
            with contextlib.suppress(OSError):
                assert connection.recv(1000).split()[1] in (b"401", b"429")

    stage.at_once(10, send)


def _unfinished(stage: Stage, count: int) -> Iterator[None]:
    mallory = stage.remote()
    mallory.send(stage.server)  # its key is known from now on
    yield
    until = time.monotonic() + HOLD_SECONDS

    def hold(number: int) -> None:
        target = f"{SEND}{number}"
        signed = sign_request(server_key(mallory.server_name), "PUT", target, stage.server.server_name, {})
        with connect(stage, number, federation=True) as connection:
            connection.settimeout(HOLD_SECONDS)
            connection.sendall(head("PUT", target, 9 * MIB, Authorization=signed))
            pour(connection, 8 * MIB)
            while time.monotonic() < until:
                with contextlib.suppress(OSError):
                    connection.sendall(b" ")
                time.sleep(1)

    stage.at_once(count, hold)


@attack(quick=True)
def unfinished_bodies(stage: Stage) -> Iterator[None]:
    """30 addresses send 8 of 9 MiB in the name of a known server, and then a byte a second."""
    yield from _unfinished(stage, 30)


def _unread(stage: Stage, count: int, request: bytes, *, federation: bool = False) -> Iterator[None]:
    yield

    def ask(number: int) -> None:
        with connect(stage, number, federation=federation) as connection:
            connection.sendall(request)
            time.sleep(HOLD_SECONDS)

    stage.at_once(count, ask)


@attack()
def unread_syncs(stage: Stage) -> Iterator[None]:
    """60 first syncs of 10 MB each are asked for and not read."""
    user = stage.user()
    for number in range(40):
        content = {"text": "x" * 250_000}
        user.ok("PUT", f"/user/{user.user_id}/account_data/org.example.{number}", content)
    request = head("GET", "/_matrix/client/v3/sync", 0, **user.headers)
    yield from _unread(stage, 60, request)


def prepared(mallory: RemoteServer) -> None:
    """Let a server publish its keys with 200 KB of something else."""
    key = server_key(mallory.server_name)
    answer: JsonObject = {
        "server_name": mallory.server_name,
        "verify_keys": {key.key_id: {"key": unpadded_base64(bytes(key.verify_key))}},
        "valid_until_ts": FAR_FUTURE_TS,
        "padding": "x" * 200_000,
    }
    mallory.on("GET", "/_matrix/key/v2/server", sign_json(answer, key))


@attack(rows_max=200)
def notary_requests_about_prepared_servers(stage: Stage) -> Iterator[None]:
    """60 requests to the notary about 20 servers that publish 200 KB each; the answers are not read."""
    names = []
    for _ in range(20):
        mallory = stage.remote()
        prepared(mallory)
        names.append(mallory.server_name)
    body = json.dumps({"server_keys": {name: {} for name in names}}).encode()
    request = head("POST", "/_matrix/key/v2/query", len(body)) + body
    yield from _unread(stage, 60, request, federation=True)
