"""Hostile requests to every endpoint of the client API: whatever they hold, the answer is a Matrix error in time.

``nothing_unexpected`` in the fixture sees to it that none of them leaves an error in the log either.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.web import BODY_BYTES_MAX
from tests.conformance.catalogue import Example, Scene, quoted
from tests.conformance.odd_events import paths_in, with_value, without
from tests.conformance.test_routes import our_routes
from tests.conformance.world import ALICE, FUZZ, World, check_answer, fine, path_of, refused

NAMES_THAT_ARE_TAKEN = ("username", "room_alias_name")
"""Fields that a request can use once only."""
FREE_CONTENT = ("/send/{", "/state/{", "/account_data/{")
"""Endpoints whose whole body is content of the client's own."""
FIELD_VALUES: tuple[Any, ...] = (
    None, True, -1, 1.5, 2**63, "", "a\0b", "é" * 200, "@a:b", [], ["\0"], {}, {"a": None},
)  # fmt: skip
"""Of every JSON type, one at least, and such as do not belong."""
MALFORMED: list[tuple[bytes, int, tuple[str, ...]]] = [
    (b"{", 400, ("M_NOT_JSON",)),
    (b"{}x", 400, ("M_NOT_JSON",)),
    (b"\xff", 400, ("M_NOT_JSON",)),
    (b"\xef\xbb\xbf{}", 400, ("M_NOT_JSON",)),
    (b'{"a":"\\ud800"}', 400, ("M_NOT_JSON",)),
    (b'{"a":"\xed\xa0\x80"}', 400, ("M_NOT_JSON",)),
    (b'{"a":NaN}', 400, ("M_NOT_JSON",)),
    (b"{'a':1}", 400, ("M_NOT_JSON",)),
    (b'{"a":1,}', 400, ("M_NOT_JSON",)),
    (b"[" * 5_000, 400, ("M_NOT_JSON",)),
    (b"[]", 400, ("M_BAD_JSON",)),
    (b"null", 400, ("M_BAD_JSON",)),
    (b'"text"', 400, ("M_BAD_JSON",)),
    (b"1", 400, ("M_BAD_JSON",)),
    (b'{"a":' * 250 + b"1" + b"}" * 250, 400, ("M_BAD_JSON",)),
    (b'{"a":"' + b"x" * (BODY_BYTES_MAX + 1) + b'"}', 413, ("M_TOO_LARGE",)),
]
"""Bodies that no endpoint takes."""
NO_BODY_NEEDED = ("/logout", "/logout/all", "/forget")


@pytest.fixture(scope="module")
def scene(world: World) -> Scene:
    return Scene(world)


def examples_with_body(scene: Scene) -> Iterator[Example]:
    """Each has been sent as it should be, once."""
    for example in scene.client_examples():
        if example.body is not None:
            fine(scene.world.ask(example.method, example.path, example.body, example.token))
            if not example.path.endswith(NO_BODY_NEEDED):
                yield example


def outcome(response: httpx.Response) -> tuple[int, str | None]:
    return response.status_code, response.json().get("errcode") if response.status_code >= 400 else None


@pytest.mark.parametrize(("body", "status", "errcodes"), MALFORMED, ids=[repr(case[0][:16]) for case in MALFORMED])
def test_bodies_that_are_no_objects(
    world: World, scene: Scene, body: bytes, status: int, errcodes: tuple[str, ...]
) -> None:
    asked = 0
    for example in bodies(scene):
        answer = outcome(world.ask(example.method, example.path, body, example.token))
        assert answer in [(status, errcode) for errcode in errcodes], example.endpoint.name
        asked += 1
    assert asked > 20


def test_wrong_values_in_every_field_of_every_body(world: World, scene: Scene) -> None:
    """Never more than an error, and for what the schema forbids always an error."""
    refusals = 0
    for example in examples_with_body(scene):
        if any(part in example.endpoint.path for part in FREE_CONTENT):
            continue
        for path in paths_in(example.body):
            usable = example.body
            if path[0] not in NAMES_THAT_ARE_TAKEN:
                usable = {name: value for name, value in usable.items() if name not in NAMES_THAT_ARE_TAKEN}
            for value in FIELD_VALUES:
                answer = world.ask(example.method, example.path, with_value(usable, path, value), example.token)
                if value is not None and type_at(example.endpoint.request, path) not in (None, *kinds(value)):
                    assert 400 <= answer.status_code < 500, (example.endpoint.name, path, value)
                    refusals += 1
            world.ask(example.method, example.path, without(usable, path), example.token)
    assert refusals > 300


def type_at(schema: Any, path: tuple[Any, ...]) -> str | None:
    """The type that a schema asks for at a path, None where it leaves that open."""
    for name in path:
        if not isinstance(schema, dict):
            return None
        of = schema.get("properties", {}).get(name) if isinstance(name, str) else schema.get("items")
        schema = of if of is not None else schema.get("additionalProperties")
    found = schema.get("type") if isinstance(schema, dict) else None
    return found if isinstance(found, str) else None


def kinds(value: Any) -> tuple[str, ...]:
    if isinstance(value, bool):
        return ("boolean",)
    if isinstance(value, int):
        return ("integer", "number")
    if isinstance(value, float):
        return ("number",)
    return ({str: "string", dict: "object", list: "array"}[type(value)],)


ODD_SEGMENTS = (
    "x", "%00", "%ff", "%ED%A0%80", "%F0%9F%98%80", "a" * 256, "%C3%A9" * 200, "!", "$", "@:", "@a:b", "!a:b", "#a:b",
    "%24" + "a" * 43, "!" + "a" * 43, "!a:%5B::1%5D:99999", "!a:b:c", "..", "%2e%2e", "a%2fb", "a%3fb", "%zz", "%0d%0a",
    "9" * 30, "a" * 20_000,
)  # fmt: skip


def test_odd_identifiers_in_every_place_of_every_path(world: World, scene: Scene) -> None:
    for example in scene.client_examples():
        fine_or_unknown(world.ask(example.method, example.path, example.body, example.token))
        path, _, query = example.path.partition("?")
        segments = path.split("/")
        for place, name in enumerate(example.endpoint.path.split("/")):
            if name.startswith("{"):
                for odd in ODD_SEGMENTS:
                    target = "/".join([*segments[:place], odd, *segments[place + 1 :]]) + (query and "?" + query)
                    world.ask(example.method, target, example.body, example.token)


def test_odd_identifiers_in_every_route_that_there_is(world: World, scene: Scene) -> None:
    """Also in those that have no example here: our own, and those that are still to come."""
    values = {"room_id": quoted(scene.room), "user_id": quoted(ALICE), "event_id": quoted(scene.message)}
    asked = 0
    for name in set(our_routes(world)):
        method, path = name.split(" ", 1)
        names = re.findall(r"\{(\w+)", path)
        for odd_one in names:
            for odd in ODD_SEGMENTS[::2]:
                target = re.sub(r"\{(\w+)[^}]*\}", lambda m, one=odd_one, odd=odd: filled(m[1], one, odd, values), path)
                world.ask(method, target, None if method == "GET" else {})
                asked += 1
    assert asked > 1000


def filled(name: str, odd_one: str, odd: str, values: dict[str, str]) -> str:
    return odd if name == odd_one else values.get(name, "x")


ODD_QUERIES = (
    "", "%00", "%ff", "x", "-1", "0", "1", "1.5", "9" * 15, "9" * 18, "9" * 19, "9" * 400, "true", "TRUE", "null", "[]",
    "{}", "{", "%7B%22limit%22%3A1%7D", "%7B%22a%22%3A%22%5Cud800%22%7D", "%5B" * 3_000, "s0", "s-1", "s" + "9" * 18,
    "s" + "9" * 19, "t1_1", "t-1_-1", "t" + "9" * 18 + "_" + "9" * 18, "t0_0", "t", "%F0%9F%98%80", "%ED%A0%80",
    "a" * 5_000, "%7B%22room%22%3A1%7D", "%7B%22types%22%3A%22x%22%7D",
)  # fmt: skip


def test_odd_values_in_every_query(world: World, scene: Scene) -> None:
    for example in scene.client_examples():
        fine_or_unknown(world.ask(example.method, example.path, example.body, example.token))
        path, _, query = example.path.partition("?")
        names = [parameter["name"] for parameter in example.endpoint.parameters if parameter["in"] == "query"]
        for name in names:
            others = "&".join(pair for pair in query.split("&") if not pair.startswith(f"{name}="))
            for odd in (*ODD_QUERIES, f"1&{name}=2&{name}="):
                if name == "timeout" and odd.isdecimal() and odd != "0":
                    continue  # it would wait
                world.ask(example.method, f"{path}?{others}&{name}={odd}", example.body, example.token)
        for odd in ("x" * 3_000 + "=1", "&&&===&", "%", "a[]=1", "=", "access_token=x", "user_id=x"):
            world.ask(example.method, f"{path}?{query}&{odd}", example.body, example.token)


def fine_or_unknown(response: httpx.Response) -> None:
    assert response.status_code == 200 or response.request.url.path.startswith("/.well-known"), response.text


HEADERS: list[list[tuple[bytes, bytes]]] = [
    [(b"content-length", b"x")],
    [(b"content-length", b"-1")],
    [(b"content-length", "²".encode("latin-1"))],
    [(b"content-length", b"9" * 30)],
    [(b"content-length", b"2"), (b"content-length", b"3")],
    [(b"content-type", b"text/plain; charset=utf-16")],
    [(b"content-type", b"multipart/form-data"), (b"content-encoding", b"gzip")],
    [(b"content-type", b"\xff\xfe"), (b"x-\xff", b"\x01")],
    [(b"transfer-encoding", b"chunked"), (b"expect", b"x")],
    [(b"host", b""), (b"host", b"a b"), (b"cookie", b"=;=;;"), (b"origin", b"null"), (b"range", b"bytes=x")],
    [(b"if-none-match", b"*"), (b"accept", b"text/html"), (b"accept-language", b"\xff")],
    [(b"x", b"y")] * 5_000,
]


@pytest.mark.parametrize("headers", HEADERS, ids=range(len(HEADERS)))
def test_odd_headers(world: World, headers: list[tuple[bytes, bytes]]) -> None:
    for method, path in (("POST", b"login"), ("GET", b"joined_rooms"), ("POST", b"createRoom"), ("GET", b"nowhere")):
        sent = [(b"authorization", b"Bearer alice"), *headers]
        world.checked(world.raw(method, b"/_matrix/client/v3/" + path, sent, b"{", b"}"))


def test_a_body_in_pieces_is_given_up_when_it_gets_too_long(world: World) -> None:
    pieces = [b"x" * 100_000] * 50
    sent = [(b"authorization", b"Bearer alice")]
    refused(world.checked(world.raw("POST", b"/_matrix/client/v3/createRoom", sent, *pieces)), 413, "M_TOO_LARGE")
    announced = [*sent, (b"content-length", b"99999999")]
    refused(world.checked(world.raw("POST", b"/_matrix/client/v3/createRoom", announced)), 413, "M_TOO_LARGE")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from([ALICE, "!a:b", "$a", "#a:b", "\0", "m.room.member", "x" * 300]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "state_key", "content", "users", "a\0", "membership"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@FUZZ
@given(st.data())
def test_any_json_in_any_body(world: World, scene: Scene, data: st.DataObject) -> None:
    examples = bodies(scene)
    example = data.draw(st.sampled_from(examples))
    known = list(example.body)
    body = data.draw(
        st.dictionaries(st.sampled_from(known) if known else st.text(max_size=3), JSON, max_size=5), label="body"
    )
    world.ask(example.method, example.path, body, example.token)


@FUZZ
@given(st.data())
def test_any_bytes_in_any_path_and_query(world: World, scene: Scene, data: st.DataObject) -> None:
    example = data.draw(st.sampled_from(bodies(scene)))
    segments = example.path.partition("?")[0].split("/")
    place = data.draw(st.integers(4, len(segments) - 1))
    some_bytes = st.binary(max_size=20) | st.sampled_from([b"%00", b"!a:b", b"@a:b", b"%C3%A9", b"%2F"])
    segments = [segment.encode() for segment in segments]
    segments[place] = data.draw(some_bytes)
    target = b"/".join(segments) + b"?" + data.draw(some_bytes)
    sent = [(b"authorization", b"Bearer " + (example.token or "").encode())]
    world.checked(world.raw(example.method, target, sent, orjson.dumps(example.body)))


_BODIES: dict[int, list[Example]] = {}


def bodies(scene: Scene) -> list[Example]:
    """Made once: each request is sent again and again."""
    if id(scene) not in _BODIES:
        _BODIES[id(scene)] = list(examples_with_body(scene))
    return _BODIES[id(scene)]


def test_many_at_once(world: World, scene: Scene) -> None:
    """The same state from many sides at once: each gets an answer, and all see one order in the end."""
    room = scene.fresh_room()

    async def all_at_once() -> list[httpx.Response]:
        requests = [world.send("PUT", f"/rooms/{room}/state/m.room.name", {"name": str(n)}) for n in range(20)]
        requests += [world.send("PUT", f"/rooms/{room}/send/a/same", {"n": n}) for n in range(20)]
        requests += [world.send("PUT", f"/directory/room/{path_of(f'#race:{ALICE[7:]}')[1:]}", {"room_id": room})] * 1
        requests += [world.send("POST", "/register", register(n), None) for n in range(5)]
        return list(await asyncio.gather(*requests))

    answers = world.run(all_at_once())
    for answer in answers:
        check_answer(answer)
    assert len({answer.json()["event_id"] for answer in answers[20:40]}) == 1
    assert sorted(answer.status_code for answer in answers[41:]) == [200, 400, 400, 400, 400]


def register(number: int) -> dict[str, Any]:
    return {"username": "racer", "password": f"password {number}", "auth": {"type": "m.login.dummy"}}


def test_all_is_well_after_all_that(world: World, scene: Scene) -> None:
    for example in scene.client_examples():
        fine_or_unknown(world.ask(example.method, example.path, example.body, example.token))
