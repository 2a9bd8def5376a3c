"""Logging: structlog for our code, the standard library for libraries, one format for both, on standard error.

Use ``logger = structlog.get_logger(__name__)`` and log an event with its facts as keywords: ``logger.info("transaction
sent", destination=name, pdus=12)``. Facts with the name of a secret are masked, and so is any text that looks like a
token, so that a careless log line reveals no secret.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from structlog.typing import Processor

from homeserver.config import LoggingConfig

MASK = "***"

_SECRET_NAME = re.compile(
    r"password|passwd|token|secret|authorization|cookie|signing_key|private_key|recovery_key|(?:^|_)mac$|^auth$", re.I
)
_SECRET_IN_TEXT = re.compile(
    r"""(?P<before>
          (?:access_token|refresh_token|login_token|password|shared_secret)["']?\s*[=:]\s*["']?
        | \bBearer\s+
        | ://[^\s:/@]*:(?=[^\s/@]+@)
        )[^\s"'&,@]+""",
    re.I | re.X,
)
_LIBRARY_LEVELS = {"uvicorn": "WARNING", "sqlalchemy": "WARNING", "alembic": "WARNING", "httpx": "WARNING"}
"""Levels for libraries that log more than an operator wants to know."""

_LIBRARIES_THAT_DUMP_TRAFFIC = ("httpcore", "hpack", "asyncio")


def configure_logging(config: LoggingConfig) -> None:
    """Set up structlog and the standard library's logging for the whole process."""
    level = logging.getLevelNamesMapping()[config.level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.add_logger_name,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(config.format),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name, quiet_level in _LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(max(level, logging.getLevelNamesMapping()[quiet_level]))
    for name in _LIBRARIES_THAT_DUMP_TRAFFIC:
        logging.getLogger(name).setLevel(max(level, logging.INFO))


def mask_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: masks facts with the name of a secret, and tokens and passwords inside any text."""
    for name, value in event.items():
        event[name] = MASK if _SECRET_NAME.search(name) and not isinstance(value, bool | int) else _masked(value)
    return event


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return _SECRET_IN_TEXT.sub(rf"\g<before>{MASK}", value)
    if isinstance(value, dict):
        return mask_secrets(None, "", {str(name): item for name, item in value.items()})
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    return value


def _renderers(format_: str) -> list[Processor]:
    if format_ == "json":
        return [structlog.processors.format_exc_info, mask_secrets, structlog.processors.JSONRenderer(default=repr)]
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    return [structlog.processors.format_exc_info, mask_secrets, console]
