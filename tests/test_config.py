"""homeserver/config.py: the contract's section "Configuration"."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from homeserver.config import NOT_YET_IN_EFFECT, Config, Rate, find_config_file, known_keys, mask_url_password
from homeserver.errors import ConfigurationError

CONTRACT = """\
server_name = "example.org"
public_base_url = "https://matrix.example.org"
data_dir = "."
keys_dir = "keys"

[[listeners]]
bind = "127.0.0.1"
port = 8008

[database]
url = "sqlite:///homeserver.db"

[registration]
enabled = false
shared_secret = ""
require_token = false

[federation]
enabled = true
verify_certificates = true
ca_file = ""
allow_private_addresses = false
allowed_servers = []
denied_servers = []
trusted_key_servers = []

[rate_limits]
enabled = true

[read_receipts]
enabled = true

[rooms]
default_version = "11"

[governance]
last_owner_protection = "enforce"

[appservices]
files = []

[media]
max_upload_size = "50M"

[logging]
level = "info"
format = "console"
"""


def load(directory: Path, toml: str, environ: Mapping[str, str] | None = None) -> Config:
    file = directory / "homeserver.toml"
    file.write_text(toml)
    return Config.load(file, environ or {})


def refusal(directory: Path, toml: str, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(directory, toml, environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_server_name_is_enough_and_the_defaults_are_those_of_the_contract(tmp_path: Path) -> None:
    written_out = load(tmp_path, CONTRACT.replace("public_base_url", "#"))
    assert load(tmp_path, 'server_name = "example.org"') == written_out
    assert written_out.not_yet_in_effect() == []


def test_values_are_typed_and_frozen(tmp_path: Path) -> None:
    config = load(tmp_path, CONTRACT)
    assert config.public_base_url == "https://matrix.example.org"
    assert config.media.max_upload_size == 50 * 1024 * 1024
    assert config.listeners[0].serves == {"client", "federation", "media", "console"}
    assert config.federation.ca_file is None
    assert config.rooms.default_version == "11"
    with pytest.raises(ValidationError):
        config.federation.enabled = False  # type: ignore[misc]


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "ca.pem").touch()
    config = load(
        tmp_path,
        'server_name = "a"\ndata_dir = "state"\n[federation]\nca_file = "ca.pem"',
    )
    assert config.data_dir == tmp_path / "state"
    assert config.keys_dir == tmp_path / "state" / "keys"
    assert config.database.url == f"sqlite:///{tmp_path}/state/homeserver.db"
    assert config.federation.ca_file == tmp_path / "ca.pem"


def test_absolute_paths_stay(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        'server_name = "a"\ndata_dir = "/d"\nkeys_dir = "/k"\n[database]\nurl = "sqlite:////var/lib/h.db"',
    )
    assert (config.data_dir, config.keys_dir) == (Path("/d"), Path("/k"))
    assert config.database.url == "sqlite:////var/lib/h.db"


@pytest.mark.parametrize("name", ["example.org", "localhost:8448", "[::1]:8448", "10.0.0.1"])
def test_server_names_of_the_contract(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, f'server_name = "{name}"').server_name == name


@pytest.mark.parametrize(
    ("text", "size"), [("50M", 50 << 20), ("1024", 1024), ("10 KiB", 10 << 10), ("2G", 2 << 30), ("7MB", 7 << 20)]
)
def test_sizes(tmp_path: Path, text: str, size: int) -> None:
    assert load(tmp_path, f'server_name = "a"\n[media]\nmax_upload_size = "{text}"').media.max_upload_size == size


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        CONTRACT,
        {
            "HOMESERVER_SERVER_NAME": "other.org",
            "HOMESERVER_DATABASE__URL": "postgresql+psycopg://u:p@h/n",
            "HOMESERVER_REGISTRATION__ENABLED": "true",
            "HOMESERVER_LISTENERS__0__PORT": "9000",
            "HOMESERVER_LISTENERS__1__BIND": "::1",
            "HOMESERVER_FEDERATION__DENIED_SERVERS": "evil.org, worse.org:8448",
            "HOMESERVER_FEDERATION__ALLOWED_SERVERS": '["good.org"]',
            "HOMESERVER_MEDIA__MAX_UPLOAD_SIZE": "1K",
            "PATH": "/bin",
        },
    )
    assert config.server_name == "other.org"
    assert config.database.url == "postgresql+psycopg://u:p@h/n"
    assert config.registration.enabled is True
    assert [(listener.bind, listener.port) for listener in config.listeners] == [("127.0.0.1", 9000), ("::1", 8008)]
    assert config.federation.denied_servers == ("evil.org", "worse.org:8448")
    assert config.federation.allowed_servers == ("good.org",)
    assert config.media.max_upload_size == 1024


def test_the_environment_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config.load(None, {"HOMESERVER_SERVER_NAME": "a.org", "HOMESERVER_LISTENERS__0__PORT": "0"})
    assert (config.server_name, config.file, config.data_dir) == ("a.org", None, tmp_path)
    assert config.listeners[0].port == 0


def test_listeners_from_the_environment_as_json(tmp_path: Path) -> None:
    environ = {"HOMESERVER_LISTENERS": '[{"port": 1, "serves": ["metrics"]}]'}
    config = load(tmp_path, CONTRACT, environ)
    assert [(listener.port, listener.serves) for listener in config.listeners] == [(1, {"metrics"})]


def test_variables_that_are_not_settings_are_left_alone(tmp_path: Path) -> None:
    others = {
        "HOMESERVER_CONFIG": "x",
        "HOMESERVER_TEST_POSTGRES": "x",
        "HOMESERVER_PORT": "tcp://10.0.0.1:8008",
        "HOMESERVER_PORT_8008_TCP_ADDR": "10.0.0.1",
        "HOMESERVER_SERVICE_HOST": "10.0.0.1",
    }
    assert load(tmp_path, CONTRACT, others) == load(tmp_path, CONTRACT)


@pytest.mark.parametrize(
    ("line", "wrong", "nearest"),
    [
        ("[registration]\nenabeld = true", "registration.enabeld", "registration.enabled"),
        ("servername = 'a'", "servername", "server_name"),
        ("[[listeners]]\nprot = 1", "listeners.0.prot", "listeners.port"),
        ("[federations]\nenabled = true", "federations", "federation?"),
        ("[database]\nmax_upload_size = '1M'", "database.max_upload_size", "media.max_upload_size"),
        ("qqqq = 1", "qqqq", ""),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(tmp_path: Path, line: str, wrong: str, nearest: str) -> None:
    message = refusal(tmp_path, f'server_name = "a"\n{line}')
    assert f"unknown key {wrong}: did you mean {nearest}" in message


def test_an_unknown_variable_is_an_error_too(tmp_path: Path) -> None:
    message = refusal(tmp_path, CONTRACT, {"HOMESERVER_REGISTRATION__ENABLE": "true"})
    assert "unknown key registration.enable (from HOMESERVER_REGISTRATION__ENABLE)" in message
    assert "did you mean registration.enabled?" in message


BAD_VALUES: list[tuple[str, str, str, str]] = [
    ("server_name = 'not a name'", "server_name", '"not a name"', "example.org"),
    ("server_name = 'Example.ORG'", "server_name", '"Example.ORG"', '"example.org"'),
    ("server_name = 5", "server_name", "5", "text"),
    ("[[listeners]]\nport = 70000", "listeners.0.port", "70000", "65535 or less"),
    ("[[listeners]]\nport = 'http'", "listeners.0.port", '"http"', "whole number"),
    ("[[listeners]]\nserves = ['clients']", "listeners.0.serves.0", '"clients"', "'client'"),
    ("listeners = []", "listeners", "[]", "at least one"),
    ("[[listeners]]\ntls_certificate = 'gone.pem'", "listeners.0.tls_certificate", "gone.pem", "a file that exists"),
    ("[database]\nurl = 'mysql://h/n'", "database.url", '"mysql://h/n"', "postgresql+psycopg://"),
    ("[database]\nurl = 'postgresql://u:geheim@h/n'", "database.url", "u:***@h", "postgresql+psycopg://"),
    ("[database]\nurl = 'sqlite://'", "database.url", '"sqlite://"', "sqlite:///FILE"),
    ("[database]\nurl = 'sqlite:///:memory:'", "database.url", ":memory:", "sqlite:///FILE"),
    ("[registration]\nenabled = 'perhaps'", "registration.enabled", '"perhaps"', "true or false"),
    ("registration = true", "registration", "true", "a table"),
    ("[federation]\nallowed_servers = ['*']", "federation.allowed_servers.0", '"*"', "server name"),
    ("[rooms]\ndefault_version = '13'", "rooms.default_version", '"13"', "a room version: 1, 2"),
    ("[governance]\nlast_owner_protection = 'on'", "governance.last_owner_protection", '"on"', "'enforce', 'warn'"),
    ("[media]\nmax_upload_size = 'big'", "media.max_upload_size", '"big"', '"50M"'),
    ("[media]\nmax_upload_size = 0", "media.max_upload_size", "0", "1 or more"),
    ("[logging]\nlevel = 'loud'", "logging.level", '"loud"', "'info'"),
    ("public_base_url = 'matrix.example.org'", "public_base_url", "matrix.example.org", "https://"),
    ("public_base_url = 'https://a:b@c.org'", "public_base_url", "https://a:***@c.org", "https://"),
]


@pytest.mark.parametrize(("line", "key", "value", "expected"), BAD_VALUES, ids=[row[0] for row in BAD_VALUES])
def test_a_bad_value_is_named_with_what_was_expected(
    tmp_path: Path, line: str, key: str, value: str, expected: str
) -> None:
    prefix = "" if line.startswith("server_name") else 'server_name = "a"\n'
    message = refusal(tmp_path, prefix + line)
    start, _, end = message.partition(": expected ")
    assert start.startswith(f"{key} = ")
    assert value in start
    assert expected in end


def test_tls_takes_both_files_or_neither(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").touch()
    message = refusal(tmp_path, 'server_name = "a"\n[[listeners]]\ntls_certificate = "cert.pem"')
    assert "listeners.0" in message
    assert "tls_private_key, both or neither" in message


def test_a_bad_variable_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, CONTRACT, {"HOMESERVER_LISTENERS__0__PORT": "many"})
    assert 'listeners.0.port = "many" (from HOMESERVER_LISTENERS__0__PORT): expected a whole number' in message


@pytest.mark.parametrize(
    "name", ["HOMESERVER_SERVER_NAME__X", "HOMESERVER_LISTENERS__X__PORT", "HOMESERVER_LISTENERS__7__PORT",
             "HOMESERVER_LISTENERS__0", "HOMESERVER_"]
)  # fmt: skip
def test_a_variable_that_leads_nowhere_is_named(tmp_path: Path, name: str) -> None:
    assert name in refusal(tmp_path, CONTRACT, {name: "1"})


def test_a_secret_is_never_in_a_message(tmp_path: Path) -> None:
    message = refusal(tmp_path, 'server_name = "a"\n[registration]\nshared_secret = 12345')
    assert "registration.shared_secret" in message
    assert "12345" not in message
    for misplaced in ("[[registration]]\nshared_secret = 'psst'", "[[database]]\nurl = 'x://u:psst@h'"):
        assert "psst" not in refusal(tmp_path, f'server_name = "a"\n{misplaced}')


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"server_name = ", "not valid TOML"), (b"\xff\xfe", "UTF-8")],
)
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "homeserver.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=reason):
        Config.load(file, {})


def test_a_missing_file_and_a_missing_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        Config.load(tmp_path / "gone.toml", {})
    assert "server_name is missing" in refusal(tmp_path, "")
    assert "HOMESERVER_SERVER_NAME" in refusal(tmp_path, "")


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config_file(None, {}) is None
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "homeserver.toml").touch()
    assert find_config_file(None, {}) == tmp_path / "data" / "homeserver.toml"
    (tmp_path / "homeserver.toml").touch()
    assert find_config_file(None, {}) == tmp_path / "homeserver.toml"
    assert find_config_file(None, {"HOMESERVER_CONFIG": "/etc/h.toml"}) == Path("/etc/h.toml")
    assert find_config_file("given.toml", {"HOMESERVER_CONFIG": "/etc/h.toml"}) == tmp_path / "given.toml"


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("[registration]\nshared_secret = 's'", "registration.shared_secret"),
        ("[media]\nmax_upload_size = '1G'", "media.max_upload_size"),
        ("[[listeners]]\nserves = ['client', 'metrics']", 'listeners.serves: "metrics"'),
    ],
)
def test_a_setting_without_effect_is_said(tmp_path: Path, line: str, key: str) -> None:
    (warning,) = load(tmp_path, f'server_name = "a"\n{line}').not_yet_in_effect()
    assert warning.startswith(key)
    assert "no effect yet" in warning


@pytest.mark.parametrize("more", ["", "enabled = true"])
def test_registration_tokens_that_are_not_there_stop_the_start(tmp_path: Path, more: str) -> None:
    """Otherwise everybody could register on a server whose administrator believes that it takes a token."""
    message = refusal(tmp_path, f'server_name = "a"\n[registration]\nrequire_token = true\n{more}')
    assert message.startswith("registration.require_token = true: expected false")
    assert "registration.enabled = false" in message
    assert "require_token" in refusal(tmp_path, CONTRACT, {"HOMESERVER_REGISTRATION__REQUIRE_TOKEN": "yes"})


def test_what_is_said_to_have_no_effect_exists() -> None:
    assert set(NOT_YET_IN_EFFECT) <= set(known_keys())


def test_the_description_is_complete_and_without_secrets(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        'server_name = "a"\n[database]\nurl = "postgresql+psycopg://u:geheim@h/n"\n'
        '[registration]\nshared_secret = "psst"',
    )
    description = config.describe()
    assert "geheim" not in str(description)
    assert "psst" not in str(description)
    assert description["database"]["url"] == "postgresql+psycopg://u:***@h/n"
    assert description["listeners"][0]["serves"] == ["client", "console", "federation", "media"]

    def keys(value: dict[str, Any], prefix: str = "") -> set[str]:
        found = set()
        for name, inner in value.items():
            inner = inner[0] if name == "listeners" else inner
            found |= keys(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {prefix + name}
        return found

    assert keys(description) == set(known_keys())


def test_masking_urls() -> None:
    assert mask_url_password("postgresql+psycopg://u:p:x@h/n") == "postgresql+psycopg://u:***@h/n"
    for password in ("pa/ss", "pa?ss", "p@ss", "p/a@s?s=1&b", "x\ny"):
        assert mask_url_password(f"postgresql+psycopg://u:{password}@h/n") == "postgresql+psycopg://u:***@h/n"
    masked = "postgresql+psycopg://h/n?user=u&password=***&sslmode=require&sslpassword=***"
    assert mask_url_password(masked.replace("***", "geheim")) == masked
    assert "geheim" not in mask_url_password("postgresql+psycopg://u@h/n?pass%77ord=geheim")
    assert "geheim" not in mask_url_password("postgresql+psycopg://u:x/geheim@h/n?password=geheim/y@z")
    assert mask_url_password("postgresql+psycopg://u@h/n") == "postgresql+psycopg://u@h/n"
    assert mask_url_password("sqlite:////a:b@c.db") == "sqlite:////a:b@c.db"


def test_rates_and_proxies(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        'server_name = "a"\ntrusted_proxies = ["10.0.0.0/8"]\n[rate_limits]\njoins = "off"\nrooms = "5/m, burst 20"',
    )
    assert config.trusted_proxies == ("10.0.0.0/8",)
    assert config.rate_limits.rate_of("joins") is None
    assert config.rate_limits.rate_of("rooms") == Rate(5 / 60, 20)
    for wrong, key in (
        ("[rate_limits]\njoins = '5'", "rate_limits.joins"),
        ("[rate_limits]\nexempt_users = ['bot']", "rate_limits.exempt_users.0"),
        ("trusted_proxies = ['proxy']", "trusted_proxies.0"),
    ):
        assert refusal(tmp_path, f"server_name = 'a'\n{wrong}").startswith(f"{key} = ")
