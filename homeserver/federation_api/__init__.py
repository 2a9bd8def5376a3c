"""The federation API: a module for each section of the specification, thin shells around the features.

Each module has a ``router`` with whole paths; ``transactions``, whose endpoint is the busiest, has plain ``routes``. An
endpoint has the name of its ``operationId``; it finds out who asks (``Gate``), takes the request apart, makes one call,
and answers.

https://spec.matrix.org/v1.19/server-server-api/
"""

from homeserver.federation_api import (
    backfilling,
    inviting,
    joining,
    knocking,
    leaving,
    querying,
    retrieving_events,
    server_implementation,
    server_keys,
    transactions,
)

MODULES = (
    backfilling,
    inviting,
    joining,
    knocking,
    leaving,
    querying,
    retrieving_events,
    server_implementation,
    server_keys,
)
"""Every section that has a ``router``."""

routes = transactions.routes
"""Plain Starlette routes."""

__all__ = ["MODULES", "routes"]
