from __future__ import annotations

import re
import time
from fnmatch import translate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.protocol.globs import AUTOMATON_BITS_MAX, LENGTHS_MAX, REMEMBERED_MAX, GlobSet

small = st.text("ab.", max_size=10)
globs = st.text("ab.*?", max_size=8)


@given(globs, small)
def test_globs_match_as_in_a_shell(glob: str, text: str) -> None:
    assert GlobSet([glob]).matches(text) is bool(re.match(translate(glob), text))


@given(st.lists(globs, max_size=6), small)
def test_several_globs_match_what_any_of_them_matches(several: list[str], text: str) -> None:
    assert GlobSet(several).matches(text) is any(GlobSet([one]).matches(text) for one in several)


@given(st.lists(globs, max_size=6), small)
def test_question_marks_can_be_ordinary(several: list[str], text: str) -> None:
    expected = any(re.match(translate(glob.replace("?", "[?]")), text) for glob in several)
    assert GlobSet(several, question_mark=False).matches(text) is expected


@pytest.mark.parametrize(
    ("glob", "text", "matches"),
    [
        ("*", "", True), ("*", "a\nb", True), ("?", "\n", True), ("?", "", False), ("", "", True), ("", "a", False),
        ("a*b*c", "aXbXbXc", True), ("[a]", "a", False), ("[a]", "[a]", True), (r"\*", r"\x", True),
        ("**a**", "a", True), ("a*", "a", True), ("*a", "a", True), ("a*a", "a", False), ("?*", "", False),
        ("a?c", "a\U0001f600c", True), ("a.c", "abc", False), ("^a$", "a", False),
    ],
)  # fmt: skip
def test_examples(glob: str, text: str, matches: bool) -> None:
    assert GlobSet([glob]).matches(text) is matches


def test_question_marks_that_are_no_wildcards() -> None:
    assert GlobSet(["a?"], question_mark=False).matches("a?")
    assert not GlobSet(["a?"], question_mark=False).matches("ab")


def test_a_large_set_remembers_few_texts() -> None:
    assert 10 * LENGTHS_MAX < AUTOMATON_BITS_MAX
    large = GlobSet([f"*{'x' * number}*y" for number in range(1, 40)])
    for number in range(3 * REMEMBERED_MAX):
        assert large.matches(f"{number}xy")
        assert not large.matches(f"{number}xz")
    assert large._remembered is not None
    assert len(large._remembered) <= REMEMBERED_MAX


HOSTILE = {
    "stars": ["*a" * 100 + "b"],
    "one behind the other": ["*a" * number for number in range(1, 250)],
    "different": [f"*{number}*{number}?" for number in range(6_900)],
    "prefixes": ["a" * number + "*" for number in range(1, 350)],
    "suffixes": ["*" + "a" * number for number in range(1, 350)],
    "question marks": ["?" * number + "*b" for number in range(1, 250)],
    "characters": [f"*{chr(0x4E00 + number)}*" for number in range(5_000)],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_globs_do_not_take_long(name: str) -> None:
    """As many as an event of 64 KiB holds. With a regular expression that tries one after the other it is seconds."""
    started = time.thread_time()
    found = GlobSet(HOSTILE[name])
    for number in range(10):
        found.matches(f"{number}" + "a" * 254)
    assert time.thread_time() - started < 0.5  # seconds; a tenth of it on an idle machine
    assert found.bytes < 8 * 2**20
