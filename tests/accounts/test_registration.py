from __future__ import annotations

import pytest
from sqlalchemy import select

from homeserver.accounts.user_interactive import PARAMETERS_BYTES_MAX, SESSION_LIFETIME_MS
from homeserver.storage.tables import uia_sessions, users
from tests.accounts.account_server import DUMMY, AccountServer, assert_error, running, together


def test_a_registered_user_can_act_and_log_in(server: AccountServer) -> None:
    answer = server.register("alice", device_id="PHONE", initial_device_display_name="Phone")
    assert answer["user_id"] == "@alice:example.org"
    assert answer["device_id"] == "PHONE"
    assert answer["home_server"] == "example.org"
    assert "refresh_token" not in answer
    assert "expires_in_ms" not in answer
    whoami = server.whoami(answer["access_token"]).json()
    assert whoami == {"user_id": "@alice:example.org", "device_id": "PHONE", "is_guest": False}
    assert server.log_in("alice").status_code == 200


def test_without_auth_the_flows_are_shown_and_nothing_is_created(server: AccountServer) -> None:
    response = server.request("POST", "/register", {"username": "alice", "password": "wonderland"})
    assert response.status_code == 401
    challenge = response.json()
    assert challenge["flows"] == [{"stages": ["m.login.dummy"]}]
    assert challenge["params"] == {}
    assert "errcode" not in challenge
    assert server.request("GET", "/register/available?username=alice").json() == {"available": True}
    body = {"username": "alice", "password": "wonderland", "auth": DUMMY | {"session": challenge["session"]}}
    first = server.request("POST", "/register", body)
    assert first.status_code == 200
    other = body | {"auth": DUMMY}
    assert server.request("POST", "/register", other).json()["errcode"] == "M_USER_IN_USE"


def test_a_finished_session_repeats_its_answer(server: AccountServer) -> None:
    session = server.request("POST", "/register", {}).json()["session"]
    body = {"username": "alice", "password": "wonderland", "auth": DUMMY | {"session": session}}
    first = server.request("POST", "/register", body)
    assert first.status_code == 200
    for _ in range(2):
        again = server.request("POST", "/register", body)
        assert (again.status_code, again.json()) == (200, first.json())
    assert server.whoami(first.json()["access_token"]).status_code == 200
    # What the session keeps is of no use to those who can read the database.
    stored = server.database.read_now(lambda c: c.execute(select(uia_sessions.c.answer)).scalars().all())
    assert first.json()["access_token"].encode() not in b"".join(bytes(answer) for answer in stored if answer)


def test_the_same_request_several_times_at_once(server: AccountServer) -> None:
    session = server.request("POST", "/register", {}).json()["session"]
    body = {"username": "alice", "password": "wonderland", "auth": DUMMY | {"session": session}}
    responses = server.run(together(*(server.send("POST", "/register", body) for _ in range(8))))
    assert [response.status_code for response in responses] == [200] * 8
    assert len({response.json()["access_token"] for response in responses}) == 1


def test_requests_without_a_user_name_at_once_make_one_account(server: AccountServer) -> None:
    session = server.request("POST", "/register", {}).json()["session"]
    body = {"password": "wonderland", "auth": DUMMY | {"session": session}}
    responses = server.run(together(*(server.send("POST", "/register", body) for _ in range(8))))
    assert [response.status_code for response in responses] == [200] * 8
    assert len({response.json()["user_id"] for response in responses}) == 1
    accounts = server.database.read_now(lambda c: c.execute(select(users.c.user_id)).scalars().all())
    assert len(accounts) == 1


def test_what_the_first_request_of_a_session_said_is_remembered(server: AccountServer) -> None:
    body = {"username": "alice", "password": "wonderland", "device_id": "PHONE"}
    session = server.request("POST", "/register", body).json()["session"]
    auth = {"auth": DUMMY | {"session": session}}
    first = server.request("POST", "/register", auth)
    assert first.status_code == 200
    assert (first.json()["user_id"], first.json()["device_id"]) == ("@alice:example.org", "PHONE")
    assert server.log_in("alice").status_code == 200
    # With or without them, it is the same request.
    for repeated in (auth, body | auth):
        assert server.request("POST", "/register", repeated).json() == first.json()
    # What a later request says itself counts.
    session = server.request("POST", "/register", body | {"username": "bob"}).json()["session"]
    changed = server.request("POST", "/register", {"username": "carol", "auth": DUMMY | {"session": session}})
    assert changed.json()["user_id"] == "@carol:example.org"


def test_what_is_remembered_is_bounded(sqlite_server: AccountServer) -> None:
    body = {"username": "alice", "password": "wonderland", "org.custom": "x" * PARAMETERS_BYTES_MAX}
    session = sqlite_server.request("POST", "/register", body).json()["session"]
    answer = sqlite_server.request("POST", "/register", {"auth": DUMMY | {"session": session}})
    assert_error(answer, 400, "M_MISSING_PARAM")


def test_clients_ask_for_the_flows_with_an_empty_object(sqlite_server: AccountServer) -> None:
    session = sqlite_server.request("POST", "/register", {}).json()["session"]
    body = {"username": "alice", "password": "wonderland", "auth": DUMMY | {"session": session}}
    assert sqlite_server.request("POST", "/register", body).status_code == 200


def test_a_session_works_once_and_not_for_ever(sqlite_server: AccountServer) -> None:
    session = sqlite_server.request("POST", "/register", {}).json()["session"]
    auth = DUMMY | {"session": session}
    first = {"username": "alice", "password": "wonderland", "auth": auth}
    assert sqlite_server.request("POST", "/register", first).status_code == 200
    again = sqlite_server.request("POST", "/register", first | {"username": "bob"})
    assert_error(again, 401, "M_UNKNOWN")
    assert again.json()["session"] != session

    session = again.json()["session"]
    sqlite_server.clock.advance(SESSION_LIFETIME_MS + 1)
    late = first | {"username": "bob", "auth": DUMMY | {"session": session}}
    assert_error(sqlite_server.request("POST", "/register", late), 401, "M_UNKNOWN")


@pytest.mark.parametrize(
    "auth",
    [
        {},
        {"type": "m.login.password"},
        {"type": "m.login.dummy", "session": "made-up"},
        {"session": "x" * 10_000, "type": "m.login.dummy"},
    ],
)
def test_auth_that_completes_no_flow_is_answered_with_the_flows(sqlite_server: AccountServer, auth: object) -> None:
    body = {"username": "alice", "password": "wonderland", "auth": auth}
    response = sqlite_server.request("POST", "/register", body)
    assert response.status_code == 401
    assert response.json()["flows"] == [{"stages": ["m.login.dummy"]}]
    assert sqlite_server.request("GET", "/register/available?username=alice").status_code == 200


@pytest.mark.parametrize("auth", ["m.login.dummy", 1, [], {"type": 5}, {"type": "m.login.dummy", "session": {}}])
def test_auth_of_a_wrong_type_is_bad_json(sqlite_server: AccountServer, auth: object) -> None:
    body = {"username": "alice", "password": "wonderland", "auth": auth}
    assert_error(sqlite_server.request("POST", "/register", body), 400, "M_BAD_JSON")


def test_two_who_want_the_same_name_at_once(server: AccountServer) -> None:
    body = {"username": "alice", "password": "wonderland", "auth": DUMMY}
    responses = server.run(together(*(server.send("POST", "/register", body) for _ in range(8))))
    assert sorted(response.status_code for response in responses) == [200] + [400] * 7
    assert {r.json()["errcode"] for r in responses if r.status_code == 400} == {"M_USER_IN_USE"}
    (winner,) = (r.json() for r in responses if r.status_code == 200)
    assert server.whoami(winner["access_token"]).status_code == 200


def test_capitals_become_small(sqlite_server: AccountServer) -> None:
    assert sqlite_server.register("Alice")["user_id"] == "@alice:example.org"
    taken = sqlite_server.request("GET", "/register/available", params={"username": "ALICE"})
    assert_error(taken, 400, "M_USER_IN_USE")


@pytest.mark.parametrize("name", ["", " ", "a b", "a:b", "@a", "a\0", "a\n", "é", "İ", "a!", "a" * 250, "ſ", "😀"])
def test_names_outside_the_grammar(sqlite_server: AccountServer, name: str) -> None:
    body = {"username": name, "password": "wonderland", "auth": DUMMY}
    assert_error(sqlite_server.request("POST", "/register", body), 400, "M_INVALID_USERNAME")


@pytest.mark.parametrize("name", ["q3._=-/+", "0", "_", "a" * 242])
def test_names_inside_the_grammar(sqlite_server: AccountServer, name: str) -> None:
    assert sqlite_server.register(name)["user_id"] == f"@{name}:example.org"


def test_without_a_name_one_is_made(sqlite_server: AccountServer) -> None:
    body = {"password": "wonderland", "auth": DUMMY}
    names = {sqlite_server.request("POST", "/register", body).json()["user_id"] for _ in range(3)}
    assert len(names) == 3


def test_without_a_login(sqlite_server: AccountServer) -> None:
    assert sqlite_server.register("alice", inhibit_login=True) == {"user_id": "@alice:example.org"}
    assert sqlite_server.log_in("alice").status_code == 200


def test_passwords_have_limits(sqlite_server: AccountServer) -> None:
    def attempt(password: object) -> object:
        body = {"username": "alice", "password": password, "auth": DUMMY}
        return sqlite_server.request("POST", "/register", body).json()["errcode"]

    assert attempt("") == "M_WEAK_PASSWORD"
    assert attempt("x" * 513) == "M_BAD_JSON"
    assert attempt("é" * 257) == "M_BAD_JSON"
    assert attempt(None) == "M_MISSING_PARAM"
    assert attempt(7) == "M_BAD_JSON"
    sqlite_server.register("alice", "é" * 256)
    assert sqlite_server.log_in("alice", "é" * 256).status_code == 200


@pytest.mark.parametrize("device_id", ["", "a\0b", "a\nb", "x" * 256, "\u202e"])
def test_unusable_device_ids(sqlite_server: AccountServer, device_id: str) -> None:
    body = {"username": "alice", "password": "wonderland", "auth": DUMMY, "device_id": device_id}
    assert_error(sqlite_server.request("POST", "/register", body), 400, "M_INVALID_PARAM")


def test_guests_are_refused(sqlite_server: AccountServer) -> None:
    assert_error(sqlite_server.request("POST", "/register?kind=guest", {}), 403, "M_FORBIDDEN")
    assert_error(sqlite_server.request("POST", "/register?kind=cat", {}), 400, "M_INVALID_PARAM")
    assert sqlite_server.request("POST", "/register?kind=user", {}).status_code == 401


def test_where_registration_is_disabled(sqlite_url: str) -> None:
    body = {"username": "alice", "password": "wonderland", "auth": DUMMY}
    with running(sqlite_url, registration_enabled=False) as server:
        assert_error(server.request("POST", "/register", body), 403, "M_FORBIDDEN")
        assert_error(server.request("POST", "/register", {}), 403, "M_FORBIDDEN")
        assert_error(server.request("GET", "/register/available?username=alice"), 403, "M_FORBIDDEN")


def test_availability(sqlite_server: AccountServer) -> None:
    assert_error(sqlite_server.request("GET", "/register/available"), 400, "M_MISSING_PARAM")
    assert_error(sqlite_server.request("GET", "/register/available?username=a,b"), 400, "M_INVALID_USERNAME")
    sqlite_server.register("alice")
    assert_error(sqlite_server.request("GET", "/register/available?username=alice"), 400, "M_USER_IN_USE")


@pytest.mark.parametrize(
    ("content", "errcode"),
    [(b"", "M_NOT_JSON"), (b"{", "M_NOT_JSON"), (b'{"a":"\xff"}', "M_NOT_JSON"), (b"[]", "M_BAD_JSON")],
)
def test_bodies_that_are_no_object(sqlite_server: AccountServer, content: bytes, errcode: str) -> None:
    assert_error(sqlite_server.request("POST", "/register", content=content), 400, errcode)
