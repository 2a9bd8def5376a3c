"""Builds the services by which users get into rooms and out of them."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.federation.assembly import FederationServices
from homeserver.foundation import Foundation
from homeserver.graph.assembly import GraphServices
from homeserver.membership.bans import Bans
from homeserver.membership.doubtful_revocations import DoubtfulRevocations
from homeserver.membership.invitations import Invitations
from homeserver.membership.lost_role_changes import LostRoleChanges
from homeserver.membership.membership import JoinedHook, MemberProfiles, Memberships
from homeserver.membership.out_of_band import OutOfBand
from homeserver.membership.owed_requests import LEAVE, UNDO_JOIN, OwedRequests
from homeserver.membership.remote_membership import RemoteMembership
from homeserver.membership.resident import Resident
from homeserver.membership.restricted_joins import RestrictedJoins
from homeserver.membership.roles import Roles
from homeserver.membership.sent_invitations import SentInvitations


@dataclass(frozen=True, slots=True)
class MembershipServices:
    """Who is in a room, here and on other servers, and who may do what there."""

    memberships: Memberships
    profiles: MemberProfiles
    remote: RemoteMembership
    resident: Resident
    out_of_band: OutOfBand
    doubtful: DoubtfulRevocations
    owed: OwedRequests
    invitations: Invitations
    bans: Bans
    roles: Roles
    lost_role_changes: LostRoleChanges

    async def start(self) -> None:
        """Begin to make the requests that other servers are still owed."""
        await self.owed.start({LEAVE: self.remote.finish_leave, UNDO_JOIN: self.remote.undo_join})

    async def stop(self) -> None:
        """Stop the background work."""
        await self.owed.stop()
        await self.doubtful.stop()
        await self.lost_role_changes.stop()


def build(
    base: Foundation, federation: FederationServices, graph: GraphServices, *, on_joined: JoinedHook
) -> MembershipServices:
    """The services of this package. ``on_joined`` is called when one of our users has joined a room."""
    name, database, keys, clock = base.server_name, base.database, base.signing_keys, base.clock
    heads, events, sender = graph.heads, graph.events, graph.sender
    owed = OwedRequests(database, clock)
    doubtful = DoubtfulRevocations(federation.client)
    restricted = RestrictedJoins(heads, base.is_local)
    profiles = MemberProfiles(database, base.is_local)
    lost_role_changes = LostRoleChanges(sender, graph.governed, base.is_local)
    graph.writers.watch_power_levels(lost_role_changes.note)
    remote = RemoteMembership(
        name,
        database,
        heads,
        events,
        graph.imports,
        graph.incoming,
        graph.placer,
        sender,
        federation.client,
        graph.delivery,
        owed,
        keys,
        clock,
    )
    outgoing = SentInvitations(heads, graph.incoming, federation.client, graph.delivery, graph.under_way)
    return MembershipServices(
        memberships=Memberships(
            database, heads, graph.writers, sender, profiles, restricted, remote, outgoing, name, on_joined
        ),
        profiles=profiles,
        remote=remote,
        resident=Resident(
            name,
            database,
            heads,
            events,
            graph.states,
            graph.writers,
            graph.placer,
            graph.incoming,
            graph.access,
            restricted,
            graph.policy,
            keys,
            clock,
        ),
        out_of_band=OutOfBand(
            name,
            database,
            heads,
            events,
            graph.imports,
            graph.incoming,
            graph.access,
            doubtful,
            keys,
            base.is_local,
        ),
        doubtful=doubtful,
        owed=owed,
        invitations=Invitations(database, heads, sender, name),
        bans=Bans(database, heads, name),
        roles=Roles(database, heads, sender, name),
        lost_role_changes=lost_role_changes,
    )
