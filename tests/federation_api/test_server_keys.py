"""Our keys as other servers get them, and those of others through us as a notary."""

from __future__ import annotations

import pytest

from homeserver.federation.server_keys import parse_server_keys
from homeserver.protocol.canonical_json import encode_canonical_json
from tests.factories.rooms import server_key
from tests.fakes.servers import Servers
from tests.federation_api.asking import OURS, REMOTE, Asking, ask, refused

KEY = "/_matrix/key/v2"
NOW = 1_800_000_000_000


@pytest.mark.parametrize("path", ["server", "server/ed25519:old", "server/", "server/whatever%20it%20is"])
def test_our_keys_whatever_key_an_older_server_names(servers: Servers, path: str) -> None:
    async def story(at: Asking) -> None:
        response = await at.remote.request("GET", OURS, f"{KEY}/{path}")
        assert parse_server_keys(response.json(), OURS, NOW).verify_keys
        assert response.content == encode_canonical_json(response.json())

    ask(servers, story)


@pytest.mark.parametrize("path", ["", "/", "/ed25519:1", "/ed25519:made_up"])
def test_keys_of_another_server_through_us(servers: Servers, path: str) -> None:
    async def story(at: Asking) -> None:
        response = await at.remote.request("GET", OURS, f"{KEY}/query/{REMOTE}{path}")
        (keys,) = response.json()["server_keys"]
        assert set(parse_server_keys(keys, REMOTE, NOW).verify_keys) == {server_key(REMOTE).key_id}
        assert set(keys["signatures"]) == {REMOTE, OURS}
        assert response.content == encode_canonical_json(response.json())

    ask(servers, story)


def test_questions_for_many_keys(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        asked = {REMOTE: {"ed25519:1": {"minimum_valid_until_ts": None}}, "nobody.test": {}, "not a server": {}}
        response = await at.remote.request("POST", OURS, f"{KEY}/query", {"server_keys": asked})
        assert [keys["server_name"] for keys in response.json()["server_keys"]] == [REMOTE]
        assert response.content == encode_canonical_json(response.json())

    ask(servers, story)


def test_questions_that_are_none(servers: Servers) -> None:
    async def story(at: Asking) -> None:
        for wrong in ([], "x", {REMOTE: []}, {REMOTE: {"ed25519:1": []}}):
            refused(await at.remote.request("POST", OURS, f"{KEY}/query", {"server_keys": wrong}), 400, "M_BAD_JSON")
        wrong_time = {REMOTE: {"ed25519:1": {"minimum_valid_until_ts": "now"}}}
        refused(await at.remote.request("POST", OURS, f"{KEY}/query", {"server_keys": wrong_time}), 400, "M_BAD_JSON")
        refused(await at.remote.request("POST", OURS, f"{KEY}/query", {}), 400, "M_MISSING_PARAM")
        for name in ("not%20a%20server", "host:port", "host:99999"):
            refused(await at.remote.request("GET", OURS, f"{KEY}/query/{name}"), 400, "M_INVALID_PARAM")
        uri = f"{KEY}/query/{REMOTE}?minimum_valid_until_ts=soon"
        refused(await at.remote.request("GET", OURS, uri), 400, "M_INVALID_PARAM")

    ask(servers, story)
