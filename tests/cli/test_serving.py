"""``homeserver serve``, as a process."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, text

from homeserver.storage import migrate
from tests.cli.conftest import Run
from tests.waiting import WAIT_S

Serve = Callable[..., "Served"]


class Served:
    """A server that listens, and what it logged until then."""

    def __init__(self, environment: dict[str, str]) -> None:
        settings = {"HOMESERVER_LISTENERS__0__PORT": "0", "HOMESERVER_LOGGING__FORMAT": "json", **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "homeserver", "serve"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings},
        )
        self.log: list[dict[str, Any]] = []
        self.url = ""

    def wait_until_it_listens(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if not line.startswith("{"):
                raise AssertionError(line + self.process.stderr.read())
            self.log.append(json.loads(line))
            if self.log[-1]["event"] == "listening":
                self.url = f"http://127.0.0.1:{self.log[-1]['port']}"
                return
        raise AssertionError(f"it ended: {self.log}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=WAIT_S)
        return self.process.returncode


@pytest.fixture
def serve() -> Iterator[Serve]:
    running: list[Served] = []

    def serve(**environment: str) -> Served:
        running.append(Served(environment))
        running[-1].wait_until_it_listens()
        return running[-1]

    yield serve
    for served in running:
        if served.process.poll() is None:
            served.process.kill()
        served.process.wait()
        assert served.process.stderr is not None
        served.process.stderr.close()


def test_it_makes_what_is_missing_serves_and_stops_cleanly(serve: Serve, run: Run, server: Path) -> None:
    for key in (server / "keys").iterdir():
        key.unlink()
    served = serve()
    assert migrate.current(f"sqlite:///{server / 'homeserver.db'}") == migrate.head()
    (key_id,) = [key["key_id"] for key in run("keys", "list", "--json").json()]
    assert httpx.get(f"{served.url}/_matrix/client/versions", timeout=WAIT_S).json()["versions"]
    assert list(httpx.get(f"{served.url}/_matrix/key/v2/server", timeout=WAIT_S).json()["verify_keys"]) == [key_id]
    assert served.stop() == 0
    assert run("db", "check").status == 0


def test_it_says_what_has_no_effect_yet(serve: Serve, server: Path) -> None:
    served = serve(HOMESERVER_REGISTRATION__SHARED_SECRET="psst")
    warnings = [entry["event"] for entry in served.log if entry["level"] == "warning"]
    assert any(warning.startswith("registration.shared_secret has no effect yet") for warning in warnings)
    assert served.stop() == 0


def test_what_it_makes_is_closed_to_other_users_and_what_is_open_is_said(serve: Serve, server: Path) -> None:
    server.chmod(0o755)  # a directory that was there before
    (server / "homeserver.toml").chmod(0o644)
    served = serve()
    made = {path.name: stat.S_IMODE(path.stat().st_mode) for path in server.glob("homeserver.db*")}
    assert made["homeserver.db"] == 0o600
    assert set(made.values()) == {0o600}
    (warning,) = [entry for entry in served.log if entry.get("advice") == "chmod o-rwx"]
    assert warning["file"].endswith("homeserver.toml")
    assert served.stop() == 0


def test_accounts_made_by_the_command_line_can_log_in(serve: Serve, run: Run, server: Path, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("correct horse")
    assert run("users", "create", "alice", "--password-file", "password").status == 0
    served = serve()
    identifier = {"type": "m.id.user", "user": "alice"}
    login = {"type": "m.login.password", "identifier": identifier, "password": "correct horse"}
    answer = httpx.post(f"{served.url}/_matrix/client/v3/login", json=login, timeout=WAIT_S)
    assert answer.json()["user_id"] == "@alice:example.org"
    assert served.stop() == 0


def test_a_database_of_a_newer_version_stops_the_start(run: Run, migrated_server: Path) -> None:

    engine = create_engine(f"sqlite:///{migrated_server / 'homeserver.db'}")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    outcome = run("serve")
    assert outcome.status == 1
    assert "9999" in outcome.err


def test_another_server_name_than_the_databases_stops_every_command(
    run: Run, migrated_server: Path, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("correct horse")
    assert run("users", "create", "alice", "--password-file", "password").status == 0
    file = migrated_server / "homeserver.toml"
    file.write_text(file.read_text().replace("example.org", "two.example"))
    for command in (
        ("serve",),
        ("users", "list"),
        ("users", "create", "bob", "--password-file", "password"),
        ("rooms", "list"),
        ("db", "upgrade"),
        ("keys", "generate"),
        ("keys", "rotate"),
    ):
        outcome = run(*command)
        assert outcome.status == 2, command
        assert 'Set server_name = "example.org" again' in outcome.err
    outcome = run("db", "check")
    assert outcome.status == 1
    assert 'belongs to the server "example.org"' in outcome.out


@pytest.mark.parametrize("content", ["", "ed25519 a_1 AAAA\n"])
def test_a_key_file_without_a_key_stops_the_start_and_no_new_key_is_made(
    run: Run, migrated_server: Path, content: str
) -> None:
    (key,) = (migrated_server / "keys").iterdir()
    key.write_text(content)
    outcome = run("serve")
    assert outcome.status == 2
    assert key.name in outcome.err
    assert list((migrated_server / "keys").iterdir()) == [key]


def test_an_sqlite_database_is_served_once(serve: Serve, run: Run, server: Path, tmp_path: Path) -> None:
    first = serve()
    outcome = run("serve")
    assert outcome.status == 2
    assert "another process serves" in outcome.err
    (tmp_path / "password").write_text("correct horse")
    assert run("users", "create", "alice", "--password-file", "password").status == 0  # commands may be run meanwhile
    first.process.kill()
    first.process.wait()
    assert serve().stop() == 0
