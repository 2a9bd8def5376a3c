"""Who may ask at all."""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.federation.request_authentication import sign_request
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
            response = await at.remote._http.put(f"https://{OURS}{V1}/send/1", content=body)
            refused(response, 400, errcode)

    ask(servers, story)
