"""Resolves host names, and decides which addresses this server may connect to: private ones are refused.

Other people choose the names of servers that we contact. Without this check, a name that resolves to ``127.0.0.1`` or
to a cloud's metadata service would make this server send requests into its own network (server-side request forgery).
The connection goes to the checked address itself, so a DNS answer that changes between two lookups cannot get around
the check.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import httpx

from homeserver.outbound.dns import DnsLookup

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Lookup: TypeAlias = Callable[[str], Awaitable[list[str]]]
"""Gives the addresses of a host name; raises ``OSError`` when there are none."""

ADDRESSES_PER_NAME_MAX = 8
"""How many addresses of one name are tried."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All that IANA has given out of IPv6: https://www.iana.org/assignments/ipv6-address-space"""
_DOCUMENTATION = ipaddress.IPv6Network("3fff::/20")
"""Within it, and newer than the tables of Python 3.11."""
_NOT_GLOBAL_IPV4 = (ipaddress.IPv4Network("192.88.99.0/24"),)  # 6to4 relays, deprecated


def is_public(address: IPAddress) -> bool:
    """Whether the address, and any IPv4 address embedded in it, is on the public internet."""
    if address.is_multicast or not address.is_global:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_GLOBAL_IPV4)
    # Name what is public, not what is private: new special ranges, and old forms of IPv4 in IPv6 that some system may
    # still translate, are then refused without being known here.
    embedded = _embedded_ipv4(address)
    if address not in _GLOBAL_UNICAST and not embedded:
        return False
    return address not in _DOCUMENTATION and all(is_public(inner) for inner in embedded)


def is_usable(address: IPAddress, *, allow_private: bool) -> bool:
    """Whether connecting to the address is allowed. Multicast and ``0.0.0.0`` never are."""
    if address.is_multicast or address.is_unspecified:
        return False
    return allow_private or is_public(address)


def _embedded_ipv4(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses to which a packet for this IPv6 address may be translated."""
    inner = []
    if address.ipv4_mapped is not None:
        inner.append(address.ipv4_mapped)
    if address.sixtofour is not None:
        inner.append(address.sixtofour)
    if address.teredo is not None:
        inner.extend(address.teredo)
    if address in _NAT64:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return inner


class AddressResolver:
    """Resolves host names to addresses that may be connected to."""

    def __init__(self, *, allow_private: bool = False, lookup: Lookup | None = None) -> None:
        self._allow_private = allow_private
        self._dns = DnsLookup()
        self._lookup: Lookup = lookup or self._dns

    async def resolve(self, host: str) -> list[str]:
        """The usable addresses of ``host`` (a name, or an IP literal without brackets), in the order to try them.

        Raises ``httpx.ConnectError`` when there are none, or when all of them are refused.
        """
        literal = _parse_address(host)
        try:
            candidates = [host] if literal is not None else await self._lookup(host)
        except (OSError, ValueError) as error:  # UnicodeError is a ValueError
            raise httpx.ConnectError(f"{host} does not resolve: {error}") from error
        usable = [
            candidate
            for candidate in candidates
            if (address := _parse_address(candidate)) is not None
            and is_usable(address, allow_private=self._allow_private)
        ]
        if candidates and not usable:
            raise httpx.ConnectError(f"{host} has a private address, and private addresses are refused")
        if not usable:
            raise httpx.ConnectError(f"{host} has no address")
        return usable[:ADDRESSES_PER_NAME_MAX]

    def close(self) -> None:
        """Cancel the look-ups in progress."""
        self._dns.close()


def _parse_address(text: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
