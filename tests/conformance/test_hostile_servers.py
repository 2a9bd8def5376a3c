"""Servers that answer our requests with nonsense: our users get an error in time, and nothing breaks here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from starlette.requests import Request
from starlette.responses import Response

from homeserver.protocol.json_types import JsonObject
from tests.conformance.catalogue import quoted
from tests.conformance.odd_events import ODD_VALUES, next_pdu, resigned
from tests.conformance.world import ALICE, OURS, REMOTE, ZOE, World, fine, path_of, refused
from tests.factories.rooms import RoomFactory

SMALL = tuple(value for value in ODD_VALUES if not isinstance(value, list) or len(value) < 20)


class Answers:
    """What the other server answers, by a part of the path; its own answers to everything else."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.to: dict[str, tuple[int, bytes]] = {}

    def give(self, part: str, body: Any, status: int = 200) -> None:
        self.to = {part: (status, body if isinstance(body, bytes) else orjson.dumps(body))}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        for part, (status, body) in self.to.items():
            if part in scope["path"]:
                headers = {"location": "https://127.0.0.1/x", "retry-after": "x", "content-type": "text/html"}
                await Response(body, status, headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)


@pytest.fixture
def answers(world: World) -> Iterator[Answers]:
    app = world.servers.network.apps[REMOTE]
    world.servers.network.apps[REMOTE] = answers = Answers(app)
    yield answers
    world.servers.network.apps[REMOTE] = app


@pytest.fixture(scope="module")
def room(world: World) -> str:
    created: str = fine(world.ask("POST", "/createRoom", {}))["room_id"]
    return created


def deep(levels: int) -> bytes:
    return b'{"x":' + b"[" * levels + b"]" * levels + b"}"


NONSENSE = [
    b"", b"{", b"null", b"[]", b"1", b'"x"', b"\xff", b"{}", b'{"displayname":"\\ud800"}', b'{"x":"\\ud800"}',
    b'{"x":1e999}', b'{"x":1' + b"0" * 400 + b"}", b'{"x":NaN}', deep(250), deep(300), deep(5_000), deep(100_000),
    b'{"displayname":1,"avatar_url":{}}', b'{"\\u0000":"\\u0000"}', b'{"x":"' + b"a" * 500_000 + b'"}',
    b'{"x":"' + b"a" * 2_000_000 + b'"}', b'{"room_id":"!a:b","servers":["\\ud800"]}',
    b'{"room_id":"!a:b","servers":[1]}', b'{"room_id":1,"servers":[]}', b'{"room_id":"!\\ud800:b","servers":[]}',
    b'{"room_id":"!a:b","servers":["\\u0000"]}', b'{"room_id":"!a:b"}', b'{"room_id":"!a:b","servers":["x"]}',
    b'{"event":{},"room_version":"11"}', b'{"event":1}', b'{"state":[],"auth_chain":[]}', b'{"state":1}',
]  # fmt: skip


def requests(room: str) -> list[tuple[str, str, str, Any]]:
    """What our user asks for, and by which question of ours the other server comes in."""
    alias = quoted(f"#a:{REMOTE}")
    join = f"{path_of('join', f'!unknown:{REMOTE}')}?via={REMOTE}"
    return [
        ("query/profile", "GET", path_of("profile", ZOE), None),
        ("query/profile", "GET", path_of("profile", ZOE, "displayname"), None),
        ("query/profile", "GET", path_of("profile", ZOE, "org.example.x"), None),
        ("query/directory", "GET", f"/directory/room/{alias}", None),
        ("query/directory", "POST", f"/join/{alias}", {}),
        ("query/directory", "PUT", f"/rooms/{room}/state/m.room.canonical_alias", {"alias": f"#a:{REMOTE}"}),
        ("make_join", "POST", join, {}),
        ("/v2/invite/", "POST", f"/rooms/{room}/invite", {"user_id": ZOE}),
        ("/v2/invite/", "POST", "/createRoom", {"invite": [ZOE]}),
    ]


@pytest.mark.parametrize("body", NONSENSE, ids=[repr(body[:40]) for body in NONSENSE])
def test_nonsense(world: World, answers: Answers, room: str, body: bytes) -> None:
    for part, method, path, sent in requests(room):
        answers.give(part, body)
        answer = world.ask(method, path, sent)
        assert answer.status_code in (200, 400, 404, 502), (part, answer.text)
        if answer.status_code == 200:
            told = answer.json()
            assert part == "query/profile" or "servers" in told or "homeserver.failed_invitations" in told, part


ERRORS = [
    b"", b"x", b"[]", b'{"errcode":1,"error":[]}', b'{"errcode":"\\ud800","error":"\\ud800"}',
    b'{"errcode":"M_FORBIDDEN","error":"no"}', b'{"errcode":"M_INVALID_PARAM","error":"no"}',
    b'{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":"x"}', b'{"errcode":"M_UNABLE_TO_AUTHORISE_JOIN","error":"x"}',
    b'{"errcode":"M_INCOMPATIBLE_ROOM_VERSION","error":"x","room_version":["99"]}',
    b'{"errcode":"' + b"x" * 10_000 + b'"}', deep(300),
]  # fmt: skip


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 413, 429, 500, 503, 599])
def test_errors(world: World, answers: Answers, room: str, status: int) -> None:
    for body in ERRORS:
        for part, method, path, sent in requests(room):
            answers.give(part, body, status)
            answer = world.ask(method, path, sent)
            # A room is made without those who cannot be invited, and the answer says so.
            assert answer.status_code >= 400 or "homeserver.failed_invitations" in answer.json(), (part, answer.text)


def test_what_our_users_are_told_of_versions(world: World, answers: Answers, room: str) -> None:
    refusal = {"errcode": "M_INCOMPATIBLE_ROOM_VERSION", "error": "x", "room_version": "99"}
    answers.give("make_join", refusal, 400)
    join = f"{path_of('join', f'!unknown:{REMOTE}')}?via={REMOTE}"
    assert refused(world.ask("POST", join, {}), 400, "M_INCOMPATIBLE_ROOM_VERSION")["room_version"] == "99"
    answers.give("/v2/invite/", refusal, 400)
    refused(world.ask("POST", f"/rooms/{room}/invite", {"user_id": ZOE}), 400, "M_UNSUPPORTED_ROOM_VERSION")
    made = fine(world.ask("POST", "/createRoom", {"invite": [ZOE]}))
    assert [failed["errcode"] for failed in made["homeserver.failed_invitations"]] == ["M_UNSUPPORTED_ROOM_VERSION"]


def test_profiles_are_passed_on_without_what_is_not_as_it_should_be(world: World, answers: Answers) -> None:
    answers.give("query/profile", {"displayname": None, "avatar_url": 1, "m.tz": [], "org.example": {"a": 1}})
    assert fine(world.ask("GET", path_of("profile", ZOE))) == {"org.example": {"a": 1}}
    refused(world.ask("GET", path_of("profile", ZOE, "displayname")), 404, "M_NOT_FOUND")


@pytest.mark.parametrize("version", ["1", "11", "12"])
def test_templates_and_rooms_with_odd_values(world: World, answers: Answers, version: str) -> None:
    """Answers to make_join and send_join. A join that works in spite of what is odd is left again."""
    other = RoomFactory(version, REMOTE, room_localpart=f"odd{version}")
    other.create("zoe")
    world.remote.room = other
    template = template_for(world, other)
    path = f"{path_of('join', other.room_id)}?via={REMOTE}"

    def join() -> None:
        if world.ask("POST", path, {}).status_code == 200:
            fine(world.ask("GET", f"{path_of('rooms', other.room_id)}/state"))
            fine(world.ask("POST", f"{path_of('rooms', other.room_id)}/leave", {}))

    for field, value in ((field, value) for field in template["event"] for value in SMALL[::3]):
        answers.give("make_join", {**template, "event": {**template["event"], field: value}})
        kept = list(other.extremities)
        join()
        other.extremities = kept
    for field, value in ((field, value) for field in template for value in SMALL):
        answers.give("make_join", {**template, field: value})
        join()
    state = [event.pdu for event in other.state.values()]
    whole: JsonObject = {"state": state, "auth_chain": state, "event": None, "members_omitted": False}
    for field, value in ((field, value) for field in whole for value in SMALL[::2]):
        answers.give("send_join", {**whole, field: value})
        join()
    for number, pdu in enumerate(state):
        for field, value in ((field, value) for field in pdu for value in SMALL[number::6]):
            odd = resigned({**pdu, field: value}, other.version, REMOTE)
            answers.give("send_join", {**whole, "state": [*state[:number], odd, *state[number + 1 :]]})
            join()
    forged = next_pdu(other, "zoe", "m.room.power_levels", {"users": {ALICE: 100}}, "")
    answers.give("send_join", {**whole, "state": [*state, {**forged, "signatures": {}}, 1, None]})
    join()
    answers.give("send_join", b'{"state":[{"x":"\\ud800"}],"auth_chain":[{"x":1e400}]}')
    refused(world.ask("POST", path, {}), 502, "M_UNKNOWN")
    fine(world.ask("GET", "/sync"))


def template_for(world: World, room: RoomFactory) -> JsonObject:
    request = Request({"type": "http", "path_params": {"user_id": ALICE}, "headers": [], "query_string": b""})
    answer = world.run(world.remote._make_join(request))
    made: JsonObject = orjson.loads(answer.body)
    return made


def test_all_is_well_after_all_that(world: World, room: str) -> None:
    fine(world.ask("PUT", f"/rooms/{room}/send/m.room.message/1", {"body": "x"}))
    fine(world.ask("GET", f"/profile/{ALICE}"))
    assert world.ours.name == OURS
