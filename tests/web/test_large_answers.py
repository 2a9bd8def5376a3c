"""homeserver/web/large_answers.py: a reader that does not read costs no memory."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from homeserver.web import LargeAnswers, bytes_response, large_answers
from homeserver.web.large_answers import ABORT, PIECE_BYTES
from tests.web.web_app import new_app

pytestmark = pytest.mark.anyio
BODY = bytes(range(256)) * 4096  # 1 MiB, 16 pieces


class Reader:
    """A connection that takes so many pieces and then no more, until it is told to go on."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.messages: list[Any] = []
        self.goes_on = asyncio.Event()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body" and len(self.bodies) >= self.pieces:
            await self.goes_on.wait()  # as uvicorn waits, before it writes
        self.messages.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.messages if message["type"] == "http.response.body"]


async def never() -> Any:
    raise AssertionError


async def answer(answers: LargeAnswers, reader: Reader, body: bytes = BODY, **scope: Any) -> None:
    app = new_app()
    app.state.services = {LargeAnswers: answers}
    await bytes_response(body)({"type": "http", "app": app, **scope}, never, reader.send)


async def test_a_fast_reader_gets_pieces(tmp_path: Path) -> None:
    answers, reader = LargeAnswers(tmp_path), Reader(1000)
    await answer(answers, reader)
    assert b"".join(reader.bodies) == BODY
    assert {len(body) for body in reader.bodies} == {PIECE_BYTES}
    assert [message.get("more_body", False) for message in reader.messages[1:]] == [True] * 15 + [False]


async def test_what_a_slow_reader_has_not_taken_waits_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(large_answers, "IN_MEMORY_SECONDS", 0.001)
    answers, reader = LargeAnswers(tmp_path), Reader(3)
    task = asyncio.create_task(answer(answers, reader, BODY + b"end"))
    async with asyncio.timeout(30):
        while not answers.spooled:  # noqa: ASYNC110 - the file is written by a thread
            await asyncio.sleep(0.001)
    assert answers.spooled == len(BODY) + 3 - 3 * PIECE_BYTES
    assert os.listdir(tmp_path) == []  # the file has no name
    reader.goes_on.set()
    await task
    assert b"".join(reader.bodies) == BODY + b"end"
    assert reader.messages[-1]["more_body"] is False
    assert answers.spooled == 0


async def test_too_much_for_slow_readers_closes_the_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(large_answers, "IN_MEMORY_SECONDS", 0.001)
    monkeypatch.setattr(large_answers, "SPOOLED_BYTES_MAX", 1000)
    reader = Reader(3)
    await answer(LargeAnswers(tmp_path), reader, **{ABORT: reader.goes_on.set})
    assert len(b"".join(reader.bodies)) < len(BODY)


async def test_small_answers_are_written_at_once(tmp_path: Path) -> None:
    reader = Reader(1000)
    await answer(LargeAnswers(tmp_path), reader, b"{}")
    assert reader.bodies == [b"{}"]
