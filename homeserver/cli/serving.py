"""``homeserver init`` and ``homeserver serve``."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from homeserver.cli.common import ConfigOption, claim_database, load_config, now_ms
from homeserver.errors import HomeserverError

if TYPE_CHECKING:
    from homeserver.config import Config


def init(
    server_name: Annotated[
        str,
        typer.Option(
            "--server-name", metavar="NAME", help="The name after the colon in user IDs; it can never change."
        ),
    ],
    data_dir: Annotated[Path, typer.Option("--data-dir", metavar="DIR", help="Where everything is kept.")] = Path(
        "data"
    ),
    keys_dir: Annotated[
        Path | None, typer.Option("--keys-dir", metavar="DIR", help="Where the signing keys are kept, if elsewhere.")
    ] = None,
    development: Annotated[
        bool,
        typer.Option("--development", help="For trying things out: anybody may register, and existing keys are used."),
    ] = False,
) -> None:
    """Write a configuration and a signing key for a new server; overwrites nothing."""
    from homeserver.cli.config_template import render
    from homeserver.config import FILE_NAME, Config
    from homeserver.logging import configure_logging
    from homeserver.signing import SigningKeys

    directory = data_dir.absolute()
    keys_path = os.path.relpath(keys_dir.absolute(), directory) if keys_dir else "keys"
    text = render(server_name, keys_path, development=development)
    config = Config.parse(tomllib.loads(text), directory)  # a bad server name fails here, before anything is written
    configure_logging(config.logging)
    file = directory / FILE_NAME
    if file.exists():
        raise HomeserverError(f"{file} exists already; nothing was changed")
    keys = SigningKeys.load(config.keys_dir, server_name)
    if keys.list() and not development:
        raise HomeserverError(f"{config.keys_dir} holds signing keys already; nothing was changed")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = keys.current if keys.has_keys else keys.generate(now_ms())
    with file.open("x", encoding="utf-8") as output:
        output.write(text)
    typer.echo(f"wrote {file}, and the signing key {key.key_id} in {config.keys_dir}")
    typer.echo(f"start the server with: homeserver serve --config {file}")


def serve(config: ConfigOption = None) -> None:
    """Serve until SIGTERM or SIGINT. Migrates the database and makes a signing key first if they are missing."""
    # Most of the start is importing, which makes no garbage. It does not need rich, which structlog and httpx import if
    # it is installed (to colour a terminal), nor the old pydantic, which FastAPI looks for.
    gc.disable()
    with contextlib.ExitStack() as while_serving:
        with _hidden("rich", "pydantic.v1"):
            loaded = load_config(config)
            from homeserver.storage.sole_use import sole_use

            loaded.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            while_serving.enter_context(sole_use(loaded.database.url))
            _prepare(loaded)
            from homeserver import app
        gc.enable()

        app.serve(loaded)


@contextlib.contextmanager
def _hidden(*packages: str) -> Iterator[None]:
    """Make imports inside fail to find these packages, unless they were imported before."""
    hidden = [package for package in packages if package not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for package in hidden:
            del sys.modules[package]


def _prepare(config: Config) -> None:
    """Create what must exist before a server starts."""
    import structlog

    from homeserver.cli.file_permissions import files_open_to_others
    from homeserver.signing import SigningKeys
    from homeserver.storage import migrate
    from homeserver.storage.database import Database

    logger = structlog.get_logger(__name__)
    for warning in config.not_yet_in_effect():
        logger.warning(warning)
    for path in files_open_to_others(config):
        logger.warning("other users of this machine can read or change a file", file=str(path), advice="chmod o-rwx")
    migrate.upgrade(config.database.url)
    with contextlib.closing(Database(config.database.url, readers=1)) as database:
        claim_database(database, config)
    keys = SigningKeys.load(config.keys_dir, config.server_name)
    if not keys.has_keys:
        key = keys.generate(now_ms())
        logger.info("made a signing key", key_id=key.key_id, keys_dir=str(config.keys_dir))
