"""The governance API: roles, invitations, bans and read receipts, under ``/_homeserver/v1``.

It adds what the client-server API lacks for rooms that several organisations share; docs/governance.md describes the
model. The rules themselves apply to every event that our users send, by whatever endpoint: see
``homeserver.governance`` and ``homeserver.graph.governed_events``; the modules here are thin shells. The access token
is that of the client-server API, and errors have its format.
"""

from homeserver.governance_api import bans, invitations, receipts, roles

PREFIX = "/_homeserver/v1"
MODULES = (bans, invitations, receipts, roles)
"""Each has a ``router`` for the paths under ``PREFIX``."""
