from __future__ import annotations

import re
import time
from fnmatch import translate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.protocol.globs import compile_globs

small = st.text("ab.", max_size=10)
globs = st.text("ab.*?", max_size=8)


@given(globs, small)
def test_globs_match_as_in_a_shell(glob: str, text: str) -> None:
    assert bool(compile_globs([glob]).fullmatch(text)) is bool(re.match(translate(glob), text))


@given(st.lists(globs, max_size=4), small)
def test_several_globs_match_what_any_of_them_matches(several: list[str], text: str) -> None:
    assert bool(compile_globs(several).fullmatch(text)) is any(compile_globs([one]).fullmatch(text) for one in several)


@pytest.mark.parametrize(
    ("glob", "text", "matches"),
    [
        ("*", "", True), ("*", "a\nb", True), ("?", "\n", True), ("?", "", False), ("", "", True), ("", "a", False),
        ("a*b*c", "aXbXbXc", True), ("[a]", "a", False), ("[a]", "[a]", True), (r"\*", r"\x", True),
        ("**a**", "a", True),
        ("a?c", "a\U0001f600c", True), ("a.c", "abc", False), ("^a$", "a", False),
    ],
)  # fmt: skip
def test_examples(glob: str, text: str, matches: bool) -> None:
    assert bool(compile_globs([glob]).fullmatch(text)) is matches


def test_case_and_question_marks_can_be_set() -> None:
    assert compile_globs(["A*"], ignore_case=True).fullmatch("ab")
    assert not compile_globs(["A*"]).fullmatch("ab")
    assert compile_globs(["a?"], question_mark=False).fullmatch("a?")
    assert not compile_globs(["a?"], question_mark=False).fullmatch("ab")


def test_many_stars_do_not_take_long() -> None:
    pattern = compile_globs(["*a" * 100 + "b"])
    started = time.thread_time()
    assert not pattern.fullmatch("a" * 5000)
    assert time.thread_time() - started < 5  # seconds; with backtracking it would be years
