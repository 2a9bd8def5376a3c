"""The requests that we make: as the specification writes them, signed as others check them, and their answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from homeserver.errors import RemoteRefused, RemoteUnreachable
from homeserver.federation.client import (
    EDUS_PER_TRANSACTION_MAX,
    PDUS_PER_TRANSACTION_MAX,
    RETRY_AFTER_MS_MAX,
    SIGNATURE,
    SMALL,
    FederationClient,
)
from homeserver.federation.permitted_servers import PermittedServers
from homeserver.federation.request_authentication import RequestAuthenticator
from homeserver.federation.server_discovery import ServerDiscovery
from homeserver.outbound.http import OutboundHttp
from homeserver.protocol.canonical_json import encode_canonical_json
from homeserver.protocol.signatures import VerifyKeyData
from homeserver.signing import SigningKeys
from tests.fakes.clock import FakeClock
from tests.fakes.loopback import LoopbackServer, ca_file, http_answer, server_context

pytestmark = pytest.mark.anyio
HERE, THERE = "here.example", "there.example:1234"
ROOM, USER, EVENT = "!r/oom:there.example", "@user?:there.example", "$ev/ent+1"


@dataclass
class There:
    """The other server: answers what it is told, and keeps what it is sent."""

    answers: list[tuple[int, Any]] = field(default_factory=list)
    """Status, and a JSON value or bytes; the last one is for all that follows."""
    requests: list[httpx.Request] = field(default_factory=list)

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return httpx.Response(status, content=body if isinstance(body, bytes) else orjson.dumps(body))

    @property
    def line(self) -> str:
        """Method and target of the last request."""
        return f"{self.requests[-1].method} {self.requests[-1].url.raw_path.decode()}"

    @property
    def body(self) -> Any:
        return orjson.loads(self.requests[-1].content)


class OurKeys:
    """What the other server knows of our keys."""

    def __init__(self, signing_keys: SigningKeys) -> None:
        self._signing_keys = signing_keys

    async def keys_for(self, wanted: object) -> dict[str, dict[str, VerifyKeyData]]:
        return {HERE: self._signing_keys.verify_keys()}


@pytest.fixture
def there() -> There:
    return There([(200, {})])


@pytest.fixture
def signing_keys(tmp_path: Path) -> SigningKeys:
    keys = SigningKeys.load(tmp_path / "keys", HERE)
    keys.generate(1)
    return keys


def make_client(
    signing_keys: SigningKeys, transport: httpx.AsyncBaseTransport, permitted: PermittedServers | None = None
) -> FederationClient:
    http, clock = OutboundHttp(transport=transport), FakeClock()
    return FederationClient(HERE, signing_keys, ServerDiscovery(http, clock), http, clock, permitted)


@pytest.fixture
def client(there: There, signing_keys: SigningKeys) -> FederationClient:
    return make_client(signing_keys, httpx.MockTransport(there.answer))


Call = Callable[[FederationClient], Awaitable[Any]]
PDU = {"type": "m.room.message", "content": {"body": "ü"}}
V1, V2 = "/_matrix/federation/v1", "/_matrix/federation/v2"
SIGNED = {"policy.example": {"ed25519:policy_server": "zLFxllD0"}}
R, U, E = "%21r%2Foom%3Athere.example", "%40user%3F%3Athere.example", "%24ev%2Fent%2B1"

CALLS: dict[str, tuple[Call, str, Any, Any, Any]] = {
    # name: call, request line, request body, answer, what the call returns
    "make_join": (
        lambda client: client.make_join(THERE, ROOM, USER, ["1", "12"]),
        f"GET {V1}/make_join/{R}/{U}?ver=1&ver=12",
        None,
        {"event": PDU, "room_version": "11"},
        {"event": PDU, "room_version": "11"},
    ),
    "make_join without a version": (
        lambda client: client.make_join(THERE, ROOM, USER, ["1"]),
        f"GET {V1}/make_join/{R}/{U}?ver=1",
        None,
        {"event": PDU},
        {"event": PDU, "room_version": "1"},
    ),
    "send_join": (
        lambda client: client.send_join(THERE, ROOM, EVENT, PDU),
        f"PUT {V2}/send_join/{R}/{E}",
        PDU,
        {"state": [PDU], "auth_chain": [], "event": PDU},
        {"state": [PDU], "auth_chain": [], "event": PDU},
    ),
    "send_join omitting members": (
        lambda client: client.send_join(THERE, ROOM, EVENT, PDU, omit_members=True),
        f"PUT {V2}/send_join/{R}/{E}?omit_members=true",
        PDU,
        {"state": [], "auth_chain": []},
        {"state": [], "auth_chain": []},
    ),
    "make_knock": (
        lambda client: client.make_knock(THERE, ROOM, USER, ["7"]),
        f"GET {V1}/make_knock/{R}/{U}?ver=7",
        None,
        {"event": PDU, "room_version": "7"},
        {"event": PDU, "room_version": "7"},
    ),
    "send_knock": (
        lambda client: client.send_knock(THERE, ROOM, EVENT, PDU),
        f"PUT {V1}/send_knock/{R}/{E}",
        PDU,
        {"knock_room_state": [PDU]},
        {"knock_room_state": [PDU]},
    ),
    "make_leave": (
        lambda client: client.make_leave(THERE, ROOM, USER),
        f"GET {V1}/make_leave/{R}/{U}",
        None,
        {"event": PDU, "room_version": "3"},
        {"event": PDU, "room_version": "3"},
    ),
    "send_leave": (
        lambda client: client.send_leave(THERE, ROOM, EVENT, PDU),
        f"PUT {V2}/send_leave/{R}/{E}",
        PDU,
        {},
        None,
    ),
    "send_invite": (
        lambda client: client.send_invite(THERE, ROOM, EVENT, PDU, "11", [PDU]),
        f"PUT {V2}/invite/{R}/{E}",
        {"event": PDU, "invite_room_state": [PDU], "room_version": "11"},
        {"event": {"signed": True}},
        {"signed": True},
    ),
    "backfill": (
        lambda client: client.backfill(THERE, ROOM, ["$a", "$b"], 100),
        f"GET {V1}/backfill/{R}?v=%24a&v=%24b&limit=100",
        None,
        {"origin": THERE, "origin_server_ts": 1, "pdus": [PDU]},
        [PDU],
    ),
    "get_missing_events": (
        lambda client: client.get_missing_events(
            THERE, ROOM, earliest_events=["$a"], latest_events=["$b"], limit=10, min_depth=3
        ),
        f"POST {V1}/get_missing_events/{R}",
        {"earliest_events": ["$a"], "latest_events": ["$b"], "limit": 10, "min_depth": 3},
        {"events": [PDU]},
        [PDU],
    ),
    "get_state": (
        lambda client: client.get_state(THERE, ROOM, EVENT),
        f"GET {V1}/state/{R}?event_id={E}",
        None,
        {"pdus": [PDU], "auth_chain": [PDU]},
        {"pdus": [PDU], "auth_chain": [PDU]},
    ),
    "get_state_ids": (
        lambda client: client.get_state_ids(THERE, ROOM, EVENT),
        f"GET {V1}/state_ids/{R}?event_id={E}",
        None,
        {"pdu_ids": ["$a"], "auth_chain_ids": []},
        {"pdu_ids": ["$a"], "auth_chain_ids": []},
    ),
    "get_event_auth": (
        lambda client: client.get_event_auth(THERE, ROOM, EVENT),
        f"GET {V1}/event_auth/{R}/{E}",
        None,
        {"auth_chain": [PDU]},
        [PDU],
    ),
    "get_event": (
        lambda client: client.get_event(THERE, EVENT),
        f"GET {V1}/event/{E}",
        None,
        {"origin": THERE, "pdus": [PDU]},
        PDU,
    ),
    "query_profile": (
        lambda client: client.query_profile(THERE, USER, "displayname"),
        f"GET {V1}/query/profile?user_id={U}&field=displayname",
        None,
        {"displayname": "U"},
        {"displayname": "U"},
    ),
    "query_directory": (
        lambda client: client.query_directory(THERE, "#a b:there.example"),
        f"GET {V1}/query/directory?room_alias=%23a%20b%3Athere.example",
        None,
        {"room_id": ROOM, "servers": [THERE]},
        {"room_id": ROOM, "servers": [THERE]},
    ),
    "get_version": (
        lambda client: client.get_version(THERE),
        f"GET {V1}/version",
        None,
        {"server": {"name": "x", "version": "1"}},
        {"name": "x", "version": "1"},
    ),
    "get_server_keys": (
        lambda client: client.get_server_keys(THERE),
        "GET /_matrix/key/v2/server",
        None,
        {"server_name": THERE},
        {"server_name": THERE},
    ),
    "ask_policy_server_to_sign": (
        lambda client: client.ask_policy_server_to_sign(THERE, encode_canonical_json(PDU)),
        "POST /_matrix/policy/v1/sign",
        PDU,
        SIGNED,
        SIGNED,
    ),
    "query_server_keys": (
        lambda client: client.query_server_keys(THERE, {"a.example": {"ed25519:1": 5}}),
        "POST /_matrix/key/v2/query",
        {"server_keys": {"a.example": {"ed25519:1": {"minimum_valid_until_ts": 5}}}},
        {"server_keys": [{"server_name": "a.example"}]},
        [{"server_name": "a.example"}],
    ),
}
UNSIGNED = {"get_version", "get_server_keys", "query_server_keys"}


@pytest.mark.parametrize("name", CALLS)
async def test_each_request(client: FederationClient, there: There, signing_keys: SigningKeys, name: str) -> None:
    call, line, body, answer, result = CALLS[name]
    there.answers = [(200, answer)]
    assert await call(client) == result
    assert there.line == line
    request = there.requests[0]
    assert request.headers["host"] == THERE
    if body is None:
        assert request.content == b""
        assert "content-type" not in request.headers
    else:
        assert there.body == body
        assert request.headers["content-type"] == "application/json"
    if name in UNSIGNED:
        assert "authorization" not in request.headers
    else:
        await authenticate(request, signing_keys)


ANY_OBJECT = {"send_leave", "query_profile", "get_version", "get_server_keys", "ask_policy_server_to_sign"}
"""What these answer is looked into by whoever asked."""


async def authenticate(request: httpx.Request, signing_keys: SigningKeys) -> None:
    """As the other server does it."""
    authenticator = RequestAuthenticator(THERE, OurKeys(signing_keys), FakeClock())
    uri = request.url.raw_path.decode()
    content = orjson.loads(request.content) if request.content else None
    assert await authenticator.authenticate(request.method, uri, [request.headers["authorization"]], content) == HERE


@pytest.mark.parametrize("name", sorted(set(CALLS) - ANY_OBJECT))
@pytest.mark.parametrize("change", ["nothing in it", "wrong kinds"])
async def test_answers_of_another_shape(client: FederationClient, there: There, name: str, change: str) -> None:
    call, _, _, answer, _ = CALLS[name]
    odd: dict[str, Any] = {} if change == "nothing in it" else {field: [5] for field in answer}
    there.answers = [(200, odd)]
    with pytest.raises(RemoteUnreachable) as caught:
        await call(client)
    assert caught.value.destination == THERE


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"null", b"5", b'{"a":NaN}', b"\xff", b'{"a":' * 100_000, b"{" + b" " * SMALL.bytes_max],
)
async def test_answers_that_are_no_json_object(client: FederationClient, there: There, body: bytes) -> None:
    there.answers = [(200, body)]
    with pytest.raises(RemoteUnreachable):
        await client.query_profile(THERE, USER)


async def test_one_odd_event_does_not_spoil_the_others(client: FederationClient, there: There) -> None:
    """Half a surrogate pair is not JSON to orjson; dropping that one event is for the checks of events."""
    there.answers = [(200, rb'{"pdus": [{"a": "\ud800"}, {"a": "b"}]}')]
    assert await client.backfill(THERE, ROOM, [EVENT], 2) == [{"a": "\ud800"}, {"a": "b"}]


@pytest.mark.parametrize(
    ("status", "body", "errcode", "text"),
    [
        (403, {"errcode": "M_FORBIDDEN", "error": "no"}, "M_FORBIDDEN", "no"),
        (404, b"not found", "M_UNKNOWN", ""),
        (500, {"errcode": 5, "error": ["x"]}, "M_UNKNOWN", ""),
        (302, b"", "M_UNKNOWN", ""),
        (400, {"errcode": "M_X", "error": "y" * 10_000}, "M_X", "y" * 500),
    ],
)
async def test_errors(client: FederationClient, there: There, status: int, body: Any, errcode: str, text: str) -> None:
    there.answers = [(status, body)]
    with pytest.raises(RemoteRefused) as caught:
        await client.get_event(THERE, EVENT)
    error = caught.value
    assert (error.destination, error.status, error.errcode, error.error) == (THERE, status, errcode, text)
    assert len(there.requests) == 1


# -- transactions ------------------------------------------------------------------------------------------------------


async def test_a_transaction(client: FederationClient, there: There, signing_keys: SigningKeys) -> None:
    there.answers = [(200, {"pdus": {"$a": {}, "$b": {"error": "no"}}})]
    pdus, edus = [PDU, {"b": 1}], [{"edu_type": "m.typing", "content": {}}]
    answer = await client.send_transaction(THERE, "txn/1", pdus=[encode_canonical_json(pdu) for pdu in pdus], edus=edus)
    assert answer == {"pdus": {"$a": {}, "$b": {"error": "no"}}}
    assert there.line == f"PUT {V1}/send/txn%2F1"
    assert there.body == {"origin": HERE, "origin_server_ts": FakeClock().now_ms(), "pdus": pdus, "edus": edus}
    assert there.requests[0].content == encode_canonical_json(there.body)
    await authenticate(there.requests[0], signing_keys)


async def test_a_transaction_has_its_limits(client: FederationClient, there: There) -> None:
    for pdus, edus in (([b"{}"] * (PDUS_PER_TRANSACTION_MAX + 1), []), ([], [{}] * (EDUS_PER_TRANSACTION_MAX + 1))):
        with pytest.raises(ValueError, match="too much"):
            await client.send_transaction(THERE, "1", pdus=pdus, edus=edus)
    assert there.requests == []


async def test_older_servers_may_answer_nothing_to_a_transaction(client: FederationClient) -> None:
    assert await client.send_transaction(THERE, "1", pdus=[], edus=[]) == {"pdus": {}}


# -- older endpoints ---------------------------------------------------------------------------------------------------

NOT_THERE = [
    (404, {"errcode": "M_UNRECOGNIZED", "error": "?"}),
    (400, {"errcode": "M_UNRECOGNIZED", "error": "?"}),
    (405, {"errcode": "M_UNRECOGNIZED", "error": "?"}),
    (404, b"<h1>Not found</h1>"),
]


@pytest.mark.parametrize("refusal", NOT_THERE)
async def test_version_1_where_there_is_no_version_2(client: FederationClient, there: There, refusal: Any) -> None:
    there.answers = [refusal, (200, [200, {"state": [], "auth_chain": [PDU]}])]
    assert await client.send_join(THERE, ROOM, EVENT, PDU) == {"state": [], "auth_chain": [PDU]}
    assert there.line == f"PUT {V1}/send_join/{R}/{E}"
    there.answers = [refusal, (200, [200, {}])]
    await client.send_leave(THERE, ROOM, EVENT, PDU)
    assert there.line == f"PUT {V1}/send_leave/{R}/{E}"
    there.answers = [refusal, (200, [200, {"event": PDU}])]
    assert await client.send_invite(THERE, ROOM, EVENT, {**PDU, "unsigned": {"a": 1}}, "2", [PDU]) == PDU
    assert there.line == f"PUT {V1}/invite/{R}/{E}"
    assert there.body == {**PDU, "unsigned": {"a": 1, "invite_room_state": [PDU]}}


async def test_other_refusals_are_final(client: FederationClient, there: There) -> None:
    there.answers = [(403, {"errcode": "M_FORBIDDEN"})]
    with pytest.raises(RemoteRefused):
        await client.send_join(THERE, ROOM, EVENT, PDU)
    with pytest.raises(RemoteRefused):
        await client.send_invite(THERE, ROOM, EVENT, PDU, "1", [])
    assert len(there.requests) == 2
    # Version 1 of the invitation cannot carry events of later room versions.
    there.answers = [NOT_THERE[0]]
    with pytest.raises(RemoteRefused):
        await client.send_invite(THERE, ROOM, EVENT, PDU, "3", [])
    assert len(there.requests) == 3


# -- whom we speak to --------------------------------------------------------------------------------------------------


async def test_denied_servers_and_ourselves_cost_no_request(there: There, signing_keys: SigningKeys) -> None:
    transport = httpx.MockTransport(there.answer)
    client = make_client(signing_keys, transport, PermittedServers(allowed=[THERE], denied=["denied.example"]))
    for server in ("denied.example", "not-allowed.example"):
        with pytest.raises(RemoteRefused) as caught:
            await client.get_version(server)
        assert caught.value.status == 403
    with pytest.raises(RemoteUnreachable, match="our own"):
        await client.get_version(HERE)
    assert there.requests == []
    assert await client.get_version(THERE) == {}


async def test_a_policy_server_may_share_our_name(client: FederationClient, there: There) -> None:
    there.answers = [(200, SIGNED)]
    assert await client.ask_policy_server_to_sign(HERE, b"{}") == SIGNED
    assert there.line == "POST /_matrix/policy/v1/sign"


@pytest.mark.parametrize(
    ("said", "heard"), [(5, 5), (10**12, RETRY_AFTER_MS_MAX), (-1, 0), (True, None), ("5", None), (1.5, None)]
)
async def test_when_to_come_back(client: FederationClient, there: There, said: Any, heard: int | None) -> None:
    there.answers = [(429, {"errcode": "M_LIMIT_EXCEEDED", "error": "slow down", "retry_after_ms": said})]
    with pytest.raises(RemoteRefused) as caught:
        await client.ask_policy_server_to_sign(THERE, b"{}")
    assert caught.value.retry_after_ms == heard


async def test_a_signature_is_small(client: FederationClient, there: There) -> None:
    there.answers = [(200, {"policy.example": "x" * SIGNATURE.bytes_max})]
    with pytest.raises(RemoteUnreachable, match="larger"):
        await client.ask_policy_server_to_sign(THERE, b"{}")


async def test_destinations_that_are_no_names(client: FederationClient, there: There) -> None:
    for name in ("", "a b", "http://x", "x/../y", "[::1", "a" * 300):
        with pytest.raises(RemoteUnreachable):
            await client.get_version(name)
    assert there.requests == []


# -- over real TLS -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[OutboundHttp]:
    http = OutboundHttp(allow_private_addresses=True, ca_file=ca_file(tmp_path))
    yield http
    await http.aclose()


async def test_a_signed_request_over_tls(http: OutboundHttp, signing_keys: SigningKeys) -> None:
    """What arrives on the other side is, to the byte, what was signed."""
    server = LoopbackServer(lambda *_: http_answer(b'{"room_id":"!r:a","servers":[]}'))
    async with server.serve(server_context("localhost")):
        client = FederationClient(HERE, signing_keys, ServerDiscovery(http, FakeClock()), http, FakeClock())
        name = f"localhost:{server.port}"
        await client.query_directory(name, "#odd ~!'()*%[]&=+/?:ü:x")
    line, headers, _ = server.requests[0]
    method, uri, _ = line.split(" ")
    authenticator = RequestAuthenticator(name, OurKeys(signing_keys), FakeClock())
    assert await authenticator.authenticate(method, uri, [headers["authorization"]], None) == HERE
    assert headers["host"] == name


async def test_a_server_that_is_not_there(http: OutboundHttp, signing_keys: SigningKeys) -> None:
    server = LoopbackServer(lambda *_: b"")
    async with server.serve(server_context("localhost")):
        name = f"localhost:{server.port}"
    client = FederationClient(HERE, signing_keys, ServerDiscovery(http, FakeClock()), http, FakeClock())
    with pytest.raises(RemoteUnreachable) as caught:
        await client.get_version(name)
    assert caught.value.destination == name
