from __future__ import annotations

import pytest

from homeserver.accounts import administration
from homeserver.errors import InvalidUsername, NotFound, UserInUse
from tests.accounts.account_server import AccountServer, assert_error

ALICE = "@alice:example.org"


def test_an_administrator_is_created_and_known_as_one(server: AccountServer) -> None:
    assert server.run(server.accounts.create("alice", "wonderland", is_admin=True)) == ALICE
    token = server.log_in().json()["access_token"]
    assert server.run(server.access_tokens.requester(token)).is_admin
    bob = server.register("bob")["access_token"]
    assert not server.run(server.access_tokens.requester(bob)).is_admin
    with pytest.raises(UserInUse):
        server.run(server.accounts.create("alice", "wonderland"))
    with pytest.raises(InvalidUsername):
        server.run(server.accounts.create("not valid", "wonderland"))


def test_a_new_password_logs_out_everywhere(server: AccountServer) -> None:
    token = server.register("alice")["access_token"]
    assert server.whoami(token).status_code == 200
    server.run(server.accounts.set_password(ALICE, "looking glass"))
    assert_error(server.whoami(token), 401, "M_UNKNOWN_TOKEN")
    assert_error(server.log_in("alice", "wonderland"), 403, "M_FORBIDDEN")
    assert server.log_in("alice", "looking glass").status_code == 200


def test_deactivation(server: AccountServer) -> None:
    token = server.register("alice", refresh_token=True)["access_token"]
    server.run(server.accounts.deactivate(ALICE))
    assert server.deactivated == [ALICE]
    assert_error(server.whoami(token), 401, "M_UNKNOWN_TOKEN")
    # A stranger learns no more than with a wrong password, or with a name that nobody has.
    assert_error(server.log_in("alice"), 403, "M_FORBIDDEN")
    assert server.log_in("alice").json() == server.log_in("nobody").json()
    assert_error(server.request("GET", "/register/available?username=alice"), 400, "M_USER_IN_USE")
    account = server.run(server.accounts.find(ALICE))
    assert account is not None
    assert (account.is_deactivated, account.password_hash) == (True, None)
    for attempt in (server.accounts.deactivate(ALICE), server.accounts.set_password(ALICE, "x")):
        with pytest.raises(NotFound):
            server.run(attempt)


def test_the_same_over_a_connection(server: AccountServer) -> None:
    database, now_ms = server.database, server.clock.now_ms()
    with database.begin() as connection:
        for name in ("alice", "bob", "carol"):
            password_hash = server.passwords.hash_now("wonderland")
            user_id = f"@{name}:example.org"
            administration.create_user(connection, user_id, password_hash, is_admin=name == "bob", now_ms=now_ms)
    token = server.log_in("alice").json()["access_token"]
    with database.begin() as connection:
        assert len(administration.set_password(connection, ALICE, server.passwords.hash_now("new"))) == 1
        administration.deactivate_user(connection, "@carol:example.org", now_ms)
        listed = administration.list_users(connection)
        assert [(user.user_id, user.is_admin, user.is_deactivated) for user in listed] == [
            (ALICE, False, False),
            ("@bob:example.org", True, False),
            ("@carol:example.org", False, True),
        ]
        assert [user.user_id for user in administration.list_users(connection, after=ALICE, limit=1)] == [
            "@bob:example.org"
        ]
        with pytest.raises(UserInUse):
            administration.create_user(connection, ALICE, None, is_admin=False, now_ms=now_ms)
        with pytest.raises(NotFound):
            administration.set_password(connection, "@nobody:example.org", "x")
    assert_error(server.whoami(token), 401, "M_UNKNOWN_TOKEN")
    assert server.log_in("alice", "new").status_code == 200
