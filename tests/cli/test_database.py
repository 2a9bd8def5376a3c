"""``homeserver db``."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import create_engine, text

from homeserver.storage import migrate
from tests.cli.conftest import Run


def test_upgrade_and_current(run: Run, server: Path) -> None:
    head = migrate.head()
    assert run("db", "current", "--json").json() == {"current": None, "head": head, "up_to_date": False}
    assert run("db", "current").out == f"none (this version needs {head})\n"
    assert run("db", "upgrade").out == f"upgraded to {head}\n"
    assert run("db", "upgrade").out == f"at {head} already\n"
    assert run("db", "current").out == f"{head} (up to date)\n"
    assert (server / "homeserver.db").is_file()


def test_reading_wants_a_migrated_database(run: Run, server: Path) -> None:
    for command in (("db", "check"), ("rooms", "list")):
        outcome = run(*command)
        assert outcome.status == 1
        assert "homeserver db upgrade" in outcome.err
    assert not (server / "homeserver.db").exists()


def test_check_of_a_sound_database(run: Run, migrated_server: Path) -> None:
    assert run("db", "check").out == "checked 0 events in 0 rooms\n"
    assert run("db", "check", "--json").json() == {"ok": True, "checked": {"rooms": 0, "events": 0}, "problems": []}


def test_check_of_a_broken_database_is_status_1(run: Run, migrated_server: Path) -> None:
    engine = create_engine(f"sqlite:///{migrated_server / 'homeserver.db'}")
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO event_edges (event_nid, prev_nid) VALUES (7, 8)"))
    engine.dispose()
    outcome = run("db", "check")
    assert outcome.status == 1
    assert "event_edges.event_nid leads to nothing: 1 (such as 7)" in outcome.out
    assert outcome.err.count("\n") == 1
