"""``homeserver users``."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from homeserver.storage.accounts import find_user
from homeserver.storage.database import Database
from tests.cli.conftest import Run


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    file = tmp_path / "password"
    file.write_text("correct horse\nsecond line\n")
    return str(file)


def stored_hash(server: Path, user_id: str) -> str | None:
    database = Database(f"sqlite:///{server / 'homeserver.db'}")
    try:
        user = database.read_now(find_user, user_id)
        return user.password_hash if user else None
    finally:
        database.close()


def test_create_makes_the_database_too(run: Run, server: Path, password_file: str) -> None:
    outcome = run("users", "create", "alice", "--password-file", password_file, "--admin")
    assert (outcome.status, outcome.out) == (0, "@alice:example.org\n")
    (user,) = run("users", "list", "--json").json()
    assert (user["user_id"], user["admin"], user["deactivated_ts"]) == ("@alice:example.org", True, None)
    password_hash = stored_hash(server, "@alice:example.org")
    assert password_hash is not None
    assert password_hash.startswith("$argon2id$")


def test_the_password_may_come_from_standard_input(
    run: Run, migrated_server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse\n"))
    assert run("users", "create", "@bob:example.org").status == 0
    assert stored_hash(migrated_server, "@bob:example.org")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("alice", "exists"), ("Al ice", "name"), ("@carol:other.org", "not a user of this server")],
)
def test_create_refuses(run: Run, migrated_server: Path, password_file: str, name: str, reason: str) -> None:
    assert run("users", "create", "alice", "--password-file", password_file).status == 0
    outcome = run("users", "create", name, "--password-file", password_file)
    assert outcome.status == 1
    assert reason in outcome.err
    assert outcome.err.count("\n") == 1


def test_an_empty_password_is_refused(run: Run, migrated_server: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert run("users", "create", "alice", "--password-file", "empty").status == 1
    assert run("users", "list", "--json").json() == []


def test_a_missing_password_file_is_status_1(run: Run, migrated_server: Path) -> None:
    outcome = run("users", "create", "alice", "--password-file", "gone")
    assert outcome.status == 1
    assert "gone" in outcome.err


def test_set_password(run: Run, migrated_server: Path, password_file: str) -> None:
    run("users", "create", "alice", "--password-file", password_file)
    before = stored_hash(migrated_server, "@alice:example.org")
    assert run("users", "set-password", "alice", "--password-file", password_file).status == 0
    assert stored_hash(migrated_server, "@alice:example.org") != before
    assert run("users", "set-password", "bob", "--password-file", password_file).status == 1


def test_deactivate(run: Run, migrated_server: Path, password_file: str) -> None:
    run("users", "create", "alice", "--password-file", password_file)
    assert run("users", "deactivate", "@alice:example.org").status == 0
    (user,) = run("users", "list", "--json").json()
    assert user["deactivated_ts"] is not None
    assert stored_hash(migrated_server, "@alice:example.org") is None
    assert run("users", "deactivate", "alice").status == 1
    assert run("users", "create", "alice", "--password-file", password_file).status == 1
    assert "@alice:example.org" in run("users", "list").out
