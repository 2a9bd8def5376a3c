"""Filters that clients store on the server, so that later requests can name them by ID.

https://spec.matrix.org/v1.19/client-server-api/#filtering
"""

from __future__ import annotations

import base64
import hashlib

import orjson

from homeserver.caches import WeightedCache
from homeserver.errors import NotFound, TooLarge
from homeserver.protocol.filters import Filter, parse_filter, parse_filter_text
from homeserver.protocol.identifiers import fits_in_bytes
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.account_data import get_filter, put_filter
from homeserver.storage.database import Database

FILTER_BYTES_MAX = 64 * 1024
FILTER_ID_BYTES = 12
FILTER_ID_CHARACTERS_MAX = 64
PARSED_BYTES_MAX = 8 * 2**20
PARSED_FACTOR = 5
"""A parsed filter takes about this many times the memory of its JSON."""


class Filters:
    """Stores filters, and parses the filters of requests."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._parsed: WeightedCache[tuple[str, str], tuple[Filter, int]] = WeightedCache(
            "filters", PARSED_BYTES_MAX, lambda parsed: 1_000 + PARSED_FACTOR * parsed[1]
        )
        """Each filter with the length of its JSON."""

    async def define(self, user_id: str, definition: JsonObject) -> str:
        """Store a filter and return its ID; equal filters have the same ID. Raises ``BadJson``, ``InvalidParam``,
        ``TooLarge``.
        """
        parse_filter(definition)
        definition_json = orjson.dumps(definition, option=orjson.OPT_SORT_KEYS)
        if len(definition_json) > FILTER_BYTES_MAX:
            raise TooLarge(f"A filter may have {FILTER_BYTES_MAX} bytes")
        # "Cannot start with a { as this character is used to determine if the filter provided is inline JSON"
        digest = hashlib.sha256(definition_json).digest()[:FILTER_ID_BYTES]
        filter_id = base64.urlsafe_b64encode(digest).decode()
        await self._database.write(put_filter, user_id, filter_id, definition_json)
        return filter_id

    async def definition(self, user_id: str, filter_id: str) -> bytes:
        """A stored filter, as JSON. Raises ``NotFound``."""
        definition_json = None
        if fits_in_bytes(filter_id, FILTER_ID_CHARACTERS_MAX):
            definition_json = await self._database.read(get_filter, user_id, filter_id)
        if definition_json is None:
            raise NotFound("There is no such filter")
        return definition_json

    async def get(self, user_id: str, filter_id_or_json: str) -> Filter:
        """The filter of a request, by its ID or given inline.

        Raises ``NotJson``, ``BadJson``, ``InvalidParam``, and ``NotFound`` for an unknown ID.
        """
        if filter_id_or_json.startswith("{"):
            return parse_filter_text(filter_id_or_json)
        key = (user_id, filter_id_or_json)
        known = self._parsed.get(key)
        if known is not None:
            return known[0]
        definition_json = await self.definition(user_id, filter_id_or_json)
        parsed = parse_filter(orjson.loads(definition_json))
        self._parsed.put(key, (parsed, len(definition_json)))
        return parsed
