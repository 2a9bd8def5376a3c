"""Capabilities negotiation.

https://spec.matrix.org/v1.19/client-server-api/#capabilities-negotiation
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from homeserver.client_api.authentication import Authenticated
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.web import json_response, service

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this server lets its users do."""

    default_room_version: str

    def body(self) -> JsonObject:
        """The capabilities, by name."""
        return {
            "m.room_versions": {
                "default": self.default_room_version,
                "available": dict.fromkeys(ROOM_VERSIONS, "stable"),
            },
            "m.change_password": {"enabled": False},
            "m.profile_fields": {"enabled": True},
            "m.set_displayname": {"enabled": True},
            "m.set_avatar_url": {"enabled": True},
            "m.3pid_changes": {"enabled": False},
            "m.get_login_token": {"enabled": False},
            "m.forget_forced_upon_leave": {"enabled": False},
        }


@router.get("/capabilities")
async def get_capabilities(
    _requester: Authenticated, capabilities: Annotated[Capabilities, service(Capabilities)]
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3capabilities"""
    return json_response({"capabilities": capabilities.body()})
