"""Builds what only the endpoints of the client-server API need."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.client_api.capabilities import Capabilities
from homeserver.client_api.limiting import LookUps
from homeserver.client_api.syncing import InitialSyncs
from homeserver.client_api.well_known import ClientDiscovery
from homeserver.foundation import Foundation


@dataclass(frozen=True, slots=True)
class ClientApiServices:
    """What this server tells clients about itself, and their turns at asking others."""

    capabilities: Capabilities
    discovery: ClientDiscovery
    look_ups: LookUps
    initial_syncs: InitialSyncs


def build(base: Foundation) -> ClientApiServices:
    """The services of this package."""
    config = base.config
    return ClientApiServices(
        capabilities=Capabilities(config.rooms.default_version),
        discovery=ClientDiscovery(config.public_base_url),
        look_ups=LookUps(),
        initial_syncs=InitialSyncs(),
    )
