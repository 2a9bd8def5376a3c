"""A setting that cannot be used stops the start with status 2 and one line that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from homeserver.cli import main

NAMED = 'server_name = "example.org"\n'
BAD: list[tuple[str, str]] = [
    ("", "server_name"),
    ('server_name = "a b"', "server_name"),
    ('server_name = ""', "server_name"),
    ("server_name = 1", "server_name"),
    ('server_name = "example.org:99999"', "server_name"),
    (NAMED + 'public_base_url = "nonsense"', "public_base_url"),
    (NAMED + 'public_base_ulr = "https://x"', "public_base_url"),  # and the nearest known key
    (NAMED + "data_dir = 1", "data_dir"),
    (NAMED + '[[listeners]]\nport = "x"', "port"),
    (NAMED + "[[listeners]]\nport = 70000", "port"),
    (NAMED + '[[listeners]]\nport = 1\nserves = ["nonsense"]', "serves"),
    (NAMED + '[[listeners]]\nport = 1\ntls_certificate = "x.pem"', "tls_certificate"),
    (NAMED + '[database]\nurl = "mysql://x"', "database.url"),
    (NAMED + '[database]\nurl = "nonsense"', "database.url"),
    (NAMED + "[database]\nurl = 1", "database.url"),
    (NAMED + '[registration]\nenabled = "perhaps"', "registration.enabled"),
    (NAMED + '[federation]\nca_file = "/nowhere/ca.pem"', "federation.ca_file"),
    (NAMED + "[federation]\nallowed_servers = 1", "federation.allowed_servers"),
    (NAMED + '[federation]\ntrusted_key_servers = ["a b"]', "federation.trusted_key_servers"),
    (NAMED + '[rooms]\ndefault_version = "99"', "rooms.default_version"),
    (NAMED + "[rooms]\ndefault_version = 1.5", "rooms.default_version"),
    (NAMED + '[governance]\nlast_owner_protection = "maybe"', "governance.last_owner_protection"),
    (NAMED + '[media]\nmax_upload_size = "many"', "media.max_upload_size"),
    (NAMED + '[logging]\nlevel = "loud"', "logging.level"),
    (NAMED + '[logging]\nformat = "xml"', "logging.format"),
    (NAMED + "[nonsense]\na = 1", "nonsense"),
    (NAMED + "[logging]\nlevle = 1", "logging.level"),
    ("server_name =", "homeserver.toml"),
    ("\xff", "homeserver.toml"),
]


pytestmark = pytest.mark.usefixtures("logging_as_before")


@pytest.mark.parametrize(("text", "key"), BAD, ids=[f"{case[1]}-{number}" for number, case in enumerate(BAD)])
def test_in_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, key: str) -> None:
    config = tmp_path / "homeserver.toml"
    config.write_text(text, encoding="latin-1")
    for command in (["config", "check"], ["serve"]):  # the first would come back even if it found nothing
        assert main([*command, "--config", str(config)]) == 2
        said = capfd.readouterr().err.strip()
        assert key in said
        assert len(said.splitlines()) == 1, said


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("HOMESERVER_DATABASE__URL", "nonsense", "database.url"),
        ("HOMESERVER_LISTENERS__0__PORT", "x", "port"),
        ("HOMESERVER_REGISTRATION__ENABLED", "perhaps", "registration.enabled"),
        ("HOMESERVER_LOGGING__LEVEL", "loud", "logging.level"),
        ("HOMESERVER_ROOMS__DEFAULT_VERSION", "99", "rooms.default_version"),
        ("HOMESERVER_NONSENSE", "1", "nonsense"),
    ],
)
def test_in_the_environment(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    key: str,
) -> None:
    config = tmp_path / "homeserver.toml"
    config.write_text(NAMED)
    monkeypatch.setenv(variable, value)
    for command in (["config", "check"], ["serve"]):
        assert main([*command, "--config", str(config)]) == 2
        said = capfd.readouterr().err.strip()
        assert key in said.lower()
        assert len(said.splitlines()) == 1, said
