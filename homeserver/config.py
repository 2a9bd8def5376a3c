"""The configuration: a TOML file, overridden by ``HOMESERVER_`` environment variables.

``Config.load`` reads and checks it once; what it returns is frozen. docs/operations.md describes each key. A setting
that cannot be used raises ``ConfigurationError``, with the key, the value and what was expected in its text.
"""

from __future__ import annotations

import copy
import difflib
import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from homeserver.errors import ConfigurationError
from homeserver.protocol.identifiers import is_valid_server_name, is_valid_user_id
from homeserver.protocol.room_versions import ROOM_VERSIONS

ENVIRONMENT_PREFIX = "HOMESERVER_"
NESTING = "__"
FILE_NAME = "homeserver.toml"

Service: TypeAlias = Literal["client", "federation", "media", "metrics", "console"]
"""What a listener may serve."""

NOT_YET_IN_EFFECT: Mapping[str, str] = {
    "appservices.files": "application services",
    "media.max_upload_size": "the media repository",
    "registration.shared_secret": "registration by shared secret",
}
"""Keys that are accepted but have no effect yet, and the feature that will use each. None of them protects anything:
a key that promises protection without giving it stops the start (see ``registration.require_token``).
"""

SERVICES_NOT_YET_IN_EFFECT: frozenset[Service] = frozenset({"media", "metrics", "console"})
"""The same for what ``listeners.serves`` names."""

SECRET_KEYS = frozenset({"registration.shared_secret"})
"""Keys whose values are never shown. (A password in ``database.url`` is masked by itself.)"""

SHOWN_CHARACTERS_MAX = 200
"""How much of a value an error message repeats."""

_NOT_OURS = re.compile(r"HOMESERVER_(CONFIG|TEST_\w+|SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\w+)")
"""Variables with our prefix that are not settings: the path of the file, the variables of the tests, and those that
Kubernetes sets in every container next to a service called "homeserver".
"""

_URL_PASSWORD = re.compile(r"(://[^:/@]*):.*@", re.DOTALL)
_URL_PARAMETER = re.compile(r"(?<=[?&;])([^=&;?]+)=([^&;\"]*)")
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)/([smh]), ?burst (\d{1,9})")
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_SIZE = re.compile(r"(\d+)\s*([KMG]?)(?:i?B)?", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


# -- kinds of values ---------------------------------------------------------------------------------------------------


def _server_name(value: str) -> str:
    if not is_valid_server_name(value):
        raise ValueError('a server name such as "example.org", "localhost:8448" or "[::1]:8448"')
    return value


def _own_server_name(value: str) -> str:
    """Our own name, in lower case. (Other servers' names may have upper case, which then matters.)"""
    name = _server_name(value)
    if name != name.lower():
        raise ValueError(
            f'a server name in lower case, such as "{name.lower()}": names are compared letter by letter, and others '
            "would not find the users of a server whose name has capital letters"
        )
    return name


def _user_id(value: str) -> str:
    if not is_valid_user_id(value):
        raise ValueError('a user ID such as "@alice:example.org"')
    return value


def _network(value: str) -> str:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError('an IP address, or a network such as "10.0.0.0/8"') from None
    return value


def _list_from_text(value: Any) -> Any:
    """A list from the environment: JSON, or values separated by commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("a list, in the environment as JSON or separated by commas") from None
    return [part.strip() for part in value.split(",") if part.strip()]


def _size(value: Any) -> Any:
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError('a size in bytes, or one such as "50M"')
        return int(match[1]) * _SIZE_UNITS[match[2].upper()]
    return value


def _absolute(path: Path, info: ValidationInfo) -> Path:
    directory: Path = (info.context or {}).get("directory") or Path.cwd()
    return Path(os.path.normpath(directory / path))


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError("a file that exists")
    return path


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


def _base_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = (
            parts.scheme in ("http", "https")
            and parts.hostname
            and "@" not in parts.netloc  # everybody is told this URL, so it must hold no password
            and not (parts.query or parts.fragment)
        )
    except ValueError:
        usable = False
    if not usable:
        raise ValueError('a URL such as "https://matrix.example.org"')
    return value.rstrip("/")


def _database_url(value: str) -> str:
    known_scheme = value.startswith("postgresql+psycopg://")
    file = value.removeprefix("sqlite:///") if value.startswith("sqlite:///") else ""
    if not known_scheme and file in ("", ":memory:"):
        raise ValueError('"sqlite:///FILE" or "postgresql+psycopg://USER:PASSWORD@HOST/NAME"')
    return value


def _must_be_off(value: bool) -> bool:
    if value:
        raise ValueError(
            "false, because this version has no registration tokens: with registration.enabled = true it would let in "
            "everybody. Remove the key, set registration.enabled = false, and make accounts with `homeserver users "
            "create`"
        )
    return value


def _room_version(value: Any) -> Any:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if text not in ROOM_VERSIONS:
        raise ValueError("a room version: " + ", ".join(ROOM_VERSIONS))
    return text


ServerName = Annotated[str, AfterValidator(_server_name)]
OwnServerName = Annotated[str, AfterValidator(_own_server_name)]
ServerNames = Annotated[tuple[ServerName, ...], BeforeValidator(_list_from_text)]
UserIds = Annotated[tuple[Annotated[str, AfterValidator(_user_id)], ...], BeforeValidator(_list_from_text)]
Networks = Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], BeforeValidator(_list_from_text)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
ExistingFile = Annotated[Path, AfterValidator(_absolute), AfterValidator(_existing_file)]
OptionalFile = Annotated[ExistingFile | None, BeforeValidator(_none_if_empty)]
Files = Annotated[tuple[ExistingFile, ...], BeforeValidator(_list_from_text)]
Size = Annotated[int, BeforeValidator(_size), Field(ge=1)]
BaseUrl = Annotated[Annotated[str, AfterValidator(_base_url)] | None, BeforeValidator(_none_if_empty)]
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
KnownRoomVersion = Annotated[str, BeforeValidator(_room_version)]


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something may happen: as ``burst`` at once, and ``per_second`` in the long run."""

    per_second: float
    burst: int

    @classmethod
    def parse(cls, text: str) -> Rate | None:
        """Parse ``"10/s, burst 100"``; ``"off"`` is None. Raises ``ValueError``."""
        if text == "off":
            return None
        match = _RATE.fullmatch(text)
        if match is None or not (rate := cls(float(match[1]) / _SECONDS[match[2]], int(match[3]))).burst:
            raise ValueError('a rate such as "10/s, burst 100" or "5/m, burst 20" (s, m, h), or "off"')
        if rate.per_second <= 0:
            raise ValueError("a rate above 0")
        return rate


def _rate_text(value: str) -> str:
    Rate.parse(value)
    return value


RateText = Annotated[str, AfterValidator(_rate_text)]


# -- the sections ------------------------------------------------------------------------------------------------------


class Section(BaseModel):
    """The base of all sections: frozen, no unknown keys, defaults checked like given values."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ListenerConfig(Section):
    """``[[listeners]]``: an address to listen on, and what is served there."""

    bind: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8008
    tls_certificate: OptionalFile = None
    tls_private_key: OptionalFile = None
    serves: Annotated[frozenset[Service], BeforeValidator(_list_from_text)] = frozenset(
        {"client", "federation", "media", "console"}
    )

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_private_key is None):
            raise ValueError("tls_certificate and tls_private_key, both or neither")
        return self

    @property
    def is_tls(self) -> bool:
        """Whether this listener speaks TLS."""
        return self.tls_certificate is not None


class DatabaseConfig(Section):
    """``[database]``."""

    url: DatabaseUrl = "sqlite:///homeserver.db"


class RegistrationConfig(Section):
    """``[registration]``: who may create an account."""

    enabled: bool = False
    shared_secret: str = ""
    require_token: Annotated[bool, AfterValidator(_must_be_off)] = False


class FederationConfig(Section):
    """``[federation]``: which other servers this server talks to, and how."""

    enabled: bool = True
    verify_certificates: bool = True
    ca_file: OptionalFile = None
    allow_private_addresses: bool = False
    allowed_servers: ServerNames = ()
    denied_servers: ServerNames = ()
    trusted_key_servers: ServerNames = ()
    require_destination: bool = False


class RateLimitsConfig(Section):
    """``[rate_limits]``: how often each address, account, device or server may do something.

    The defaults are more than a person or an ordinary bot does, and less than what would harm others.
    """

    enabled: bool = True
    exempt_users: UserIds = ()
    logins: RateText = "60/m, burst 120"
    login_failures: RateText = "10/m, burst 30"
    account_login_failures: RateText = "20/m, burst 60"
    registrations: RateText = "20/m, burst 200"
    messages: RateText = "50/s, burst 1000"
    rooms: RateText = "60/m, burst 200"
    joins: RateText = "2/s, burst 200"
    invites: RateText = "1/s, burst 200"
    profile_changes: RateText = "1/s, burst 100"
    receipts_and_typing: RateText = "20/s, burst 500"
    settings: RateText = "10/s, burst 300"
    lookups: RateText = "50/s, burst 1000"
    federation_transactions: RateText = "50/s, burst 500"
    federation_requests: RateText = "50/s, burst 1000"
    federation_invites: RateText = "2/s, burst 100"
    unknown_servers: RateText = "5/s, burst 100"
    notary_queries: RateText = "5/s, burst 200"

    def rate_of(self, name: str) -> Rate | None:
        """The rate of a limit; None if it is off."""
        return Rate.parse(getattr(self, name))


class ReadReceiptsConfig(Section):
    """``[read_receipts]``."""

    enabled: bool = True


class RoomsConfig(Section):
    """``[rooms]``."""

    default_version: KnownRoomVersion = "11"


class GovernanceConfig(Section):
    """``[governance]``."""

    last_owner_protection: Literal["enforce", "warn", "off"] = "enforce"


class AppservicesConfig(Section):
    """``[appservices]``."""

    files: Files = ()


class MediaConfig(Section):
    """``[media]``."""

    max_upload_size: Size = 50 << 20


class LoggingConfig(Section):
    """``[logging]``."""

    level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    format: Literal["console", "json"] = "console"


class Config(Section):
    """The whole configuration. Every key but ``server_name`` has a default that works; all paths are absolute."""

    server_name: OwnServerName
    public_base_url: BaseUrl = None
    data_dir: AbsolutePath = Path(".")
    keys_dir: Path = Path("keys")
    trusted_proxies: Networks = ("127.0.0.1", "::1")
    listeners: Annotated[tuple[ListenerConfig, ...], BeforeValidator(_list_from_text), Field(min_length=1)] = (
        ListenerConfig(),
    )
    database: DatabaseConfig = DatabaseConfig()
    registration: RegistrationConfig = RegistrationConfig()
    federation: FederationConfig = FederationConfig()
    rate_limits: RateLimitsConfig = RateLimitsConfig()
    read_receipts: ReadReceiptsConfig = ReadReceiptsConfig()
    rooms: RoomsConfig = RoomsConfig()
    governance: GovernanceConfig = GovernanceConfig()
    appservices: AppservicesConfig = AppservicesConfig()
    media: MediaConfig = MediaConfig()
    logging: LoggingConfig = LoggingConfig()

    _file: Path | None = PrivateAttr(default=None)

    @field_validator("keys_dir", mode="after")
    @classmethod
    def _keys_under_data_dir(cls, keys_dir: Path, info: ValidationInfo) -> Path:
        return Path(os.path.normpath(info.data["data_dir"] / keys_dir)) if "data_dir" in info.data else keys_dir

    @field_validator("database", mode="after")
    @classmethod
    def _sqlite_under_data_dir(cls, database: DatabaseConfig, info: ValidationInfo) -> DatabaseConfig:
        if "data_dir" not in info.data or not database.url.startswith("sqlite:///"):
            return database
        file = os.path.normpath(info.data["data_dir"] / database.url.removeprefix("sqlite:///"))
        return database.model_copy(update={"url": f"sqlite:///{file}"})

    @property
    def file(self) -> Path | None:
        """The file that this was read from; None if all settings came from the environment."""
        return self._file

    @classmethod
    def load(cls, path: Path | str | None = None, environ: Mapping[str, str] = os.environ) -> Config:
        """Read the file (``path``, else see ``find_config_file``), apply the environment on top of it, and check
        everything.

        Raises ConfigurationError.
        """
        file = find_config_file(path, environ)
        config = cls.parse(_read_toml(file) if file else {}, file.parent if file else Path.cwd(), environ)
        config._file = file
        return config

    @classmethod
    def parse(cls, settings: Mapping[str, Any], directory: Path, environ: Mapping[str, str] | None = None) -> Config:
        """Check settings as a file holds them; relative paths are relative to ``directory``.

        Raises ConfigurationError.
        """
        merged = copy.deepcopy(dict(settings))
        names = dict(_put_environment_over(merged, environ or {}))
        try:
            return cls.model_validate(merged, context={"directory": directory.absolute()})
        except ValidationError as error:
            reports = [_report(details, names) for details in error.errors(include_url=False)]
            raise ConfigurationError("; ".join(reports)) from None

    def describe(self) -> dict[str, Any]:
        """The effective settings as JSON values, without secrets."""
        described = self.model_dump(mode="json")
        for listener in described["listeners"]:
            listener["serves"].sort()
        described["database"]["url"] = mask_url_password(self.database.url)
        for key in SECRET_KEYS:
            section, name = key.split(".")
            if described[section][name]:
                described[section][name] = "***"
        return described

    def not_yet_in_effect(self) -> list[str]:
        """A line for each setting that differs from its default and has no effect yet."""
        lines = []
        for key, feature in NOT_YET_IN_EFFECT.items():
            section_name, name = key.split(".")
            section = getattr(self, section_name)
            if getattr(section, name) != type(section).model_fields[name].default:
                lines.append(f"{key} has no effect yet: this version does not have {feature}")
        for listener in self.listeners:
            if "serves" in listener.model_fields_set:
                lines.extend(
                    f'listeners.serves: "{service}" has no effect yet: this version does not serve it'
                    for service in sorted(listener.serves & SERVICES_NOT_YET_IN_EFFECT)
                )
        return lines


# -- where settings come from ------------------------------------------------------------------------------------------


def find_config_file(path: Path | str | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file to read: ``path``, else ``HOMESERVER_CONFIG``, else one that exists in ``.`` or ``./data``, else
    None.
    """
    named = path or environ.get("HOMESERVER_CONFIG")
    if named:
        return Path(named).absolute()
    for candidate in (Path.cwd() / FILE_NAME, Path.cwd() / "data" / FILE_NAME):
        if candidate.is_file():
            return candidate
    return None


def mask_url_password(url: str) -> str:
    """The URL with its passwords masked: the one before the host, and those among its parameters.

    What cannot be a password for sure is masked too: a password may hold any character, even ``/``, ``@`` and ``?``.
    """
    return _URL_PARAMETER.sub(_mask_parameter, _URL_PASSWORD.sub(r"\1:***@", url))


def _mask_parameter(match: re.Match[str]) -> str:
    name = match[1]
    return f"{name}=***" if "pass" in unquote(name).lower() else match[0]


def known_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every possible key, in dotted form (``registration.enabled``, ``listeners.port``)."""
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from known_keys(inner, f"{prefix}{name}.")


def _section_in(annotation: Any) -> type[Section] | None:
    """The section that a field holds, directly or in a tuple."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        # some editors put a byte order mark at the beginning of a file
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"cannot read the configuration file {file}: {reason}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{file} is not valid TOML: {error}") from error


def _put_environment_over(settings: dict[str, Any], environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Apply each variable to ``settings``; yields the dotted key and the variable's name, for error messages."""
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT_PREFIX) or _NOT_OURS.fullmatch(name):
            continue
        path = name.removeprefix(ENVIRONMENT_PREFIX).lower().split(NESTING)
        *parents, last = path
        target: Any = settings
        for parent in parents:
            target = _step_into(target, parent, name)
        if isinstance(target, list):
            raise ConfigurationError(f"{name}: expected a key after the number of the item")
        target[last] = environ[name]
        yield ".".join(path), name


def _step_into(target: Any, part: str, name: str) -> Any:
    if isinstance(target, list):
        # HOMESERVER_LISTENERS__0__PORT; the number after the last one appends an item
        if not part.isdecimal() or int(part) > len(target):
            raise ConfigurationError(f"{name}: expected the number of an item, 0 to {len(target)}, instead of {part!r}")
        if int(part) == len(target):
            target.append({})
        inner = target[int(part)]
    else:
        inner = target.setdefault(part, [{}] if part == "listeners" else {})
    if not isinstance(inner, dict | list):
        raise ConfigurationError(f"{name}: {part!r} is a value and has no keys of its own")
    return inner


# -- what is wrong -----------------------------------------------------------------------------------------------------


def _report(details: ErrorDetails, environment_names: Mapping[str, str]) -> str:
    """One line that describes one invalid value."""
    location = [str(part) for part in details["loc"]]
    key = ".".join(part for part in location if not part.startswith(("function-", "nullable", "constrained-")))
    plain_key = ".".join(part for part in key.split(".") if not part.isdecimal())
    origin = f" (from {environment_names[key]})" if key in environment_names else ""
    if details["type"] == "extra_forbidden":
        return f"unknown key {key}{origin}: did you mean {_nearest_key(plain_key)}?"
    if details["type"] == "missing":
        variable = ENVIRONMENT_PREFIX + key.upper().replace(".", NESTING)
        return f"{key} is missing: expected {_expected(details)}, in {FILE_NAME} or as {variable}"
    return f"{key} = {_shown(plain_key, details['input'])}{origin}: expected {_expected(details)}"


def _nearest_key(key: str) -> str:
    section, _, name = key.rpartition(".")
    keys = set(known_keys())
    keys |= {known.rpartition(".")[0] for known in keys if "." in known}  # the names of the sections
    # Look for a typing error within the same section first, then for the right name in another section.
    siblings = {known.rpartition(".")[2]: known for known in sorted(keys) if known.rpartition(".")[0] == section}
    if close := difflib.get_close_matches(name, siblings, 1):
        return siblings[close[0]]
    return max(sorted(keys), key=lambda known: (_likeness(name, known.rpartition(".")[2]), _likeness(key, known)))


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _shown(key: str, value: Any) -> str:
    if key in SECRET_KEYS:
        return "***"
    text = mask_url_password(json.dumps(_without_secrets(value), ensure_ascii=False, default=str))
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "..."


def _without_secrets(value: Any) -> Any:
    """A table that stands where no table is expected, without the secrets in it."""
    if isinstance(value, dict):
        secret = {key.rpartition(".")[2] for key in SECRET_KEYS}
        return {name: "***" if name in secret else _without_secrets(inner) for name, inner in value.items()}
    return [_without_secrets(inner) for inner in value] if isinstance(value, list) else value


def _expected(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    kind = details["type"]
    if kind == "missing":
        return 'a server name such as "example.org"' if details["loc"] == ("server_name",) else "a value"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return str(context["expected"])
    for start, words in _EXPECTED_BY_KIND.items():
        if kind.startswith(start):
            return words.format(**context)
    return details["msg"]


_EXPECTED_BY_KIND = {
    "bool": "true or false",
    "int": "a whole number",
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "{le} or less",
    "string_too_short": "some text",
    "string": "text",
    "path": "a path",
    "tuple": "a list",
    "frozen_set": "a list",
    "too_short": "at least one item",
    "model": "a table",
}
"""What Pydantic's error types mean in TOML's terms; the first match counts."""
