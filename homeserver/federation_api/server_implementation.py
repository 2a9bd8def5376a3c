"""Server implementation.

https://spec.matrix.org/v1.19/server-server-api/#server-implementation
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

import homeserver
from homeserver.web import json_response

router = APIRouter()

NAME = "homeserver"


@router.get("/_matrix/federation/v1/version")
async def get_version() -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1version"""
    return json_response({"server": {"name": NAME, "version": homeserver.__version__}})
