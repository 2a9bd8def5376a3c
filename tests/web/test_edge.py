from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI, Query
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from homeserver.errors import Forbidden, LimitExceeded, RemoteRefused, RemoteUnreachable, TooLarge
from homeserver.web import install, json_response, read_json_object
from tests.web.web_app import Answer, call, new_app

ERRORS: dict[str, Exception] = {
    "forbidden": Forbidden("No", reason="last_owner"),
    "limit": LimitExceeded(retry_after_ms=1500),
    "large": TooLarge(),
    "unreachable": RemoteUnreachable("other.org", "secret route"),
    "refused": RemoteRefused("other.org", 400, "M_SECRET", "secret reason"),
    "teapot": HTTPException(418, "I am a teapot"),
    "http404": HTTPException(404),
    "bug": ZeroDivisionError("secret number"),
    "recursion": RecursionError("secret depth"),
}


@pytest.fixture
def app() -> FastAPI:
    app = new_app()
    install(app)

    @app.get("/raise/{name}")
    async def raise_error(name: str) -> Response:
        raise ERRORS[name]

    @app.get("/limited")
    async def limited(limit: int = Query(gt=0)) -> Response:
        return json_response(limit)

    @app.post("/read")
    async def read(request: Request) -> Response:
        return json_response(await read_json_object(request, 100))

    @app.get("/broken")
    async def broken() -> Response:
        async def half() -> AsyncIterator[bytes]:
            yield b"half of"
            raise ZeroDivisionError

        return StreamingResponse(half())

    return app


def assert_cors(answer: Answer) -> None:
    assert answer.header("access-control-allow-origin") == "*"
    assert answer.header("access-control-allow-methods") == "GET, POST, PUT, DELETE, OPTIONS"
    assert answer.header("access-control-allow-headers") == "X-Requested-With, Content-Type, Authorization"


@pytest.mark.parametrize(
    ("name", "status", "body"),
    [
        ("forbidden", 403, {"errcode": "M_FORBIDDEN", "error": "No", "reason": "last_owner"}),
        ("large", 413, {"errcode": "M_TOO_LARGE", "error": "The request or event is too large"}),
        ("unreachable", 502, {"errcode": "M_UNKNOWN", "error": "The server other.org could not be asked"}),
        ("refused", 502, {"errcode": "M_UNKNOWN", "error": "The server other.org could not be asked"}),
        ("teapot", 418, {"errcode": "M_UNKNOWN", "error": "I am a teapot"}),
        ("http404", 404, {"errcode": "M_UNRECOGNIZED", "error": "Unrecognized request"}),
        ("bug", 500, {"errcode": "M_UNKNOWN", "error": "Internal server error"}),
        ("recursion", 500, {"errcode": "M_UNKNOWN", "error": "Internal server error"}),
    ],
)
def test_errors_become_answers(app: FastAPI, name: str, status: int, body: dict[str, str]) -> None:
    answer = call(app, "GET", f"/raise/{name}")
    assert (answer.status, answer.json()) == (status, body)
    assert answer.header("content-type") == "application/json"
    assert_cors(answer)
    assert b"secret" not in answer.body


def test_too_many_requests_say_when_to_come_back(app: FastAPI) -> None:
    answer = call(app, "GET", "/raise/limit")
    assert answer.status == 429
    assert answer.json()["retry_after_ms"] == 1500
    assert answer.header("retry-after") == "2"


@pytest.mark.parametrize(
    ("query", "errcode"),
    [
        ("", "M_MISSING_PARAM"),
        ("?limit=x", "M_INVALID_PARAM"),
        ("?limit=0", "M_INVALID_PARAM"),
        ("?a=%00", "M_INVALID_PARAM"),
    ],
)
def test_what_fastapi_finds_wrong(app: FastAPI, query: str, errcode: str) -> None:
    answer = call(app, "GET", f"/limited{query}")
    assert (answer.status, answer.json()["errcode"]) == (400, errcode)
    assert_cors(answer)


@pytest.mark.parametrize("path", ["/limited", "/nowhere", "/raise/bug", b"/%ff"])
def test_preflight_requests_do_nothing(app: FastAPI, path: str | bytes) -> None:
    answer = call(app, "OPTIONS", path, headers=[(b"origin", b"https://client.example")])
    assert (answer.status, answer.body) == (204, b"")
    assert_cors(answer)


def test_every_answer_may_be_read_by_web_clients(app: FastAPI) -> None:
    for method, path in [("GET", "/limited?limit=1"), ("GET", "/nowhere"), ("PUT", "/limited"), ("HEAD", "/limited")]:
        assert_cors(call(app, method, path))


def test_a_client_that_goes_away_is_not_answered(app: FastAPI) -> None:
    assert call(app, "POST", "/read", [b'{"a":', b"1"], disconnects=True).status == 0


def test_an_answer_that_breaks_off_is_not_made_whole(app: FastAPI) -> None:
    with pytest.raises(ZeroDivisionError):
        call(app, "GET", "/broken")


def test_bytes_in_queries_and_headers_that_are_no_text(app: FastAPI) -> None:
    odd = [(b"content-type", b"\xff\xfe"), (b"content-length", b"\xb2"), (b"x-\xff", b"\x01")]
    assert call(app, "GET", b"/limited?limit=1&\xff=\xfe&%ff=%fe", headers=odd).status == 200
    assert call(app, "POST", b"/read?\xff", b"{}", headers=odd).json() == {}
