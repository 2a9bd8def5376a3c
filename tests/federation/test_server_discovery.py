"""Every step of resolving server names, with made-up DNS and made-up well-known documents."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping

import httpx
import pytest

from homeserver.errors import RemoteUnreachable
from homeserver.federation import well_known
from homeserver.federation.server_discovery import (
    NO_SRV_LIFETIME_MS,
    DnsSrvLookup,
    ServerDiscovery,
    SrvAnswer,
    SrvRecord,
    in_srv_order,
)
from homeserver.outbound.connections import Destination
from homeserver.outbound.http import OutboundHttp
from tests.fakes.clock import FakeClock
from tests.waiting import WAIT_S

pytestmark = pytest.mark.anyio
HOUR_MS = 3600 * 1000


class Internet:
    """DNS and the web, as far as discovery sees them."""

    def __init__(self) -> None:
        self.well_known: dict[str, httpx.Response] = {}
        """URL to answer."""
        self.srv: dict[str, SrvAnswer] = {}
        self.fetched: list[str] = []
        self.looked_up: list[str] = []
        self.clock = FakeClock()
        self.discovery = ServerDiscovery(
            OutboundHttp(transport=httpx.MockTransport(self._answer)),
            self.clock,
            srv_lookup=self._look_up,
            randomness=random.Random(7),
        )

    def delegate(self, host: str, delegate: object, headers: Mapping[str, str] | None = None) -> None:
        answer = httpx.Response(200, json={"m.server": delegate}, headers=headers)
        self.well_known[f"https://{host}/.well-known/matrix/server"] = answer

    def add_srv(self, name: str, *records: tuple[int, int, int, str], ttl_ms: int = HOUR_MS) -> None:
        self.srv[name] = SrvAnswer(tuple(SrvRecord(*record) for record in records), ttl_ms)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        self.fetched.append(str(request.url))
        await asyncio.sleep(0)
        answer = self.well_known.get(str(request.url))
        if answer is None:
            raise httpx.ConnectError("nobody there")
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    async def _look_up(self, name: str) -> SrvAnswer:
        self.looked_up.append(name)
        return self.srv.get(name, SrvAnswer((), NO_SRV_LIFETIME_MS))


@pytest.fixture
def internet() -> Internet:
    return Internet()


def place(tls_name: str, host_header: str, *addresses: tuple[str, int]) -> Destination:
    return Destination(tls_name=tls_name, host_header=host_header, addresses=addresses)


# -- the steps, by their numbers in the specification ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server_name", "expected"),
    [
        ("1.2.3.4", place("1.2.3.4", "1.2.3.4", ("1.2.3.4", 8448))),
        ("1.2.3.4:80", place("1.2.3.4", "1.2.3.4:80", ("1.2.3.4", 80))),
        ("[1234:5678::abcd]", place("1234:5678::abcd", "[1234:5678::abcd]", ("1234:5678::abcd", 8448))),
        ("[1234:5678::abcd]:5678", place("1234:5678::abcd", "[1234:5678::abcd]:5678", ("1234:5678::abcd", 5678))),
        ("example.org:8000", place("example.org", "example.org:8000", ("example.org", 8000))),
        ("localhost:8448", place("localhost", "localhost:8448", ("localhost", 8448))),
    ],
    ids=["1", "1 with port", "1 IPv6", "1 IPv6 with port", "2", "2 local"],
)
async def test_names_that_say_it_all(internet: Internet, server_name: str, expected: Destination) -> None:
    assert await internet.discovery.resolve(server_name) == expected
    assert internet.fetched == internet.looked_up == []


@pytest.mark.parametrize(
    ("delegate", "expected"),
    [
        ("1.2.3.4", place("1.2.3.4", "1.2.3.4", ("1.2.3.4", 8448))),
        ("[::1]:5678", place("::1", "[::1]:5678", ("::1", 5678))),
        ("matrix.example.org:443", place("matrix.example.org", "matrix.example.org:443", ("matrix.example.org", 443))),
    ],
    ids=["3.1", "3.1 with port", "3.2"],
)
async def test_delegation_that_says_it_all(internet: Internet, delegate: str, expected: Destination) -> None:
    internet.delegate("example.org", delegate)
    assert await internet.discovery.resolve("example.org") == expected
    assert internet.fetched == ["https://example.org/.well-known/matrix/server"]
    assert internet.looked_up == []


@pytest.mark.parametrize("service", ["_matrix-fed._tcp", "_matrix._tcp"], ids=["3.3", "3.4"])
async def test_delegation_with_srv(internet: Internet, service: str) -> None:
    internet.delegate("example.org", "matrix.example.org")
    internet.add_srv(f"{service}.matrix.example.org.", (10, 5, 9000, "host.example.net"))
    expected = place("matrix.example.org", "matrix.example.org", ("host.example.net", 9000))
    assert await internet.discovery.resolve("example.org") == expected


async def test_delegation_without_srv_3_5(internet: Internet) -> None:
    internet.delegate("example.org", "matrix.example.org")
    expected = place("matrix.example.org", "matrix.example.org", ("matrix.example.org", 8448))
    assert await internet.discovery.resolve("example.org") == expected
    assert internet.looked_up == ["_matrix-fed._tcp.matrix.example.org.", "_matrix._tcp.matrix.example.org."]


@pytest.mark.parametrize("service", ["_matrix-fed._tcp", "_matrix._tcp"], ids=["4", "5"])
async def test_srv_without_delegation(internet: Internet, service: str) -> None:
    internet.add_srv(f"{service}.example.org.", (10, 5, 9000, "host.example.net"))
    expected = place("example.org", "example.org", ("host.example.net", 9000))
    assert await internet.discovery.resolve("example.org") == expected


async def test_neither_6(internet: Internet) -> None:
    assert await internet.discovery.resolve("example.org") == place("example.org", "example.org", ("example.org", 8448))
    assert internet.looked_up == ["_matrix-fed._tcp.example.org.", "_matrix._tcp.example.org."]


async def test_the_registered_service_comes_before_the_deprecated_one(internet: Internet) -> None:
    internet.add_srv("_matrix-fed._tcp.example.org.", (1, 1, 1111, "new.example.net"))
    internet.add_srv("_matrix._tcp.example.org.", (1, 1, 2222, "old.example.net"))
    assert (await internet.discovery.resolve("example.org")).addresses == (("new.example.net", 1111),)
    assert internet.looked_up == ["_matrix-fed._tcp.example.org."]


async def test_a_service_that_is_declared_not_to_exist(internet: Internet) -> None:
    internet.add_srv("_matrix-fed._tcp.example.org.", (0, 0, 0, ""))
    with pytest.raises(RemoteUnreachable, match="no such service"):
        await internet.discovery.resolve("example.org")


@pytest.mark.parametrize(
    "name", ["", "a b", "http://a", "example.org/", "example.org:", "[::1", "1.2.3.4:99999", "é.org"]
)
async def test_what_is_no_server_name(internet: Internet, name: str) -> None:
    with pytest.raises(RemoteUnreachable):
        await internet.discovery.resolve(name)
    assert internet.fetched == internet.looked_up == []


# -- well-known documents ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404, json={"m.server": "delegate.example"}),
        httpx.Response(500, json={"m.server": "delegate.example"}),
        httpx.Response(200, content=b"<html>"),
        httpx.Response(200, content=b"[" * 10_000),
        httpx.Response(200, json=["m.server"]),
        httpx.Response(200, json={"m.server": 5}),
        httpx.Response(200, json={"m.server": "not a name"}),
        httpx.Response(200, json={"m.server": "delegate.example/path"}),
        httpx.Response(200, json={"other": 1}),
        httpx.Response(200, json={"m.server": "delegate.example", "padding": "x" * well_known.BYTES_MAX}),
    ],
)
async def test_invalid_documents_count_as_none(internet: Internet, answer: httpx.Response) -> None:
    internet.well_known["https://example.org/.well-known/matrix/server"] = answer
    assert (await internet.discovery.resolve("example.org")).tls_name == "example.org"


async def test_redirects_are_followed(internet: Internet) -> None:
    start = "https://example.org/.well-known/matrix/server"
    internet.well_known[start] = httpx.Response(302, headers={"Location": "https://www.example.org/there"})
    internet.well_known["https://www.example.org/there"] = httpx.Response(200, json={"m.server": "a.example:1"})
    assert (await internet.discovery.resolve("example.org")).host_header == "a.example:1"


@pytest.mark.parametrize("target", ["https://example.org/.well-known/matrix/server", "http://example.org/plain"])
async def test_redirects_that_are_not_followed(internet: Internet, target: str) -> None:
    internet.well_known["http://example.org/plain"] = httpx.Response(200, json={"m.server": "a.example:1"})
    start = "https://example.org/.well-known/matrix/server"
    internet.well_known[start] = httpx.Response(301, headers={"Location": target})
    assert (await internet.discovery.resolve("example.org")).host_header == "example.org"
    assert internet.fetched == [start]


@pytest.mark.parametrize(
    ("headers", "lifetime_ms"),
    [
        ({}, well_known.LIFETIME_MS_DEFAULT),
        ({"Cache-Control": "max-age=7200"}, 2 * HOUR_MS),
        ({"Cache-Control": "public, MAX-AGE=7200, immutable"}, 2 * HOUR_MS),
        ({"Cache-Control": "max-age=99999999"}, well_known.LIFETIME_MS_MAX),
        ({"Cache-Control": "max-age=0"}, well_known.LIFETIME_MS_MIN),
        ({"Cache-Control": "no-store"}, well_known.LIFETIME_MS_MIN),
        ({"Cache-Control": "nonsense"}, well_known.LIFETIME_MS_DEFAULT),
        ({"Expires": "Wed, 15 Nov 2023 00:13:20 GMT"}, 2 * HOUR_MS),  # the fake clock starts at 22:13:20
        ({"Expires": "0"}, well_known.LIFETIME_MS_MIN),
        ({"Cache-Control": "max-age=7200", "Expires": "0"}, 2 * HOUR_MS),
    ],
)
async def test_how_long_a_document_is_used(internet: Internet, headers: dict[str, str], lifetime_ms: int) -> None:
    internet.delegate("example.org", "a.example:1", headers)
    for _ in range(2):
        await internet.discovery.resolve("example.org")
    internet.clock.advance(lifetime_ms - 1)
    await internet.discovery.resolve("example.org")
    assert len(internet.fetched) == 1
    internet.delegate("example.org", "b.example:1")
    internet.clock.advance(1)
    assert (await internet.discovery.resolve("example.org")).host_header == "b.example:1"
    assert len(internet.fetched) == 2


async def test_errors_are_remembered_for_longer_each_time(internet: Internet) -> None:
    lifetimes = []
    for _ in range(9):
        delegation = await internet.discovery._well_known.delegation_of("example.org")
        lifetimes.append((delegation.expires_ts - internet.clock.now_ms()) // 60_000)
        internet.clock.advance(delegation.expires_ts - internet.clock.now_ms())
    assert lifetimes == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    internet.delegate("example.org", "a.example:1")
    delegation = await internet.discovery._well_known.delegation_of("example.org")
    assert (delegation.delegate, delegation.errors_in_row) == ("a.example:1", 0)


async def test_srv_records_are_used_for_as_long_as_they_say(internet: Internet) -> None:
    internet.delegate("example.org", "matrix.example.org")
    internet.add_srv("_matrix-fed._tcp.matrix.example.org.", (1, 1, 1, "a"), ttl_ms=600_000)
    await internet.discovery.resolve("example.org")
    internet.clock.advance(599_999)
    await internet.discovery.resolve("example.org")
    assert len(internet.looked_up) == 1
    internet.clock.advance(1)
    await internet.discovery.resolve("example.org")
    assert (len(internet.looked_up), len(internet.fetched)) == (2, 1)


async def test_all_who_ask_at_once_share_one_discovery(internet: Internet) -> None:
    internet.delegate("example.org", "matrix.example.org")
    places = await asyncio.gather(*(internet.discovery.resolve("example.org") for _ in range(20)))
    assert len(set(places)) == 1
    assert (len(internet.fetched), len(internet.looked_up)) == (1, 2)


async def test_one_who_gives_up_does_not_spoil_it_for_the_others(internet: Internet) -> None:
    internet.delegate("example.org", "a.example:1")
    first = asyncio.ensure_future(internet.discovery.resolve("example.org"))
    second = asyncio.ensure_future(internet.discovery.resolve("example.org"))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).host_header == "a.example:1"
    assert len(internet.fetched) == 1


# -- SRV ---------------------------------------------------------------------------------------------------------------


def test_lower_priorities_come_first_and_heavier_ones_more_often() -> None:
    records = [SrvRecord(20, 1, 1, "late"), SrvRecord(10, 1, 1, "light"), SrvRecord(10, 3, 1, "heavy")]
    records.append(SrvRecord(10, 0, 1, "weightless"))
    randomness = random.Random(1)
    orders = [[record.target for record in in_srv_order(records, randomness)] for _ in range(2000)]
    assert all(sorted(order) == ["heavy", "late", "light", "weightless"] and order[-1] == "late" for order in orders)
    first = Counter(order[0] for order in orders)
    assert 0.65 < first["heavy"] / 2000 < 0.85
    assert first["weightless"] < 40


async def test_name_servers_that_do_not_answer_mean_no_records() -> None:
    async with asyncio.timeout(WAIT_S):
        answer = await DnsSrvLookup(seconds_max=0.05)("_matrix-fed._tcp.example.invalid.")
    assert answer == SrvAnswer((), NO_SRV_LIFETIME_MS)


async def test_names_that_dns_cannot_ask_for_mean_no_records() -> None:
    assert (await DnsSrvLookup(seconds_max=0.05)("_matrix._tcp." + "a" * 64 + ".")).records == ()
