"""``homeserver init``."""

from __future__ import annotations

import re
import stat
import tomllib
from pathlib import Path

import pytest

from homeserver.cli.config_template import render
from homeserver.config import Config, known_keys
from tests.cli.conftest import Run


def test_it_writes_a_configuration_and_a_key(run: Run, tmp_path: Path) -> None:
    outcome = run("init", "--server-name", "example.org", "--data-dir", "there")
    assert outcome.status == 0
    file = tmp_path / "there" / "homeserver.toml"
    config = Config.load(file, {})
    assert config.server_name == "example.org"
    assert config.describe() == Config.parse({"server_name": "example.org"}, tmp_path / "there").describe()
    (key,) = (tmp_path / "there" / "keys").glob("*.key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert str(file) in outcome.out


def test_the_default_directory_is_data(server: Path, tmp_path: Path) -> None:
    assert server == tmp_path / "data"
    assert (server / "homeserver.toml").is_file()


def test_it_overwrites_no_configuration(run: Run, server: Path) -> None:
    before = sorted((path, path.read_bytes()) for path in server.rglob("*") if path.is_file())
    outcome = run("init", "--server-name", "other.org")
    assert outcome.status == 1
    assert "homeserver.toml" in outcome.err
    assert sorted((path, path.read_bytes()) for path in server.rglob("*") if path.is_file()) == before


def test_it_overwrites_no_key(run: Run, server: Path) -> None:
    (server / "homeserver.toml").unlink()
    outcome = run("init", "--server-name", "other.org")
    assert outcome.status == 1
    assert "keys" in outcome.err
    assert not (server / "homeserver.toml").exists()


def test_a_bad_server_name_writes_nothing(run: Run, tmp_path: Path) -> None:
    outcome = run("init", "--server-name", 'a"\nb')
    assert outcome.status == 2
    assert outcome.err.startswith("homeserver: server_name = ")
    assert list(tmp_path.iterdir()) == []


def test_development_settings_and_keys_elsewhere(run: Run, tmp_path: Path) -> None:
    arguments = ("--server-name", "localhost", "--keys-dir", "keys", "--development")
    assert run("init", *arguments).status == 0
    config = Config.load(tmp_path / "data" / "homeserver.toml", {})
    assert config.registration.enabled
    assert config.public_base_url == "http://localhost:8008"
    assert config.keys_dir == tmp_path / "keys"
    (key,) = (tmp_path / "keys").glob("*.key")

    (tmp_path / "data" / "homeserver.toml").unlink()
    assert run("init", *arguments).status == 0
    assert list((tmp_path / "keys").glob("*.key")) == [key]


@pytest.mark.parametrize("development", [False, True])
def test_the_file_names_every_key_with_its_default(development: bool, tmp_path: Path) -> None:
    text = render("example.org", development=development)
    written_out = re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE)
    without_examples = "\n".join(
        line for line in written_out.splitlines() if not re.match(r'url = "postgresql|public_base_url|tls_', line)
    )
    settings = tomllib.loads(without_examples)
    config = Config.parse(settings, tmp_path)
    expected = {"server_name": "example.org", **({"registration": {"enabled": True}} if development else {})}
    assert config == Config.parse(expected, tmp_path)
    for key in known_keys():
        assert re.search(rf"^(# )?{key.rpartition('.')[2]} = ", text, re.MULTILINE), key
