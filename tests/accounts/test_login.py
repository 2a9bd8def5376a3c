from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from homeserver.accounts.access_tokens import REMEMBERED_SECONDS
from homeserver.accounts.sessions import REFRESHABLE_LIFETIME_MS
from homeserver.storage.sessions import end_sessions
from tests.accounts.account_server import AccountServer, assert_error, running, together


@pytest.fixture
def discovered_server(sqlite_url: str) -> Iterator[AccountServer]:
    with running(sqlite_url, public_base_url="https://matrix.example.org") as server:
        yield server


def test_flows(sqlite_server: AccountServer) -> None:
    assert sqlite_server.request("GET", "/login").json() == {"flows": [{"type": "m.login.password"}]}


@pytest.mark.parametrize("user", ["alice", "@alice:example.org", "ALICE", "@Alice:example.org"])
def test_all_ways_to_write_a_user(server: AccountServer, user: str) -> None:
    server.register("alice")
    answer = server.log_in(user)
    assert answer.status_code == 200
    assert answer.json()["user_id"] == "@alice:example.org"
    assert server.whoami(answer.json()["access_token"]).json()["user_id"] == "@alice:example.org"


def test_the_deprecated_user_field(sqlite_server: AccountServer) -> None:
    sqlite_server.register("alice")
    body = {"type": "m.login.password", "user": "alice", "password": "wonderland"}
    response = sqlite_server.request("POST", "/_matrix/client/r0/login", body)
    assert response.status_code == 200
    assert "well_known" not in response.json()


@pytest.mark.parametrize(
    "user", ["bob", "@alice:elsewhere.org", "@alice", "", "@", ":", "a\0b", "x" * 300, "@alice:example.org:8448", "😀"]
)
def test_unknown_users(server: AccountServer, user: str) -> None:
    server.register("alice")
    assert_error(server.log_in(user), 403, "M_FORBIDDEN")


@pytest.mark.parametrize("password", ["", "Wonderland", "wonderland ", "x" * 10_000, "\0"])
def test_wrong_passwords(sqlite_server: AccountServer, password: str) -> None:
    sqlite_server.register("alice")
    assert_error(sqlite_server.log_in("alice", password), 403, "M_FORBIDDEN")


@pytest.mark.parametrize(
    ("body", "status", "errcode"),
    [
        ({}, 400, "M_MISSING_PARAM"),
        ({"type": "m.login.token", "token": "x"}, 400, "M_UNKNOWN"),
        ({"type": 1}, 400, "M_BAD_JSON"),
        ({"type": "m.login.password"}, 400, "M_MISSING_PARAM"),
        ({"type": "m.login.password", "user": "alice"}, 400, "M_MISSING_PARAM"),
        ({"type": "m.login.password", "user": "alice", "password": 1}, 400, "M_BAD_JSON"),
        ({"type": "m.login.password", "identifier": "alice", "password": "x"}, 400, "M_BAD_JSON"),
        ({"type": "m.login.password", "identifier": {"type": "m.id.user"}, "password": "x"}, 400, "M_MISSING_PARAM"),
        ({"type": "m.login.password", "identifier": {"type": "other"}, "password": "x"}, 400, "M_UNKNOWN"),
        (
            {"type": "m.login.password", "identifier": {"medium": "email", "address": "a@b.c"}, "password": "x"},
            403,
            "M_FORBIDDEN",
        ),
        ({"type": "m.login.password", "medium": "email", "address": "a@b.c", "password": "x"}, 403, "M_FORBIDDEN"),
    ],
)
def test_incomplete_requests(sqlite_server: AccountServer, body: object, status: int, errcode: str) -> None:
    assert_error(sqlite_server.request("POST", "/login", body), status, errcode)


def test_discovery_information(discovered_server: AccountServer) -> None:
    discovered_server.register("alice")
    answer = discovered_server.log_in("alice").json()
    assert answer["well_known"] == {"m.homeserver": {"base_url": "https://matrix.example.org"}}


def test_a_device_that_logs_in_again_loses_its_old_token_only(server: AccountServer) -> None:
    other = server.register("alice", device_id="LAPTOP")["access_token"]
    first = server.log_in("alice", device_id="PHONE").json()["access_token"]
    assert server.whoami(first).status_code == 200
    second = server.log_in("alice", device_id="PHONE").json()["access_token"]
    assert_error(server.whoami(first), 401, "M_UNKNOWN_TOKEN")
    assert server.whoami(second).json()["device_id"] == "PHONE"
    assert server.whoami(other).json()["device_id"] == "LAPTOP"


def test_logout_ends_one_device(server: AccountServer) -> None:
    phone = server.register("alice", device_id="PHONE")["access_token"]
    laptop = server.log_in("alice", device_id="LAPTOP").json()["access_token"]
    assert server.request("POST", "/logout", token=phone).json() == {}
    assert_error(server.whoami(phone), 401, "M_UNKNOWN_TOKEN")
    assert "soft_logout" not in server.whoami(phone).json()
    assert server.whoami(laptop).status_code == 200


def test_logout_all(server: AccountServer) -> None:
    tokens = [server.register("alice")["access_token"], server.log_in("alice").json()["access_token"]]
    bob = server.register("bob")["access_token"]
    assert all(server.whoami(token).status_code == 200 for token in tokens)
    assert server.request("POST", "/logout/all", token=tokens[0]).json() == {}
    for token in tokens:
        assert_error(server.whoami(token), 401, "M_UNKNOWN_TOKEN")
    assert server.whoami(bob).status_code == 200


def test_a_logout_wakes_long_polls(sqlite_server: AccountServer) -> None:
    token = sqlite_server.register("alice")["access_token"]

    async def wait_and_log_out() -> bool:
        waiting = asyncio.create_task(sqlite_server.notifier.wait_for_user("@alice:example.org", 60))
        await asyncio.sleep(0)
        await sqlite_server.send("POST", "/logout", token=token)
        return await waiting

    assert sqlite_server.run(wait_and_log_out())


def test_a_revocation_by_another_process_is_noticed_within_seconds(server: AccountServer) -> None:
    token = server.register("alice")["access_token"]
    assert server.whoami(token).status_code == 200
    with server.database.begin() as connection:
        end_sessions(connection, "@alice:example.org")
    server.clock.advance(int(REMEMBERED_SECONDS * 1000) + 100)
    assert_error(server.whoami(token), 401, "M_UNKNOWN_TOKEN")


def test_a_token_that_is_looked_up_while_it_is_revoked_is_not_remembered(sqlite_server: AccountServer) -> None:
    token = sqlite_server.register("alice")["access_token"]
    requests = [sqlite_server.send("GET", "/account/whoami", token=token) for _ in range(20)]
    requests.insert(10, sqlite_server.send("POST", "/logout", token=token))
    sqlite_server.run(together(*requests))
    assert_error(sqlite_server.whoami(token), 401, "M_UNKNOWN_TOKEN")


def test_a_changed_password_is_refused_even_if_it_was_checked_before(sqlite_server: AccountServer) -> None:
    sqlite_server.register("alice")

    async def log_in_while_the_password_changes() -> list[int]:
        body = {"type": "m.login.password", "user": "alice", "password": "wonderland"}
        requests = [sqlite_server.send("POST", "/login", body) for _ in range(6)]
        change = sqlite_server.accounts.set_password("@alice:example.org", "looking glass")
        answers = await asyncio.gather(*requests, change)
        return [answer.json().get("access_token") for answer in answers[:-1]]

    tokens = [token for token in sqlite_server.run(log_in_while_the_password_changes()) if token]
    assert {sqlite_server.whoami(token).status_code for token in tokens} <= {401}
    assert sqlite_server.log_in("alice", "looking glass").status_code == 200


# -- refresh tokens ----------------------------------------------------------------------------------------------------


def refresh(server: AccountServer, refresh_token: str) -> dict[str, str]:
    response = server.request("POST", "/refresh", {"refresh_token": refresh_token})
    assert response.status_code == 200, response.text
    return response.json()


def test_an_access_token_that_can_be_refreshed_expires_softly(server: AccountServer) -> None:
    session = server.register("alice", refresh_token=True)
    assert session["expires_in_ms"] == REFRESHABLE_LIFETIME_MS
    assert server.whoami(session["access_token"]).status_code == 200
    server.clock.advance(REFRESHABLE_LIFETIME_MS + 1)
    expired = server.whoami(session["access_token"])
    assert_error(expired, 401, "M_UNKNOWN_TOKEN")
    assert expired.json()["soft_logout"] is True
    fresh = refresh(server, session["refresh_token"])
    assert server.whoami(fresh["access_token"]).json()["device_id"] == session["device_id"]


def test_the_old_refresh_token_lives_until_a_new_token_is_used(server: AccountServer) -> None:
    session = server.register("alice", refresh_token=True)
    lost = refresh(server, session["refresh_token"])
    assert server.whoami(session["access_token"]).status_code == 200
    kept = refresh(server, session["refresh_token"])
    assert_error(server.whoami(lost["access_token"]), 401, "M_UNKNOWN_TOKEN")

    assert server.whoami(kept["access_token"]).status_code == 200
    again = server.request("POST", "/refresh", {"refresh_token": session["refresh_token"]})
    assert_error(again, 401, "M_UNKNOWN_TOKEN")
    assert_error(server.whoami(session["access_token"]), 401, "M_UNKNOWN_TOKEN")
    assert server.whoami(refresh(server, kept["refresh_token"])["access_token"]).status_code == 200


def test_the_use_of_a_new_refresh_token_revokes_the_old_one(server: AccountServer) -> None:
    session = server.register("alice", refresh_token=True)
    second = refresh(server, session["refresh_token"])
    refresh(server, second["refresh_token"])
    again = server.request("POST", "/refresh", {"refresh_token": session["refresh_token"]})
    assert_error(again, 401, "M_UNKNOWN_TOKEN")


def test_a_logout_ends_refresh_tokens_too(server: AccountServer) -> None:
    session = server.register("alice", refresh_token=True)
    server.request("POST", "/logout", token=session["access_token"])
    again = server.request("POST", "/refresh", {"refresh_token": session["refresh_token"]})
    assert_error(again, 401, "M_UNKNOWN_TOKEN")


def test_an_access_token_is_no_refresh_token_nor_the_other_way_round(sqlite_server: AccountServer) -> None:
    session = sqlite_server.register("alice", refresh_token=True)
    wrong = sqlite_server.request("POST", "/refresh", {"refresh_token": session["access_token"]})
    assert_error(wrong, 401, "M_UNKNOWN_TOKEN")
    assert_error(sqlite_server.whoami(session["refresh_token"]), 401, "M_UNKNOWN_TOKEN")
    assert_error(sqlite_server.request("POST", "/refresh", {}), 400, "M_MISSING_PARAM")
