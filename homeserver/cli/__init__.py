"""The command line, ``homeserver``: thin commands over what the other packages offer.

A command imports what it needs when it runs, so that ``--help`` and ``serve`` do not load what they never use. Exit
status: 0 done, 1 failed, 2 bad usage or bad configuration; a failure is one line on standard error. Read-only commands
take ``--json``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from homeserver.errors import ConfigurationError, HomeserverError

DONE, FAILED, BAD_USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command (by default that of ``sys.argv``); returns the exit status."""
    from homeserver.cli.application import application

    # The database holds messages and the configuration passwords: what we make is for its owner alone.
    others = os.umask(0o077)
    try:
        command = typer.main.get_command(application)
        status = command.main(arguments, prog_name="homeserver", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else DONE
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command_path = context.command_path if context else "homeserver"
        return _say(f"{error.format_message()} See `{command_path} --help`.", BAD_USAGE)
    except ConfigurationError as error:
        return _say(str(error), BAD_USAGE)
    except (HomeserverError, OSError) as error:
        return _say(str(error), FAILED)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", FAILED)
    except Exception as error:
        if not _is_database_error(error):
            raise
        # The first line is the database's message; the lines after it repeat the statement and its parameters.
        return _say(f"the database: {str(error).splitlines()[0]}", FAILED)
    finally:
        os.umask(others)


def _is_database_error(error: Exception) -> bool:
    # an error of SQLAlchemy's can only come up after it was imported
    sqlalchemy_errors = sys.modules.get("sqlalchemy.exc")
    return sqlalchemy_errors is not None and isinstance(error, sqlalchemy_errors.SQLAlchemyError)


def _say(message: str, status: int) -> int:
    line = " ".join(message.split())
    print(f"homeserver: {line}", file=sys.stderr)
    return status
