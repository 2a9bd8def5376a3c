"""Which servers may take part in a room by its m.room.server_acl.

https://spec.matrix.org/v1.19/client-server-api/#mroomserver_acl
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from homeserver.errors import BadJson, InvalidParam
from homeserver.protocol.globs import compile_globs
from homeserver.protocol.identifiers import parse_server_name
from homeserver.protocol.json_types import JsonObject


def server_acl_allows(acl_content: JsonObject | None, server_name: str) -> bool:
    """Whether a server may take part, by the content of the room's m.room.server_acl (``None`` where it has none).

    Malformed content counts as its defaults; if there is an ACL, a malformed server name is denied.

    https://spec.matrix.org/v1.19/client-server-api/#mroomserver_acl
    """
    # 1. "If there is no `m.room.server_acl` event in the room state, allow."
    if acl_content is None:
        return True
    try:
        server = parse_server_name(server_name)
    except ValueError:
        return False
    # 2. "If the server name is an IP address (v4 or v6) literal, and `allow_ip_literals` is present and `false`, deny."
    if acl_content.get("allow_ip_literals") is False and server.is_ip_literal:
        return False
    # "The ACLs are evaluated against server names excluding any port information", and ignore case.
    host = server.host.lower()
    # 3. "If the server name matches an entry in the `deny` list, deny."
    if _matches(_entries(acl_content.get("deny")), host):
        return False
    # 4. "If the server name matches an entry in the `allow` list, allow." 5. "Otherwise, deny."
    return _matches(_entries(acl_content.get("allow")), host)


def check_acl(content: JsonObject, own_server_name: str) -> None:
    """Refuse an m.room.server_acl that one of our users must not set.

    Raises ``BadJson`` where a field has the wrong type (other servers would ignore it and exclude all servers), and
    ``InvalidParam`` where it would shut out our own server: its users could never repair it.
    """
    for name in ("allow", "deny"):
        value = content.get(name, [])
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise BadJson(f"'{name}' of a server ACL must be a list of strings")
    if not isinstance(content.get("allow_ip_literals", True), bool):
        raise BadJson("'allow_ip_literals' of a server ACL must be a boolean")
    if not server_acl_allows(content, own_server_name):
        raise InvalidParam("This server ACL would shut out your own server")


def _entries(value: Any) -> tuple[str, ...]:
    return tuple(entry for entry in value if isinstance(entry, str)) if isinstance(value, list) else ()


@lru_cache(maxsize=1024)
def _matches(entries: tuple[str, ...], host: str) -> bool:
    plain, wild = _compile(entries)
    return host in plain or wild.fullmatch(host) is not None


@lru_cache(maxsize=64)
def _compile(entries: tuple[str, ...]) -> tuple[frozenset[str], re.Pattern[str]]:
    """The entries without wildcards, as a set, and the others, as one regular expression."""
    lowered = {entry.lower() for entry in entries}
    wild = {entry for entry in lowered if _has_wildcard(entry)}
    return frozenset(lowered - wild), compile_globs(_in_order(wild))


def _has_wildcard(entry: str) -> bool:
    return "*" in entry or "?" in entry


def _in_order(entries: Iterable[str]) -> list[str]:
    # Try the shortest first: they, such as "*", match most.
    return sorted(entries, key=lambda entry: (len(entry), entry))
