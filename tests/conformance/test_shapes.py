"""What we answer, against the specification's schemas."""

from __future__ import annotations

from typing import Any

import httpx
import jsonschema
import pytest

from homeserver.protocol.compose import finish_template
from homeserver.protocol.events import Event
from homeserver.protocol.room_versions import ROOM_VERSIONS
from tests.conformance.catalogue import Endpoint, Scene, endpoints, quoted
from tests.conformance.odd_events import event_id_of, next_pdu, resigned
from tests.conformance.world import ALICE, BOB, OURS, REMOTE, V1, V2, ZOE, World, fine, path_of
from tests.factories.rooms import RoomFactory, server_key


def check_shape(response: httpx.Response, endpoint: Endpoint) -> None:
    """The body of an answer is of the schema that the endpoint has for its status."""
    schema = endpoint.answers.get(str(response.status_code))
    assert schema is not None, f"{endpoint.name} does not know {response.status_code}: {response.text[:300]}"
    validator = jsonschema.Draft202012Validator(schema)
    wrong = [
        f"{'.'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in validator.iter_errors(response.json())
    ]
    assert wrong == [], endpoint.name


@pytest.fixture(scope="module")
def scene(world: World) -> Scene:
    return Scene(world)


def test_every_endpoint_of_the_client_api(world: World, scene: Scene) -> None:
    seen = set()
    for example in scene.client_examples():
        response = world.ask(example.method, example.path, example.body, example.token)
        if example.path == "/.well-known/matrix/client":
            assert response.status_code == 404  # this server is not told where it is to be found
            continue
        assert response.status_code == 200, (example.endpoint.name, response.text)
        if not example.endpoint.name.endswith("/joined_members"):
            # There a name or an avatar that is not set is null: older clients expect both keys.
            check_shape(response, example.endpoint)
        seen.add(example.endpoint.name)
    assert len(seen) > 40


def test_a_token_is_needed_wherever_the_specification_says_so(world: World, scene: Scene) -> None:
    asked = 0
    for example in scene.client_examples():
        if example.endpoint.needs_token:
            for token, errcode in ((None, "M_MISSING_TOKEN"), ("nonsense", "M_UNKNOWN_TOKEN")):
                response = world.ask(example.method, example.path, example.body, token)
                assert (response.status_code, response.json()["errcode"]) == (401, errcode), example.endpoint.name
            asked += 1
        else:  # and nowhere else
            assert world.ask(example.method, example.path, example.body, None).status_code != 401
    assert asked > 35


EVERYTHING = '{"room":{"include_leave":true,"timeline":{"limit":100},"state":{"lazy_load_members":%s}}}'


@pytest.mark.parametrize("lazy", ["true", "false"])
@pytest.mark.parametrize("use_state_after", ["true", "false"])
def test_syncs_with_everything_in_them(world: World, scene: Scene, lazy: str, use_state_after: str) -> None:
    """Invitations, rooms that were left, typing, receipts, account data; first and later."""
    room, left = scene.fresh_room(BOB), scene.fresh_room(BOB)
    for path in (f"/rooms/{left}/join", f"/rooms/{left}/leave"):
        fine(world.ask("POST", path, {}, "bob"))
    endpoint = endpoints("client-server")["GET /_matrix/client/v3/sync"]
    query = f"filter={quoted(EVERYTHING % lazy)}&use_state_after={use_state_after}"
    first = world.ask("GET", f"/sync?{query}", None, "bob")
    check_shape(first, endpoint)
    rooms = first.json()["rooms"]
    assert (room in rooms["invite"], left in rooms["leave"], scene.room in rooms["join"]) == (True, True, True)
    event = fine(world.ask("PUT", f"/rooms/{scene.room}/send/m.room.message/s{scene.number()}", {"body": "x"}))
    fine(world.ask("POST", f"/rooms/{scene.room}/receipt/m.read{path_of(event['event_id'])}", {}))
    fine(world.ask("PUT", f"/rooms/{scene.room}/typing/{ALICE}", {"typing": True}))
    fine(world.ask("PUT", f"/rooms/{scene.room}/state/m.room.name", {"name": f"Scene {scene.number()}"}))
    fine(world.ask("PUT", f"/user/{BOB}/account_data/org.example", {"a": scene.number()}, "bob"))
    fine(world.ask("PUT", f"/user/{BOB}/rooms/{scene.room}/account_data/org.example", {"a": scene.number()}, "bob"))
    fine(world.ask("POST", f"/rooms/{room}/join", {}, "bob"))
    fine(world.ask("PUT", f"/rooms/{scene.room}/typing/{ALICE}", {"typing": False}))
    later = world.ask("GET", f"/sync?{query}&since={first.json()['next_batch']}", None, "bob")
    check_shape(later, endpoint)
    joined = later.json()["rooms"]["join"]
    assert {room, scene.room} <= joined.keys()
    assert joined[scene.room]["ephemeral"]["events"]
    assert joined[scene.room]["account_data"]["events"]
    state = "state_after" if use_state_after == "true" else "state"
    assert all(state in joined_room or joined_room["timeline"]["events"] for joined_room in joined.values())


@pytest.mark.parametrize("query", ["dir=b&limit=3", "dir=f&limit=3", 'dir=b&filter={"lazy_load_members":true}'])
def test_pages_of_a_room(world: World, scene: Scene, query: str) -> None:
    """From one end to the other, each page with its shape. Backwards the last has no end, forwards it is empty."""
    endpoint = endpoints("client-server")["GET /_matrix/client/v3/rooms/{roomId}/messages"]
    token, pages = "", 0
    while True:
        response = world.ask("GET", f"/rooms/{scene.room}/messages?{query}{token}")
        check_shape(response, endpoint)
        pages += 1
        page = response.json()
        if "end" not in page or (query.startswith("dir=f") and not page["chunk"]):
            break
        token = f"&from={page['end']}"
        assert pages < 1000
    assert pages > 1


def test_whole_events_instead_of_their_content(world: World, scene: Scene) -> None:
    event = fine(world.ask("GET", f"/rooms/{scene.room}/state/m.room.create/?format=event"))
    schema = endpoints("client-server")["GET /_matrix/client/v3/rooms/{roomId}/event/{eventId}"].answers["200"]
    jsonschema.validate(event, schema)
    assert event["type"] == "m.room.create"
    assert fine(world.ask("GET", f"/rooms/{scene.room}/state/m.room.create/?format=content")) == event["content"]


def test_registration_asks_for_authentication(world: World) -> None:
    endpoint = endpoints("client-server")["POST /_matrix/client/v3/register"]
    response = world.ask("POST", "/register", {"username": "x", "password": "y"}, None)
    assert response.status_code == 401
    check_shape(response, endpoint)


# -- the federation API ------------------------------------------------------------------------------------------------


def template(world: World, kind: str, room_id: str, version: str) -> Event:
    """Our answer to make_join and its like, as an event of zoe's."""
    answer = world.ask_signed("GET", f"{V1}{path_of(f'make_{kind}', room_id, ZOE)}?ver={version}")
    check_shape(answer, endpoints("server-server")[f"GET {V1}/make_{kind}/{{roomId}}/{{userId}}"])
    chosen = f"chosen{world.number()}" if version in ("1", "2") else None
    return finish_template(
        answer.json()["event"], ROOM_VERSIONS[version], server_key(REMOTE), 1_700_000_000_000, chosen
    )


@pytest.mark.parametrize("version", ["1", "6", "11", "12"])
def test_joining_reading_and_leaving(world: World, version: str) -> None:
    known = endpoints("server-server")
    name = f"federated{version}"
    body = {"preset": "public_chat", "room_version": version, "room_alias_name": name, "name": "Shared"}
    room = fine(world.ask("POST", "/createRoom", body))["room_id"]
    join = template(world, "join", room, version)
    response = world.ask_signed("PUT", f"{V2}{path_of('send_join', room, join.event_id)}", join.pdu)
    check_shape(response, known[f"PUT {V2}/send_join/{{roomId}}/{{eventId}}"])
    message = fine(world.ask("PUT", f"/rooms/{room}/send/m.room.message/1", {"body": "x"}))["event_id"]
    at = f"event_id={quoted(message)}"
    questions = {
        f"GET {V1}/state/{{roomId}}": f"{path_of('state', room)}?{at}",
        f"GET {V1}/state_ids/{{roomId}}": f"{path_of('state_ids', room)}?{at}",
        f"GET {V1}/event/{{eventId}}": path_of("event", message),
        f"GET {V1}/event_auth/{{roomId}}/{{eventId}}": path_of("event_auth", room, message),
        f"GET {V1}/backfill/{{roomId}}": f"{path_of('backfill', room)}?v={quoted(message)}&limit=3",
        f"GET {V1}/query/directory": f"/query/directory?room_alias={quoted(f'#{name}:{OURS}')}",
    }
    for endpoint, path in questions.items():
        check_shape(world.ask_signed("GET", V1 + path), known[endpoint])
    missing = {"earliest_events": [], "latest_events": [message], "limit": 5, "min_depth": 0}
    response = world.ask_signed("POST", f"{V1}{path_of('get_missing_events', room)}", missing)
    check_shape(response, known[f"POST {V1}/get_missing_events/{{roomId}}"])
    assert response.json()["events"]
    leave = template(world, "leave", room, version)
    response = world.ask_signed("PUT", f"{V2}{path_of('send_leave', room, leave.event_id)}", leave.pdu)
    check_shape(response, known[f"PUT {V2}/send_leave/{{roomId}}/{{eventId}}"])


@pytest.mark.parametrize("version", ["1", "6", "11", "12"])
def test_being_invited_and_told(world: World, version: str) -> None:
    known = endpoints("server-server")
    room = RoomFactory(version, REMOTE, room_localpart=f"shapes{version}")
    room.create("zoe")
    shown = [event.pdu for event in room.state.values()]
    # The endpoint shows an event of old: no room version's event format has an ``origin``.
    pdu = {**next_pdu(room, "zoe", "m.room.member", {"membership": "invite"}, BOB), "origin": REMOTE}
    pdu = resigned(pdu, room.version, REMOTE)
    event_id = event_id_of(pdu, room.version)
    assert event_id is not None
    body: dict[str, Any] = {"event": pdu, "room_version": version, "invite_room_state": shown}
    v2 = f"{V2}{path_of('invite', room.room_id, event_id)}"
    check_shape(world.ask_signed("PUT", v2, body), known[f"PUT {V2}/invite/{{roomId}}/{{eventId}}"])
    if version == "1":
        old = {**pdu, "unsigned": {"invite_room_state": shown}}
        v1 = f"{V1}{path_of('invite', room.room_id, event_id)}"
        check_shape(world.ask_signed("PUT", v1, old), known[f"PUT {V1}/invite/{{roomId}}/{{eventId}}"])
    transaction = {"origin": REMOTE, "origin_server_ts": 1, "pdus": [pdu], "edus": []}
    response = world.ask_signed("PUT", f"{V1}/send/shapes{version}", transaction)
    check_shape(response, known[f"PUT {V1}/send/{{txnId}}"])
    assert response.json()["pdus"].keys() == {event_id}


def test_keys_version_and_profiles(world: World) -> None:
    known = endpoints("server-server")
    fine(world.ask("PUT", f"/profile/{ALICE}/displayname", {"displayname": "Alice"}))
    for endpoint, path in (
        (f"GET {V1}/version", f"{V1}/version"),
        ("GET /_matrix/key/v2/server", "/_matrix/key/v2/server"),
        ("GET /_matrix/key/v2/query/{serverName}", f"/_matrix/key/v2/query/{REMOTE}"),
        (f"GET {V1}/query/profile", f"{V1}/query/profile?user_id={quoted(ALICE)}"),
        (f"GET {V1}/query/profile", f"{V1}/query/profile?user_id={quoted(ALICE)}&field=displayname"),
    ):
        check_shape(world.ask_signed("GET", path), known[endpoint])
    wanted = {"server_keys": {REMOTE: {"ed25519:1": {"minimum_valid_until_ts": 1}}, OURS: {}}}
    response = world.ask_signed("POST", "/_matrix/key/v2/query", wanted)
    check_shape(response, known["POST /_matrix/key/v2/query"])
    assert {entry["server_name"] for entry in response.json()["server_keys"]} == {REMOTE, OURS}
