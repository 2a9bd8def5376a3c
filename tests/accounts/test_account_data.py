from __future__ import annotations

import asyncio

import pytest

from homeserver.storage.account_data import account_data_since, all_account_data
from tests.accounts.account_server import AccountServer, assert_error

ALICE = "@alice:example.org"
GLOBAL = f"/user/{ALICE}/account_data"
ROOM_ID = "!room:example.org"
IN_ROOM = f"/user/{ALICE}/rooms/{ROOM_ID}/account_data"


@pytest.fixture
def alice(server: AccountServer) -> str:
    return server.register("alice")["access_token"]


def test_what_is_put_is_got(server: AccountServer, alice: str) -> None:
    assert_error(server.request("GET", f"{GLOBAL}/m.direct", token=alice), 404, "M_NOT_FOUND")
    for path, content in [(GLOBAL, {"a": 1}), (IN_ROOM, {"b": [1.5, "\0", None]}), (GLOBAL, {"c": {}})]:
        assert server.request("PUT", f"{path}/m.direct", content, alice).json() == {}
        assert server.request("GET", f"{path}/m.direct", token=alice).json() == content
    assert server.request("GET", f"{IN_ROOM}/m.direct", token=alice).json() == {"b": [1.5, "\0", None]}
    odd = "org.example/odd %2F type"
    path = f"{GLOBAL}/org.example%2Fodd%20%252F%20type"
    assert server.request("PUT", path, {"x": 1}, alice).status_code == 200
    rows = server.run(server.database.read(all_account_data, ALICE))
    assert {(room_id, type_) for room_id, type_, _, _ in rows} == {
        ("", "m.direct"),
        (ROOM_ID, "m.direct"),
        ("", odd),
    }


def test_changes_since_a_position(server: AccountServer, alice: str) -> None:
    for number, type_ in enumerate(["one", "two", "three", "one"]):
        server.request("PUT", f"{GLOBAL}/{type_}", {"number": number}, alice)
    bob = server.register("bob")["access_token"]
    server.request("PUT", "/user/@bob:example.org/account_data/one", {}, bob)

    def since(position: int, upto: int) -> list[tuple[str, bytes]]:
        rows = server.run(server.database.read(account_data_since, ALICE, position, upto))
        return [(type_, content) for _, type_, content, _ in rows]

    assert since(0, 100) == [("two", b'{"number":1}'), ("three", b'{"number":2}'), ("one", b'{"number":3}')]
    assert since(2, 4) == [("three", b'{"number":2}'), ("one", b'{"number":3}')]
    assert since(2, 3) == [("three", b'{"number":2}')]
    assert since(4, 100) == []


def test_a_change_wakes_the_users_clients(sqlite_server: AccountServer) -> None:
    token = sqlite_server.register("alice")["access_token"]

    async def wait_and_change() -> bool:
        waiting = asyncio.create_task(sqlite_server.notifier.wait_for_user(ALICE, 60))
        await asyncio.sleep(0)
        await sqlite_server.send("PUT", f"{IN_ROOM}/m.tag", {}, token)
        return await waiting

    assert sqlite_server.run(wait_and_change())
    (change,) = sqlite_server.notifier.changes_since(0) or []
    assert (change.position, change.room_id, change.users) == (1, ROOM_ID, (ALICE,))


@pytest.mark.parametrize("path", [GLOBAL, IN_ROOM])
@pytest.mark.parametrize("type_", ["m.fully_read", "m.push_rules"])
def test_types_that_the_server_manages(sqlite_server: AccountServer, path: str, type_: str) -> None:
    token = sqlite_server.register("alice")["access_token"]
    assert_error(sqlite_server.request("PUT", f"{path}/{type_}", {}, token), 405, "M_BAD_JSON")
    assert_error(sqlite_server.request("GET", f"{path}/{type_}", token=token), 404, "M_NOT_FOUND")


def test_what_is_refused(sqlite_server: AccountServer) -> None:
    alice = sqlite_server.register("alice")["access_token"]
    bob = sqlite_server.register("bob")["access_token"]

    def put(path: str, token: str | None = alice, **options: object) -> object:
        return sqlite_server.request("PUT", path, token=token, **options)

    assert_error(put(f"{GLOBAL}/x", bob, json={}), 403, "M_FORBIDDEN")
    assert_error(put(f"{GLOBAL}/x", None, json={}), 401, "M_MISSING_TOKEN")
    assert_error(sqlite_server.request("GET", f"{GLOBAL}/x", token=bob), 403, "M_FORBIDDEN")
    assert_error(sqlite_server.request("GET", f"{IN_ROOM}/x", token=bob), 403, "M_FORBIDDEN")
    assert_error(put(f"{GLOBAL}/x", json=[]), 400, "M_BAD_JSON")
    assert_error(put(f"{GLOBAL}/x", content=b"no"), 400, "M_NOT_JSON")
    assert_error(put(f"{GLOBAL}/x", json={"a": "x" * 300_000}), 413, "M_TOO_LARGE")
    assert_error(put(f"{GLOBAL}/x", content=b'{"a":"' + b"x" * 2_000_000), 413, "M_TOO_LARGE")
    assert_error(put(f"{GLOBAL}/{'x' * 256}", json={}), 400, "M_INVALID_PARAM")
    assert_error(put(f"/user/{ALICE}/rooms/room/account_data/x", json={}), 400, "M_INVALID_PARAM")
    assert_error(put(f"{GLOBAL}/x", content=b'{"a":' * 500 + b"1" + b"}" * 500), 400, "M_BAD_JSON")
    assert_error(put(f"{GLOBAL}/a%00b", json={}), 400, "M_INVALID_PARAM")
