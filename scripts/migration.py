"""Write a migration from the difference between ``storage/tables.py`` and what the migrations so far make.

``make migration`` without a message writes 0001 anew, which is right only while nothing is released;
``make migration m="what changes"`` adds the next one. Read the result before it is committed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from alembic import command
from alembic.operations.ops import ExecuteSQLOp, MigrationScript
from sqlalchemy import create_engine

from homeserver.storage import migrate

INITIAL = "initial"
INITIAL_ROWS = (
    "INSERT INTO counters (id, stream, backfill, event, state_group, auth_chain) VALUES (1, 0, 0, 0, 0, 0)",
)
"""What a new database holds besides its tables."""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("message", nargs="?", default="", help="what the migration changes; none: write 0001 anew")
    message = parser.parse_args().message
    versions = migrate.migrations_directory() / "versions"
    if not message:
        for file in versions.glob("[0-9]*_*.py"):
            file.unlink()
    known = migrate.known_revisions()

    def add_initial_rows(_context: object, _revision: object, directives: list[MigrationScript]) -> None:
        if not known and directives[0].upgrade_ops is not None:
            directives[0].upgrade_ops.ops.extend(ExecuteSQLOp(statement) for statement in INITIAL_ROWS)

    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{Path(directory) / 'empty.db'}"
        if known:
            migrate.upgrade(url)
        with create_engine(url).connect() as connection:
            command.revision(
                migrate.alembic_config(connection),
                message or INITIAL,
                autogenerate=True,
                process_revision_directives=add_initial_rows,
                rev_id=f"{int(known[-1]) + 1 if known else 1:04}",
            )


if __name__ == "__main__":
    main()
