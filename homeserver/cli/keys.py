"""``homeserver keys``: our signing keys, and checking other servers' keys. keys/README.md describes the life of a
key.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homeserver.cli.common import (
    ConfigOption,
    JsonOption,
    check_server_name,
    command_group,
    load_config,
    now_ms,
    print_json,
    print_table,
    time_text,
)
from homeserver.errors import HomeserverError

if TYPE_CHECKING:
    from homeserver.config import Config
    from homeserver.federation.server_keys import ServerKeys
    from homeserver.signing import SigningKeys

KEYS_BYTES_MAX = 1 << 20

commands = command_group("Signing keys, by which other servers know this one.")


@commands.command()
def generate(config: ConfigOption = None) -> None:
    """Make a signing key. It signs from now on; existing keys stay valid beside it."""
    typer.echo(_keys_to_change(config).generate(now_ms()).key_id)


@commands.command("list")
def list_keys(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the signing keys, the current one first."""
    keys = _keys(config).list()
    if as_json:
        print_json(
            [
                {
                    "key_id": key.key_id,
                    "created_ts": key.created_ts,
                    "expired_ts": key.expired_ts,
                    "current": key.is_current,
                    "verify_key": key.verify_key,
                }
                for key in keys
            ]
        )
    else:
        rows = [
            (key.key_id, time_text(key.created_ts), time_text(key.expired_ts), key.is_current, key.verify_key)
            for key in keys
        ]
        print_table(("KEY ID", "CREATED", "EXPIRED", "CURRENT", "PUBLIC KEY"), rows)


@commands.command()
def rotate(config: ConfigOption = None) -> None:
    """Make a new signing key and retire the others: they move to old_verify_keys and do not sign any more."""
    typer.echo(_keys_to_change(config).rotate(now_ms()).key_id)


@commands.command()
def export(
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (the default).")] = True,
) -> None:
    """Print the public half, as served under /_matrix/key/v2/server."""
    print_json(_keys(config).server_keys_object(now_ms()))


@commands.command()
def verify(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of a server, such as matrix.org.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a server's published keys and check their signatures; exit status 1 if any step fails."""
    keys, addresses = asyncio.run(_fetch_keys(load_config(config), name))
    rows = [(key_id, data.valid_until_ts, False) for key_id, data in keys.verify_keys.items()]
    rows += [(key_id, data.valid_until_ts, True) for key_id, data in keys.old_verify_keys.items()]
    if as_json:
        print_json({"server_name": name, "addresses": addresses, "signatures": "valid", "published": keys.published})
        return
    typer.echo(f"{name} answers at {', '.join(addresses)}; its keys have valid signatures")
    print_table(
        ("KEY ID", "VALID UNTIL", "RETIRED"),
        [(key_id, time_text(valid_until_ts), retired) for key_id, valid_until_ts, retired in rows],
    )


@commands.command()
def sign(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file with a JSON object; - for standard input.")],
    config: ConfigOption = None,
) -> None:
    """Sign a JSON file with the current key and print it with the signature added."""
    from homeserver.protocol.signatures import sign_json

    key = _keys(config).current
    print_json(sign_json(_read_json_object(file), key))


def _keys(config: Path | None) -> SigningKeys:
    from homeserver.signing import SigningKeys

    loaded = load_config(config)
    return SigningKeys.load(loaded.keys_dir, loaded.server_name)


def _keys_to_change(config: Path | None) -> SigningKeys:
    check_server_name(load_config(config))
    return _keys(config)


async def _fetch_keys(config: Config, server_name: str) -> tuple[ServerKeys, list[str]]:
    """The keys, and the addresses that server discovery found. Raises RemoteError, InvalidSignature."""
    from homeserver.clock import SystemClock
    from homeserver.federation.server_discovery import ServerDiscovery
    from homeserver.federation.server_keys import parse_server_keys
    from homeserver.outbound.http import OutboundHttp

    http = OutboundHttp(
        allow_private_addresses=config.federation.allow_private_addresses,
        verify_certificates=config.federation.verify_certificates,
        ca_file=config.federation.ca_file,
    )
    discovery = ServerDiscovery(http, SystemClock())
    try:
        destination = await discovery.resolve(server_name)
        answer = await http.request(
            "GET",
            f"https://{destination.host_header}/_matrix/key/v2/server",
            bytes_max=KEYS_BYTES_MAX,
            destination=destination,
        )
    finally:
        await discovery.aclose()
        await http.aclose()
    if answer.status != 200:
        raise HomeserverError(f"{server_name} answers the request for its keys with {answer.status}")
    try:
        published = json.loads(answer.body)
    except ValueError as error:
        raise HomeserverError(f"{server_name}: its answer to the request for its keys is not JSON") from error
    addresses = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in destination.addresses]
    return parse_server_keys(published, server_name, now_ms()), addresses


def _read_json_object(file: Path) -> dict[str, Any]:
    text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    try:
        value = json.loads(text)
    except ValueError as error:
        raise HomeserverError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise HomeserverError(f"{file} does not hold a JSON object")
    return value
