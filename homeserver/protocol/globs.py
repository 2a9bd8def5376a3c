"""Glob-style matching: ``*`` for any characters, ``?`` for exactly one.

Others choose the globs, thousands at once, and the texts. So a set of globs is matched without regular expressions, in
a time that is bounded by the length of the text times that of the globs in machine words.

https://spec.matrix.org/v1.19/appendices/#glob-style-matching
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ENTRY_BYTES = 120
"""About what one glob takes in memory, besides its characters."""
REMEMBERED_MAX = 32
"""For how many texts a large set of globs remembers whether they match."""
LENGTHS_MAX = 16
"""A set of globs with more lengths of prefixes and suffixes counts as large."""
AUTOMATON_BITS_MAX = 512
"""So does one with a larger automaton."""


class GlobSet:
    """Globs, of which any one may match."""

    __slots__ = ("_automaton", "_exact", "_is_everything", "_matches", "_prefixes", "_remembered", "_suffixes", "bytes")

    def __init__(
        self, globs: Iterable[str], *, question_mark: bool = True, automaton_characters_max: int | None = None
    ) -> None:
        """``question_mark`` says whether ``?`` is a wildcard.

        Raises ``ValueError`` if the globs that are more than a prefix or a suffix have more than
        ``automaton_characters_max`` characters together.
        """
        exact: set[str] = set()
        prefixes: set[str] = set()
        suffixes: set[str] = set()
        others: list[tuple[str | None, ...]] = []
        self._is_everything = False
        automaton_characters = 0
        for glob in dict.fromkeys(globs):
            body = glob.strip("*")
            is_open = glob.startswith("*"), glob.endswith("*")
            has_wildcard = "*" in body or (question_mark and "?" in body)
            if not body and glob:
                self._is_everything = True
            elif has_wildcard or is_open == (True, True):
                others.append(_tokens(glob, question_mark))
                automaton_characters += len(glob)
                if automaton_characters_max is not None and automaton_characters > automaton_characters_max:
                    raise ValueError("too many globs that are more than a prefix or a suffix")
            elif is_open == (True, False):
                suffixes.add(body)
            elif is_open == (False, True):
                prefixes.add(body)
            else:
                exact.add(glob)
        self._exact = frozenset(exact)
        self._prefixes = _Affixes.of(prefixes)
        self._suffixes = _Affixes.of(suffixes)
        self._automaton = _Automaton(list(dict.fromkeys(others))) if others else None
        lengths = len(self._prefixes.lengths) + len(self._suffixes.lengths)
        bits = self._automaton.bits if self._automaton is not None else 0
        self._remembered: dict[str, bool] | None = {} if lengths > LENGTHS_MAX or bits > AUTOMATON_BITS_MAX else None
        texts = (self._exact, self._prefixes.texts, self._suffixes.texts)
        self.bytes = sum(ENTRY_BYTES + len(text) for each in texts for text in each)
        """About how much memory it takes."""
        self.bytes += self._automaton.bytes if self._automaton is not None else 0
        if self._remembered is not None:
            self.bytes += REMEMBERED_MAX * 2 * ENTRY_BYTES

    def matches(self, text: str) -> bool:
        """Whether any of the globs matches the whole text."""
        if self._is_everything or text in self._exact:
            return True
        if self._remembered is None:
            return self._find(text)
        known = self._remembered.get(text)
        if known is None:
            if len(self._remembered) >= REMEMBERED_MAX:
                self._remembered.clear()
            known = self._remembered[text] = self._find(text)
        return known

    def _find(self, text: str) -> bool:
        size = len(text)
        for length in self._prefixes.lengths:
            if length > size:
                break
            if text[:length] in self._prefixes.texts:
                return True
        for length in self._suffixes.lengths:
            if length > size:
                break
            if text[size - length :] in self._suffixes.texts:
                return True
        return self._automaton is not None and self._automaton.matches(text)


@dataclass(frozen=True, slots=True)
class _Affixes:
    """What texts may begin or end with."""

    texts: frozenset[str]
    lengths: tuple[int, ...]
    """Each once, the smallest first."""

    @classmethod
    def of(cls, texts: set[str]) -> _Affixes:
        return cls(frozenset(texts), tuple(sorted({len(text) for text in texts})))


_ANY = None
"""The token for ``?``; ``*`` stays itself, which no other token is."""
_STAR = "*"


def _tokens(glob: str, question_mark: bool) -> tuple[str | None, ...]:
    tokens: list[str | None] = []
    for character in glob:
        if character == _STAR:
            if not tokens or tokens[-1] != _STAR:
                tokens.append(_STAR)
        else:
            tokens.append(_ANY if question_mark and character == "?" else character)
    return tuple(tokens)


class _Automaton:
    """All globs at once, as a nondeterministic automaton whose states are the bits of one number.

    Each glob has a bit for each number of its characters that have been matched. A ``*`` lets the state that it stands
    behind stay as it is, whatever comes. So a step takes four operations on a number, however many globs there are.
    """

    __slots__ = ("_any", "_by_character", "_final", "_loops", "_start", "bits", "bytes")

    def __init__(self, globs: Sequence[tuple[str | None, ...]]) -> None:
        self.bits = sum(1 + sum(token != _STAR for token in glob) for glob in globs)
        starts, finals, loops, anys = [], [], [], []
        by_character: dict[str, list[int]] = {}
        state = 0
        for glob in globs:
            starts.append(state)
            for token in glob:
                if token == _STAR:
                    loops.append(state)
                    continue
                if token is _ANY:
                    anys.append(state)
                else:
                    by_character.setdefault(token, []).append(state)
                state += 1
            finals.append(state)
            state += 1
        self._start = self._mask(starts)
        self._final = self._mask(finals)
        self._loops = self._mask(loops)
        self._any = self._mask(anys)
        self._by_character = {each: self._mask(states) | self._any for each, states in by_character.items()}
        masks = [*self._by_character.values(), self._start, self._final, self._loops, self._any]
        self.bytes = sum(mask.bit_length() // 7 + ENTRY_BYTES for mask in masks)

    def _mask(self, states: list[int]) -> int:
        if not states:
            return 0
        octets = bytearray(max(states) // 8 + 1)
        for state in states:
            octets[state >> 3] |= 1 << (state & 7)
        return int.from_bytes(octets, "little")

    def matches(self, text: str) -> bool:
        """Whether any of the globs matches the whole text."""
        states, loops, any_character = self._start, self._loops, self._any
        masks = self._by_character
        for character in text:
            states = ((states & masks.get(character, any_character)) << 1) | (states & loops)
            if not states:
                return False
        return bool(states & self._final)
