"""Our routes against the specification's list of endpoints, and what everything else is answered."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts

from homeserver.app import CLIENT_PREFIXES
from tests.conformance.catalogue import Scene, endpoints, under
from tests.conformance.world import World, refused

V3, R0 = CLIENT_PREFIXES
CLIENT = f"""
    GET /_matrix/client/versions                            GET /.well-known/matrix/client
    POST {V3}/register                                      GET {V3}/register/available
    GET {V3}/login                                          POST {V3}/login
    POST {V3}/refresh                                       POST {V3}/logout
    POST {V3}/logout/all                                    GET {V3}/account/whoami
    GET {V3}/capabilities                                   POST {V3}/createRoom
    POST {V3}/join/{{roomIdOrAlias}}                        POST {V3}/rooms/{{roomId}}/join
    POST {V3}/rooms/{{roomId}}/invite                       POST {V3}/rooms/{{roomId}}/leave
    POST {V3}/rooms/{{roomId}}/forget                       POST {V3}/rooms/{{roomId}}/kick
    POST {V3}/rooms/{{roomId}}/ban                          POST {V3}/rooms/{{roomId}}/unban
    PUT {V3}/rooms/{{roomId}}/send/{{eventType}}/{{txnId}}  PUT {V3}/rooms/{{roomId}}/redact/{{eventId}}/{{txnId}}
    PUT {V3}/rooms/{{roomId}}/state/{{eventType}}/{{stateKey}}
    GET {V3}/rooms/{{roomId}}/state/{{eventType}}/{{stateKey}}
    GET {V3}/rooms/{{roomId}}/state                         GET {V3}/rooms/{{roomId}}/event/{{eventId}}
    POST {V3}/rooms/{{roomId}}/upgrade
    GET {V3}/rooms/{{roomId}}/messages                      GET {V3}/rooms/{{roomId}}/members
    GET {V3}/rooms/{{roomId}}/joined_members                GET {V3}/joined_rooms
    GET {V3}/directory/room/{{roomAlias}}                   PUT {V3}/directory/room/{{roomAlias}}
    DELETE {V3}/directory/room/{{roomAlias}}                GET {V3}/rooms/{{roomId}}/aliases
    GET {V3}/profile/{{userId}}                             GET {V3}/profile/{{userId}}/{{keyName}}
    PUT {V3}/profile/{{userId}}/{{keyName}}                 DELETE {V3}/profile/{{userId}}/{{keyName}}
    POST {V3}/user/{{userId}}/filter                        GET {V3}/user/{{userId}}/filter/{{filterId}}
    GET {V3}/sync                                           PUT {V3}/rooms/{{roomId}}/typing/{{userId}}
    POST {V3}/rooms/{{roomId}}/receipt/{{receiptType}}/{{eventId}}
    PUT {V3}/user/{{userId}}/account_data/{{type}}          GET {V3}/user/{{userId}}/account_data/{{type}}
    PUT {V3}/user/{{userId}}/rooms/{{roomId}}/account_data/{{type}}
    GET {V3}/user/{{userId}}/rooms/{{roomId}}/account_data/{{type}}
"""
"""What clients can count on."""
FEDERATION = """
    PUT /_matrix/federation/v1/send/{txnId}
    GET /_matrix/federation/v1/make_join/{roomId}/{userId}    PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}
    GET /_matrix/federation/v1/make_leave/{roomId}/{userId}   PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}
    PUT /_matrix/federation/v1/invite/{roomId}/{eventId}      PUT /_matrix/federation/v2/invite/{roomId}/{eventId}
    GET /_matrix/federation/v1/backfill/{roomId}              POST /_matrix/federation/v1/get_missing_events/{roomId}
    GET /_matrix/federation/v1/state/{roomId}                 GET /_matrix/federation/v1/state_ids/{roomId}
    GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}  GET /_matrix/federation/v1/event/{eventId}
    GET /_matrix/federation/v1/query/profile                  GET /_matrix/federation/v1/query/directory
    GET /_matrix/federation/v1/version                        GET /_matrix/key/v2/server
    GET /_matrix/key/v2/query/{serverName}                    POST /_matrix/key/v2/query
"""
"""And other servers."""
OLDER = {
    "PUT /_matrix/federation/v1/send_join/{}/{}",
    "PUT /_matrix/federation/v1/send_leave/{}/{}",
    "GET /_matrix/key/v2/server/{}",
    "GET /_matrix/key/v2/query/{}/{}",
    "POST /_matrix/client/v3/rooms/{}/send/{}",
    "POST /_matrix/client/v3/rooms/{}/redact/{}",
}
"""What the specification has dropped, and other servers and older clients still use."""
OUR_OWN = re.compile(r"/_homeserver/v1/|/_homeserver/(metrics|console)")


def listed(text: str) -> list[str]:
    return [" ".join(pair) for pair in re.findall(r"([A-Z]+) (/\S+)", text)]


def comparable(name: str) -> str:
    """Without the names of parameters, and with ``v3`` for both prefixes of older and newer clients."""
    return re.sub(r"\{[^}]*\}", "{}", name).replace(" " + R0, " " + V3)


def our_routes(world: World) -> Iterator[str]:
    for context in iter_route_contexts(list(world.ours.app.router.routes)):
        for method in (context.methods or set()) - {"HEAD"}:
            yield f"{method} {context.path}"


def test_the_specification_knows_what_we_have(world: World) -> None:
    known = OLDER | {comparable(name) for api in ("client-server", "server-server") for name in endpoints(api)}
    # "When an empty string, the trailing slash on this endpoint is optional."
    known |= {name.removesuffix("/{}") for name in known if name.endswith("/state/{}/{}")}
    unknown = [
        name
        for name in our_routes(world)
        if comparable(name) not in known and OUR_OWN.match(name.partition(" ")[2]) is None
    ]
    assert unknown == []


@pytest.mark.parametrize("api", ["client-server", "server-server"])
def test_what_was_promised_is_there(world: World, api: str) -> None:
    promised = listed(CLIENT if api == "client-server" else FEDERATION)
    assert len(promised) >= 19
    assert [name for name in promised if name not in endpoints(api)] == []
    ours = set(map(comparable, our_routes(world)))
    assert [name for name in promised if comparable(name) not in ours] == []


def test_older_clients_find_the_same_under_r0(world: World) -> None:
    paths = [name.split(" ", 1) for name in our_routes(world) if f" {V3}/" in name]
    assert len(paths) > 40
    for method, path in paths:
        path = re.sub(r"\{[^}]*\}", "x", path)
        new, old = (world.ask(method, asked, None, None) for asked in (path, path.replace(V3, R0, 1)))
        assert (old.status_code, old.json().get("errcode")) == (new.status_code, new.json().get("errcode")), path
        assert old.json().get("errcode") != "M_UNRECOGNIZED", path


def outline(body: Any) -> Any:
    return set(body) if isinstance(body, dict) else len(body)


def test_r0_answers_as_v3_does(world: World) -> None:
    scene = Scene(world)
    for example in scene.client_examples():
        new = world.ask(example.method, example.path, example.body, example.token)
        if example.method == "GET" and example.path.startswith(V3):
            old = world.ask("GET", under(example, "r0").path, None, example.token)
            assert (old.status_code, outline(old.json())) == (new.status_code, outline(new.json()))


METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH", "HEAD", "BREW")


def test_each_path_refuses_the_methods_that_it_does_not_have(world: World) -> None:
    routes: dict[str, set[str]] = {}
    for name in our_routes(world):
        method, path = name.split(" ", 1)
        routes.setdefault(re.sub(r"\{[^}]*\}", "x", path), set()).add(method)
    for path, methods in routes.items():
        for method in METHODS:
            if method not in methods | ({"HEAD"} if "GET" in methods else set()):
                answer = world.ask(method, path, None, None)
                assert answer.status_code == 405, (method, path)
                assert set(answer.headers["allow"].split(", ")) - {"HEAD"} == methods | {"OPTIONS"}
                if method != "HEAD":
                    refused(answer, 405, "M_UNRECOGNIZED")


def test_every_path_can_be_asked_for_its_options_without_a_token(world: World) -> None:
    for name in [*endpoints("client-server"), *endpoints("server-server"), "GET /nowhere", "GET /_matrix/%ff"]:
        answer = world.ask("OPTIONS", name.split(" ", 1)[1].replace("{", "").replace("}", ""), None, None)
        assert (answer.status_code, answer.content) == (204, b""), name


def test_what_we_do_not_have_is_unrecognized(world: World) -> None:
    ours = set(map(comparable, our_routes(world)))
    paths = {name.split(" ", 1)[1] for name in ours}
    for api in ("client-server", "server-server"):
        for name in endpoints(api):
            method, path = name.split(" ", 1)
            if comparable(name) not in ours and re.sub(r"\{[^}]*\}", "{}", path) not in paths:
                refused(world.ask(method, re.sub(r"\{[^}]*\}", "x", path), b"{}"), 404, "M_UNRECOGNIZED")


@pytest.mark.parametrize(
    "path",
    [
        "/", "//", "/_matrix", "/_matrix/", "/_matrix/client", "/_matrix/client/v3", "/_matrix/client/v3/",
        "/_matrix/client/v4/sync", "/_matrix/client/v3/sync/", "/_matrix/client/v3//sync", "/_matrix/client/V3/sync",
        "/_matrix/client/unstable/org.example/x", "/_matrix/client/api/v1/login", "/_matrix/federation/v3/version",
        "/_matrix/client/v3/rooms/%21a%3Ab/../../login", "/_matrix/client/v3%2Fsync", "/docs", "/openapi.json",
        "/robots.txt", "/.well-known/matrix/", "/_synapse/admin/v1/users", "/_matrix/key/v1/server",
    ],
)  # fmt: skip
def test_nothing_else_is_there(world: World, path: str) -> None:
    for method in ("GET", "POST", "PUT"):
        refused(world.checked(world.raw(method, path.encode())), 404, "M_UNRECOGNIZED")
