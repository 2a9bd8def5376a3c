from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response

from homeserver import web
from homeserver.errors import BadJson, MatrixError, MissingParam, NotJson, TooLarge
from homeserver.protocol.json_types import JsonObject
from homeserver.web import (
    bodies,
    install,
    json_response,
    optional_bool,
    optional_int,
    optional_list_of_objects,
    optional_list_of_str,
    optional_object,
    optional_str,
    parse_json_object,
    read_body,
    read_json_object,
    required_bool,
    required_int,
    required_list_of_objects,
    required_list_of_str,
    required_object,
    required_str,
)
from tests.web.web_app import Answer, call, new_app

LIMIT = 100


def post(body: Any, headers: Any = (), **options: Any) -> Answer:
    app = new_app()
    install(app)

    @app.post("/")
    async def read(request: Request) -> Response:
        return json_response(await read_json_object(request, LIMIT, **options))

    return call(app, "POST", "/", body, headers)


def test_an_object_in_pieces_and_whatever_its_content_type() -> None:
    assert post([b'{"a"', b"", b":1}"]).json() == {"a": 1}
    assert post(b'{"a":1}', [(b"content-type", b"text/plain")]).json() == {"a": 1}
    assert post(b' {"a": "\\u0000\xc3\xa9"} ').json() == {"a": "\0é"}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"{'a':1}", b'{"a":NaN}', b'{"a":"\xff"}', b"\xef\xbb\xbf{}", b'{"a":"\\ud800"}', b"{}{}", b"\0"],
)
def test_what_is_no_json(body: bytes) -> None:
    answer = post(body)
    assert (answer.status, answer.json()["errcode"]) == (400, "M_NOT_JSON")


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"{}"'])
def test_json_that_is_no_object(body: bytes) -> None:
    answer = post(body)
    assert (answer.status, answer.json()["errcode"]) == (400, "M_BAD_JSON")


def test_an_empty_body_where_that_is_allowed() -> None:
    assert post(b"", empty_is_object=True).json() == {}
    assert post(b" ", empty_is_object=True).status == 400


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"a":"' + b"x" * LIMIT + b'"}', []),
        ([b'{"a":"'] + [b"x" * 10] * 1000 + [b'"}'], []),
        (b"{}", [(b"content-length", b"101")]),
        (b"{}", [(b"content-length", b"9" * 400)]),
    ],
)
def test_bodies_that_are_too_large(body: Any, headers: Any) -> None:
    answer = post(body, headers)
    assert (answer.status, answer.json()["errcode"]) == (413, "M_TOO_LARGE")


def test_a_body_at_its_limit() -> None:
    body = b'{"a":"' + b"x" * (LIMIT - 8) + b'"}'
    assert len(body) == LIMIT
    assert post(body).status == 200


def test_what_was_read_can_be_written_again_inside_an_answer() -> None:
    deepest = b'{"a":' * 200 + b"1" + b"}" * 200
    value = parse_json_object(deepest)
    for _ in range(50):
        value = {"in": value}
    assert json_response(value).body
    with pytest.raises(BadJson):
        parse_json_object(b'{"a":' + deepest + b"}")
    with pytest.raises(BadJson):
        parse_json_object(b'{"a":' + b"[" * 900 + b"]" * 900 + b"}")
    with pytest.raises(NotJson):
        parse_json_object(b'{"a":' + b"[" * 100_000)
    wide = b'{"a":[' + b",".join([b"{}"] * 1000) + b"]}"
    assert len(parse_json_object(wide)["a"]) == 1000


GOOD: list[tuple[Callable[..., Any], Callable[..., Any], Any, list[Any]]] = [
    (required_str, optional_str, "text", [1, True, [], {}, 1.0]),
    (required_bool, optional_bool, True, [1, "true", [], {}]),
    (required_int, optional_int, 7, ["7", True, 7.0, 2**53, -(2**53), [], {}]),
    (required_object, optional_object, {"a": 1}, [1, "x", [], True]),
    (required_list_of_str, optional_list_of_str, ["a"], ["a", [1], ["a", None], {}, True]),
    (required_list_of_objects, optional_list_of_objects, [{}], ["a", [1], [{}, None], {}, True]),
]


@pytest.mark.parametrize(("required", "optional", "good", "bad"), GOOD)
def test_fields(required: Callable[..., Any], optional: Callable[..., Any], good: Any, bad: list[Any]) -> None:
    assert required({"x": good}, "x") == optional({"x": good}, "x") == good
    for value in bad:
        for reader in (required, optional):
            with pytest.raises(BadJson, match="'x'"):
                reader({"x": value}, "x")
    with pytest.raises(MissingParam):
        required({}, "x")
    with pytest.raises(BadJson):
        required({"x": None}, "x")
    assert optional({"x": None}, "x") == optional({}, "x")
    assert not optional({}, "x")


def test_integers_in_a_range() -> None:
    assert required_int({"x": 5}, "x", minimum=5, maximum=5) == 5
    for value in (4, 6):
        with pytest.raises(BadJson):
            required_int({"x": value}, "x", minimum=5, maximum=5)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_matrix_error(body: bytes) -> None:
    try:
        assert isinstance(parse_json_object(body), dict)
    except MatrixError as error:
        assert error.errcode in ("M_NOT_JSON", "M_BAD_JSON")  # noqa: PT017


def test_everything_is_exported() -> None:
    assert all(hasattr(web, name) for name in web.__all__)


class Uploads:
    """An application with a budget for bodies, and requests to it whose bodies arrive when the test says so."""

    def __init__(self, limit: int = 1000) -> None:
        self.app = new_app()
        install(self.app)
        self.budget = web.BodyBudget()
        self.app.state.services = {web.BodyBudget: self.budget, web.ClientAddresses: web.ClientAddresses()}

        @self.app.post("/")
        async def read(request: Request) -> Response:
            return json_response({"size": len(await read_body(request, limit))})

    async def send(
        self, pieces: asyncio.Queue[bytes], address: str = "192.0.2.1", announced: int | None = None
    ) -> tuple[int, JsonObject]:
        headers = [] if announced is None else [(b"content-length", str(announced).encode())]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/", "raw_path": b"/", "query_string": b"", "root_path": "", "headers": headers,
            "client": (address, 1), "server": ("example.org", 80),
        }  # fmt: skip
        sent: list[Any] = []

        async def receive() -> Any:
            piece = await pieces.get()
            return {"type": "http.request", "body": piece, "more_body": piece != b""}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        return sent[0]["status"], orjson.loads(b"".join(message.get("body", b"") for message in sent))


def pieces_of(*pieces: bytes) -> asyncio.Queue[bytes]:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    for piece in pieces:
        queue.put_nowait(piece)
    return queue


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.anyio
async def test_memory_for_bodies_is_bounded_and_fair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODIES_BYTES_MAX", 1000)
    monkeypatch.setattr(bodies, "BODIES_PER_ADDRESS_BYTES_MAX", 600)
    uploads = Uploads()
    slow, waiting, other = (pieces_of(b"x") for _ in range(3))
    first = asyncio.create_task(uploads.send(slow, announced=500))
    await settle()
    second = asyncio.create_task(uploads.send(waiting, announced=500))  # of the same address: waits
    third = asyncio.create_task(uploads.send(other, "192.0.2.2", announced=500))
    await settle()
    assert uploads.budget.used == 1000
    for queue in (slow, waiting, other):
        queue.put_nowait(b"y" * 99)
        queue.put_nowait(b"")
    assert [await task for task in (first, second, third)] == [(200, {"size": 100})] * 3
    assert uploads.budget.used == 0
    # A body that arrives in one piece takes no part.
    assert await uploads.send(pieces_of(b"")) == (200, {"size": 0})


@pytest.mark.anyio
async def test_a_request_that_waits_too_long_for_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(bodies, "BODIES_BYTES_MAX", 500)
    uploads = Uploads()
    slow = pieces_of(b"x")
    first = asyncio.create_task(uploads.send(slow, announced=500))
    await settle()
    status, error = await uploads.send(pieces_of(b"x", b""), "192.0.2.2", announced=2)
    assert (status, error["errcode"]) == (429, "M_LIMIT_EXCEEDED")
    slow.put_nowait(b"")
    assert (await first)[0] == 200
    assert uploads.budget.used == 0


@pytest.mark.anyio
@pytest.mark.parametrize("announced", [None, 900])
async def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch, announced: int | None) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.001)
    monkeypatch.setattr(bodies, "BODY_BYTES_PER_SECOND_MIN", 10**9)
    uploads = Uploads()
    status, error = await uploads.send(pieces_of(b"x"), announced=announced)
    assert (status, error["errcode"]) == (408, "M_UNKNOWN")
    assert uploads.budget.used == 0


@pytest.mark.anyio
async def test_a_body_that_is_not_announced_is_counted_as_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "UNANNOUNCED_BYTES", 10)
    uploads = Uploads()
    queue = pieces_of(b"x" * 5)
    task = asyncio.create_task(uploads.send(queue))
    await settle()
    assert uploads.budget.used == 10
    queue.put_nowait(b"x" * 20)
    await settle()
    assert uploads.budget.used == 1000  # all that it may become
    queue.put_nowait(b"x" * 1000)
    assert (await task)[0] == 413
    assert uploads.budget.used == 0


def test_the_number_of_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "JSON_ELEMENTS_MAX", 100)
    parse_json_object(b'{"a":[' + b",".join([b"1"] * 90) + b"]}")
    for many in (b"1", b"{}", b"[]"):
        with pytest.raises(TooLarge):
            parse_json_object(b'{"a":[' + b",".join([many] * 100) + b"]}")


@pytest.mark.anyio
async def test_large_bodies_are_parsed_on_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def noting(text: bytes) -> JsonObject:
        threads.append(threading.get_ident())
        return parse_json_object(text)

    monkeypatch.setattr(bodies, "parse_json_object", noting)
    assert await bodies.parse_body(b'{"a":1}') == {"a": 1}
    assert await bodies.parse_body(b'{"a":"' + b"x" * bodies.LARGE_BODY_BYTES_MIN + b'"}')
    assert [thread == threading.get_ident() for thread in threads] == [True, False]
