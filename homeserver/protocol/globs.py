"""Glob-style matching: ``*`` for any characters, ``?`` for exactly one.

https://spec.matrix.org/v1.19/appendices/#glob-style-matching
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def glob_pattern(glob: str, *, question_mark: bool = True) -> str:
    """A regular expression for ``fullmatch`` with ``re.DOTALL``, which never backtracks over an earlier ``*``.

    The shortest match of each piece between two stars is final (an atomic group). That is enough: a text that matches
    with a longer one also matches with the shortest. So the time is bounded by the length of the glob times that of the
    text.
    """
    pieces = [_piece_pattern(piece, question_mark) for piece in glob.split("*")]
    if len(pieces) == 1:
        return pieces[0]
    first, *middle, last = pieces
    return first + "".join(f"(?>.*?{piece})" for piece in middle if piece) + ".*" + last


def compile_globs(globs: Iterable[str], *, ignore_case: bool = False, question_mark: bool = True) -> re.Pattern[str]:
    """One regular expression that ``fullmatch``es every text that any of the globs matches; without globs, no text."""
    patterns = [glob_pattern(glob, question_mark=question_mark) for glob in globs]
    flags = re.DOTALL | re.IGNORECASE if ignore_case else re.DOTALL
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns) or r"(?!)", flags)


def _piece_pattern(piece: str, question_mark: bool) -> str:
    if not question_mark or "?" not in piece:
        return re.escape(piece)
    return ".".join(re.escape(part) for part in piece.split("?"))
