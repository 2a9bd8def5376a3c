"""Answers that hold PDUs, joined from their stored bytes."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from starlette.responses import Response

from homeserver.clock import Clock
from homeserver.web import bytes_response


class PduAnswers:
    """Writes events into the form of a transaction."""

    def __init__(self, server_name: str, clock: Clock) -> None:
        self._server_name = orjson.dumps(server_name)
        self._clock = clock

    def transaction(self, pdus: Sequence[bytes]) -> Response:
        """``{"origin", "origin_server_ts", "pdus"}``."""
        return bytes_response(
            b'{"origin":%s,"origin_server_ts":%d,"pdus":[%s]}'
            % (self._server_name, self._clock.now_ms(), b",".join(pdus))
        )
