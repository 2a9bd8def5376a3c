"""Server discovery: where clients find this server.

https://spec.matrix.org/v1.19/client-server-api/#well-known-uris
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from homeserver.errors import NotFound
from homeserver.protocol.json_types import JsonObject
from homeserver.web import json_response, service

unversioned = APIRouter()


@dataclass(frozen=True, slots=True)
class ClientDiscovery:
    """Where clients connect, as the operator has configured it."""

    public_base_url: str | None

    def information(self) -> JsonObject | None:
        """The discovery information; None if the operator has configured none."""
        return {"m.homeserver": {"base_url": self.public_base_url}} if self.public_base_url else None


@unversioned.get("/.well-known/matrix/client")
async def get_wellknown(discovery: Annotated[ClientDiscovery, service(ClientDiscovery)]) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#getwell-knownmatrixclient"""
    information = discovery.information()
    if information is None:
        raise NotFound("No server discovery information available")
    return json_response(information)
