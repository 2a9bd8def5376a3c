from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response

from homeserver import web
from homeserver.errors import BadJson, MatrixError, MissingParam, NotJson
from homeserver.web import (
    install,
    json_response,
    optional_bool,
    optional_int,
    optional_list_of_objects,
    optional_list_of_str,
    optional_object,
    optional_str,
    parse_json_object,
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
