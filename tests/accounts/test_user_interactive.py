"""Flows of more than one stage, which registration does not have yet."""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.accounts import user_interactive
from homeserver.accounts.user_interactive import UserInteractive, dummy_stage
from homeserver.errors import Forbidden, InteractiveAuthenticationRequired, LimitExceeded
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import Database
from tests.fakes.clock import FakeClock

FLOWS = (("secret", "dummy"), ("secret", "other"))

pytestmark = pytest.mark.anyio


async def secret_stage(auth: JsonObject) -> None:
    if auth.get("answer") != "friend":
        raise Forbidden("Wrong answer")


STAGES = {"secret": secret_stage, "dummy": dummy_stage, "other": dummy_stage}


@pytest.fixture
def authentication(database: Database) -> UserInteractive:
    return UserInteractive(database, FakeClock())


async def attempt(
    authentication: UserInteractive, auth: Any = None, operation: str = "delete", **parameters: Any
) -> dict[str, Any] | None:
    """The challenge, or None when the operation may go ahead."""
    body = parameters if auth is None else parameters | {"auth": auth}
    try:
        await authentication.authenticate(operation, body, FLOWS, STAGES)
    except InteractiveAuthenticationRequired as challenge:
        return challenge.body()
    return None


async def test_stages_in_order(authentication: UserInteractive) -> None:
    challenge = await attempt(authentication, device="PHONE")
    assert challenge is not None
    assert challenge["flows"] == [{"stages": ["secret", "dummy"]}, {"stages": ["secret", "other"]}]
    assert "completed" not in challenge
    session = challenge["session"]

    challenge = await attempt(authentication, {"type": "dummy", "session": session}, device="PHONE")
    assert challenge is not None
    assert challenge["errcode"] == "M_FORBIDDEN"
    assert "completed" not in challenge

    wrong = await attempt(authentication, {"type": "secret", "answer": "foe", "session": session}, device="PHONE")
    assert wrong is not None
    assert (wrong["errcode"], wrong["error"], wrong["session"]) == ("M_FORBIDDEN", "Wrong answer", session)

    right = await attempt(authentication, {"type": "secret", "answer": "friend", "session": session}, device="PHONE")
    assert right is not None
    assert right["completed"] == ["secret"]
    assert "errcode" not in right

    # "Completed stages cannot be retried": a retry is told how far it has come.
    again = await attempt(authentication, {"type": "secret", "answer": "foe", "session": session}, device="PHONE")
    assert again == right
    # A request with the session alone asks the same.
    assert await attempt(authentication, {"session": session}, device="PHONE") == right

    assert await attempt(authentication, {"type": "other", "session": session}, device="PHONE") is None
    over = await attempt(authentication, {"type": "other", "session": session}, device="PHONE")
    assert over is not None
    assert over["errcode"] == "M_UNKNOWN"


async def test_a_session_may_begin_with_the_first_stage(authentication: UserInteractive) -> None:
    challenge = await attempt(authentication, {"type": "secret", "answer": "friend"}, device="PHONE")
    assert challenge is not None
    assert challenge["completed"] == ["secret"]
    auth = {"type": "dummy", "session": challenge["session"]}
    assert await attempt(authentication, auth, device="PHONE") is None


async def test_what_was_proved_counts_for_that_request_only(authentication: UserInteractive) -> None:
    challenge = await attempt(authentication, {"type": "secret", "answer": "friend"}, device="PHONE")
    assert challenge is not None
    auth = {"type": "dummy", "session": challenge["session"]}
    with pytest.raises(Forbidden):
        await attempt(authentication, auth, device="LAPTOP")
    elsewhere = await attempt(authentication, auth, operation="deactivate", device="PHONE")
    assert elsewhere is not None
    assert elsewhere["errcode"] == "M_UNKNOWN"
    assert elsewhere["session"] != challenge["session"]
    assert await attempt(authentication, auth, device="PHONE") is None


async def test_open_sessions_are_bounded(authentication: UserInteractive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_interactive, "SESSIONS_MAX", 3)
    for _ in range(3):
        await attempt(authentication)
    with pytest.raises(LimitExceeded):
        await attempt(authentication)
