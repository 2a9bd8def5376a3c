"""The names of servers, users, rooms, aliases and events: their grammar, and parsing them.

https://spec.matrix.org/v1.19/appendices/#identifier-grammar
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple

IDENTIFIER_BYTES_MAX = 255
"""The limit for user IDs, room IDs, aliases and event IDs, with sigil and domain."""
SERVER_NAME_CHARACTERS_MAX = 230
DNS_LABEL_CHARACTERS_MAX = 63
OPAQUE_ID_CHARACTERS_MAX = 255

_PORT = re.compile(r"[0-9]{1,5}\Z")
_PORT_MAX = 65535
_IPV4_SHAPE = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}\Z")
_IPV6_CHARACTERS = re.compile(r"[0-9A-Fa-f:.]{2,45}\Z")
_DNS_CHARACTERS = re.compile(r"[0-9A-Za-z.-]{1,255}\Z")
_NEW_LOCALPART = re.compile(r"[a-z0-9._=/+-]+\Z")
_HASH_EVENT_ID = re.compile(r"\$[A-Za-z0-9+/_-]{43}\Z")
_OPAQUE_ID = re.compile(r"[0-9A-Za-z._~-]+\Z")
_HASH_ROOM_ID = re.compile(r"![A-Za-z0-9_-]{43}\Z")


class ServerName(NamedTuple):
    """A parsed server name."""

    host: str
    """A DNS name or an IP address; an IPv6 address keeps its brackets."""
    port: int | None

    @property
    def is_ip_literal(self) -> bool:
        """Whether the host is an IPv4 or IPv6 address."""
        return self.host.startswith("[") or _IPV4_SHAPE.match(self.host) is not None

    @property
    def address(self) -> str:
        """The host in the form for a socket: without brackets."""
        return self.host[1:-1] if self.host.startswith("[") else self.host


def parse_server_name(text: str) -> ServerName:
    """Parse a server name: ``example.org``, ``example.org:8448``, ``10.0.0.1``, ``[::1]:8448``.

    Raises ``ValueError`` for any other text.

    https://spec.matrix.org/v1.19/appendices/#server-name
    """
    # Check the length before the text can become a key of the cache.
    if not isinstance(text, str) or not 1 <= len(text) <= SERVER_NAME_CHARACTERS_MAX:
        raise ValueError("a server name has 1 to 230 characters")
    parsed = _parse_server_name(text)
    if parsed is None:
        raise ValueError(f"not a server name: {text!r}")
    return parsed


def is_valid_server_name(text: str) -> bool:
    """Whether the text is a server name. https://spec.matrix.org/v1.19/appendices/#server-name"""
    return (
        isinstance(text, str) and 1 <= len(text) <= SERVER_NAME_CHARACTERS_MAX and _parse_server_name(text) is not None
    )


@lru_cache(maxsize=16_384)
def _parse_server_name(text: str) -> ServerName | None:
    host, port_text = text, None
    if text.startswith("["):
        host, bracket, rest = text.partition("]")
        host += bracket
        if rest:
            if not rest.startswith(":"):
                return None
            port_text = rest[1:]
    elif ":" in text:
        host, _, port_text = text.partition(":")
    if not _is_host(host):
        return None
    if port_text is None:
        return ServerName(host, None)
    if _PORT.match(port_text) is None or int(port_text) > _PORT_MAX:
        return None
    return ServerName(host, int(port_text))


def _is_host(host: str) -> bool:
    if host.startswith("["):
        return host.endswith("]") and _is_ipv6_address(host[1:-1])
    if _IPV4_SHAPE.match(host):
        # "IPv4 literals must be a sequence of four decimal numbers in the range 0 to 255."
        return all(int(number) <= 255 for number in host.split("."))
    if _DNS_CHARACTERS.match(host) is None:
        return False
    return all(1 <= len(label) <= DNS_LABEL_CHARACTERS_MAX for label in host.split("."))


def _is_ipv6_address(text: str) -> bool:
    if _IPV6_CHARACTERS.match(text) is None:
        return False
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def server_of(identifier: str) -> str:
    """The domain of a user ID, an alias, or a room or event ID that has one. It is not validated here.

    Raises ``ValueError`` if there is none, as in the room IDs of room version 12.
    """
    domain = identifier.partition(":")[2]
    if not domain:
        raise ValueError(f"no server name in {identifier[:IDENTIFIER_BYTES_MAX]!r}")
    return domain


def localpart_of(identifier: str) -> str:
    """The part between the sigil and the domain. It is not validated here.

    Raises ``ValueError`` if there is no domain.
    """
    localpart, colon, _ = identifier.partition(":")
    if not colon or not localpart:
        raise ValueError(f"no localpart in {identifier[:IDENTIFIER_BYTES_MAX]!r}")
    return localpart[1:]


def is_valid_user_id(text: str, historical: bool = True) -> bool:
    """Whether the text is a user ID, by the historical grammar (for IDs of other servers) or by the strict one.

    A historical one may have 255 code points instead of bytes: such users are in rooms of old versions.

    https://spec.matrix.org/v1.19/appendices/#user-identifiers
    """
    if not isinstance(text, str) or len(text) > IDENTIFIER_BYTES_MAX:
        return False
    return _is_valid_user_id(text, historical)


@lru_cache(maxsize=32_768)
def _is_valid_user_id(text: str, historical: bool) -> bool:
    if not text.startswith("@") or not is_valid_server_name(text.partition(":")[2]):
        return False
    if "\0" in text or not fits_in_bytes(text, 4 * IDENTIFIER_BYTES_MAX):
        return False
    return historical or _NEW_LOCALPART.match(localpart_of(text)) is not None


def is_valid_new_localpart(text: str) -> bool:
    """Whether a new user of this server may have this localpart: ``a-z 0-9 . _ = - / +`` and not empty.

    The caller, who knows the server name, must check that the whole user ID stays within 255 bytes.

    https://spec.matrix.org/v1.19/appendices/#user-identifiers
    """
    return isinstance(text, str) and len(text) <= IDENTIFIER_BYTES_MAX and _NEW_LOCALPART.match(text) is not None


def is_valid_room_id(text: str) -> bool:
    """Whether the text is a room ID of any room version: ``!opaque:domain``, or a hash from version 12 on.

    https://spec.matrix.org/v1.19/appendices/#room-ids
    """
    if not isinstance(text, str) or len(text) > IDENTIFIER_BYTES_MAX or not text.startswith("!"):
        return False
    if ":" in text:
        return _has_valid_domain(text)
    return is_hash_room_id(text)


def is_hash_room_id(text: str) -> bool:
    """Whether the text is a room ID of room version 12: the create event's ID with the sigil ``!``."""
    return _HASH_ROOM_ID.match(text) is not None


def is_valid_room_alias(text: str) -> bool:
    """Whether the text is a room alias. https://spec.matrix.org/v1.19/appendices/#room-aliases"""
    return isinstance(text, str) and text.startswith("#") and _has_valid_domain(text)


def is_valid_event_id(text: str) -> bool:
    """Whether the text can be an event ID of some room version: ``$opaque``, with or without a domain.

    https://spec.matrix.org/v1.19/appendices/#event-ids
    """
    if not isinstance(text, str) or len(text) < 2 or not text.startswith("$"):
        return False
    return _has_valid_domain(text) if ":" in text else _fits(text)


def is_hash_event_id(text: str) -> bool:
    """Whether the text can be an event ID of room version 3 or later: ``$`` and a hash in unpadded base64."""
    return _HASH_EVENT_ID.match(text) is not None


def is_opaque_id(text: str, characters_max: int = OPAQUE_ID_CHARACTERS_MAX) -> bool:
    """Whether the text fits the opaque identifier grammar: ``0-9 A-Z a-z - . _ ~``.

    https://spec.matrix.org/v1.19/appendices/#opaque-identifiers
    """
    return isinstance(text, str) and len(text) <= characters_max and _OPAQUE_ID.match(text) is not None


def fits_in_bytes(text: str, bytes_max: int) -> bool:
    """Whether the text has at most that many bytes in UTF-8; false for lone surrogates, which UTF-8 cannot encode."""
    if len(text) > bytes_max:
        return False
    if text.isascii():
        return True
    try:
        return len(text.encode()) <= bytes_max
    except UnicodeEncodeError:
        return False


def _has_valid_domain(identifier: str) -> bool:
    _, colon, domain = identifier.partition(":")
    return bool(colon) and _fits(identifier) and is_valid_server_name(domain)


def _fits(identifier: str) -> bool:
    # "any legal non-surrogate Unicode code points except for `:` and `NUL`"
    return "\0" not in identifier and fits_in_bytes(identifier, IDENTIFIER_BYTES_MAX)
