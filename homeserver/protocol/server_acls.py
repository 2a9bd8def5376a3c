"""Which servers may take part in a room by its m.room.server_acl.

https://spec.matrix.org/v1.19/client-server-api/#mroomserver_acl
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from homeserver.errors import BadJson, InvalidParam
from homeserver.protocol.events import StateKey
from homeserver.protocol.globs import GlobSet
from homeserver.protocol.identifiers import parse_server_name
from homeserver.protocol.json_types import JsonObject

SERVER_ACL: Final[StateKey] = ("m.room.server_acl", "")


class ServerAcl:
    """The content of an m.room.server_acl, ready to be applied. Malformed content counts as its defaults."""

    __slots__ = ("_allow", "_deny", "_permits_ip_literals")

    def __init__(self, content: JsonObject) -> None:
        self._permits_ip_literals = content.get("allow_ip_literals") is not False
        self._deny = GlobSet(_entries(content.get("deny")))
        self._allow = GlobSet(_entries(content.get("allow")))

    @property
    def bytes(self) -> int:
        """About how much memory it takes."""
        return 1_000 + self._deny.bytes + self._allow.bytes

    def allows(self, server_name: str) -> bool:
        """Whether a server may take part; a malformed server name is denied.

        https://spec.matrix.org/v1.19/client-server-api/#mroomserver_acl
        """
        # 1. "If there is no `m.room.server_acl` event in the room state, allow." See ``server_acl_allows``.
        try:
            server = parse_server_name(server_name)
        except ValueError:
            return False
        # 2. "If the server name is an IP address (v4 or v6) literal, and `allow_ip_literals` is present and `false`,
        #    deny."
        if not self._permits_ip_literals and server.is_ip_literal:
            return False
        # "The ACLs are evaluated against server names excluding any port information", and ignore case.
        host = server.host.lower()
        # 3. "If the server name matches an entry in the `deny` list, deny."
        if self._deny.matches(host):
            return False
        # 4. "If the server name matches an entry in the `allow` list, allow." 5. "Otherwise, deny."
        return self._allow.matches(host)


def server_acl_allows(acl_content: JsonObject | None, server_name: str) -> bool:
    """Whether a server may take part, by the content of the room's m.room.server_acl (``None`` where it has none)."""
    return acl_content is None or ServerAcl(acl_content).allows(server_name)


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


def _entries(value: Any) -> Iterator[str]:
    """The entries, in lower case, without those that no host name can match."""
    for entry in value if isinstance(value, list) else ():
        # Host names are ASCII. An entry with other characters would only make the automaton larger.
        if isinstance(entry, str) and entry.isascii():
            yield entry.lower()
