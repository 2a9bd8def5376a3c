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
"""What clients may rely on: an endpoint that is here behaves as these versions say, and what is optional in them is
negotiated by the capabilities. Modules that are still to come answer M_UNRECOGNIZED, as on any server that does not
offer them. v1.13 and later wait for what clients take for granted from then on, such as room summaries (v1.15); what is
here of them already, and can be asked for by name, stands below."""

UNSTABLE_FEATURES = {
    # Profile fields with any key, of v1.16, at their stable paths.
    "uk.tcpip.msc4133.stable": True,
}

_BODY = orjson.dumps({"versions": VERSIONS, "unstable_features": UNSTABLE_FEATURES})


@unversioned.get("/_matrix/client/versions")
async def get_versions() -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientversions"""
    return bytes_response(_BODY)
