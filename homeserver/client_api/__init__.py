"""The client-server API: a module for each section of the specification, thin shells around the features.

Each module has a ``router`` whose paths are under ``/_matrix/client/v3`` and, for older clients, under
``/_matrix/client/r0``; some have a ``v1`` router for ``/_matrix/client/v1``, or an ``unversioned`` one with whole
paths. An endpoint has the name of its ``operationId``; it takes the request apart, makes one call, and answers.

https://spec.matrix.org/v1.19/client-server-api/
"""

from importlib import import_module

SECTIONS = (
    "account_data",
    "capabilities",
    "filters",
    "getting_events",
    "login",
    "profiles",
    "receipts",
    "registration",
    "room_aliases",
    "room_creation",
    "room_membership",
    "room_upgrades",
    "sending_events",
    "syncing",
    "typing_notifications",
    "versions",
    "well_known",
    "whoami",
)
MODULES = tuple(import_module(f"{__name__}.{section}") for section in SECTIONS)
"""Every section that is implemented."""
