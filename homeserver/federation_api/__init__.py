"""The federation API: a module for each section of the specification, thin shells around the features.

Each module has a ``router`` with whole paths; ``transactions``, whose endpoint is the busiest, has plain ``routes``. An
endpoint has the name of its ``operationId``; it gets the authenticated server from ``gate``, takes the request apart,
makes one call, and answers.

https://spec.matrix.org/v1.19/server-server-api/
"""

from importlib import import_module

from homeserver.federation_api.transactions import routes

SECTIONS = (
    "backfilling",
    "inviting",
    "joining",
    "knocking",
    "leaving",
    "querying",
    "retrieving_events",
    "server_implementation",
    "server_keys",
)
MODULES = tuple(import_module(f"{__name__}.{section}") for section in SECTIONS)
"""Every section that has a ``router``."""

__all__ = ["MODULES", "SECTIONS", "routes"]
