"""The errors that the client API names: each request here breaks one rule, and gets the code of that rule."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.catalogue import Scene, quoted
from tests.conformance.odd_events import A_HASH
from tests.conformance.world import ALICE, BOB, CAROL, OURS, REMOTE, World, fine, path_of, refused

UNKNOWN_ROOM, NOBODY = f"!unknown:{OURS}", f"@nobody:{OURS}"
SIGNED = {"sender": ALICE, "mxid": CAROL, "token": "t", "signatures": {}}


@pytest.fixture(scope="module")
def scene(world: World) -> Scene:
    return Scene(world)


@pytest.fixture(scope="module")
def names(world: World, scene: Scene) -> dict[str, str]:
    """What the requests below stand for: rooms, events, users."""
    private = scene.fresh_room()
    return {
        "{room}": scene.room,
        "{private}": private,
        "{left}": scene.room_left_by_carol(),
        "{banning}": scene.room_that_banned_carol(),
        "{inviting}": scene.fresh_room(CAROL),
        "{twelve}": fine(world.ask("POST", "/createRoom", {"room_version": "12"}))["room_id"],
        "{unknown}": UNKNOWN_ROOM,
        "{event}": scene.message,
        "{hidden}": fine(world.ask("PUT", f"/rooms/{private}/send/m.room.message/1", {"body": "x"}))["event_id"],
        "{nothing}": "$" + A_HASH,
        "{alice}": ALICE,
        "{bob}": BOB,
        "{carol}": CAROL,
        "{nobody}": NOBODY,
    }


def filled(value: Any, names: dict[str, str], *, in_path: bool = False) -> Any:
    if isinstance(value, str):
        for name, meaning in names.items():
            value = value.replace(name, quoted(meaning) if in_path else meaning)
        return value
    if isinstance(value, dict):
        return {filled(key, names): filled(inner, names) for key, inner in value.items()}
    return [filled(inner, names) for inner in value] if isinstance(value, list) else value


def alias(localpart: str, server: str = OURS) -> str:
    return quoted(f"#{localpart}:{server}")


STRANGERS_READ = [
    ("carol", "GET", "/rooms/{private}/state", None, 403, "M_FORBIDDEN"),
    ("carol", "GET", "/rooms/{unknown}/state", None, 403, "M_FORBIDDEN"),
    ("carol", "GET", "/rooms/{private}/state/m.room.name", None, 403, "M_FORBIDDEN"),
    ("carol", "GET", "/rooms/{unknown}/state/m.room.name/", None, 403, "M_FORBIDDEN"),
    ("carol", "GET", "/rooms/{private}/members", None, 403, "M_FORBIDDEN"),
    ("carol", "GET", "/rooms/{unknown}/members", None, 403, "M_FORBIDDEN"),
    ("carol", "GET", "/rooms/{private}/joined_members", None, 403, "M_FORBIDDEN"),
    ("carol", "GET", "/rooms/{left}/joined_members", None, 403, "M_FORBIDDEN"),
    ("carol", "GET", "/rooms/{inviting}/messages?dir=b", None, 403, "M_FORBIDDEN"),
    ("carol", "GET", "/rooms/{unknown}/messages?dir=b", None, 403, "M_FORBIDDEN"),
    ("carol", "GET", "/rooms/{private}/event/{hidden}", None, 404, "M_NOT_FOUND"),
    ("carol", "GET", "/rooms/{unknown}/event/{hidden}", None, 404, "M_NOT_FOUND"),
    ("alice", "GET", "/rooms/{room}/event/{hidden}", None, 404, "M_NOT_FOUND"),
    ("alice", "GET", "/rooms/{room}/event/{nothing}", None, 404, "M_NOT_FOUND"),
    ("alice", "GET", "/rooms/{room}/event/nonsense", None, 404, "M_NOT_FOUND"),
    ("alice", "GET", "/rooms/{room}/state/m.room.name/key", None, 404, "M_NOT_FOUND"),
    ("carol", "GET", "/rooms/{private}/aliases", None, 403, "M_FORBIDDEN"),
    ("carol", "GET", "/rooms/nonsense/aliases", None, 400, "M_INVALID_PARAM"),
]
PARAMETERS = [
    ("alice", "GET", "/rooms/{room}/messages", None, 400, "M_MISSING_PARAM"),
    ("alice", "GET", "/rooms/{room}/messages?dir=x", None, 400, "M_INVALID_PARAM"),
    ("alice", "GET", "/rooms/{room}/messages?dir=b&limit=x", None, 400, "M_INVALID_PARAM"),
    ("alice", "GET", "/rooms/{room}/messages?dir=b&limit=-1", None, 400, "M_INVALID_PARAM"),
    ("alice", "GET", "/rooms/{room}/messages?dir=b&from=x", None, 400, "M_INVALID_PARAM"),
    ("alice", "GET", "/rooms/{room}/messages?dir=b&to=s-1", None, 400, "M_INVALID_PARAM"),
    ("alice", "GET", "/rooms/{room}/messages?dir=b&filter={", None, 400, "M_NOT_JSON"),
    ("alice", "GET", '/rooms/{room}/messages?dir=b&filter={"types":1}', None, 400, "M_BAD_JSON"),
    ("alice", "GET", "/rooms/{room}/members?at=x", None, 400, "M_INVALID_PARAM"),
    ("alice", "GET", "/rooms/{room}/members?membership=x", None, 400, "M_INVALID_PARAM"),
    ("alice", "GET", "/rooms/{room}/state/m.room.name?format=x", None, 400, "M_INVALID_PARAM"),
    ("alice", "GET", "/sync?since=x", None, 400, "M_INVALID_PARAM"),
    ("alice", "GET", "/sync?since=s99999999999", None, 400, "M_UNKNOWN_POS"),
    ("alice", "GET", "/sync?timeout=x", None, 400, "M_INVALID_PARAM"),
    ("alice", "GET", "/sync?full_state=x", None, 400, "M_INVALID_PARAM"),
    ("alice", "GET", "/sync?set_presence=x", None, 400, "M_INVALID_PARAM"),
    ("alice", "GET", "/sync?filter=unknown", None, 400, "M_INVALID_PARAM"),
    ("alice", "GET", "/sync?filter={", None, 400, "M_NOT_JSON"),
    ("alice", "GET", '/sync?filter={"room":1}', None, 400, "M_BAD_JSON"),
    ("alice", "GET", "/joined_rooms?a=%00", None, 400, "M_INVALID_PARAM"),
    ("alice", "GET", "/profile/%00", None, 400, "M_INVALID_PARAM"),
    ("alice", "GET", "/profile/%ff", None, 400, "M_INVALID_PARAM"),
]
FILTERS = [
    ("alice", "POST", "/user/{bob}/filter", {}, 403, "M_FORBIDDEN"),
    ("alice", "GET", "/user/{bob}/filter/x", None, 403, "M_FORBIDDEN"),
    ("alice", "GET", "/user/{alice}/filter/unknown", None, 404, "M_NOT_FOUND"),
    ("alice", "POST", "/user/{alice}/filter", {"room": []}, 400, "M_BAD_JSON"),
    ("alice", "POST", "/user/{alice}/filter", {"event_format": "x"}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/user/{alice}/filter", {"a": "x" * 70_000}, 413, "M_TOO_LARGE"),
]
ROOM_CREATION = [
    ("alice", "POST", "/createRoom", {"room_version": "99"}, 400, "M_UNSUPPORTED_ROOM_VERSION"),
    ("alice", "POST", "/createRoom", {"room_version": 11}, 400, "M_BAD_JSON"),
    ("alice", "POST", "/createRoom", {"room_alias_name": "scene"}, 400, "M_ROOM_IN_USE"),
    ("alice", "POST", "/createRoom", {"room_alias_name": ""}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/createRoom", {"room_alias_name": "a:b"}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/createRoom", {"room_alias_name": "x" * 250}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/createRoom", {"preset": "x"}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/createRoom", {"visibility": "x"}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/createRoom", {"invite": "{bob}"}, 400, "M_BAD_JSON"),
    ("alice", "POST", "/createRoom", {"invite": ["bob"]}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/createRoom", {"invite": ["{nobody}"]}, 404, "M_NOT_FOUND"),
    ("alice", "POST", "/createRoom", {"invite_3pid": [{"medium": "email"}]}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/createRoom", {"initial_state": [{"type": "a"}]}, 400, "M_MISSING_PARAM"),
    ("alice", "POST", "/createRoom", {"initial_state": [{"type": "a", "content": []}]}, 400, "M_BAD_JSON"),
    ("alice", "POST", "/createRoom", {"initial_state": [{"type": "m.room.create", "content": {}}]}, 400,
     "M_INVALID_ROOM_STATE"),
    ("alice", "POST", "/createRoom", {"power_level_content_override": {"users": {ALICE: 0}}, "name": "x"}, 400,
     "M_INVALID_ROOM_STATE"),
    ("alice", "POST", "/createRoom", {"power_level_content_override": {"users": {ALICE: "100"}}}, 400, "M_BAD_JSON"),
    ("alice", "POST", "/createRoom", {"power_level_content_override": {"ban": True}, "room_version": "1"}, 400,
     "M_BAD_JSON"),
    ("alice", "POST", "/createRoom", {"power_level_content_override": {"users": {"bob": 50}}}, 400, "M_BAD_JSON"),
    ("alice", "POST", "/createRoom", {"creation_content": {"m.federate": "no"}}, 400, "M_BAD_JSON"),
    ("alice", "POST", "/createRoom", {"creation_content": {"m.federate": False}, "invite": [f"@z:{REMOTE}"]}, 403,
     "M_FORBIDDEN"),
    ("alice", "POST", "/createRoom", {"name": "x" * 70_000}, 413, "M_TOO_LARGE"),
]  # fmt: skip
MEMBERSHIPS = [
    ("carol", "POST", "/join/{private}", {}, 403, "M_FORBIDDEN"),
    ("carol", "POST", "/join/{banning}", {}, 403, "M_FORBIDDEN"),
    ("carol", "POST", "/rooms/{left}/join", {}, 403, "M_FORBIDDEN"),
    ("carol", "POST", "/join/nonsense", {}, 400, "M_INVALID_PARAM"),
    ("carol", "POST", f"/join/{alias('unknown')}", {}, 404, "M_NOT_FOUND"),
    ("carol", "POST", "/join/{unknown}", {}, 404, "M_NOT_FOUND"),
    ("carol", "POST", "/rooms/nonsense/join", {}, 400, "M_INVALID_PARAM"),
    ("carol", "POST", "/join/{room}", {"third_party_signed": SIGNED}, 403, "M_FORBIDDEN"),
    ("carol", "POST", "/rooms/{room}/join", {"third_party_signed": SIGNED}, 403, "M_FORBIDDEN"),
    ("carol", "POST", "/join/{room}", {"third_party_signed": {}}, 400, "M_MISSING_PARAM"),
    ("carol", "POST", "/join/{room}", {"third_party_signed": []}, 400, "M_BAD_JSON"),
    ("carol", "POST", "/join/{room}?" + "&via=x" * 60, {}, 400, "M_INVALID_PARAM"),
    ("carol", "POST", "/rooms/{unknown}/leave", {}, 404, "M_NOT_FOUND"),
    ("carol", "POST", "/rooms/{private}/leave", {}, 404, "M_NOT_FOUND"),
    ("carol", "POST", "/rooms/{banning}/leave", {}, 403, "M_FORBIDDEN"),
    ("carol", "POST", "/rooms/{inviting}/forget", {}, 400, "M_UNKNOWN"),
    ("alice", "POST", "/rooms/{room}/forget", {}, 400, "M_UNKNOWN"),
    ("carol", "POST", "/rooms/{unknown}/forget", {}, 404, "M_NOT_FOUND"),
    ("alice", "POST", "/rooms/{room}/kick", {"user_id": CAROL}, 403, "M_FORBIDDEN"),
    ("alice", "POST", "/rooms/{banning}/kick", {"user_id": CAROL}, 403, "M_FORBIDDEN"),
    ("bob", "POST", "/rooms/{room}/kick", {"user_id": ALICE}, 403, "M_FORBIDDEN"),
    ("carol", "POST", "/rooms/{room}/kick", {"user_id": BOB}, 403, "M_FORBIDDEN"),
    ("alice", "POST", "/rooms/{room}/kick", {}, 400, "M_MISSING_PARAM"),
    ("alice", "POST", "/rooms/{room}/kick", {"user_id": 1}, 400, "M_BAD_JSON"),
    ("bob", "POST", "/rooms/{room}/ban", {"user_id": CAROL}, 403, "M_FORBIDDEN"),
    ("carol", "POST", "/rooms/{room}/ban", {"user_id": BOB}, 403, "M_FORBIDDEN"),
    ("alice", "POST", "/rooms/{room}/ban", {"user_id": "carol"}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/rooms/{unknown}/ban", {"user_id": CAROL}, 403, "M_FORBIDDEN"),
    ("alice", "POST", "/rooms/{room}/unban", {"user_id": CAROL}, 403, "M_BAD_STATE"),
    ("bob", "POST", "/rooms/{banning}/unban", {"user_id": CAROL}, 403, "M_FORBIDDEN"),
    ("alice", "POST", "/rooms/{banning}/invite", {"user_id": CAROL}, 403, "M_FORBIDDEN"),
    ("alice", "POST", "/rooms/{room}/invite", {"user_id": BOB}, 403, "M_FORBIDDEN"),
    ("carol", "POST", "/rooms/{room}/invite", {"user_id": BOB}, 403, "M_FORBIDDEN"),
    ("alice", "POST", "/rooms/{room}/invite", {"user_id": NOBODY}, 404, "M_NOT_FOUND"),
    ("alice", "POST", "/rooms/{room}/invite", {"user_id": "carol"}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/rooms/{room}/invite", {"medium": "email", "address": "a@b.c"}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/rooms/{room}/invite", {}, 400, "M_MISSING_PARAM"),
    ("alice", "POST", "/rooms/{room}/invite", {"user_id": f"@z:{REMOTE.replace('remote', 'gone')}"}, 502, "M_UNKNOWN"),
]
LEVELS = "/rooms/{room}/state/m.room.power_levels"
CANONICAL = "/rooms/{room}/state/m.room.canonical_alias"
EVENTS = [
    ("carol", "PUT", "/rooms/{room}/send/m.room.message/1", {}, 403, "M_FORBIDDEN"),
    ("alice", "PUT", "/rooms/{unknown}/send/m.room.message/1", {}, 403, "M_FORBIDDEN"),
    ("bob", "PUT", "/rooms/{room}/state/m.room.name", {}, 403, "M_FORBIDDEN"),
    ("alice", "PUT", "/rooms/{room}/send/m.room.message/1", {"a": "x" * 65_536}, 413, "M_TOO_LARGE"),
    ("alice", "PUT", "/rooms/{room}/send/m.room.message/1", {"a": "x" * 300_000}, 413, "M_TOO_LARGE"),
    ("alice", "PUT", "/rooms/{room}/send/" + "t" * 256 + "/1", {}, 413, "M_TOO_LARGE"),
    ("alice", "PUT", "/rooms/{room}/state/a/" + "%C3%A9" * 128, {}, 413, "M_TOO_LARGE"),
    ("alice", "PUT", "/rooms/{room}/send/a/" + "t" * 256, {}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", "/rooms/{room}/send/a/1", {"a": 1.5}, 400, "M_BAD_JSON"),
    ("alice", "PUT", "/rooms/{room}/send/a/1", {"a": 2**53}, 400, "M_BAD_JSON"),
    ("alice", "PUT", "/rooms/{room}/send/a/1", {"a": -(2**53)}, 400, "M_BAD_JSON"),
    ("alice", "POST", "/rooms/{room}/send/a", {"a": 1.5}, 400, "M_BAD_JSON"),
    ("alice", "PUT", "/rooms/{room}/state/a", {"a": 1e300}, 400, "M_BAD_JSON"),
    ("alice", "PUT", "/rooms/{room}/state/m.room.create", {}, 400, "M_BAD_JSON"),
    ("alice", "PUT", "/rooms/{room}/send/m.room.create/1", {}, 400, "M_BAD_JSON"),
    ("alice", "PUT", "/rooms/{room}/send/m.room.member/1", {"membership": "join"}, 400, "M_BAD_JSON"),
    ("alice", "PUT", "/rooms/{room}/state/m.room.tombstone", {"replacement_room": "{room}"}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", "/rooms/{room}/send/m.room.tombstone/1", {"replacement_room": "{room}"}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", "/rooms/{room}/redact/{hidden}/1", {}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/rooms/{room}/redact/{hidden}", {}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", "/rooms/{room}/send/m.room.redaction/1", {"redacts": "{hidden}"}, 400, "M_INVALID_PARAM"),
    ("bob", "POST", "/rooms/{room}/redact/{event}", {}, 403, "M_FORBIDDEN"),
    ("carol", "POST", "/rooms/{room}/send/m.room.message", {}, 403, "M_FORBIDDEN"),
    ("alice", "PUT", "/rooms/{room}/send/m.room.redaction/1", {}, 400, "M_BAD_JSON"),
    ("alice", "PUT", "/rooms/{room}/send/m.room.redaction/1", {"redacts": 1}, 400, "M_BAD_JSON"),
    ("alice", "PUT", "/rooms/{room}/send/m.room.redaction/1", {"redacts": "x"}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", "/rooms/{room}/redact/nonsense/1", {}, 400, "M_INVALID_PARAM"),
    ("bob", "PUT", "/rooms/{room}/redact/{event}/1", {}, 403, "M_FORBIDDEN"),
    ("carol", "PUT", "/rooms/{room}/redact/{event}/1", {}, 403, "M_FORBIDDEN"),
    ("alice", "PUT", "/rooms/{room}/redact/{event}/1", {"reason": 1}, 400, "M_BAD_JSON"),
    ("alice", "PUT", "/rooms/{room}/state/m.room.member/nonsense", {"membership": "join"}, 400, "M_BAD_JSON"),
    ("alice", "PUT", "/rooms/{room}/state/m.room.member/{carol}", {}, 400, "M_BAD_JSON"),
    ("alice", "PUT", "/rooms/{room}/state/m.room.member/{carol}", {"membership": []}, 400, "M_BAD_JSON"),
    ("alice", "PUT", "/rooms/{room}/state/m.room.member/{carol}", {"membership": "join"}, 403, "M_FORBIDDEN"),
    ("alice", "PUT", "/rooms/{room}/state/m.room.member/{nobody}", {"membership": "invite"}, 404, "M_NOT_FOUND"),
    ("alice", "PUT", LEVELS, {"users": {ALICE: "100"}}, 400, "M_BAD_JSON"),
    ("alice", "PUT", LEVELS, {"users": []}, 400, "M_BAD_JSON"),
    ("alice", "PUT", LEVELS, {"users": {ALICE: 100, "bob": 50}}, 400, "M_BAD_JSON"),
    ("alice", "PUT", LEVELS, {"users": {ALICE: 100, "@bob:b.test:http": 50}}, 400, "M_BAD_JSON"),
    ("alice", "PUT", LEVELS, {"users": {ALICE: 100}, "ban": "50"}, 400, "M_BAD_JSON"),
    ("alice", "PUT", LEVELS, {"users": {ALICE: 100}, "events": {"a": None}}, 400, "M_BAD_JSON"),
    ("alice", "PUT", LEVELS, {"users": {ALICE: 100}, "notifications": {"room": "50"}}, 400, "M_BAD_JSON"),
    ("alice", "PUT", LEVELS.replace("room}", "twelve}"), {"users": {ALICE: 100}}, 400, "M_BAD_JSON"),
    ("carol", "PUT", LEVELS.replace("room}", "twelve}"), {"users": {ALICE: 100}}, 403, "M_FORBIDDEN"),
    ("alice", "PUT", CANONICAL, {"alias": f"#unknown:{OURS}"}, 400, "M_BAD_ALIAS"),
    ("alice", "PUT", CANONICAL, {"alias": "#a:b.test:http"}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", CANONICAL, {"alt_aliases": [f"#unknown:{OURS}"]}, 400, "M_BAD_ALIAS"),
    ("alice", "PUT", CANONICAL, {"alias": f"#a:gone.{REMOTE}"}, 400, "M_BAD_ALIAS"),
    ("alice", "PUT", CANONICAL, {"alias": "nonsense"}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", CANONICAL, {"alias": 0}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", CANONICAL, {"alt_aliases": "x"}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", CANONICAL, {"alt_aliases": [f"#a{n}:b{n}.test" for n in range(50)]}, 400, "M_INVALID_PARAM"),
    ("carol", "PUT", CANONICAL, {"alias": f"#unknown:{OURS}"}, 403, "M_FORBIDDEN"),
]
ALIASES = [
    ("alice", "PUT", f"/directory/room/{alias('scene')}", {"room_id": "{room}"}, 409, "M_UNKNOWN"),
    ("alice", "PUT", "/directory/room/nonsense", {"room_id": "{room}"}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", f"/directory/room/{alias('')}", {"room_id": "{room}"}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", f"/directory/room/{alias('x', REMOTE)}", {"room_id": "{room}"}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", f"/directory/room/{alias('new')}", {}, 400, "M_MISSING_PARAM"),
    ("alice", "PUT", f"/directory/room/{alias('new')}", {"room_id": "nonsense"}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", f"/directory/room/{alias('new')}", {"room_id": "\0"}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", f"/directory/room/{alias('new')}", {"room_id": "{unknown}"}, 404, "M_NOT_FOUND"),
    ("carol", "PUT", f"/directory/room/{alias('new')}", {"room_id": "{room}"}, 403, "M_FORBIDDEN"),
    (None, "GET", f"/directory/room/{alias('unknown')}", None, 404, "M_NOT_FOUND"),
    (None, "GET", "/directory/room/nonsense", None, 400, "M_INVALID_PARAM"),
    (None, "GET", f"/directory/room/{alias('a', 'b.test:http')}", None, 400, "M_INVALID_PARAM"),
    ("carol", "POST", f"/join/{alias('a', 'b.test:http')}", {}, 400, "M_INVALID_PARAM"),
    ("carol", "POST", "/join/{unknown}?via=b.test:http", {}, 400, "M_INVALID_PARAM"),
    ("carol", "POST", "/join/{unknown}?server_name=b.test:99999", {}, 400, "M_INVALID_PARAM"),
    ("carol", "POST", "/join/!a:b.test:http", {}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/rooms/{room}/invite", {"user_id": "@a:b.test:http"}, 400, "M_INVALID_PARAM"),
    (None, "GET", "/profile/@a:b.test:http", None, 400, "M_INVALID_PARAM"),
    (None, "GET", "/profile/@a:b.test:http/displayname", None, 400, "M_INVALID_PARAM"),
    ("alice", "DELETE", f"/directory/room/{alias('unknown')}", None, 404, "M_NOT_FOUND"),
    ("bob", "DELETE", f"/directory/room/{alias('scene')}", None, 403, "M_FORBIDDEN"),
]
OWN_THINGS = [
    (None, "GET", "/profile/{nobody}", None, 404, "M_NOT_FOUND"),
    (None, "GET", "/profile/{nobody}/displayname", None, 404, "M_NOT_FOUND"),
    (None, "GET", "/profile/{alice}/org.example.none", None, 404, "M_NOT_FOUND"),
    (None, "GET", "/profile/nonsense", None, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", "/profile/{bob}/displayname", {"displayname": "x"}, 403, "M_FORBIDDEN"),
    ("alice", "DELETE", "/profile/{bob}/displayname", None, 403, "M_FORBIDDEN"),
    ("alice", "PUT", "/profile/{alice}/displayname", {"name": "x"}, 400, "M_MISSING_PARAM"),
    ("alice", "PUT", "/profile/{alice}/displayname", {"displayname": 1}, 400, "M_BAD_JSON"),
    ("alice", "PUT", "/profile/{alice}/avatar_url", {"avatar_url": "http://x"}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", "/profile/{alice}/Nonsense", {"Nonsense": "x"}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", "/profile/{alice}/a." + "x" * 256, {"a." + "x" * 256: 1}, 400, "M_KEY_TOO_LARGE"),
    ("alice", "PUT", "/profile/{alice}/org.example.x", {"org.example.x": "x" * 65_536}, 400, "M_PROFILE_TOO_LARGE"),
    ("alice", "PUT", "/user/{alice}/account_data/m.fully_read", {}, 405, "M_BAD_JSON"),
    ("alice", "PUT", "/user/{alice}/account_data/m.push_rules", {}, 405, "M_BAD_JSON"),
    ("alice", "PUT", "/user/{alice}/rooms/{room}/account_data/m.fully_read", {}, 405, "M_BAD_JSON"),
    ("alice", "PUT", "/user/{alice}/rooms/{room}/account_data/m.push_rules", {}, 405, "M_BAD_JSON"),
    ("alice", "PUT", "/user/{alice}/rooms/nonsense/account_data/a", {}, 400, "M_INVALID_PARAM"),
    ("alice", "GET", "/user/{alice}/rooms/nonsense/account_data/a", None, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", "/user/{bob}/account_data/a", {}, 403, "M_FORBIDDEN"),
    ("alice", "GET", "/user/{bob}/account_data/a", None, 403, "M_FORBIDDEN"),
    ("alice", "GET", "/user/{bob}/rooms/{room}/account_data/a", None, 403, "M_FORBIDDEN"),
    ("alice", "GET", "/user/{alice}/account_data/none", None, 404, "M_NOT_FOUND"),
    ("alice", "GET", "/user/{alice}/rooms/{room}/account_data/none", None, 404, "M_NOT_FOUND"),
    ("alice", "PUT", "/user/{alice}/account_data/a", [], 400, "M_BAD_JSON"),
    ("alice", "PUT", "/user/{alice}/account_data/" + "a" * 256, {}, 400, "M_INVALID_PARAM"),
    ("alice", "PUT", "/user/{alice}/account_data/a", {"a": "x" * 300_000}, 413, "M_TOO_LARGE"),
    ("alice", "PUT", "/rooms/{room}/typing/{bob}", {"typing": True}, 403, "M_FORBIDDEN"),
    ("carol", "PUT", "/rooms/{room}/typing/{carol}", {"typing": True}, 403, "M_FORBIDDEN"),
    ("alice", "PUT", "/rooms/{room}/typing/{alice}", {}, 400, "M_MISSING_PARAM"),
    ("alice", "PUT", "/rooms/{room}/typing/{alice}", {"typing": 1}, 400, "M_BAD_JSON"),
    ("alice", "PUT", "/rooms/{room}/typing/{alice}", {"typing": True, "timeout": -1}, 400, "M_BAD_JSON"),
    ("alice", "POST", "/rooms/{room}/receipt/m.read/{nothing}", {}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/rooms/{room}/receipt/m.read/{hidden}", {}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/rooms/{room}/receipt/m.nonsense/{event}", {}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/rooms/{room}/receipt/m.read/{event}", {"thread_id": ""}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/rooms/{room}/receipt/m.read/{event}", {"thread_id": None}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/rooms/{room}/receipt/m.read/{event}", {"thread_id": "$other"}, 400, "M_INVALID_PARAM"),
    ("alice", "POST", "/rooms/{room}/receipt/m.fully_read/{event}", {"thread_id": "main"}, 400, "M_INVALID_PARAM"),
    ("carol", "POST", "/rooms/{room}/receipt/m.read/{event}", {}, 403, "M_FORBIDDEN"),
]
PASSWORD = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}, "password": "x"}
DUMMY = {"auth": {"type": "m.login.dummy"}}
ACCOUNTS = [
    (None, "POST", "/login", {}, 400, "M_MISSING_PARAM"),
    (None, "POST", "/login", {"type": "m.login.nonsense"}, 400, "M_UNKNOWN"),
    (None, "POST", "/login", PASSWORD, 403, "M_FORBIDDEN"),
    (None, "POST", "/login", {**PASSWORD, "identifier": {"type": "m.id.user", "user": NOBODY}}, 403, "M_FORBIDDEN"),
    (None, "POST", "/login", {**PASSWORD, "identifier": {"type": "m.id.nonsense"}}, 400, "M_UNKNOWN"),
    (None, "POST", "/login", {**PASSWORD, "device_id": "x" * 300}, 400, "M_INVALID_PARAM"),
    (None, "POST", "/login", {**PASSWORD, "password": None}, 400, "M_BAD_JSON"),
    (None, "POST", "/register?kind=guest", {}, 403, "M_FORBIDDEN"),
    (None, "POST", "/register?kind=nonsense", {}, 400, "M_INVALID_PARAM"),
    (None, "POST", "/register", {"username": "alice", "password": "x"}, 400, "M_USER_IN_USE"),
    (None, "POST", "/register", {"username": "Ö", "password": "x"}, 400, "M_INVALID_USERNAME"),
    (None, "POST", "/register", {"username": "x" * 255, "password": "x"}, 400, "M_INVALID_USERNAME"),
    (None, "POST", "/register", {"username": "fresh", "password": "", **DUMMY}, 400, "M_WEAK_PASSWORD"),
    (None, "POST", "/register", {"username": "fresh", "password": "x", "auth": 1}, 400, "M_BAD_JSON"),
    (None, "POST", "/register", {"username": "fresh", "password": "x", "inhibit_login": "x"}, 400, "M_BAD_JSON"),
    (None, "GET", "/register/available?username=alice", None, 400, "M_USER_IN_USE"),
    (None, "GET", "/register/available?username=%C3%A9", None, 400, "M_INVALID_USERNAME"),
    (None, "GET", "/register/available", None, 400, "M_MISSING_PARAM"),
    (None, "POST", "/refresh", {"refresh_token": "x"}, 401, "M_UNKNOWN_TOKEN"),
    (None, "POST", "/refresh", {}, 400, "M_MISSING_PARAM"),
]
ALL = [
    *STRANGERS_READ, *PARAMETERS, *FILTERS, *ROOM_CREATION, *MEMBERSHIPS, *EVENTS, *ALIASES, *OWN_THINGS, *ACCOUNTS,
]  # fmt: skip


@pytest.mark.parametrize(
    ("who", "method", "path", "body", "status", "errcode"),
    ALL,
    ids=[f"{case[1]}-{case[2][:40]}-{case[5]}-{number}" for number, case in enumerate(ALL)],
)
def test_broken_rules(
    world: World,
    names: dict[str, str],
    who: str | None,
    method: str,
    path: str,
    body: Any,
    status: int,
    errcode: str,
) -> None:
    answer = world.ask(method, filled(path, names, in_path=True), filled(body, names), who)
    refused(answer, status, errcode)


# -- tokens ------------------------------------------------------------------------------------------------------------


def headers(*values: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", value) for value in values]


@pytest.mark.parametrize(
    ("query", "authorization", "errcode"),
    [
        (b"", headers(b"Bearer alice"), None),
        (b"", headers(b"bearer   alice"), None),
        (b"access_token=alice", [], None),
        (b"access_token=wrong", headers(b"Bearer alice"), None),
        (b"user_id=%40bob%3Aours.test%3A8448", headers(b"Bearer alice"), None),
        (b"", [], "M_MISSING_TOKEN"),
        (b"", headers(b"Bearer"), "M_MISSING_TOKEN"),
        (b"", headers(b"Bearer "), "M_MISSING_TOKEN"),
        (b"", headers(b"Basic alice"), "M_MISSING_TOKEN"),
        (b"", headers(b"alice"), "M_MISSING_TOKEN"),
        (b"", headers(b"Bearer alice", b"Bearer alice"), "M_MISSING_TOKEN"),
        (b"access_token=", [], "M_MISSING_TOKEN"),
        (b"access_token=wrong", [], "M_UNKNOWN_TOKEN"),
        (b"", headers(b"Bearer \xff\xfe"), "M_UNKNOWN_TOKEN"),
        (b"", headers(b"Bearer " + b"x" * 10_000), "M_UNKNOWN_TOKEN"),
        (b"", headers(b"Bearer alice bob"), "M_UNKNOWN_TOKEN"),
        (b"", headers(b"X-Matrix origin=a,key=b,sig=c"), "M_MISSING_TOKEN"),
    ],
)
def test_tokens(world: World, query: bytes, authorization: list[tuple[bytes, bytes]], errcode: str | None) -> None:
    target = b"/_matrix/client/v3/account/whoami?" + query
    answer = world.checked(world.raw("GET", target, authorization))
    if errcode is None:
        assert fine(answer)["user_id"] == ALICE  # whatever ?user_id= says: it is for application services
    else:
        refused(answer, 401, errcode)


def test_a_token_that_has_expired_or_was_given_back(world: World) -> None:
    expired = world.run(world.new_token("alice", "EXPIRED", expires_ts=1))
    assert refused(world.ask("GET", "/account/whoami", None, expired), 401, "M_UNKNOWN_TOKEN")["soft_logout"] is True
    given_back = world.run(world.new_token("alice", "GONE"))
    fine(world.ask("POST", "/logout", {}, given_back))
    assert "soft_logout" not in refused(world.ask("GET", "/sync", None, given_back), 401, "M_UNKNOWN_TOKEN")


def test_transaction_ids_belong_to_a_device_and_a_path(world: World, scene: Scene) -> None:
    other = world.run(world.new_token("alice", "OTHER"))
    here, there = f"/rooms/{scene.room}/send/a", f"/rooms/{scene.fresh_room()}/send/a"
    first = fine(world.ask("PUT", f"{here}/same", {"n": 1}))
    assert fine(world.ask("PUT", f"{here}/same", {"n": 2})) == first
    assert fine(world.ask("PUT", f"{here.replace('/send/a', '/send/b')}/same", {"n": 1})) != first
    assert fine(world.ask("PUT", f"{there}/same", {"n": 1})) != first
    assert fine(world.ask("PUT", f"{here}/same", {"n": 1}, other)) != first
    assert fine(world.ask("PUT", f"{here}/same", {"n": 1}, "bob")) != first
    redact = f"/rooms/{scene.room}{path_of('redact', first['event_id'])}/same"
    redaction = fine(world.ask("PUT", redact, {}))
    assert redaction != first
    assert fine(world.ask("PUT", redact, {"reason": "x"})) == redaction


def test_what_ends_well_after_all(world: World, scene: Scene) -> None:
    """Answers that are 200 although one might think otherwise."""
    left = scene.room_left_by_carol()
    fine(world.ask("POST", f"/rooms/{left}/leave", {}, "carol"))
    fine(world.ask("POST", f"/rooms/{left}/forget", None, "carol"))
    fine(world.ask("POST", f"/rooms/{left}/forget", {}, "carol"))
    inviting = scene.fresh_room(CAROL)
    fine(world.ask("POST", f"/rooms/{inviting}/invite", {"user_id": CAROL}))
    fine(world.ask("POST", f"/rooms/{scene.room}/join", None, "bob"))
    fine(world.ask("DELETE", f"/profile/{ALICE}/org.example.never"))
    fine(world.ask("PUT", f"/rooms/{scene.room}/state/m.room.canonical_alias", {"alias": ""}))
    fine(world.ask("PUT", f"/rooms/{scene.room}/state/m.room.canonical_alias", {"alias": f"#scene:{OURS}"}))
    fine(world.ask("GET", f"/rooms/{scene.room}/messages?dir=b&from=s0&to=t5_5&limit=0"))
