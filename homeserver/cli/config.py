"""``homeserver config``."""

from __future__ import annotations

from typing import Any

import typer

from homeserver.cli.common import ConfigOption, JsonOption, command_group, load_config, print_json

commands = command_group("The configuration.")


@commands.command()
def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Read and validate the configuration and print the effective settings, secrets masked."""
    loaded = load_config(config)
    description = loaded.describe()
    if as_json:
        print_json(description)
    else:
        typer.echo(f"# from {loaded.file or 'the environment'}")
        for line in _as_toml(description):
            typer.echo(line)
    for warning in loaded.not_yet_in_effect():
        typer.echo(f"warning: {warning}", err=True)


def _as_toml(description: dict[str, Any]) -> list[str]:
    """One line for each key, in the order of the model; a key without a value is left out, as in a file."""
    lines, sections = [], []
    for name, value in description.items():
        if isinstance(value, dict):
            sections += ["", f"[{name}]", *_pairs(value)]
        elif name == "listeners":
            for listener in value:
                sections += ["", "[[listeners]]", *_pairs(listener)]
        else:
            lines += _pairs({name: value})
    return lines + sections


def _pairs(table: dict[str, Any]) -> list[str]:
    import json

    # JSON strings, numbers, booleans and flat lists are also valid TOML.
    return [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in table.items() if value is not None]
