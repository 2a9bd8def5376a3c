from __future__ import annotations

import json

import pytest

from homeserver.errors import RemoteRefused, RemoteUnreachable
from tests.accounts.account_server import AccountServer, assert_error

ALICE = "/profile/@alice:example.org"


@pytest.fixture
def alice(server: AccountServer) -> str:
    return server.register("alice")["access_token"]


def put(server: AccountServer, key: str, value: object, token: str) -> None:
    response = server.request("PUT", f"{ALICE}/{key}", {key: value}, token)
    assert response.status_code == 200, response.text


def test_fields_are_set_shown_and_removed(server: AccountServer, alice: str) -> None:
    assert server.request("GET", ALICE).json() == {}
    profile = {
        "displayname": "Alice \0 😀",
        "avatar_url": "mxc://example.org/abc_-1",
        "m.tz": "Europe/London",
        "org.example.job": {"title": ["Queen", None, 1.5, 2**70]},
        "org.example.null": None,
    }
    for key, value in profile.items():
        put(server, key, value, alice)
        assert server.request("GET", f"{ALICE}/{key}").json() == {key: value}
    assert server.request("GET", ALICE).json() == profile
    assert server.request("GET", "/_matrix/client/r0/profile/%40alice%3Aexample.org").json() == profile

    for key in profile:
        assert server.request("DELETE", f"{ALICE}/{key}", token=alice).json() == {}
        assert_error(server.request("GET", f"{ALICE}/{key}"), 404, "M_NOT_FOUND")
        assert server.request("DELETE", f"{ALICE}/{key}", token=alice).json() == {}
    assert server.request("GET", ALICE).json() == {}


def test_changes_of_name_and_avatar_are_told(server: AccountServer, alice: str) -> None:
    put(server, "displayname", "Alice", alice)
    assert server.profile_changes == ["@alice:example.org"]
    put(server, "displayname", "Alice", alice)
    put(server, "m.tz", "Europe/London", alice)
    assert server.profile_changes == ["@alice:example.org"]
    put(server, "avatar_url", "mxc://example.org/a", alice)
    put(server, "avatar_url", "", alice)
    server.request("DELETE", f"{ALICE}/displayname", token=alice)
    server.request("DELETE", f"{ALICE}/displayname", token=alice)
    assert server.profile_changes == ["@alice:example.org"] * 4
    assert server.request("GET", ALICE).json() == {"m.tz": "Europe/London"}


@pytest.mark.parametrize(
    ("key", "value", "errcode"),
    [
        ("displayname", None, "M_BAD_JSON"),
        ("displayname", 1, "M_BAD_JSON"),
        ("displayname", "x" * 257, "M_INVALID_PARAM"),
        ("avatar_url", {}, "M_BAD_JSON"),
        ("avatar_url", "https://example.org/a.png", "M_INVALID_PARAM"),
        ("avatar_url", "mxc://example.org", "M_INVALID_PARAM"),
        ("avatar_url", "mxc://example.org/" + "a" * 1000, "M_INVALID_PARAM"),
        ("m.tz", "not a zone", "M_INVALID_PARAM"),
        ("m.tz", ["UTC"], "M_BAD_JSON"),
        ("nodots", "x", "M_INVALID_PARAM"),
        ("Org.example", "x", "M_INVALID_PARAM"),
        ("org..example", "x", "M_INVALID_PARAM"),
        ("org.exämple", "x", "M_INVALID_PARAM"),
        ("a." + "b" * 254, "x", "M_KEY_TOO_LARGE"),
        ("org.example.big", "x" * 65_536, "M_PROFILE_TOO_LARGE"),
    ],
)
def test_what_cannot_be_set(sqlite_server: AccountServer, key: str, value: object, errcode: str) -> None:
    token = sqlite_server.register("alice")["access_token"]
    assert_error(sqlite_server.request("PUT", f"{ALICE}/{key}", {key: value}, token), 400, errcode)
    assert sqlite_server.request("GET", ALICE).json() == {}


def test_the_whole_profile_has_a_limit(sqlite_server: AccountServer) -> None:
    token = sqlite_server.register("alice")["access_token"]
    put(sqlite_server, "org.example.one", "x" * 40_000, token)
    body = {"org.example.two": "x" * 30_000}
    too_large = sqlite_server.request("PUT", f"{ALICE}/org.example.two", body, token)
    assert_error(too_large, 400, "M_PROFILE_TOO_LARGE")
    sqlite_server.request("DELETE", f"{ALICE}/org.example.one", token=token)
    put(sqlite_server, "org.example.two", "x" * 30_000, token)
    assert len(json.dumps(sqlite_server.request("GET", ALICE).json())) > 30_000


def test_only_ones_own_profile(sqlite_server: AccountServer) -> None:
    sqlite_server.register("alice")
    bob = sqlite_server.register("bob")["access_token"]
    body = {"displayname": "Mallory"}
    assert_error(sqlite_server.request("PUT", f"{ALICE}/displayname", body, bob), 403, "M_FORBIDDEN")
    assert_error(sqlite_server.request("DELETE", f"{ALICE}/displayname", token=bob), 403, "M_FORBIDDEN")
    assert_error(sqlite_server.request("PUT", f"{ALICE}/displayname", body), 401, "M_MISSING_TOKEN")
    token = sqlite_server.log_in("alice").json()["access_token"]
    assert_error(sqlite_server.request("PUT", f"{ALICE}/displayname", {}, token), 400, "M_MISSING_PARAM")
    assert_error(sqlite_server.request("PUT", f"{ALICE}/displayname", [], token), 400, "M_BAD_JSON")


@pytest.mark.parametrize("user_id", ["alice", "@", "@a", "@:example.org:x", "%00", "@a%00:example.org", "@a%ff:b"])
def test_no_user_ids(server: AccountServer, user_id: str) -> None:
    assert_error(server.request("GET", f"/profile/{user_id}"), 400, "M_INVALID_PARAM")


def test_unknown_and_closed_accounts(server: AccountServer, alice: str) -> None:
    put(server, "displayname", "Alice", alice)
    assert_error(server.request("GET", "/profile/@bob:example.org"), 404, "M_NOT_FOUND")
    server.run(server.accounts.deactivate("@alice:example.org"))
    assert_error(server.request("GET", ALICE), 404, "M_NOT_FOUND")


def test_users_of_other_servers(sqlite_server: AccountServer) -> None:
    token = sqlite_server.register()["access_token"]
    remote = sqlite_server.remote.profiles
    remote["@bob:elsewhere.org"] = {"displayname": "Bob", "m.tz": "UTC"}
    remote["@gone:elsewhere.org"] = RemoteRefused("elsewhere.org", 404, "M_NOT_FOUND", "no")
    remote["@shy:elsewhere.org"] = RemoteRefused("elsewhere.org", 403, "M_FORBIDDEN", "no")
    remote["@odd:elsewhere.org"] = RemoteRefused("elsewhere.org", 500, "M_UNKNOWN", "secret details")
    remote["@far:elsewhere.org"] = RemoteUnreachable("elsewhere.org", "no route")

    def get(path: str) -> object:
        return sqlite_server.request("GET", f"/profile/{path}", token=token)

    assert get("@bob:elsewhere.org").json() == {"displayname": "Bob", "m.tz": "UTC"}
    assert get("@bob:elsewhere.org/displayname").json() == {"displayname": "Bob"}
    assert_error(get("@bob:elsewhere.org/avatar_url"), 404, "M_NOT_FOUND")
    assert_error(get("@gone:elsewhere.org"), 404, "M_NOT_FOUND")
    assert_error(get("@shy:elsewhere.org"), 403, "M_FORBIDDEN")
    assert_error(get("@odd:elsewhere.org"), 502, "M_UNKNOWN")
    assert "secret details" not in get("@odd:elsewhere.org").text
    assert_error(get("@far:elsewhere.org/displayname"), 502, "M_UNKNOWN")


@pytest.mark.parametrize("path", ["@bob:elsewhere.org", "@bob:elsewhere.org/displayname"])
def test_strangers_cannot_make_this_server_ask_others(sqlite_server: AccountServer, path: str) -> None:
    sqlite_server.remote.profiles["@bob:elsewhere.org"] = {"displayname": "Bob"}
    assert_error(sqlite_server.request("GET", f"/profile/{path}"), 403, "M_FORBIDDEN")
    assert_error(sqlite_server.request("GET", f"/profile/{path}", token="wrong"), 401, "M_UNKNOWN_TOKEN")


def test_names_and_avatars_for_membership_events(server: AccountServer, alice: str) -> None:
    put(server, "displayname", "Alice", alice)
    found = server.run(server.profiles.names_and_avatars(["@alice:example.org", "@nobody:example.org"]))
    assert found == {"@alice:example.org": ("Alice", None)}
