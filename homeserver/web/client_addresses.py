"""From which address a request comes, also through reverse proxies."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

import structlog
from starlette.types import Scope

logger = structlog.get_logger(__name__)

UNKNOWN = "unknown"
FORWARDED_ADDRESSES_MAX = 20
"""How many proxies in a row are looked through."""
IPV6_PREFIX = 64
"""One IPv6 customer has at least such a network, so its addresses count as one."""


class ClientAddresses:
    """Finds the address that a request counts for.

    The header ``X-Forwarded-For`` is believed only of peers in ``trusted_proxies``: anybody else could choose an
    address for each request, or another person's. Proxies append the address that they see, so the last one that is not
    itself a trusted proxy is the client's.
    """

    def __init__(self, trusted_proxies: Iterable[str] = ()) -> None:
        self._trusted = tuple(ipaddress.ip_network(network, strict=False) for network in trusted_proxies)
        self._has_warned = False
        self._parse = lru_cache(maxsize=4096)(self._parse_now)

    def of(self, scope: Scope) -> str:
        """An IPv4 address, or the network of an IPv6 address."""
        client = scope.get("client")
        if client is None:
            return UNKNOWN
        subject, is_trusted = self._parse(client[0])
        forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        if not forwarded:
            return subject
        if not is_trusted:
            self._warn(subject)
            return subject
        hops = b",".join(forwarded).decode("latin-1").split(",")
        for hop in reversed(hops[-FORWARDED_ADDRESSES_MAX:]):
            found, is_trusted = self._parse(hop.strip()[:64])
            if found == UNKNOWN:
                return subject
            subject = found
            if not is_trusted:
                break
        return subject

    def is_trusted(self, address: str) -> bool:
        """Whether an address is a trusted proxy's."""
        return self._parse(address)[1]

    def _parse_now(self, text: str) -> tuple[str, bool]:
        """What an address counts as, and whether it is a trusted proxy's."""
        try:
            address = ipaddress.ip_address(_without_port(text))
        except ValueError:
            return UNKNOWN, False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        is_trusted = any(address in network for network in self._trusted)
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((int(address), IPV6_PREFIX), strict=False)), is_trusted
        return str(address), is_trusted

    def _warn(self, peer: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "X-Forwarded-For is not believed: its sender is not in trusted_proxies, so all its clients share one "
                "rate limit",
                peer=peer,
            )


def _without_port(text: str) -> str:
    """Some proxies add the port: ``192.0.2.1:4711``, ``[2001:db8::1]:4711``."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
