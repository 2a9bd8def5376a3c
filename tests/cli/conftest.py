"""Running commands in this process, and what they need."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from homeserver.cli import main


@dataclass
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _logging_as_before(logging_as_before: None) -> None:
    """Every command sets up logging."""


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """``run("keys", "list")`` is ``homeserver keys list``."""

    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        status = main(arguments)
        out, err = capfd.readouterr()
        return Outcome(status, out, err)

    return run


@pytest.fixture
def server(run: Run, tmp_path: Path) -> Path:
    """The data directory of a server after ``init``, found by commands without ``--config``."""
    assert run("init", "--server-name", "example.org").status == 0
    return tmp_path / "data"


@pytest.fixture
def migrated_server(server: Path, migrated_sqlite_file: Path) -> Path:
    """The same with a database."""
    (server / "homeserver.db").write_bytes(migrated_sqlite_file.read_bytes())
    return server
