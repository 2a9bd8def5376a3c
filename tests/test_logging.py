"""homeserver/logging.py: two formats, one for all libraries, and no secrets in either."""

from __future__ import annotations

import json
import logging

import pytest
import structlog

from homeserver.config import LoggingConfig
from homeserver.logging import configure_logging

pytestmark = pytest.mark.usefixtures("logging_as_before")


def test_json_is_one_object_a_line_for_us_and_for_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingConfig(format="json"))
    structlog.get_logger("homeserver.some").info("transaction sent", destination="b.org", pdus=3, body=b"x")
    logging.getLogger("library").warning("slow: %d ms", 12)
    ours, theirs = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["level"], ours["logger"]) == ("transaction sent", "info", "homeserver.some")
    assert (ours["destination"], ours["pdus"]) == ("b.org", 3)
    assert ours["timestamp"].endswith("Z")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("slow: 12 ms", "warning", "library")


def test_the_level_counts_for_both(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingConfig(level="warning"))
    structlog.get_logger("homeserver.some").info("quiet")
    logging.getLogger("library").info("quiet")
    structlog.get_logger("homeserver.some").warning("loud")
    assert "quiet" not in (err := capsys.readouterr().err)
    assert "loud" in err


@pytest.mark.parametrize("kind", ["console", "json"])
def test_an_exception_is_logged_with_its_traceback(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    configure_logging(LoggingConfig.model_validate({"format": kind}))
    try:
        raise ValueError("for access_token=geheim1")
    except ValueError:
        structlog.get_logger("homeserver.some").exception("it failed")
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "ValueError" in err
    assert "geheim1" not in err


@pytest.mark.parametrize("kind", ["console", "json"])
def test_secrets_are_masked(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    configure_logging(LoggingConfig.model_validate({"format": kind}))
    logger = structlog.get_logger("homeserver.some")
    logger.info(
        "request",
        access_token="geheim1",
        password="geheim2",
        authorization="X-Matrix geheim3",
        headers={"Authorization": "geheim4", "Accept": "seen1"},
        url="/sync?access_token=geheim5&since=seen2",
        database="postgresql+psycopg://user:geheim6@host/seen3",
        tokens=["geheim7"],
        token_count=77,
        parts=["Bearer geheim8", "seen4"],
    )
    logging.getLogger("library").warning("GET %s with Bearer %s", "/x?access_token=geheim9", "geheim0")
    err = capsys.readouterr().err
    assert "geheim" not in err
    assert all(f"seen{number}" in err for number in (1, 2, 3, 4))
    assert "77" in err
