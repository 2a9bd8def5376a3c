"""What clients ask a server before anything else: versions, well-known, capabilities."""

from __future__ import annotations

from tests.accounts.account_server import assert_error, running


def test_versions(sqlite_url: str) -> None:
    with running(sqlite_url) as server:
        answer = server.request("GET", "/_matrix/client/versions").json()
    assert {"r0.6.1", "v1.1", "v1.12"} <= set(answer["versions"])
    assert all(isinstance(value, bool) for value in answer["unstable_features"].values())


def test_well_known(sqlite_url: str) -> None:
    with running(sqlite_url) as server:
        assert_error(server.request("GET", "/.well-known/matrix/client"), 404, "M_NOT_FOUND")
    with running(sqlite_url, public_base_url="https://matrix.example.org") as server:
        response = server.request("GET", "/.well-known/matrix/client")
    assert response.json() == {"m.homeserver": {"base_url": "https://matrix.example.org"}}
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["content-type"] == "application/json"


def test_capabilities(sqlite_url: str) -> None:
    with running(sqlite_url) as server:
        assert_error(server.request("GET", "/capabilities"), 401, "M_MISSING_TOKEN")
        token = server.register("alice")["access_token"]
        capabilities = server.request("GET", "/capabilities", token=token).json()["capabilities"]
    assert capabilities["m.room_versions"]["default"] == "11"
    assert capabilities["m.room_versions"]["available"] == {str(version): "stable" for version in range(1, 13)}
    assert capabilities["m.profile_fields"] == {"enabled": True}
    assert capabilities["m.change_password"] == {"enabled": False}
