"""homeserver/cli/__init__.py: exit statuses, one line for a failure, and nothing loaded for nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import homeserver
from tests.cli.conftest import Run


def test_help_and_version(run: Run) -> None:
    assert "serve" in run("--help").out
    assert run("--version").out == f"homeserver {homeserver.__version__}\n"
    assert "--server-name" in run("init", "--help").out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "Missing command"),
        (("keys",), "Missing command"),
        (("nonsense",), "nonsense"),
        (("serve", "--bogus"), "--bogus"),
        (("init",), "--server-name"),
        (("keys", "verify"), "NAME"),
    ],
)
def test_bad_usage_is_status_2_and_one_line(run: Run, arguments: tuple[str, ...], word: str) -> None:
    outcome = run(*arguments)
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.startswith("homeserver: ")
    assert outcome.err.count("\n") == 1
    assert word in outcome.err


@pytest.mark.parametrize("command", [("serve",), ("config", "check"), ("keys", "list"), ("db", "current")])
def test_bad_configuration_is_status_2_and_names_the_key(run: Run, server: Path, command: tuple[str, ...]) -> None:
    file = server / "homeserver.toml"
    file.write_text(file.read_text().replace("port = 8008", 'port = "high"'))
    outcome = run(*command, "--config", str(file))
    assert outcome.status == 2
    assert outcome.err == 'homeserver: listeners.0.port = "high": expected a whole number\n'


def test_a_database_that_does_not_answer_is_status_1(run: Run, server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMESERVER_DATABASE__URL", "postgresql+psycopg://u:geheim@127.0.0.1:1/n")
    outcome = run("db", "current")
    assert outcome.status == 1
    assert outcome.err.count("\n") == 1
    assert "geheim" not in outcome.err


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from homeserver.cli import main; main(['--help']);"
        "heavy = {'sqlalchemy', 'fastapi', 'pydantic', 'structlog', 'rich', 'httpx'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_it_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "homeserver", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nonsense" in done.stderr
