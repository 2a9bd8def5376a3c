"""homeserver/server.py, as a process: listeners, what each serves, TLS, and the stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from homeserver import server as server_module
from homeserver.server import BoundedHttp, ConnectionCounts
from tests.waiting import WAIT_S

SERVER = """
import asyncio, sys
from pathlib import Path
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from homeserver import server
from homeserver.config import Config
from homeserver.logging import configure_logging

def build():
    released = asyncio.Event()

    async def answer(request):
        return JSONResponse({"path": request.url.path})

    async def wait(request):
        print("waiting", flush=True)
        await released.wait()
        return JSONResponse({"released": True})

    async def hang(request):
        print("hanging", flush=True)
        await asyncio.Event().wait()

    async def lifespan(app):
        print("up", flush=True)
        yield
        print("down", flush=True)

    from contextlib import asynccontextmanager
    app = Starlette(
        routes=[
            Route("/_matrix/client/wait", wait), Route("/_matrix/client/hang", hang), Route("/{path:path}", answer)
        ],
        lifespan=asynccontextmanager(lifespan),
    )
    app.state.begin_shutdown = released.set
    return app

server.GRACEFUL_STOP_SECONDS = 3
config = Config.load(sys.argv[1], {})
configure_logging(config.logging)
server.run(build, config)
"""


class Running:
    """The process, and where it listens."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.ports: list[int] = []

    def read_until(self, word: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if word in line:
                return
        raise AssertionError(f"it never said {word!r}")

    def read_ports(self, count: int) -> None:
        assert self.process.stderr is not None
        while len(self.ports) < count:
            line = self.process.stderr.readline()
            assert line, "it ended"
            entry = json.loads(line)
            if entry["event"] == "listening":
                self.ports.append(entry["port"])

    def url(self, path: str, listener: int = 0, scheme: str = "http") -> str:
        return f"{scheme}://localhost:{self.ports[listener]}{path}"

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, out


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Running] = []

    def start(*listeners: str) -> Running:
        config = tmp_path / "homeserver.toml"
        sections = "".join(f'[[listeners]]\nbind = "127.0.0.1"\nport = 0\n{extra}\n' for extra in listeners)
        config.write_text(f'server_name = "a"\n[logging]\nformat = "json"\n{sections}')
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(Running(process))
        running[-1].read_ports(len(listeners))
        return running[-1]

    yield start
    for server in running:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()
        for pipe in (server.process.stdout, server.process.stderr):
            if pipe is not None:
                pipe.close()


def test_each_listener_serves_what_it_should(start: Start) -> None:
    server = start("", 'serves = ["federation"]', 'serves = ["client", "metrics"]')

    def status(path: str, listener: int) -> int:
        return httpx.get(server.url(path, listener), timeout=WAIT_S).status_code

    table: dict[str, tuple[int, int, int]] = {
        "/_matrix/client/versions": (200, 404, 200),
        "/_homeserver/v1/rooms/x/roles": (200, 404, 200),
        "/.well-known/matrix/client": (200, 404, 200),
        "/_matrix/federation/v1/version": (200, 200, 404),
        "/_matrix/key/v2/server": (200, 200, 404),
        "/.well-known/matrix/server": (200, 200, 404),
        "/_matrix/media/v3/config": (200, 404, 404),
        "/_matrix/client/v1/media/config": (200, 404, 404),
        "/_matrix/federation/v1/media/download/x": (200, 404, 404),
        "/_homeserver/metrics": (404, 404, 200),
        "/_homeserver/console/": (200, 404, 404),
    }
    assert {path: tuple(status(path, n) for n in range(3)) for path in table} == table
    refused = httpx.get(server.url("/_matrix/client/versions", 1), timeout=WAIT_S)
    assert refused.json()["errcode"] == "M_UNRECOGNIZED"
    assert refused.headers["access-control-allow-origin"] == "*"
    assert "server" not in refused.headers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_open_requests_finish(start: Start, number: int) -> None:
    server = start("", 'serves = ["client"]')
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(httpx.get, server.url("/_matrix/client/wait", n), timeout=WAIT_S) for n in (0, 1)]
        for _ in waiting:
            server.read_until("waiting")
        status, out = server.stop(number)
        assert [request.result().json() for request in waiting] == [{"released": True}] * 2
    assert status == 0
    assert out.splitlines() == ["down"]


def test_a_request_that_does_not_finish_is_given_up_without_a_traceback(start: Start) -> None:
    server = start("")
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(httpx.get, server.url("/_matrix/client/hang"), timeout=WAIT_S)
        server.read_until("hanging")
        server.process.send_signal(signal.SIGTERM)
        _, err = server.process.communicate(timeout=WAIT_S)
        assert hanging.result().status_code == 503
        assert hanging.result().json()["errcode"] == "M_UNKNOWN"
    assert server.process.returncode == 0
    assert "Traceback" not in err
    assert "a request was given up" in err


def test_an_idle_connection_does_not_hold_up_the_stop(start: Start) -> None:
    server = start("")
    with httpx.Client(timeout=WAIT_S) as client:
        assert client.get(server.url("/_matrix/client/versions")).status_code == 200
        assert server.stop()[0] == 0


def test_tls(start: Start, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = start("", 'tls_certificate = "cert.pem"\ntls_private_key = "key.pem"')
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    assert (
        httpx.get(server.url("/_matrix/key/v2/server", 1, "https"), verify=context, timeout=WAIT_S).status_code == 200
    )
    assert httpx.get(server.url("/_matrix/key/v2/server", 0), timeout=WAIT_S).status_code == 200


def refusal(tmp_path: Path, listener: str, *, is_started: bool = False) -> str:
    config = tmp_path / "homeserver.toml"
    config.write_text(f'server_name = "a"\n[[listeners]]\n{listener}\n')
    done = subprocess.run([sys.executable, "-c", SERVER, str(config)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert ("up" in done.stdout) == is_started
    return done.stderr.splitlines()[-1]


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert refusal(tmp_path, f"port = {port}").endswith(
            f"cannot listen on 127.0.0.1 port {port}: the port is taken"
        )


def test_two_listeners_at_one_port_are_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    for bind in ("127.0.0.1", "0.0.0.0"):
        first = f'port = {port}\nbind = "{bind}"'
        said = refusal(tmp_path, f"{first}\n[[listeners]]\nport = {port}", is_started=True)
        assert said.endswith(f"cannot listen on 127.0.0.1 port {port}: the port is taken")


def test_unusable_tls_files_are_said(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    (tmp_path / "key.pem").write_text("no key")
    message = refusal(tmp_path, 'port = 0\ntls_certificate = "cert.pem"\ntls_private_key = "key.pem"')
    assert "ConfigurationError" in message
    assert "listeners.tls_certificate" in message


# -- connections that take their time ----------------------------------------------------------------------------------


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
            )
            await send({"type": "http.response.body", "body": body})
            return


async def tell_slowly(pieces: list[bytes], pause_s: float) -> bytes:
    """What is answered until the connection is closed."""
    config = uvicorn.Config(echo, http=BoundedHttp, lifespan="off", log_config=None)
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    listening = await loop.create_server(
        lambda: BoundedHttp(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with listening:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause_s)
        answer = b""
        with contextlib.suppress(ConnectionError):  # it may be closed while there is still something to write
            async with asyncio.timeout(WAIT_S):
                answer = await reader.read()
        writer.close()
    return answer


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"


@pytest.mark.parametrize(
    ("pieces", "wait_s", "is_answered"),
    [
        ([], 0.5, False),
        ([HEAD], 0.5, False),
        ([HEAD + b"\r\n", b"{"], 0.5, False),
        ([HEAD + b"\r\n{}", HEAD], 2.0, True),
        ([HEAD, b"Connection: close\r\n", b"\r\n", b"{", b"}"], 20.0, True),
    ],
    ids=["nothing", "half a head", "half a body", "half of a second request", "slow, but not too slow"],
)
def test_who_does_not_go_on_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], wait_s: float, is_answered: bool
) -> None:
    monkeypatch.setattr(server_module, "KEEP_ALIVE_SECONDS", wait_s)
    monkeypatch.setattr(server_module, "REQUEST_WAIT_SECONDS", wait_s)
    answer = asyncio.run(tell_slowly(pieces, 0.02))
    assert answer.startswith(b"HTTP/1.1 200") if is_answered else answer == b""


async def flood(scope: Scope, receive: Receive, send: Send) -> None:
    """Writes as much as the connection takes."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100000000")]})
    for number in range(100):
        await send({"type": "http.response.body", "body": b"x" * 1_000_000, "more_body": number < 99})


@contextlib.asynccontextmanager
async def listening(app: ASGIApp, **attributes: Any) -> AsyncIterator[tuple[tuple[str, int], ServerState]]:
    config = uvicorn.Config(app, http=BoundedHttp, lifespan="off", log_config=None)
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    protocol = type("TestedHttp", (BoundedHttp,), attributes)
    server = await loop.create_server(lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[:2], state


async def until(probe: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not probe():  # noqa: ASYNC110 - what is probed happens in another process or on a socket
            await asyncio.sleep(0.005)


def test_a_reader_that_reads_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "READER_WAIT_SECONDS", 0.2)

    async def story() -> None:
        async with listening(flood) as (address, state):
            _, writer = await asyncio.open_connection(*address, limit=1)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: bool(state.connections))
            await until(lambda: not state.connections)
            writer.close()

    asyncio.run(story())


def test_a_body_that_comes_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_WAIT_SECONDS", 0.2)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    assert asyncio.run(tell_slowly([head, *([b"x"] * 20)], 0.02)) == b""
    monkeypatch.setattr(server_module, "BODY_BYTES_PER_SECOND_MIN", 1)
    answer = asyncio.run(tell_slowly([head.replace(b"1000", b"30"), *([b"x"] * 30), b"GET"], 0.02))
    assert answer.startswith(b"HTTP/1.1 200")


def test_no_more_of_a_body_is_read_than_the_application_asks_for() -> None:
    received: list[int] = []
    goes_on = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] == "http.request":
            received.append(len(message["body"]))
            await goes_on.wait()
            if not message["more_body"]:
                await send({"type": "http.response.start", "status": 204, "headers": []})
                await send({"type": "http.response.body"})
                return

    async def story() -> None:
        async with listening(slow) as (address, state):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 5_000_000)
            await until(lambda: bool(received))
            (connection,) = state.connections
            await asyncio.sleep(0.05)  # in which all would arrive, if it were read
            assert len(connection.cycle.body) < 1_000_000  # type: ignore[union-attr]
            goes_on.set()
            assert (await reader.readline()).startswith(b"HTTP/1.1 204")
            assert sum(received) == 5_000_000
            writer.close()

    asyncio.run(story())


def test_a_request_has_a_hundred_headers_at_most() -> None:
    async def status(headers: int) -> bytes:
        async with listening(echo) as (address, _):
            reader, writer = await asyncio.open_connection(*address)
            lines = b"".join(b"X-%d: y\r\n" % number for number in range(headers))
            writer.write(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n" + lines + b"\r\n{}")
            line = await reader.readline()
            writer.close()
            return line[9:12]

    assert [asyncio.run(status(headers)) for headers in (98, 200)] == [b"200", b"431"]


def test_connections_of_one_address_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CONNECTIONS_PER_ADDRESS_MAX", 2)
    counts = ConnectionCounts()

    async def story() -> None:
        async with listening(echo, counts=counts) as (address, state):
            kept = [await asyncio.open_connection(*address) for _ in range(2)]
            await until(lambda: len(state.connections) == 2)
            reader, writer = await asyncio.open_connection(*address)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""  # it is closed
            writer.close()
            for _, open_writer in kept:
                open_writer.close()
            await until(lambda: not state.connections)
            assert not counts._counts

    asyncio.run(story())
    trusting = ConnectionCounts(("127.0.0.0/8",))
    assert [trusting.enter(("127.0.0.1", 1)) for _ in range(5)] == [None] * 5


FREEING = """
import ctypes, threading
from homeserver import server
server.return_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def use(size, count):
    blocks = [libc.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    barrier.wait()
    for block in blocks:
        libc.free(block)
    barrier.wait()
before = resident()
barrier = threading.Barrier(1)
use(20 * 2**20, 1)
barrier = threading.Barrier(8)
threads = [threading.Thread(target=use, args=(2**16, 200)) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", FREEING], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60 * 2**20  # of 100 MiB
