"""Homeservers as processes of their own: ours and Synapse, federating over TLS on the loopback interface.

    authority = Authority(directory)
    alpha = OurServer("alpha", directory, authority)
    alpha.start()                    # returns when /versions answers
    alpha.kill()                     # SIGKILL, as a power cut would
    alpha.start()                    # the same server name, ports, database and keys

A server's name is ``localhost:<federation port>``; clients use plain HTTP at ``base_url``.
"""

from __future__ import annotations

import base64
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx
import trustme

START_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 60.0
LOG_TAIL_BYTES = 6_000
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port that is free, and stays so while its server is down.

    It lies below the range from which the kernel gives ports to outgoing connections.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Authority:
    """A throw-away certificate authority and the one certificate that all servers on this machine use."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        self.ca_file = directory / "ca.pem"
        self.certificate_file = directory / "certificate.pem"
        self.private_key_file = directory / "private_key.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        certificate.cert_chain_pems[0].write_to_path(str(self.certificate_file))
        certificate.private_key_pem.write_to_path(str(self.private_key_file))


class ServerFailed(Exception):
    """A server did not start or did not stop; the message has the end of its log."""


class Server(ABC):
    """A homeserver process with a directory of its own."""

    kind = ""

    def __init__(self, name: str, directory: Path, authority: Authority, *, federation_port: int | None = None) -> None:
        self.name = name
        self.directory = directory / name
        self.directory.mkdir(parents=True)
        self.authority = authority
        self.client_port = free_port()
        self.listen_port = free_port()
        """Where it listens for other servers."""
        self.server_name = f"localhost:{federation_port or self.listen_port}"
        """What others connect to; another port than ``listen_port`` if something stands in between."""
        self.base_url = f"http://127.0.0.1:{self.client_port}"
        self.log_file = self.directory / "process.log"
        self.checkout = ROOT
        self._process: subprocess.Popen[bytes] | None = None
        self._is_configured = False

    @abstractmethod
    def _configure(self) -> None:
        """Write what the server needs to start for the first time."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """The process."""

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> float:
        """Start it and wait until it answers; returns the seconds that took. Does nothing if it runs."""
        if self.is_running:
            return 0.0
        if not self._is_configured:
            self._configure()
            self._is_configured = True
        began = time.monotonic()
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=_environment(self.checkout),
            )
        self._wait_until(self._answers, START_SECONDS_MAX, "did not start")
        return time.monotonic() - began

    def kill(self) -> None:
        """End it at once, with no chance to finish anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_SECONDS_MAX)
            self._process = None

    def stop(self) -> None:
        """End it as its operator would. Raises ServerFailed if it takes too long or reports a failure."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            status = process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerFailed(f"{self} did not stop\n{self.log_tail()}") from None
        self._process = None
        if status not in (0, -signal.SIGTERM):
            raise ServerFailed(f"{self} ended with exit status {status}\n{self.log_tail()}")

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process ID; raises ServerFailed when it does not run."""
        if self._process is None:
            raise ServerFailed(f"{self} does not run")
        return self._process.pid

    # -- what it says --------------------------------------------------------------------------------------------------

    def log_size(self) -> int:
        """How long the log is now, for ``log_since``."""
        return self.log_file.stat().st_size if self.log_file.exists() else 0

    def log_since(self, offset: int) -> str:
        """What was logged after ``offset``."""
        if not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")

    def log_tail(self) -> str:
        """The end of the log."""
        return self.log_since(max(0, self.log_size() - LOG_TAIL_BYTES))

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, {self.server_name})"

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.base_url}/_matrix/client/versions", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def _wait_until(self, condition: Callable[[], bool], seconds_max: float, complaint: str) -> None:
        deadline = time.monotonic() + seconds_max
        while not condition():
            if time.monotonic() > deadline or not self.is_running:
                self.kill()
                raise ServerFailed(f"{self} {complaint}\n{self.log_tail()}")
            time.sleep(0.02)


class OurServer(Server):
    """``homeserver init``, then ``homeserver serve``."""

    kind = "ours"

    def __init__(
        self,
        name: str,
        directory: Path,
        authority: Authority,
        *,
        federation_port: int | None = None,
        database_url: str = "sqlite:///homeserver.db",
        settings: str = "",
        constants: Mapping[str, object] | None = None,
        checkout: Path = ROOT,
        has_rate_limits: bool = False,
    ) -> None:
        super().__init__(name, directory, authority, federation_port=federation_port)
        self.database_url = database_url
        self.checkout = checkout
        """The folder with the code that runs: another one than this to compare it with ours."""
        self.has_rate_limits = has_rate_limits
        self.settings = settings
        """More of ``homeserver.toml``: whole tables."""
        self.constants = constants or {}
        """What is other than it is in the code, by dotted name: times that would be too long to wait for in a test."""
        self.config_file = self.directory / "data" / "homeserver.toml"

    def command_line(self, *arguments: str) -> str:
        """Run ``homeserver ARGUMENTS --config FILE`` and return what it prints; raises ServerFailed if it fails."""
        return self._run(*arguments, "--config", str(self.config_file))

    def _configure(self) -> None:
        self._run("init", "--server-name", self.server_name, "--data-dir", str(self.config_file.parent))
        self.config_file.write_text(
            f"""\
server_name = "{self.server_name}"

[[listeners]]
bind = "127.0.0.1"
port = {self.client_port}
serves = ["client"]

[[listeners]]
bind = "127.0.0.1"
port = {self.listen_port}
tls_certificate = "{self.authority.certificate_file}"
tls_private_key = "{self.authority.private_key_file}"
serves = ["federation"]

[database]
url = "{self.database_url}"

[registration]
enabled = true

[federation]
ca_file = "{self.authority.ca_file}"
allow_private_addresses = true

[rate_limits]
enabled = {str(self.has_rate_limits).lower()}

{self.settings}
""",
            encoding="utf-8",
        )

    def _command(self) -> Sequence[str]:
        program = ["-m", "homeserver"]
        if self.constants:
            settings = ((*name.rsplit(".", 1), value) for name, value in self.constants.items())
            changes = [f"setattr(import_module({module!r}), {name!r}, {value!r})" for module, name, value in settings]
            lines = ["from importlib import import_module", *changes, "import_module('homeserver.cli').main()"]
            program = ["-c", "\n".join(lines)]
        return [sys.executable, *program, "serve", "--config", str(self.config_file)]

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "homeserver", *arguments],
            cwd=self.directory,  # where no other code of ours lies
            capture_output=True,
            text=True,
            timeout=START_SECONDS_MAX,
            env=_environment(self.checkout),
        )
        if done.returncode != 0:
            raise ServerFailed(f"homeserver {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
        return done.stdout


class SynapseServer(Server):
    """A real Synapse from ``.venv-synapse`` (or where ``SYNAPSE_PYTHON`` says), with SQLite and without rate limits."""

    kind = "Synapse"

    @staticmethod
    def python() -> Path:
        """The interpreter that has Synapse."""
        return Path(os.environ.get("SYNAPSE_PYTHON", ROOT / ".venv-synapse" / "bin" / "python"))

    def _configure(self) -> None:
        key = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        (self.directory / "signing.key").write_text(f"ed25519 a_1 {key}\n")
        (self.directory / "log.yaml").write_text(json.dumps(_SYNAPSE_LOGGING))
        (self.directory / "homeserver.yaml").write_text(json.dumps(self._settings(), indent=1))  # JSON is YAML

    def _command(self) -> Sequence[str]:
        return [str(self.python()), "-m", "synapse.app.homeserver", "-c", str(self.directory / "homeserver.yaml")]

    def _settings(self) -> dict[str, object]:
        return {
            "server_name": self.server_name,
            "pid_file": str(self.directory / "homeserver.pid"),
            "listeners": [
                _synapse_listener(self.client_port, "client", tls=False),
                _synapse_listener(self.listen_port, "federation", tls=True),
            ],
            "tls_certificate_path": str(self.authority.certificate_file),
            "tls_private_key_path": str(self.authority.private_key_file),
            "federation_custom_ca_list": [str(self.authority.ca_file)],
            "federation": {
                # As it is set for tests: somebody waits for the retry.
                "destination_min_retry_interval": "1s",
                "destination_retry_multiplier": 1,
                "destination_max_retry_interval": "1s",
                "max_short_retry_delay": "1s",
                "max_long_retry_delay": "2s",
                "max_long_retries": 2,
            },
            "ip_range_blacklist": [],
            "trusted_key_servers": [],
            "suppress_key_server_warning": True,
            "database": {"name": "sqlite3", "args": {"database": str(self.directory / "homeserver.db")}},
            "log_config": str(self.directory / "log.yaml"),
            "media_store_path": str(self.directory / "media"),
            "signing_key_path": str(self.directory / "signing.key"),
            "report_stats": False,
            "enable_registration": True,
            "enable_registration_without_verification": True,
            "macaroon_secret_key": secrets.token_hex(16),
            "form_secret": secrets.token_hex(16),
            "allow_public_rooms_over_federation": True,
            "allow_public_rooms_without_auth": True,
            **_SYNAPSE_WITHOUT_LIMITS,
        }


def _environment(checkout: Path) -> dict[str, str]:
    """Ours, without what would configure our server from outside."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOMESERVER_")}
    return {**inherited, "PYTHONPATH": str(checkout)}


def _synapse_listener(port: int, resource: str, *, tls: bool) -> dict[str, object]:
    return {
        "port": port,
        "type": "http",
        "tls": tls,
        "bind_addresses": ["127.0.0.1"],
        "resources": [{"names": [resource], "compress": False}],
    }


_SYNAPSE_LOGGING = {
    "version": 1,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {"synapse": {"level": "INFO"}, "synapse.access": {"level": "INFO"}},
    "root": {"level": "WARNING", "handlers": ["console"]},
    "disable_existing_loggers": False,
}

_UNLIMITED = {"per_second": 1e6, "burst_count": 1_000_000}
_SYNAPSE_WITHOUT_LIMITS: dict[str, object] = {
    "rc_message": _UNLIMITED,
    "rc_registration": _UNLIMITED,
    "rc_login": {"address": _UNLIMITED, "account": _UNLIMITED, "failed_attempts": _UNLIMITED},
    "rc_admin_redaction": _UNLIMITED,
    "rc_joins": {"local": _UNLIMITED, "remote": _UNLIMITED},
    "rc_joins_per_room": _UNLIMITED,
    "rc_invites": {"per_room": _UNLIMITED, "per_user": _UNLIMITED, "per_issuer": _UNLIMITED},
    "rc_presence": {"per_user": _UNLIMITED},
    "rc_room_creation": _UNLIMITED,
    "rc_federation": {
        "window_size": 1000,
        "sleep_limit": 1_000_000,
        "sleep_delay": 0,
        "reject_limit": 1_000_000,
        "concurrent": 1000,
    },
    "federation_rr_transactions_per_room_per_second": 1_000_000,
}
