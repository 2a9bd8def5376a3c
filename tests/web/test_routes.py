from __future__ import annotations

import pytest
from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from homeserver.web import install, json_response
from tests.web.web_app import call, new_app

router = APIRouter()


@router.get("/rooms/{room_id}/state/{event_type}")
@router.get("/rooms/{room_id}/state/{event_type}/{state_key}")
async def get_state(room_id: str, event_type: str, state_key: str = "-") -> Response:
    return json_response([room_id, event_type, state_key])


@router.put("/rooms/{room_id}/state/{event_type}/{state_key}")
async def set_state(room_id: str, event_type: str, state_key: str) -> Response:
    return json_response(["put", room_id, event_type, state_key])


@router.get("/rooms/{room_id}/members")
async def members(room_id: str) -> Response:
    return json_response(["members", room_id])


@router.delete("/rooms/{room_id}/members")
async def delete_members(room_id: str) -> Response:
    return json_response(["delete", room_id])


@router.get("/rooms/public/members")
async def public() -> Response:
    return json_response(["public"])


@router.get("/rooms/public/{other}/x")
async def other(other: str) -> Response:
    return json_response(["other", other])


@router.get("/pushrules/")
async def push_rules() -> Response:
    return json_response(["rules"])


@router.get("/download/{server_name}/{rest:path}")
async def download(server_name: str, rest: str) -> Response:
    return json_response([server_name, rest])


async def plain(request: Request) -> Response:
    return json_response([request.path_params["txn_id"], request.scope["route"].path])


@pytest.fixture
def app() -> FastAPI:
    app = new_app()
    install(app)
    for prefix in ("/v3", "/r0"):
        app.include_router(router, prefix=prefix)
    app.router.routes.append(Route("/send/{txn_id}", plain, methods=["PUT"]))
    app.router.routes.append(Mount("/static", app=PlainTextResponse("static")))
    return app


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/v3/rooms/!r:x/state/m.room.name", ["!r:x", "m.room.name", "-"]),
        ("/r0/rooms/!r:x/state/m.room.name/", ["!r:x", "m.room.name", ""]),
        ("/v3/rooms/!r%3Ax/state/m.room.member/%40a%3Ax", ["!r:x", "m.room.member", "@a:x"]),
        ("/v3/rooms/%23a%2Fb:x/state/t/a%2Fb%252F", ["#a/b:x", "t", "a/b%2F"]),
        ("/v3/rooms/a/state/b%20c+d/%F0%9F%98%80", ["a", "b c+d", "😀"]),
        ("/v3/rooms/a/state/%zz/%", ["a", "%zz", "%"]),
        ("/v3/%72ooms/a/members", ["members", "a"]),
        ("/v3/rooms/public/members", ["public"]),
        ("/v3/rooms/public/state/t", ["public", "t", "-"]),
        ("/v3/rooms/public/state/x", ["other", "state"]),
        ("/v3/rooms/public/y/x", ["other", "y"]),
        ("/v3/pushrules/", ["rules"]),
        ("/v3/download/example.org/a/b%2Fc/", ["example.org", "a/b/c/"]),
        ("/v3/rooms/a/members?x=/y/%2F", ["members", "a"]),
    ],
)
def test_paths_and_their_parameters(app: FastAPI, path: str, found: list[str]) -> None:
    answer = call(app, "GET", path)
    assert (answer.status, answer.json()) == (200, found)


def test_utf8_that_was_not_encoded(app: FastAPI) -> None:
    assert call(app, "GET", "/v3/rooms/é/members".encode()).json() == ["members", "é"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "//",
        "/v3",
        "/v3/rooms//members",
        "/v3/rooms/a/members/",
        "/v3/rooms/a%2Fmembers",
        "/v3%2Frooms/a/members",
        "/v3/pushrules",
        "/v3/rooms/a/state/",
        "/v4/rooms/a/members",
        "/v3/" + "a/" * 5000,
    ],
)
def test_paths_that_lead_nowhere(app: FastAPI, path: str) -> None:
    answer = call(app, "GET", path)
    assert (answer.status, answer.json()["errcode"]) == (404, "M_UNRECOGNIZED")


@pytest.mark.parametrize("path", [b"/v3/rooms/%ff/members", b"/v3/rooms/\xff/members", b"/v3/rooms/a%00b/members"])
def test_paths_that_are_no_text(app: FastAPI, path: bytes) -> None:
    answer = call(app, "GET", path)
    assert (answer.status, answer.json()["errcode"]) == (400, "M_INVALID_PARAM")


def test_other_methods(app: FastAPI) -> None:
    answer = call(app, "POST", "/v3/rooms/a/state/b/c")
    assert (answer.status, answer.json()["errcode"]) == (405, "M_UNRECOGNIZED")
    assert answer.header("allow") == "GET, OPTIONS, PUT"
    assert call(app, "PUT", "/v3/rooms/a/state/b/c").json() == ["put", "a", "b", "c"]
    assert call(app, "BREW", "/v3/rooms/a/state/b/c").status == 405


def test_a_literal_route_hides_a_parameter_only_for_its_own_methods(app: FastAPI) -> None:
    assert call(app, "DELETE", "/v3/rooms/public/members").json() == ["delete", "public"]
    assert call(app, "GET", "/v3/rooms/public/members").json() == ["public"]
    assert call(app, "PUT", "/v3/rooms/public/members").header("allow") == "DELETE, GET, OPTIONS"


def test_head_is_get_without_a_body(app: FastAPI) -> None:
    answer = call(app, "HEAD", "/v3/rooms/a/members")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.header("content-length") == str(len(b'["members","a"]'))


def test_plain_starlette_routes_and_mounts(app: FastAPI) -> None:
    assert call(app, "PUT", "/send/t%2F1").json() == ["t/1", "/send/{txn_id}"]
    assert call(app, "GET", "/static/any/thing").body == b"static"


def test_routes_may_be_added_later(app: FastAPI) -> None:
    assert call(app, "PUT", "/later/1").status == 404
    app.router.routes.append(Route("/later/{txn_id}", plain, methods=["PUT"]))
    assert call(app, "PUT", "/later/1").status == 200


def test_paths_that_the_tree_cannot_hold_are_refused_at_once() -> None:
    app = new_app()
    install(app)
    app.router.routes.append(Route("/a-{txn_id}", plain))
    with pytest.raises(TypeError, match="a-"):
        app.router.middleware_stack._build()  # type: ignore[attr-defined]
