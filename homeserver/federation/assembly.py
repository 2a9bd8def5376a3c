"""Builds the services that speak to other servers."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.federation.client import FederationClient
from homeserver.federation.key_ring import KeyRing
from homeserver.federation.permitted_servers import PermittedServers
from homeserver.federation.request_authentication import RequestAuthenticator
from homeserver.federation.server_discovery import ServerDiscovery
from homeserver.foundation import Foundation
from homeserver.outbound.http import OutboundHttp


@dataclass(frozen=True, slots=True)
class FederationServices:
    """Requests to other servers, and the authentication of theirs."""

    http: OutboundHttp
    client: FederationClient
    key_ring: KeyRing
    authenticator: RequestAuthenticator

    async def aclose(self) -> None:
        """Close all connections."""
        await self.key_ring.aclose()
        await self.http.aclose()


def build(base: Foundation) -> FederationServices:
    """Build all services but the delivery of events, which follows the event graph: see ``graph.assembly``."""
    settings = base.config.federation
    permitted = PermittedServers.of(settings)
    http = OutboundHttp(
        allow_private_addresses=settings.allow_private_addresses,
        verify_certificates=settings.verify_certificates,
        ca_file=settings.ca_file,
    )
    discovery = ServerDiscovery(http, base.clock)
    client = FederationClient(base.server_name, base.signing_keys, discovery, http, base.clock, permitted)
    key_ring = KeyRing(
        client,
        base.database,
        base.signing_keys,
        base.clock,
        trusted_key_servers=settings.trusted_key_servers,
    )
    authenticator = RequestAuthenticator(
        base.server_name, key_ring, base.clock, permitted, requires_destination=settings.require_destination
    )
    return FederationServices(http, client, key_ring, authenticator)
