"""X-Matrix: parsing as leniently as the specification asks, and believing nothing that is not signed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
import signedjson.key
import signedjson.sign
from hypothesis import given
from hypothesis import strategies as st
from signedjson.types import SigningKey

from homeserver.config import FederationConfig
from homeserver.errors import Forbidden, InvalidParam, Unauthorized
from homeserver.federation.permitted_servers import PermittedServers
from homeserver.federation.request_authentication import (
    HEADER_CHARACTERS_MAX,
    RequestAuthenticator,
    XMatrix,
    parse_x_matrix,
    sign_request,
)
from homeserver.protocol.signatures import VerifyKeyData
from tests.factories.rooms import server_key
from tests.fakes.clock import FakeClock

ORIGIN, HERE = "origin.example", "here.example:8448"
URI = "/_matrix/federation/v1/send/1?a=%20b"
CONTENT = {"b": [1, {"ü": None}], "a": "text"}


# -- parsing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        'X-Matrix origin="a.example",destination="b.example:1",key="ed25519:k",sig="AB+/"',
        'x-matrix   Origin="a.example" , DESTINATION="b.example:1"\t,\tkey="ed25519:k",sig="AB+/"',
        'X-Matrix sig="AB+/",key="ed25519:k",destination="b.example:1",origin="a.example"',
        "X-Matrix origin=a.example,destination=b.example:1,key=ed25519:k,sig=AB+/",
        'X-Matrix origin="a\\.example",destination="b.example\\:1",key="ed25519:k",sig="AB+/"',
        'X-Matrix origin="a.example",unknown="x, \\"y\\"",destination="b.example:1",key="ed25519:k",sig="AB+/"',
        'X-Matrix ,, origin="a.example",, destination="b.example:1",key="ed25519:k",sig="AB+/",  ',
        'X-Matrix origin = "a.example",destination="b.example:1",key= "ed25519:k",sig ="AB+/"',
    ],
)
def test_what_the_specification_lets_senders_write(header: str) -> None:
    assert parse_x_matrix(header) == XMatrix("a.example", "b.example:1", "ed25519:k", "AB+/")


def test_older_servers_do_not_say_the_destination() -> None:
    assert parse_x_matrix('X-Matrix origin=a,key="ed25519:k",sig="s"').destination is None


@pytest.mark.parametrize(
    "header",
    [
        "",
        "X-Matrix",
        "X-Matrix ",
        "Bearer token",
        'X-Matrixorigin="a",key="k",sig="s"',
        'X-Matrix origin="a",key="ed25519:k"',
        'X-Matrix key="ed25519:k",sig="s"',
        'X-Matrix origin="a" key="ed25519:k" sig="s"',
        'X-Matrix origin="a,key="ed25519:k",sig="s"',
        'X-Matrix origin="a",key="ed25519:k",sig="s',
        'X-Matrix origin="a",key="ed25519:k",sig="s\\',
        'X-Matrix origin=,key="ed25519:k",sig="s"',
        'X-Matrix origin="a",origin="b",key="ed25519:k",sig="s"',
        'X-Matrix origin="a",ORIGIN="a",key="ed25519:k",sig="s"',
        'X-Matrix ="a",origin="a",key="ed25519:k",sig="s"',
        'X-Matrix origin="a",key="ed25519:k",sig="s"' + ",x=y" * HEADER_CHARACTERS_MAX,
        'X-Matrix origin="a",key="ed25519:k",sig="s",' + ",".join(f"x{number}=y" for number in range(100)),
    ],
)
def test_malformed_headers(header: str) -> None:
    with pytest.raises(Unauthorized):
        parse_x_matrix(header)


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for header in (text, f"X-Matrix {text}"):
        with suppress(Unauthorized):
            parse_x_matrix(header)


VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=50)
SPACES = st.text(" \t", max_size=3)


@given(st.lists(VALUES, min_size=4, max_size=4), st.permutations(range(4)), SPACES, SPACES)
def test_quoted_values_come_back_as_they_were(values: list[str], order: list[int], before: str, after: str) -> None:
    names = ["origin", "destination", "key", "sig"]
    quoted = [value.replace("\\", "\\\\").replace('"', '\\"') for value in values]
    parameters = [f'{names[index]}="{quoted[index]}"' for index in order]
    assert parse_x_matrix("X-Matrix " + f"{before},{after}".join(parameters)) == XMatrix(*values)


@pytest.mark.parametrize("piece", ["\\", '"', '\\"', "a=", 'a="', ", ", ",", "\t,", "=", '="\\'])
def test_no_header_takes_long(piece: str) -> None:
    header = ('X-Matrix origin="' + piece * HEADER_CHARACTERS_MAX)[:HEADER_CHARACTERS_MAX]
    began = time.thread_time()
    for text in (header, header.replace('origin="', ""), header[:-1] + '"'):
        with suppress(Unauthorized):
            parse_x_matrix(text)
    assert time.thread_time() - began < 0.5


# -- signing and authenticating ----------------------------------------------------------------------------------------


class Keys:
    """A key ring that holds what it is given."""

    def __init__(self, clock: FakeClock) -> None:
        self.keys = {ORIGIN: server_key(ORIGIN).keys(clock.now_ms() + 1000)}
        self.asked: list[Mapping[str, Mapping[str, int]]] = []

    async def are_known(self, server: str, wanted: Mapping[str, int]) -> bool:
        return server in self.keys

    async def keys_for(self, wanted: Mapping[str, Mapping[str, int]]) -> Mapping[str, Mapping[str, VerifyKeyData]]:
        self.asked.append(wanted)
        return {server: self.keys[server] for server in wanted if server in self.keys}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def keys(clock: FakeClock) -> Keys:
    return Keys(clock)


@pytest.fixture
def authenticator(keys: Keys, clock: FakeClock) -> RequestAuthenticator:
    return RequestAuthenticator(HERE, keys, clock)


def header(method: str = "PUT", uri: str = URI, destination: str = HERE, content: Any = CONTENT) -> str:
    return sign_request(server_key(ORIGIN), method, uri, destination, content)


@pytest.mark.anyio
@pytest.mark.parametrize("content", [CONTENT, {}, None, {"float": 1.5, "big": 2**70}])
async def test_a_signed_request(authenticator: RequestAuthenticator, content: Any) -> None:
    assert await authenticator.authenticate("PUT", URI, [header(content=content)], content) == ORIGIN


@pytest.mark.anyio
async def test_content_may_be_given_as_canonical_json(authenticator: RequestAuthenticator) -> None:
    signed = sign_request(server_key(ORIGIN), "PUT", URI, HERE, '{"a":"text","b":[1,{"ü":null}]}'.encode())
    assert signed == header()
    assert await authenticator.authenticate("PUT", URI, [signed], {"b": [1, {"ü": None}], "a": "text"}) == ORIGIN


@pytest.mark.anyio
@pytest.mark.parametrize("content", [CONTENT, None])
@pytest.mark.parametrize("destination", [HERE, None])
async def test_a_request_signed_as_the_specification_does_it(
    keys: Keys, authenticator: RequestAuthenticator, content: Any, destination: str | None
) -> None:
    """The specification's own example code, with the signedjson library."""
    key: SigningKey = signedjson.key.generate_signing_key("spec")
    keys.keys[ORIGIN] = {"ed25519:spec": VerifyKeyData(key.verify_key)}
    request = {"method": "PUT", "uri": URI, "origin": ORIGIN}
    if destination is not None:
        request["destination"] = destination
    if content is not None:
        request["content"] = content
    signature = signedjson.sign.sign_json(request, ORIGIN, key)["signatures"][ORIGIN]["ed25519:spec"]
    to = f',destination="{destination}"' if destination else ""
    text = f'X-Matrix origin="{ORIGIN}"{to},key="ed25519:spec",sig="{signature}"'
    assert await authenticator.authenticate("PUT", URI, [text], content) == ORIGIN


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "uri", "content"),
    [
        ("POST", URI, CONTENT),
        ("PUT", URI + "&c", CONTENT),
        ("PUT", URI.replace("%20", " "), CONTENT),
        ("PUT", URI, {**CONTENT, "a": "changed"}),
        ("PUT", URI, None),
        ("PUT", URI, {}),
        ("PUT", URI, {"a": "\ud800"}),
        ("PUT", "/\ud800", CONTENT),
    ],
)
async def test_a_signature_is_for_one_request(
    authenticator: RequestAuthenticator, method: str, uri: str, content: Any
) -> None:
    with pytest.raises(Unauthorized):
        await authenticator.authenticate(method, uri, [header()], content)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Bearer token"],
        [header(destination="elsewhere.example")],
        [header().replace(f'"{HERE}"', '"elsewhere.example"')],
        [header().replace(f'destination="{HERE}",', "")],
        [header().replace(ORIGIN, "other.example")],
        [header().replace("ed25519:1", "ed25519:2")],
        [header().replace("ed25519:", "rsa:")],
        [header().replace('sig="', 'sig="A')],
        [header(), header().replace(ORIGIN, "other.example")],
        [header()] * 11,
    ],
)
async def test_headers_that_prove_nothing(authenticator: RequestAuthenticator, headers: list[str]) -> None:
    with pytest.raises(Unauthorized) as caught:
        await authenticator.authenticate("PUT", URI, headers, CONTENT)
    assert (caught.value.status, caught.value.errcode) == (401, "M_UNAUTHORIZED")


@pytest.mark.anyio
@pytest.mark.parametrize("origin", ["not a server", "origin.example:http", "origin.example:99999", "origin.example:"])
async def test_an_origin_that_is_no_server_name(authenticator: RequestAuthenticator, origin: str) -> None:
    with pytest.raises(InvalidParam):
        await authenticator.authenticate("PUT", URI, [header().replace(ORIGIN, origin)], CONTENT)


@pytest.mark.anyio
async def test_our_own_name_as_the_origin(keys: Keys, authenticator: RequestAuthenticator) -> None:
    keys.keys[HERE] = server_key(HERE).keys()
    with pytest.raises(Unauthorized, match="this server itself"):
        await authenticator.authenticate("GET", URI, [sign_request(server_key(HERE), "GET", URI, HERE, None)], None)


@pytest.mark.anyio
async def test_an_expired_key(authenticator: RequestAuthenticator, clock: FakeClock) -> None:
    clock.advance(1000)
    await authenticator.authenticate("PUT", URI, [header()], CONTENT)
    clock.advance(1)
    with pytest.raises(Unauthorized, match="No valid key"):
        await authenticator.authenticate("PUT", URI, [header()], CONTENT)


@pytest.mark.anyio
async def test_a_retired_key_whose_end_lies_in_the_future(
    keys: Keys, authenticator: RequestAuthenticator, clock: FakeClock
) -> None:
    ((key_id, data),) = keys.keys[ORIGIN].items()
    keys.keys[ORIGIN] = {key_id: VerifyKeyData(data.key, clock.now_ms() + 3600_000, is_old=True)}
    with pytest.raises(Unauthorized, match="No valid key"):
        await authenticator.authenticate("PUT", URI, [header()], CONTENT)


@pytest.mark.anyio
async def test_a_destination_may_be_demanded(keys: Keys, clock: FakeClock) -> None:
    demanding = RequestAuthenticator(HERE, keys, clock, requires_destination=True)
    assert await demanding.authenticate("PUT", URI, [header()], CONTENT) == ORIGIN
    without = header().replace(f'destination="{HERE}",', "")
    with pytest.raises(Unauthorized, match="lacks destination"):
        await demanding.authenticate("PUT", URI, [without], CONTENT)


@pytest.mark.anyio
async def test_one_good_signature_of_several_is_enough(authenticator: RequestAuthenticator) -> None:
    unknown_key = header().replace("ed25519:1", "ed25519:2")
    assert await authenticator.authenticate("PUT", URI, [unknown_key, header()], CONTENT) == ORIGIN


@pytest.mark.anyio
async def test_servers_that_the_administrator_shuts_out(keys: Keys, clock: FakeClock) -> None:
    authenticator = RequestAuthenticator(HERE, keys, clock, PermittedServers(denied=[ORIGIN.upper()]))
    with pytest.raises(Forbidden):
        await authenticator.authenticate("PUT", URI, [header()], CONTENT)
    assert keys.asked == []


def test_permitted_servers() -> None:
    everybody, some = PermittedServers(), PermittedServers(allowed=["A.example", "b.example"], denied=["b.example"])
    assert everybody.permits("x.example")
    assert [some.permits(name) for name in ("a.example", "b.example", "c.example")] == [True, False, False]


def test_a_denied_host_is_denied_at_every_port() -> None:
    permitted = PermittedServers(denied=["evil.example", "half.example:8448", "[::1]"])
    denied = ["evil.example", "EVIL.example:443", "half.example:8448", "[::1]", "[::1]:8448"]
    assert [name for name in denied if permitted.permits(name)] == []
    assert all(permitted.permits(name) for name in ("half.example", "half.example:1", "not-evil.example", "[::2]"))


def test_nobody_is_permitted_without_federation() -> None:
    settings = FederationConfig(enabled=False, allowed_servers=("a.example",))
    assert not PermittedServers.of(settings).permits("a.example")
