"""The servers that the administrator allows this server to talk to, in both directions."""

from __future__ import annotations

from collections.abc import Collection

from homeserver.config import FederationConfig


class PermittedServers:
    """``federation.enabled``, ``federation.allowed_servers`` and ``federation.denied_servers``.

    Case is ignored. An allowed name is exact. A denied name without a port denies the same host at every port, since
    whoever has a host can make itself a server at any of them. An empty list of allowed servers allows all; a denied
    server is denied even when it is also allowed.
    """

    def __init__(self, allowed: Collection[str] = (), denied: Collection[str] = (), *, enabled: bool = True) -> None:
        self._allowed = frozenset(name.lower() for name in allowed)
        self._denied = frozenset(name.lower() for name in denied)
        self._enabled = enabled

    @classmethod
    def of(cls, settings: FederationConfig) -> PermittedServers:
        """The servers that the configuration permits."""
        return cls(settings.allowed_servers, settings.denied_servers, enabled=settings.enabled)

    def permits(self, server_name: str) -> bool:
        """Whether this server sends requests to that server and accepts requests from it."""
        name = server_name.lower()
        if not self._enabled or (self._denied and (name in self._denied or _without_port(name) in self._denied)):
            return False
        return not self._allowed or name in self._allowed


def _without_port(server_name: str) -> str:
    host, _, port = server_name.rpartition(":")
    return host if host and port.isdecimal() else server_name
