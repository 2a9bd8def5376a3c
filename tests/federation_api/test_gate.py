"""Who may ask at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from homeserver.federation.request_authentication import sign_request
from homeserver.limits.rate_limits import Limit, RateLimits
from tests.factories.rooms import server_key
from tests.fakes.servers import Servers
from tests.federation_api.asking import OURS, REMOTE, V1, V2, Asking, ask, refused

SIGNED = [
    ("PUT", f"{V1}/send/1"), ("GET", f"{V1}/make_join/!r:x/@a:b"), ("PUT", f"{V1}/send_join/!r:x/$e"),
    ("PUT", f"{V2}/send_join/!r:x/$e"), ("GET", f"{V1}/make_leave/!r:x/@a:b"), ("PUT", f"{V1}/send_leave/!r:x/$e"),
    ("PUT", f"{V2}/send_leave/!r:x/$e"), ("GET", f"{V1}/make_knock/!r:x/@a:b"), ("PUT", f"{V1}/send_knock/!r:x/$e"),
    ("PUT", f"{V1}/invite/!r:x/$e"), ("PUT", f"{V2}/invite/!r:x/$e"), ("GET", f"{V1}/backfill/!r:x"),
    ("POST", f"{V1}/get_missing_events/!r:x"), ("GET", f"{V1}/state/!r:x"), ("GET", f"{V1}/state_ids/!r:x"),
    ("GET", f"{V1}/event_auth/!r:x/$e"), ("GET", f"{V1}/event/$e"), ("GET", f"{V1}/query/profile"),
    ("GET", f"{V1}/query/directory"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "uri"), SIGNED)
def test_every_endpoint_wants_a_signature(servers: Servers, method: str, uri: str) -> None:
    async def story(at: Asking) -> None:
        content: Any = None if method == "GET" else {"a": 1}
        response = await at.remote._http.request(method, f"https://{OURS}{uri}", json=content)
        refused(response, 401, "M_UNAUTHORIZED")
        wrong: list[dict[str, Any]] = [{"destination": "other.test"}, {"method": "DELETE"}, {"uri": uri + "x"}]
        if content is not None:
            wrong.append({"content": {"a": 2}})
        for signed_as in wrong:
            refused(await at.remote.request(method, OURS, uri, content, signed_as=signed_as), 401, "M_UNAUTHORIZED")

    ask(servers, story)


def test_what_needs_no_signature(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        client = at.remote._http
        version = await client.get(f"https://{OURS}{V1}/version")
        assert version.json()["server"]["name"]
        keys = await client.get(f"https://{OURS}/_matrix/key/v2/server")
        assert keys.json()["server_name"] == OURS
        assert keys.json()["signatures"][OURS]

    ask(servers, story)


def test_as_a_notary(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        client, remote = at.remote._http, at.remote.name
        one = await client.get(f"https://{OURS}/_matrix/key/v2/query/{remote}")
        many = await client.post(
            f"https://{OURS}/_matrix/key/v2/query", json={"server_keys": {remote: {"ed25519:1": {}}, "gone.test:1": {}}}
        )
        for response in (one, many):
            (keys,) = response.json()["server_keys"]
            assert keys["server_name"] == remote
            assert set(keys["signatures"]) == {remote, OURS}
        empty = await client.post(f"https://{OURS}/_matrix/key/v2/query", json={"server_keys": {}})
        assert empty.json() == {"server_keys": []}

    ask(servers, story)


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        ({}, "M_MISSING_PARAM"),
        ({"server_keys": 1}, "M_BAD_JSON"),
        ({"server_keys": {"a": 1}}, "M_BAD_JSON"),
        ({"server_keys": {"a": {"ed25519:1": {"minimum_valid_until_ts": "x"}}}}, "M_BAD_JSON"),
        ({"server_keys": {f"s{number}": {} for number in range(101)}}, "M_INVALID_PARAM"),
    ],
)
def test_bad_questions_to_the_notary(servers: Servers, body: Any, errcode: str) -> None:
    async def story(at: Asking) -> None:
        refused(await at.remote._http.post(f"https://{OURS}/_matrix/key/v2/query", json=body), 400, errcode)

    ask(servers, story)


@pytest.mark.parametrize("name", ["remote.test:http", "remote.test:99999", "remote.test:", "re mote.test", ""])
def test_malformed_server_names(servers: Servers, name: str) -> None:
    async def story(at: Asking) -> None:
        uri = f"{V1}/query/profile?user_id={at.alice}"
        signed = sign_request(server_key(REMOTE), "GET", uri, OURS, None)
        headers = {"Authorization": signed.replace(f'origin="{REMOTE}"', f'origin="{name}"')}
        refused(await at.remote._http.get(f"https://{OURS}{uri}", headers=headers), 400, "M_INVALID_PARAM")
        for question in (f"profile?user_id=@a:{name}", f"directory?room_alias=%23a:{name}"):
            answer = await at.remote.request("GET", OURS, f"{V1}/query/{question}".replace(" ", "%20"))
            refused(answer, 400, "M_INVALID_PARAM")

    ask(servers, story)


def test_unknown_endpoints_and_methods(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        refused(await at.remote.request("GET", OURS, f"{V1}/nothing"), 404, "M_UNRECOGNIZED")
        refused(await at.remote.request("GET", OURS, f"{V1}/send/1"), 405, "M_UNRECOGNIZED")
        refused(await at.remote.request("PUT", OURS, f"{V1}/version", {}), 405, "M_UNRECOGNIZED")

    ask(servers, story)


def test_bodies_that_are_no_objects(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        for body, errcode in (
            (b"{", "M_NOT_JSON"),
            (b"[]", "M_BAD_JSON"),
            (b"\xff", "M_NOT_JSON"),
            (b"", "M_NOT_JSON"),
        ):
            headers = {"Authorization": sign_request(server_key(REMOTE), "PUT", f"{V1}/send/1", OURS, {})}
            response = await at.remote._http.put(f"https://{OURS}{V1}/send/1", content=body, headers=headers)
            refused(response, 400, errcode)

    ask(servers, story)


class Pieces:
    """A body of pieces that counts how many were read."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            self.read += 1
            yield piece


def test_the_header_is_checked_before_the_body_is_read(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        uri = f"{V1}/send/1"
        good = sign_request(server_key(REMOTE), "PUT", uri, OURS, {})
        for header in (
            None,
            "Bearer x",
            good.replace(f'destination="{OURS}"', 'destination="other.test"'),
            good.replace("ed25519:1", "ed25519:unknown"),
            good.replace(f'origin="{REMOTE}"', 'origin="gone.test"'),
        ):
            body = Pieces(b"{", b"x" * 1_000_000)
            headers = {} if header is None else {"Authorization": header}
            async with httpx.AsyncClient(transport=httpx.ASGITransport(at.ours.app)) as client:
                response = await client.put(f"https://{OURS}{uri}", content=body, headers=headers)
            refused(response, 401, "M_UNAUTHORIZED")
            assert body.read == 0, header

    ask(servers, story)


def test_a_body_may_be_written_otherwise_than_it_was_signed(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        uri = f"{V1}/send/1"
        content = {"origin": REMOTE, "origin_server_ts": 1, "pdus": [], "edus": []}
        headers = {"Authorization": sign_request(server_key(REMOTE), "PUT", uri, OURS, content)}
        for body in (
            b'{"edus":[],"origin":"%b","origin_server_ts":1,"pdus":[]}',
            b' {"pdus": [], "origin_server_ts": 1,\n"origin":"%b", "edus":[]}',
        ):
            response = await at.remote._http.put(
                f"https://{OURS}{uri}", content=body % REMOTE.encode(), headers=headers
            )
            assert response.status_code == 200, response.text
        signed_by_nobody = await at.remote._http.put(
            f"https://{OURS}{uri}", content=b'{"edus":[],"pdus":[{}]}', headers=headers
        )
        refused(signed_by_nobody, 401, "M_UNAUTHORIZED")

    ask(servers, story)


def test_an_address_with_many_unknown_servers_is_stopped_and_others_are_not(servers: Servers) -> None:
    async def run() -> None:
        async with servers:
            ours = await servers.ours(OURS, rate_limits={"unknown_servers": "1/h, burst 3"})
            at = Asking(servers, ours, servers.remote(REMOTE), await ours.user("alice"))
            answers = []
            for number in range(5):
                signed = sign_request(server_key(f"gone{number}.test"), "GET", f"{V1}/event/$e", OURS, None)
                answers.append(
                    await at.remote._http.get(f"https://{OURS}{V1}/event/$e", headers={"Authorization": signed})
                )
            assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]
            ours.get(RateLimits).give_back(Limit.UNKNOWN_SERVERS, "127.0.0.1")
            assert (await at.get("event", "$e")).status_code == 404  # its keys are fetched now
            for _ in range(5):
                assert (await at.get("event", "$e")).status_code == 404

    asyncio.run(run())


def test_transactions_and_requests_of_one_server_are_limited(servers: Servers) -> None:
    async def run() -> None:
        async with servers:
            rates = {"federation_transactions": "1/h, burst 2", "federation_requests": "1/h, burst 2"}
            ours = await servers.ours(OURS, rate_limits=rates)
            at = Asking(servers, ours, servers.remote(REMOTE), await ours.user("alice"))
            body = {"origin": REMOTE, "origin_server_ts": 1, "pdus": [], "edus": []}
            sent = [await at.put(body, "send", str(number), prefix=V1) for number in range(3)]
            assert [answer.status_code for answer in sent] == [200, 200, 429]
            asked = [await at.get("event", "$e") for _ in range(3)]
            assert [answer.status_code for answer in asked] == [404, 404, 429]
            assert int(asked[2].headers["retry-after"]) > 0

    asyncio.run(run())


def test_the_notary_is_limited_by_servers_asked_about(servers: Servers) -> None:
    async def run() -> None:
        async with servers:
            ours = await servers.ours(OURS, rate_limits={"notary_queries": "1/h, burst 100"})
            remote = servers.remote(REMOTE)
            question = {"server_keys": {f"gone{number}.test": {} for number in range(60)}}
            url = f"https://{OURS}/_matrix/key/v2/query"
            assert ours
            assert (await remote._http.post(url, json=question)).status_code == 200
            refused(await remote._http.post(url, json=question), 429, "M_LIMIT_EXCEEDED")
            large = {"server_keys": {"a.test": {}}, "x": "x" * 70_000}
            refused(await remote._http.post(url, json=large), 413, "M_TOO_LARGE")

    asyncio.run(run())
