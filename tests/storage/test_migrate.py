"""homeserver/storage/migrate.py and the migrations themselves, on each database."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from homeserver.errors import HomeserverError
from homeserver.storage import migrate
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
