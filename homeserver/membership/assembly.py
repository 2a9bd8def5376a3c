"""Builds the services by which users get into rooms and out of them."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.federation.assembly import FederationServices
from homeserver.foundation import Foundation
from homeserver.graph.assembly import GraphServices
from homeserver.membership.bans import Bans
from homeserver.membership.countersigning import Countersigning
from homeserver.membership.doubtful_revocations import DoubtfulRevocations
from homeserver.membership.earlier_stays import EarlierStays
from homeserver.membership.handshake_templates import HandshakeTemplates
from homeserver.membership.handshakes import Handshakes
from homeserver.membership.invitations import Invitations
from homeserver.membership.inviting import Inviting
from homeserver.membership.join_answers import JoinAnswers
from homeserver.membership.joins import JoinedHook, Joins
from homeserver.membership.joins_through_servers import JoinsThroughServers
from homeserver.membership.lost_role_changes import LostRoleChanges
from homeserver.membership.member_profiles import MemberProfiles
from homeserver.membership.membership import Memberships
from homeserver.membership.out_of_band import OutOfBand
from homeserver.membership.out_of_band_invitations import OutOfBandInvitations
from homeserver.membership.owed_requests import LEAVE, UNDO_JOIN, OwedRequests
from homeserver.membership.remote_joins import RemoteJoins
from homeserver.membership.remote_knocks import RemoteKnocks
from homeserver.membership.remote_leaves import RemoteLeaves
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
    remote_joins: RemoteJoins
    remote_leaves: RemoteLeaves
    remote: RemoteMembership
    templates: HandshakeTemplates
    resident: Resident
    out_of_band_invitations: OutOfBandInvitations
    out_of_band: OutOfBand
    doubtful: DoubtfulRevocations
    owed: OwedRequests
    invitations: Invitations
    bans: Bans
    roles: Roles
    lost_role_changes: LostRoleChanges

    async def start(self) -> None:
        """Start to send the requests that are still owed to other servers."""
        await self.owed.start({LEAVE: self.remote_leaves.finish_leave, UNDO_JOIN: self.remote_joins.undo_join})

    async def stop(self) -> None:
        """Stop the background work."""
        await self.owed.stop()
        await self.doubtful.stop()
        await self.lost_role_changes.stop()


def build(
    base: Foundation, federation: FederationServices, graph: GraphServices, *, on_joined: JoinedHook
) -> MembershipServices:
    """The services of this package. ``on_joined`` is called when one of our users has joined a room."""
    name, database, keys, is_local = base.server_name, base.database, base.signing_keys, base.is_local
    heads, sender, access = graph.heads, graph.sender, graph.access
    owed = OwedRequests(database, base.clock)
    doubtful = DoubtfulRevocations(federation.client)
    restricted = RestrictedJoins(heads, is_local)
    profiles = MemberProfiles(database, is_local)
    lost_role_changes = LostRoleChanges(sender, graph.governed, is_local)
    graph.writers.watch_power_levels(lost_role_changes.note)
    joins, leaves, knocks = _build_remote(base, federation, graph, owed)
    remote = RemoteMembership(joins, leaves, knocks)
    outgoing = SentInvitations(heads, graph.incoming, federation.client, graph.delivery, graph.under_way)
    invitations = OutOfBandInvitations(database, heads, graph.out_of_band, graph.incoming, access, keys, is_local)
    return MembershipServices(
        memberships=Memberships(
            database,
            heads,
            sender,
            profiles,
            Joins(database, heads, sender, profiles, restricted, remote, name, on_joined),
            remote,
            Inviting(database, heads, graph.writers, sender, profiles, outgoing, name),
            name,
        ),
        profiles=profiles,
        remote_joins=joins,
        remote_leaves=leaves,
        remote=remote,
        templates=HandshakeTemplates(name, heads, graph.events, access, restricted, base.clock),
        resident=_build_resident(base, graph, restricted),
        out_of_band_invitations=invitations,
        out_of_band=OutOfBand(database, heads, graph.out_of_band, invitations, doubtful, keys, is_local),
        doubtful=doubtful,
        owed=owed,
        invitations=Invitations(database, heads, sender, name),
        bans=Bans(database, heads, name),
        roles=Roles(database, heads, sender, name),
        lost_role_changes=lost_role_changes,
    )


def _build_remote(
    base: Foundation, federation: FederationServices, graph: GraphServices, owed: OwedRequests
) -> tuple[RemoteJoins, RemoteLeaves, RemoteKnocks]:
    clock, keys, client = base.clock, base.signing_keys, federation.client
    heads, events, incoming = graph.heads, graph.events, graph.incoming
    handshakes = Handshakes(base.server_name, base.database, heads, keys, clock)
    answers = JoinAnswers(incoming, client)
    earlier_stays = EarlierStays(events, client, clock, base.server_name)
    through = JoinsThroughServers(
        handshakes, heads, graph.imports, answers, graph.placer, client, graph.delivery, earlier_stays
    )
    leaves = RemoteLeaves(handshakes, heads, events, graph.out_of_band, client, owed, keys, clock)
    joins = RemoteJoins(handshakes, through, heads, events, graph.sender, leaves, owed, clock)
    return joins, leaves, RemoteKnocks(handshakes, incoming, client, graph.out_of_band)


def _build_resident(base: Foundation, graph: GraphServices, restricted: RestrictedJoins) -> Resident:
    countersigning = Countersigning(
        graph.events, graph.states, graph.writers, graph.placer, graph.incoming, graph.policy, base.signing_keys
    )
    return Resident(base.server_name, base.database, graph.heads, graph.access, restricted, countersigning)
