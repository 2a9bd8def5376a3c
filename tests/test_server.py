"""homeserver/server.py, as a process: listeners, what each serves, TLS, and the stop."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import trustme
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from homeserver import server as server_module
from homeserver.server import BoundedHttp
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
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
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
