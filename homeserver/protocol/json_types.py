"""The shapes of JSON, as types."""

from __future__ import annotations

from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object, parsed: keys are strings, values whatever JSON can hold."""
