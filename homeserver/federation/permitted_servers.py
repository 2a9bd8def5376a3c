"""The servers that the administrator allows this server to talk to, in both directions."""

from __future__ import annotations

from collections.abc import Collection


class PermittedServers:
    """``federation.allowed_servers`` and ``federation.denied_servers``: exact names, case ignored.

    An empty list of allowed servers allows all; a denied one is denied even when it is also allowed.
    """

    def __init__(self, allowed: Collection[str] = (), denied: Collection[str] = ()) -> None:
        self._allowed = frozenset(name.lower() for name in allowed)
        self._denied = frozenset(name.lower() for name in denied)

    def permits(self, server_name: str) -> bool:
        """Whether this server sends requests to that server and accepts requests from it."""
        name = server_name.lower()
        return name not in self._denied and (not self._allowed or name in self._allowed)
