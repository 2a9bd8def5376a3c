"""The HTTP client against real sockets and real TLS."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from homeserver.errors import ConfigurationError, RemoteUnreachable
from homeserver.outbound.addresses import AddressResolver, is_public
from homeserver.outbound.connections import (
    CONNECTIONS_PER_DESTINATION_MAX,
    HEAD_BYTES_MAX,
    READ_BUFFER_BYTES_MAX,
    ConnectionPool,
    Destination,
)
from homeserver.outbound.http import OutboundHttp, Timeouts, create_ssl_context
from tests.fakes.loopback import LoopbackServer, ca_file, http_answer, server_context
from tests.waiting import WAIT_S

pytestmark = pytest.mark.anyio
TIGHT = Timeouts(connect=0.5, read=0.1, total=0.3)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both loops: they differ in how connections and TLS end."""
    return "asyncio", {"use_uvloop": request.param}


@asynccontextmanager
async def client(**options: object) -> AsyncIterator[OutboundHttp]:
    http = OutboundHttp(**{"allow_private_addresses": True, **options})  # type: ignore[arg-type]
    try:
        yield http
    finally:
        await http.aclose()


def answering(raw: bytes) -> LoopbackServer:
    return LoopbackServer(lambda *_: raw)


# -- bodies ------------------------------------------------------------------------------------------------------------


async def test_a_request_and_its_answer() -> None:
    async with answering(http_answer(b"hello", "201 Created", "X-Thing: a")).serve() as server, client() as http:
        answer = await http.request(
            "PUT",
            f"http://127.0.0.1:{server.port}/a%2Fb?c=%21d",
            bytes_max=100,
            headers={"Content-Type": "application/json"},
            body=b"{}",
        )
    assert (answer.status, answer.body, answer.headers["x-thing"]) == (201, b"hello", "a")
    line, headers, body = server.requests[0]
    assert line == "PUT /a%2Fb?c=%21d HTTP/1.1"
    assert headers["host"] == f"127.0.0.1:{server.port}"
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"].startswith("homeserver/")
    assert body == b"{}"


@pytest.mark.parametrize(
    "raw",
    [
        http_answer(b"x" * 11),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nxxxxxxxx\r\n3\r\nxxx\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 11,
    ],
    ids=["length", "chunked", "until the end"],
)
async def test_bodies_are_bounded(raw: bytes) -> None:
    async with answering(raw).serve() as server, client() as http:
        url = f"http://127.0.0.1:{server.port}/"
        assert (await http.request("GET", url, bytes_max=11)).body == b"x" * 11
        with pytest.raises(RemoteUnreachable, match="larger than 10 bytes"):
            await http.request("GET", url, bytes_max=10)


async def test_a_large_body_comes_through_whole() -> None:
    body = bytes(range(256)) * (3 * READ_BUFFER_BYTES_MAX // 256)
    async with answering(http_answer(body)).serve() as server, client() as http:
        answer = await http.request("GET", f"http://127.0.0.1:{server.port}/", bytes_max=len(body))
    assert answer.body == body


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\nConnection: close\r\n\r\nshort", "middle of the answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n", "head of the answer is too large"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", "head of the answer is too large"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "not an HTTP answer"),
        (http_answer(b"\x1f\x8b", "200 OK", "Content-Encoding: gzip"), "compressed"),
        (b"", "without an answer"),
    ],
)
async def test_what_is_no_answer(raw: bytes, reason: str) -> None:
    async with answering(raw).serve() as server, client() as http:
        with pytest.raises(RemoteUnreachable, match=reason) as caught:
            await http.request("POST", f"http://127.0.0.1:{server.port}/", bytes_max=1000)
    assert caught.value.destination == f"127.0.0.1:{server.port}"


async def test_informational_answers_are_skipped() -> None:
    raw = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + http_answer(b"real")
    async with answering(raw).serve() as server, client() as http:
        answer = await http.request("GET", f"http://127.0.0.1:{server.port}/", bytes_max=100)
    assert (answer.status, answer.body) == (200, b"real")
    assert "link" not in answer.headers


async def test_header_injection_is_refused() -> None:
    async with answering(http_answer(b"")).serve() as server, client() as http:
        with pytest.raises(RemoteUnreachable, match="line break"):
            await http.request(
                "GET", f"http://127.0.0.1:{server.port}/", bytes_max=1, headers={"X": "a\r\nAuthorization: b"}
            )
    assert server.requests == []


# -- time --------------------------------------------------------------------------------------------------------------


async def _never() -> bytes:
    await asyncio.Event().wait()
    return b""


async def test_silence_is_borne_only_so_long() -> None:
    async with LoopbackServer(lambda *_: _never()).serve() as server, client() as http:
        with pytest.raises(RemoteUnreachable, match="no answer in time"):
            await http.request("GET", f"http://127.0.0.1:{server.port}/", bytes_max=1, timeouts=TIGHT)


async def test_a_trickle_ends_with_the_total_time() -> None:
    async def trickle() -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        while True:
            yield b"x"
            await asyncio.sleep(0.02)

    async with LoopbackServer(lambda *_: trickle()).serve() as server, client() as http:
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(RemoteUnreachable, match="no answer in time"):
                await http.request("GET", f"http://127.0.0.1:{server.port}/", bytes_max=2**20, timeouts=TIGHT)


async def test_a_name_that_does_not_resolve_in_time() -> None:
    async def lookup(host: str) -> list[str]:
        await asyncio.Event().wait()
        return []

    async with client(lookup=lookup) as http:
        with pytest.raises(RemoteUnreachable, match="in time"):
            await http.request("GET", "http://slow.test/", bytes_max=1, timeouts=TIGHT)


async def test_the_next_address_is_tried() -> None:
    async def lookup(host: str) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]  # the server listens on the second one only

    async with answering(http_answer(b"here")).serve() as server, client(lookup=lookup) as http:
        answer = await http.request("GET", f"http://two.test:{server.port}/", bytes_max=10)
    assert answer.body == b"here"


# -- redirects ---------------------------------------------------------------------------------------------------------


def _redirecting(line: str, headers: dict[str, str], body: bytes) -> bytes:
    path = line.split()[1]
    target = {
        "/1": "/2",
        "/2": f"http://{headers['host']}/end",
        "/circle": "/circle",
        "/file": "file:///etc/passwd",
        "/user": f"http://user@{headers['host']}/end",
        "/bad": "http://[::1",
    }.get(path)
    if target is None:
        return http_answer(path.encode())
    return http_answer(b"moved", "302 Found", f"Location: {target}")


async def test_redirects() -> None:
    async with LoopbackServer(_redirecting).serve() as server, client() as http:
        base = f"http://127.0.0.1:{server.port}"
        unasked = await http.request("GET", f"{base}/1", bytes_max=100)
        assert (unasked.status, unasked.body) == (302, b"moved")
        server.requests.clear()
        headers = {"Authorization": "secret"}
        followed = await http.request("GET", f"{base}/1", bytes_max=100, redirects_max=2, headers=headers)
        assert (followed.status, followed.body) == (200, b"/end")
        assert ["authorization" in headers for _, headers, _ in server.requests] == [True, False, False]
        too_few = await http.request("GET", f"{base}/1", bytes_max=100, redirects_max=1)
        assert too_few.status == 302
        for path in ("circle", "file", "user", "bad"):
            with pytest.raises(RemoteUnreachable, match="redirects"):
                await http.request("GET", f"{base}/{path}", bytes_max=100, redirects_max=5)


async def test_a_redirect_to_a_private_address_is_refused() -> None:
    addresses = {"public.test": ["127.0.0.1"], "inside.test": ["127.0.0.1"]}

    class Resolver(AddressResolver):
        async def resolve(self, host: str) -> list[str]:
            # The first host stands for a public one, which a test cannot have.
            return addresses[host] if host == "public.test" else await super().resolve(host)

    async def lookup(host: str) -> list[str]:
        return addresses[host]

    server = LoopbackServer(
        lambda *_: http_answer(b"", "302 Found", f"Location: http://inside.test:{server.port}/secret")
    )
    pool = ConnectionPool(create_ssl_context(verify=False), Resolver(lookup=lookup))
    async with server.serve(), client(transport=pool) as http:
        with pytest.raises(RemoteUnreachable, match="private"):
            await http.request("GET", f"http://public.test:{server.port}/", bytes_max=1, redirects_max=3)
    assert len(server.requests) == 1


# -- addresses ---------------------------------------------------------------------------------------------------------

PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "0.0.0.0",
    "0.1.2.3",
    "192.88.99.1",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd12::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "2001:db8::1",
    "3fff::1",
    "100::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:a9fe:a9fe",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:0:127.0.0.1",
    "::ffff:0:8.8.8.8",
    "5f00::1",
    "4000::1",
    "64:ff9b::10.0.0.1",
    "2001:2::1",
    "2001:10::1",
    "e000::1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:a00:1::",
    "2001:0:7f00:1::",
]
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "172.32.0.1",
    "100.128.0.1",
    "2606:4700::1111",
    "2a00:1450::1",
    "64:ff9b::8.8.8.8",
    "2002:808:808::",
    "::ffff:8.8.8.8",
    "2001:4860:4860::8888",
    "2620:fe::fe",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0x7f.1", "2130706433"])
async def test_private_addresses_are_refused_by_default(host: str) -> None:
    async with answering(http_answer(b"secret")).serve() as server, client(allow_private_addresses=False) as http:
        with pytest.raises(RemoteUnreachable, match=r"private|resolve"):
            await http.request("GET", f"http://{host}:{server.port}/", bytes_max=100)
    assert server.connections == 0


async def test_of_several_addresses_the_private_ones_are_left_out() -> None:
    async def lookup(host: str) -> list[str]:
        return ["10.0.0.1", "8.8.8.8", "::1"]

    assert await AddressResolver(lookup=lookup).resolve("mixed.test") == ["8.8.8.8"]


async def test_an_answer_that_changes_gains_nothing() -> None:
    """What is looked up for the check is what is connected to: there is no second look."""
    answers = [["8.8.8.8"], ["127.0.0.1"]]
    asked = 0

    async def rebinding(host: str) -> list[str]:
        nonlocal asked
        asked += 1
        return answers[min(asked, 2) - 1]

    server = answering(http_answer(b"secret"))
    async with server.serve(), client(allow_private_addresses=False, lookup=rebinding) as http:
        for _ in range(3):
            with pytest.raises(RemoteUnreachable):
                await http.request("GET", f"http://rebind.test:{server.port}/", bytes_max=100, timeouts=TIGHT)
    assert (asked, server.connections) == (3, 0)


@pytest.mark.parametrize("allow_private", [False, True])
async def test_nobodys_addresses_are_always_refused(allow_private: bool) -> None:
    for host in ("0.0.0.0", "::", "224.0.0.1"):
        async with client(allow_private_addresses=allow_private) as http:
            with pytest.raises(RemoteUnreachable, match="private"):
                await http.request("GET", f"http://{f'[{host}]' if ':' in host else host}/", bytes_max=1)


@pytest.mark.parametrize(
    "url", ["ftp://a/", "//a/", "http://", "http://u:p@a/", "http://a:0/", "http://[::1", "a b", ""]
)
async def test_what_is_no_url(url: str) -> None:
    async with client() as http:
        with pytest.raises(RemoteUnreachable):
            await http.request("GET", url, bytes_max=1)


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "-", "..", "xn--a", "a_b.invalid"])
async def test_names_that_do_not_resolve(host: str) -> None:
    async def lookup(name: str) -> list[str]:
        name.encode("idna")
        raise OSError("no such name")

    async with client(lookup=lookup) as http:
        with pytest.raises(RemoteUnreachable):
            await http.request("GET", f"http://{host}/", bytes_max=1)


async def test_the_environment_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with answering(http_answer(b"direct")).serve() as server, client() as http:
        answer = await http.request("GET", f"http://127.0.0.1:{server.port}/", bytes_max=10)
    assert answer.body == b"direct"


# -- TLS ---------------------------------------------------------------------------------------------------------------


async def lookup_loopback(host: str) -> list[str]:
    return ["127.0.0.1"]


@pytest.fixture
async def trusting(tmp_path: Path) -> AsyncIterator[OutboundHttp]:
    """Trusts the authority of the tests, and finds every name on the loopback interface."""
    async with client(ca_file=ca_file(tmp_path), lookup=lookup_loopback) as http:
        yield http


def delegated(tls_name: str, port: int, host: str = "srv-target.test") -> Destination:
    return Destination(tls_name=tls_name, host_header=tls_name, addresses=((host, port),))


async def test_a_certificate_of_a_known_authority(tmp_path: Path) -> None:
    server = answering(http_answer(b"ok"))
    async with server.serve(server_context("good.test", "127.0.0.1")):
        async with client(ca_file=ca_file(tmp_path), lookup=lookup_loopback) as http:
            for host in ("good.test", "127.0.0.1"):
                answer = await http.request("GET", f"https://{host}:{server.port}/", bytes_max=10)
                assert answer.body == b"ok"
            with pytest.raises(RemoteUnreachable, match=r"not valid for other\.test"):
                await http.request("GET", f"https://other.test:{server.port}/", bytes_max=10)
        async with client(lookup=lookup_loopback) as http:
            with pytest.raises(RemoteUnreachable, match="certificate"):
                await http.request("GET", f"https://good.test:{server.port}/", bytes_max=10)
        async with client(verify_certificates=False, lookup=lookup_loopback) as http:
            answer = await http.request("GET", f"https://other.test:{server.port}/", bytes_max=10)
            assert answer.body == b"ok"


async def test_the_certificate_is_checked_for_the_name_not_for_the_address(trusting: OutboundHttp) -> None:
    server = answering(http_answer(b"ok"))
    async with server.serve(server_context("example.test")):
        answer = await trusting.request(
            "GET", "https://example.test/x", bytes_max=10, destination=delegated("example.test", server.port)
        )
        assert answer.body == b"ok"
        with pytest.raises(RemoteUnreachable, match=r"not valid for srv-target\.test") as caught:
            await trusting.request(
                "GET", "https://x/", bytes_max=10, destination=delegated("srv-target.test", server.port)
            )
    assert caught.value.destination == "srv-target.test"
    assert server.requests[0][1]["host"] == "example.test"


async def test_a_checked_connection_serves_no_other_name(trusting: OutboundHttp) -> None:
    server = answering(http_answer(b"ok"))
    async with server.serve(server_context("one.test")):
        one, two = delegated("one.test", server.port), delegated("two.test", server.port)
        for _ in range(2):
            await trusting.request("GET", "https://one.test/", bytes_max=9, destination=one)
        with pytest.raises(RemoteUnreachable, match=r"not valid for two\.test"):
            await trusting.request("GET", "https://two.test/", bytes_max=9, destination=two)
    assert (server.connections, len(server.requests)) == (1, 2)


async def test_plain_http_where_tls_is_expected() -> None:
    async with answering(http_answer(b"ok")).serve() as server, client() as http:
        with pytest.raises(RemoteUnreachable, match=r"no connection|in time"):
            await http.request("GET", f"https://127.0.0.1:{server.port}/", bytes_max=9, timeouts=TIGHT)


def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("hello")
    for name in ("no.pem", "missing.pem"):
        with pytest.raises(ConfigurationError, match="ca_file"):
            create_ssl_context(ca_file=tmp_path / name)


# -- connections -------------------------------------------------------------------------------------------------------


async def test_connections_are_used_again() -> None:
    large = http_answer(bytes(8 * READ_BUFFER_BYTES_MAX))
    server = LoopbackServer(lambda line, *_: large if "/large" in line else http_answer(b"ok"))
    async with server.serve(), client() as http:
        for _ in range(5):
            await http.request("GET", f"http://127.0.0.1:{server.port}/", bytes_max=9)
        assert (server.connections, len(server.requests)) == (1, 5)
        with pytest.raises(RemoteUnreachable, match="larger"):
            await http.request("GET", f"http://127.0.0.1:{server.port}/large", bytes_max=1)
        # A connection with half an answer left in it is not.
        assert (await http.request("GET", f"http://127.0.0.1:{server.port}/", bytes_max=9)).body == b"ok"
        assert server.connections == 2


async def test_a_connection_that_was_closed_in_the_meantime() -> None:
    """The server drops the second request on each connection, as one does whose idle timeout strikes at that moment."""
    seen_on_connection: list[int] = []

    def answer(*_: object) -> bytes:
        if len(seen_on_connection) < server.connections:
            seen_on_connection.append(0)
        seen_on_connection[-1] += 1
        return http_answer(b"ok") if seen_on_connection[-1] == 1 else b""

    server = LoopbackServer(answer)
    async with server.serve(), client() as http:
        url = f"http://127.0.0.1:{server.port}/"
        for _ in range(3):
            assert (await http.request("PUT", url, bytes_max=9, body=b"{}")).body == b"ok"
        # Whether a POST took effect is not known: it is not repeated.
        with pytest.raises(RemoteUnreachable, match="without an answer"):
            await http.request("POST", url, bytes_max=9, body=b"{}")


async def test_bytes_that_nobody_asked_for_close_the_connection() -> None:
    smuggled = http_answer(b"ok") + http_answer(b"smuggled")
    async with answering(smuggled).serve() as server, client() as http:
        for _ in range(3):
            answer = await http.request("GET", f"http://127.0.0.1:{server.port}/", bytes_max=9)
            assert answer.body == b"ok"


async def test_requests_to_one_destination_are_bounded() -> None:
    under_way = most = 0
    release = asyncio.Event()

    async def slow() -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if under_way == CONNECTIONS_PER_DESTINATION_MAX:
            release.set()
        await release.wait()
        under_way -= 1
        return http_answer(b"ok")

    async with LoopbackServer(lambda *_: slow()).serve() as server, client() as http:
        url = f"http://127.0.0.1:{server.port}/"
        count = 3 * CONNECTIONS_PER_DESTINATION_MAX
        answers = await asyncio.gather(*(http.request("GET", url, bytes_max=9) for _ in range(count)))
    assert len(answers) == count
    assert most == CONNECTIONS_PER_DESTINATION_MAX
    assert server.connections == CONNECTIONS_PER_DESTINATION_MAX


async def test_a_cancelled_request_gives_its_place_back() -> None:
    hang, all_hang = True, asyncio.Event()

    async def maybe() -> bytes:
        if len(server.requests) == CONNECTIONS_PER_DESTINATION_MAX:
            all_hang.set()
        return await _never() if hang else http_answer(b"ok")

    async with LoopbackServer(lambda *_: maybe()).serve() as server, client() as http:
        url = f"http://127.0.0.1:{server.port}/"
        count = 2 * CONNECTIONS_PER_DESTINATION_MAX
        tasks = [asyncio.ensure_future(http.request("GET", url, bytes_max=9)) for _ in range(count)]
        await all_hang.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        hang = False
        assert (await http.request("GET", url, bytes_max=9)).body == b"ok"


async def test_idle_connections_are_bounded() -> None:
    resolver = AddressResolver(allow_private=True, lookup=lookup_loopback)
    pool = ConnectionPool(create_ssl_context(verify=False), resolver, idle_max=2)
    async with answering(http_answer(b"ok")).serve() as server, client(transport=pool) as http:
        for name in ("a", "b", "c", "a", "c"):
            await http.request("GET", f"http://{name}.test:{server.port}/", bytes_max=9)
    # a, b, c each open one; c pushes a out; a opens again and pushes b out; c is still there.
    assert server.connections == 4
