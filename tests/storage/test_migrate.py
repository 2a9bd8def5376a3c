"""homeserver/storage/migrate.py and the migrations themselves, on each database."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from homeserver.errors import HomeserverError
from homeserver.storage import migrate
from homeserver.storage.places import place_of
from homeserver.storage.tables import metadata


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'homeserver.db'}"
    url: str = request.getfixturevalue("empty_postgresql_url")
    return url


def execute(url: str, statement: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_an_empty_database_is_brought_up_to_date_once(empty_url: str) -> None:
    assert migrate.current(empty_url) is None
    assert migrate.upgrade(empty_url)
    assert migrate.current(empty_url) == migrate.head()
    assert not migrate.upgrade(empty_url)


def test_the_migrations_make_what_the_tables_say(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, metadata)
    engine.dispose()
    assert differences == []


def test_asking_where_a_database_stands_creates_nothing(tmp_path: Path) -> None:
    assert migrate.current(f"sqlite:///{tmp_path / 'none.db'}") is None
    assert list(tmp_path.iterdir()) == []


def test_processes_that_start_together_migrate_once(empty_url: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        script = "import sys; from homeserver.storage import migrate; print(migrate.upgrade(sys.argv[1]))"
        others = [
            pool.submit(subprocess.run, [sys.executable, "-c", script, empty_url], capture_output=True, text=True)
        ]
        ours = migrate.upgrade(empty_url)
        theirs = [other.result() for other in others]
    assert [other.stderr for other in theirs] == [""]
    assert [ours, *(other.stdout.strip() == "True" for other in theirs)].count(True) == 1
    assert migrate.current(empty_url) == migrate.head()


def test_a_database_of_a_newer_version_is_left_alone(database_url: str) -> None:
    execute(database_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(HomeserverError, match=r"9999.*newer"):
        migrate.upgrade(database_url)
    with pytest.raises(HomeserverError, match=r"9999.*newer"):
        migrate.require_current(database_url)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_database_of_another_program_is_left_alone(empty_url: str, is_damaged: bool) -> None:
    if is_damaged:
        migrate.upgrade(empty_url)
        execute(empty_url, "DELETE FROM alembic_version")
    else:
        if empty_url.startswith("sqlite"):
            Path(empty_url.removeprefix("sqlite:///")).parent.mkdir()
        execute(empty_url, "CREATE TABLE invoices (number INTEGER)")
    with pytest.raises(HomeserverError, match="another program"):
        migrate.upgrade(empty_url)
    engine = create_engine(empty_url)
    tables = inspect(engine).get_table_names()
    engine.dispose()
    assert is_damaged or tables == ["invoices"]


def test_commands_that_read_want_a_migrated_database(empty_url: str, database_url: str) -> None:
    migrate.require_current(database_url)
    with pytest.raises(HomeserverError, match="db upgrade"):
        migrate.require_current(empty_url)


def test_a_failing_migration_leaves_nothing_behind(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "migrations"
    (directory / "versions").mkdir(parents=True)
    real = migrate.migrations_directory()
    (directory / "env.py").write_text((real / "env.py").read_text())
    (directory / "versions" / "0001_breaks.py").write_text(
        "import sqlalchemy as sa\n"
        "from alembic import op\n"
        "revision = '0001'\n"
        "down_revision = None\n"
        "def upgrade():\n"
        "    op.create_table('half', sa.Column('a', sa.Integer()))\n"
        "    op.execute('SELECT * FROM nowhere')\n"
    )
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "migrations_directory", lambda: directory)
        with pytest.raises(Exception, match="nowhere"):
            migrate.upgrade(empty_url)
    assert migrate.upgrade(empty_url)  # the real ones find an empty database


def test_up_to_date_is_known_without_alembic(sqlite_url: str) -> None:
    script = (
        "import sys; from homeserver.storage import migrate\n"
        "assert not migrate.upgrade(sys.argv[1])\n"
        "assert 'alembic' not in sys.modules, 'this costs 0.3 s at each start'"
    )
    subprocess.run([sys.executable, "-c", script, sqlite_url], check=True)


def test_events_of_the_time_before_places_get_theirs(empty_url: str) -> None:
    """Live events keep the order of arrival. What was backfilled comes below the event that it led to, in order."""
    engine = migrate._engine(empty_url)
    with engine.begin() as connection:
        command.upgrade(migrate.alembic_config(connection), "0004")
        rows = [
            # An event's number, its depth and position, the verdict, and the numbers of its prev_events.
            (1, 1, -30, 0, []),
            (2, 2, -29, 0, [1]),
            (3, 3, 5, 0, [2]),  # a join
            (4, 4, 7, 0, [3]),
            (5, 5, -10, 0, []),  # while we were away; what is before it is missing
            (6, 6, -9, 2, [5]),
            (7, 7, 20, 0, [6]),  # came back
            (8, 8, None, 1, []),
        ]
        for nid, depth, position, verdict, prevs in rows:
            connection.execute(
                text(
                    "INSERT INTO events (event_nid, event_id, room_nid, type, depth, origin_server_ts, "
                    "stream_position, verdict, json) VALUES (:nid, :id, 1, 'm', :depth, 0, :position, :verdict, :json)"
                ),
                {"nid": nid, "id": f"${nid}", "depth": depth, "position": position, "verdict": verdict, "json": b"{}"},
            )
            for prev in prevs:
                connection.execute(text(f"INSERT INTO event_edges (event_nid, prev_nid) VALUES ({nid}, {prev})"))
        connection.execute(
            text("INSERT INTO backward_extremities (missing_event_id, event_nid, room_nid) VALUES ('$x', 5, 1)")
        )
    engine.dispose()
    assert migrate.upgrade(empty_url)
    engine = migrate._engine(empty_url)
    with engine.connect() as connection:
        places = {row[0]: row[1] for row in connection.execute(text("SELECT event_nid, place FROM events"))}
        lanes = connection.execute(text("SELECT position, lowest FROM history_lanes ORDER BY position")).all()
        gap = connection.execute(text("SELECT place, fruitless, retry_ts FROM backward_extremities")).one()
    engine.dispose()
    expected = {
        **{nid: place_of(position) for nid, position in ((3, 5), (4, 7), (7, 20))},
        2: place_of(5) - 1,
        1: place_of(5) - 2,
        6: place_of(20) - 1,
        5: place_of(20) - 2,
        8: None,
    }
    assert places == expected
    assert [tuple(row) for row in lanes] == [(5, place_of(5) - 2), (20, place_of(20) - 2)]
    assert tuple(gap) == (places[5], 0, 0)
