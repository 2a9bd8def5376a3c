"""API versions.

https://spec.matrix.org/v1.19/client-server-api/#api-versions
"""

from __future__ import annotations

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from homeserver.web import bytes_response

unversioned = APIRouter()

VERSIONS = ("r0.6.1", *(f"v1.{minor}" for minor in range(1, 13)))
"""The versions that clients may rely on: every endpoint of this server behaves as they say, and capabilities tell which
optional features it has. Modules that are not implemented answer M_UNRECOGNIZED, as on any server without them. v1.13
and later are not listed yet, because clients then take for granted what is missing here, such as room summaries
(v1.15). What is implemented of them and can be named on its own is listed below.
"""

UNSTABLE_FEATURES = {
    # Profile fields with any key, of v1.16, at their stable paths.
    "uk.tcpip.msc4133.stable": True,
}

_BODY = orjson.dumps({"versions": VERSIONS, "unstable_features": UNSTABLE_FEATURES})


@unversioned.get("/_matrix/client/versions")
async def get_versions() -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientversions"""
    return bytes_response(_BODY)
