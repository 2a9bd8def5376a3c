"""Builds the services for the life of rooms."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.federation.assembly import FederationServices
from homeserver.foundation import Foundation
from homeserver.graph.assembly import GraphServices
from homeserver.membership.assembly import MembershipServices
from homeserver.rooms.aliases import RoomAliases
from homeserver.rooms.creation import RoomCreation
from homeserver.rooms.old_rooms import OldRooms
from homeserver.rooms.personal_settings import PersonalSettings
from homeserver.rooms.upgrades import RoomUpgrades


@dataclass(frozen=True, slots=True)
class RoomServices:
    """Services that create, name and replace rooms."""

    aliases: RoomAliases
    creation: RoomCreation
    upgrades: RoomUpgrades


def build_settings(base: Foundation, graph: GraphServices) -> PersonalSettings:
    """Copies users' settings of a room when they join the room that replaces it."""
    return PersonalSettings(base.database, graph.heads, graph.notifier)


def build(
    base: Foundation,
    federation: FederationServices,
    graph: GraphServices,
    membership: MembershipServices,
    settings: PersonalSettings,
) -> RoomServices:
    """The services of this package."""
    database, heads, writers, sender = base.database, graph.heads, graph.writers, graph.sender
    keys, clock, profiles = base.signing_keys, base.clock, membership.profiles
    aliases = RoomAliases(database, heads, sender, federation.client, base.server_name)
    return RoomServices(
        aliases=aliases,
        creation=RoomCreation(writers, sender, membership.memberships, aliases, profiles, keys, clock),
        upgrades=RoomUpgrades(
            OldRooms(database, heads, sender, graph.governed, keys),
            writers,
            sender,
            profiles,
            settings,
            clock,
            base.server_name,
        ),
    )
