"""Builds what only the endpoints of the server-server API need."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.federation.assembly import FederationServices
from homeserver.federation_api.answers import PduAnswers
from homeserver.federation_api.expensive_requests import ExpensiveRequests
from homeserver.federation_api.gate import Gate
from homeserver.federation_api.server_keys import NotaryQueries, PublishedKeys
from homeserver.foundation import Foundation
from homeserver.graph.assembly import GraphServices
from homeserver.limits.rate_limits import RateLimits


@dataclass(frozen=True, slots=True)
class FederationApiServices:
    """Authentication of requests, and the form of answers."""

    gate: Gate
    expensive: ExpensiveRequests
    answers: PduAnswers
    published_keys: PublishedKeys
    notary_queries: NotaryQueries


def build(
    base: Foundation, federation: FederationServices, graph: GraphServices, limits: RateLimits
) -> FederationApiServices:
    """The services of this package."""
    return FederationApiServices(
        gate=Gate(federation.authenticator, (graph.delivery, graph.silent), limits),
        expensive=ExpensiveRequests(),
        answers=PduAnswers(base.server_name, base.clock),
        published_keys=PublishedKeys(base.signing_keys, base.clock),
        notary_queries=NotaryQueries(federation.key_ring, limits),
    )
