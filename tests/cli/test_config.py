"""``homeserver config check``."""

from __future__ import annotations

from pathlib import Path

import pytest

from homeserver.config import Config
from tests.cli.conftest import Run


def test_it_prints_what_is_in_force(run: Run, server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMESERVER_LOGGING__LEVEL", "debug")
    outcome = run("config", "check")
    assert outcome.status == 0
    assert f"# from {server / 'homeserver.toml'}" in outcome.out
    assert 'level = "debug"' in outcome.out
    assert outcome.err == ""


def test_what_it_prints_is_a_configuration_again(run: Run, server: Path) -> None:
    printed = run("config", "check").out
    (server / "homeserver.toml").write_text(printed)
    assert run("config", "check").out == printed


def test_as_json(run: Run, server: Path) -> None:
    described = run("config", "check", "--json", "--config", str(server / "homeserver.toml")).json()
    assert described == Config.load(server / "homeserver.toml", {}).describe()


def test_it_warns_of_what_has_no_effect_and_shows_no_secret(
    run: Run, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOMESERVER_REGISTRATION__SHARED_SECRET", "psst")
    outcome = run("config", "check")
    assert outcome.status == 0
    assert "warning: registration.shared_secret has no effect yet" in outcome.err
    assert "psst" not in outcome.out + outcome.err


def test_a_key_that_promises_what_is_not_there_is_bad_configuration(
    run: Run, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOMESERVER_REGISTRATION__REQUIRE_TOKEN", "true")
    for command in (("config", "check"), ("serve",)):
        outcome = run(*command)
        assert outcome.status == 2
        assert "registration.require_token" in outcome.err


@pytest.mark.parametrize("url", ["postgresql+psycopg://u:ge/heim@h/n", "postgresql+psycopg://u@h/n?password=ge/heim"])
def test_it_shows_no_password_of_the_database(
    run: Run, server: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("HOMESERVER_DATABASE__URL", url)
    for arguments in ((), ("--json",)):
        outcome = run("config", "check", *arguments)
        assert outcome.status == 0
        assert "heim" not in outcome.out + outcome.err
