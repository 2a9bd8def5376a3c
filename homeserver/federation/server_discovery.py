"""Turns a server name into the address to connect to and the name that its certificate must have.

https://spec.matrix.org/v1.19/server-server-api/#resolving-server-names
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from homeserver.clock import Clock
from homeserver.errors import RemoteUnreachable
from homeserver.federation.caching import LruDict, SingleFlight
from homeserver.federation.well_known import WellKnown
from homeserver.outbound.connections import Destination
from homeserver.outbound.dns import NameServers
from homeserver.outbound.http import OutboundHttp
from homeserver.protocol.identifiers import ServerName, parse_server_name

PORT_DEFAULT = 8448
SRV_SERVICES = ("_matrix-fed._tcp", "_matrix._tcp")
"""The second name is deprecated."""
SRV_SECONDS_MAX = 3.0
"""How long one SRV lookup may take; a slower one counts as no record."""
SRV_RECORDS_MAX = 10
SRV_LIFETIME_MS_MIN = 60 * 1000
SRV_LIFETIME_MS_MAX = 3600 * 1000
NO_SRV_LIFETIME_MS = 5 * 60 * 1000
"""How long it is cached that there is no record or that the lookup failed."""
SERVERS_MAX = 10_000
"""How many servers are cached."""


@dataclass(frozen=True, slots=True)
class SrvRecord:
    """One SRV record."""

    priority: int
    weight: int
    port: int
    target: str
    """A host name without the final dot; empty if the service is declared not to exist."""


@dataclass(frozen=True, slots=True)
class SrvAnswer:
    """The SRV records of one name."""

    records: tuple[SrvRecord, ...]
    lifetime_ms: int


SrvLookup: TypeAlias = Callable[[str], Awaitable[SrvAnswer]]
"""Looks up the SRV records of an absolute DNS name. Never raises: a failure is an answer without records."""


class ServerDiscovery:
    """Resolves server names, and caches the results for as long as DNS and the well-known documents allow."""

    def __init__(
        self,
        http: OutboundHttp,
        clock: Clock,
        *,
        srv_lookup: SrvLookup | None = None,
        randomness: random.Random | None = None,
    ) -> None:
        self._clock = clock
        self._well_known = WellKnown(http, clock)
        self._look_up_srv = srv_lookup or DnsSrvLookup()
        self._random = randomness or random.Random()
        self._resolved: LruDict[str, tuple[Destination, int]] = LruDict(SERVERS_MAX, "server discovery")
        self._flights: SingleFlight[str, Destination] = SingleFlight()

    async def resolve(self, server_name: str) -> Destination:
        """Where to connect to for a server, and the name that the certificate must have. Host names are resolved when
        connecting.

        Raises ``RemoteUnreachable`` if it is not a server name, or if the server declares that it does not federate.
        """
        remembered = self._resolved.get(server_name)
        if remembered is not None and remembered[1] > self._clock.now_ms():
            return remembered[0]
        try:
            name = parse_server_name(server_name)
        except ValueError as error:
            raise RemoteUnreachable(server_name[:255], "not a server name") from error
        # 1. "If the hostname is an IP literal, then that IP address should be used, together with the given port
        #    number, or 8448 if no port is given."
        # 2. "If the hostname is not an IP literal, and the server name includes an explicit port, resolve the hostname
        #    to an IP address using CNAME, AAAA or A records."
        if name.is_ip_literal or name.port is not None:
            return _direct(name)
        return await self._flights.run(server_name, lambda: self._discover(server_name, name))

    async def _discover(self, server_name: str, name: ServerName) -> Destination:
        # 3. "If the hostname is not an IP literal, a regular HTTPS request is made to
        #    https://<hostname>/.well-known/matrix/server"
        delegation = await self._well_known.delegation_of(name.host)
        expires_ts = delegation.expires_ts
        target = parse_server_name(delegation.delegate) if delegation.delegate is not None else name
        if target.is_ip_literal or target.port is not None:
            # 3.1, 3.2: as 1 and 2, with the delegated name.
            destination = _direct(target)
        else:
            # 3.3 to 3.5 with the delegated name; 4 to 6, which are the same, with the server's own.
            addresses, lifetime_ms = await self._srv_addresses(server_name, target.host)
            destination = Destination(
                tls_name=target.host,
                host_header=target.host,
                addresses=addresses or ((target.host, PORT_DEFAULT),),
            )
            expires_ts = min(expires_ts, self._clock.now_ms() + lifetime_ms)
        self._resolved.put(server_name, (destination, expires_ts))
        return destination

    async def _srv_addresses(self, server_name: str, host: str) -> tuple[tuple[tuple[str, int], ...], int]:
        """The hosts and ports of the SRV records, in the order to try them, and for how long they are valid."""
        for service in SRV_SERVICES:
            answer = await self._look_up_srv(f"{service}.{host}.")
            if not answer.records:
                continue
            # RFC 2782: "A Target of '.' means that the service is decidedly not available at this domain."
            usable = [record for record in answer.records if record.target and record.port]
            if not usable:
                raise RemoteUnreachable(server_name, f"{service}.{host} says that there is no such service")
            ordered = in_srv_order(usable, self._random)[:SRV_RECORDS_MAX]
            lifetime_ms = max(SRV_LIFETIME_MS_MIN, min(answer.lifetime_ms, SRV_LIFETIME_MS_MAX))
            return tuple((record.target, record.port) for record in ordered), lifetime_ms
        return (), NO_SRV_LIFETIME_MS

    async def aclose(self) -> None:
        """Cancel lookups in progress."""
        await self._flights.aclose()


def _direct(name: ServerName) -> Destination:
    """The host of the name itself, at its port or the default one."""
    port = name.port if name.port is not None else PORT_DEFAULT
    host_header = name.host if name.port is None else f"{name.host}:{name.port}"
    return Destination(tls_name=name.address, host_header=host_header, addresses=((name.address, port),))


def in_srv_order(records: Sequence[SrvRecord], randomness: random.Random) -> list[SrvRecord]:
    """Lowest priority first; within a priority at random, weighted (RFC 2782)."""
    ordered: list[SrvRecord] = []
    left = sorted(records, key=lambda record: (record.priority, record.weight))
    while left:
        group = [record for record in left if record.priority == left[0].priority]
        # A weight of 0 has "a very small chance of being selected", but not none.
        chosen = randomness.choices(group, [record.weight or 0.01 for record in group])[0]
        ordered.append(chosen)
        left.remove(chosen)
    return ordered


class DnsSrvLookup:
    """Asks the system's name servers for SRV records."""

    def __init__(self, seconds_max: float = SRV_SECONDS_MAX) -> None:
        self._seconds_max = seconds_max
        self._name_servers = NameServers()

    async def __call__(self, name: str) -> SrvAnswer:
        """The records of an absolute name; none if DNS has none, fails, or takes too long."""
        # Import it here: a start without federation then saves a tenth of a second.
        import dns.exception
        from dns.rdtypes.IN.SRV import SRV

        try:
            resolver = await self._name_servers.resolver()
            answer = await resolver.resolve(
                name, "SRV", lifetime=self._seconds_max, raise_on_no_answer=False, search=False
            )
        except (dns.exception.DNSException, OSError, ValueError):
            return SrvAnswer((), NO_SRV_LIFETIME_MS)
        records = tuple(
            SrvRecord(data.priority, data.weight, data.port, data.target.to_text(omit_final_dot=True).rstrip("."))
            for data in answer
            if isinstance(data, SRV)
        )
        ttl = answer.rrset.ttl if answer.rrset is not None else 0
        return SrvAnswer(records, ttl * 1000)
