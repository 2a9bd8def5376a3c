"""Reading large answers: their lists stay on the disk, and elements are parsed one at a time.

The state of a large room is tens of megabytes of JSON. As Python objects it would take ten times as much memory, and
parsing it at once would block the event loop for seconds. A first pass, in a thread that pauses often, only finds where
each element of a list begins and ends, and stops as soon as a bound is exceeded.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, overload

import orjson

from homeserver.outbound.spools import Spool

CHUNK_BYTES = 64 * 1024
"""How much is read at a time."""
ELEMENTS_AT_A_STRETCH = 2_000
PAUSE_SECONDS = 0.0002
"""How long the first pass lets go of the interpreter after each chunk, and after so many elements: other threads wait
for no more than that."""
REST_BYTES_MAX = 1024 * 1024
"""How large everything besides the lists may be, in all."""
ELEMENT_BYTES_MAX = 512 * 1024
"""How large one element may be: an event of 64 KiB in which every character is escaped, and some ``unsigned``."""
KEY_BYTES_MAX = 1024
_DIGITS = bytes(ord("0") if chr(byte) in "0123456789" else ord(" ") for byte in range(256))
_LONG_NUMBER = b"0" * 19


@dataclass(frozen=True, slots=True)
class ListBound:
    """How many elements a list may have."""

    elements_max: int
    takes_first: bool = False
    """Whether a longer list is cut off, and nothing is read that follows, instead of being refused: a server may give
    more than it was asked for."""


def _refuse_constant(literal: str) -> NoReturn:
    raise ValueError(f"not JSON: {literal}")


def parse_json(body: bytes) -> Any:
    """Parse JSON with Python's parser, which accepts more than orjson does. Raises ``ValueError``."""
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_element(raw: bytes) -> Any:
    """Parse JSON as exactly as ``parse_json``, and mostly as fast as orjson. Raises ``ValueError``."""
    return _parse_exactly(raw, may_have_long_numbers=_has_long_number(raw))


def _parse_exactly(raw: bytes, *, may_have_long_numbers: bool) -> Any:
    # orjson reads an integer of more than 64 bits as a floating-point number, which has another canonical form.
    if not may_have_long_numbers:
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            pass  # it may hold what only Python's parser accepts, such as half of a surrogate pair
    return parse_json(raw)


def _has_long_number(text: bytes) -> bool:
    return _LONG_NUMBER in text.translate(_DIGITS)


class Elements(Sequence[Any]):
    """A list in an answer. Each access parses anew; what is not JSON is None."""

    def __init__(self, spool: Spool) -> None:
        self.first_bytes: set[int] = set()
        """What its elements begin with, which tells objects from strings and numbers."""
        self._spool = spool
        self._starts = array("Q")
        self._lengths = array("I")

    def add(self, start: int, length: int, first_byte: int) -> None:
        """Append the element that lies there."""
        self._starts.append(start)
        self._lengths.append(length)
        self.first_bytes.add(first_byte)

    def raw(self, index: int) -> bytes:
        """The JSON text of an element."""
        return self._spool.read(self._starts[index], self._lengths[index])

    def size_of(self, index: int) -> int:
        """How many bytes the text of an element has."""
        return self._lengths[index]

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        raw = self.raw(index)
        return _parsed_or_none(raw, _has_long_number(raw))

    def __iter__(self) -> Iterator[Any]:
        window, begin, end, has_long_number = b"", 0, 0, False
        for start, length in zip(self._starts, self._lengths, strict=True):
            if start + length > end:
                window, begin = self._spool.read(start, max(CHUNK_BYTES, length)), start
                end = begin + len(window)
                has_long_number = _has_long_number(window)
            yield _parsed_or_none(window[start - begin : start - begin + length], has_long_number)


def _parsed_or_none(raw: bytes, may_have_long_numbers: bool) -> Any:
    try:
        return _parse_exactly(raw, may_have_long_numbers=may_have_long_numbers)
    except ValueError:
        return None


async def read_large_json(spool: Spool, bounds: Mapping[str, ListBound], *, is_pair: bool = False) -> Any:
    """Read the JSON object in a spool; those of its lists that have a bound become ``Elements``.

    ``is_pair`` takes the object out of ``[200, {...}]``, if it comes so. Raises ``ValueError``.
    """
    return await asyncio.to_thread(_Scanner(spool, bounds).read, is_pair)


_SPACE = re.compile(rb"[ \t\n\r]*+")
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_SCALAR = rb'[^ \t\n\r,:"\[\]{}]++'


def _nested(depth: int) -> bytes:
    """A pattern for an object or list in which at most so many lie inside each other. (Kinds of brackets are checked
    when the element is parsed.)"""
    pattern = rb"[\[{](?:[^\[\]{}\"]++|" + _STRING + rb")*+[\]}]"
    for _ in range(depth - 1):
        pattern = rb"[\[{](?:[^\[\]{}\"]++|" + _STRING + rb"|" + pattern + rb")*+[\]}]"
    return pattern


_VALUE = re.compile(rb"(?s:" + _nested(8) + rb"|" + _STRING + rb"|" + _SCALAR + rb"(?=[ \t\n\r,:\[\]{}]))")
_ELEMENT = re.compile(rb"(" + _VALUE.pattern + rb")[ \t\n\r]*+([,\]])[ \t\n\r]*+")
_TOKEN = re.compile(rb"(?s:[^\[\]{}\"]*+(?:(" + _STRING + rb")|([\[{])|([\]}])))")
_KEY = re.compile(rb"(?s:" + _STRING + rb")")
_END: Final = b""


class _Scanner:
    """The first pass."""

    def __init__(self, spool: Spool, bounds: Mapping[str, ListBound]) -> None:
        self._spool = spool
        self._bounds = bounds
        self._buffer = b""
        self._base = 0
        """Where in the spool the buffer begins."""
        self._at = 0
        """The position in the buffer."""
        self._rest = 0
        """How many bytes of the answer are kept besides the lists."""
        self._is_cut_off = False
        """Whether the rest of the answer is not read, since a list has all the elements that are wanted."""

    def read(self, is_pair: bool) -> Any:
        first = self._peek()
        if is_pair and first == b"[":
            self._at += 1
            self._peek()
            self._value(KEY_BYTES_MAX)
            self._expect(b",")
            found = self._object()
            if not self._is_cut_off:
                self._expect(b"]")
        elif first == b"{":
            found = self._object()
        else:
            raise ValueError("not a JSON object")
        if not self._is_cut_off and self._peek() != _END:
            raise ValueError("more follows after the end")
        return found

    def _object(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self._expect(b"{")
        if self._peek() == b"}":
            self._at += 1
            return found
        while True:
            if self._peek() != b'"':
                raise ValueError("a key is not a string")
            start, length = self._value(KEY_BYTES_MAX)
            key = parse_json(self._text(start, length))
            self._expect(b":")
            is_list = self._peek() == b"["
            if is_list and (bound := self._bounds.get(key)) is not None:
                self._at += 1
                found[key] = self._list(key, bound)
                if self._is_cut_off:
                    return found
            else:
                start, length = self._value(REST_BYTES_MAX - self._rest)
                self._rest += length
                found[key] = parse_element(self._text(start, length))
            if self._peek() == b"}":
                self._at += 1
                return found
            self._expect(b",")

    def _list(self, key: str, bound: ListBound) -> Elements:
        elements = Elements(self._spool)
        if self._peek() == b"]":
            self._at += 1
            return elements
        while True:
            if len(elements) % ELEMENTS_AT_A_STRETCH == ELEMENTS_AT_A_STRETCH - 1:
                time.sleep(PAUSE_SECONDS)
            if (match := _ELEMENT.match(self._buffer, self._at)) is not None:
                start, end = match.span(1)
                first_byte = self._buffer[start]
                length, start, self._at = end - start, self._base + start, match.end()
                is_last = match[2] == b"]"
            else:  # the buffer does not hold all of it, or it is nested deeply
                first_byte = (self._peek() or b"]")[0]
                start, length = self._value(ELEMENT_BYTES_MAX)
                is_last = self._peek() == b"]"
                self._expect(b"]" if is_last else b",")
                self._peek()
            if length > ELEMENT_BYTES_MAX:
                raise ValueError(f"an element of {key} is too large")
            elements.add(start, length, first_byte)
            if is_last:
                return elements
            if len(elements) >= bound.elements_max:
                if bound.takes_first:
                    self._is_cut_off = True
                    return elements
                raise ValueError(f"{key} has more than {bound.elements_max} elements")

    def _value(self, bytes_max: int) -> tuple[int, int]:
        """Skip a value; where in the spool it begins, and its length."""
        while (end := self._end_of_value()) is None:
            if len(self._buffer) - self._at > bytes_max or not self._more():
                raise ValueError("a value is too large, or never ends")
        start, self._at = self._at, end
        if end - start > bytes_max:
            raise ValueError("a value is too large")
        return self._base + start, end - start

    def _end_of_value(self) -> int | None:
        """Where the value ends that begins here; None if the buffer does not hold all of it."""
        if (match := _VALUE.match(self._buffer, self._at)) is not None:
            return match.end()
        if self._buffer[self._at : self._at + 1] not in (b"[", b"{"):
            return None
        depth, at = 0, self._at  # nested deeper than the pattern, or not whole
        while (token := _TOKEN.match(self._buffer, at)) is not None:
            at = token.end()
            if token[2] is not None:
                depth += 1
            elif token[3] is not None:
                depth -= 1
                if depth == 0:
                    return at
        return None

    def _peek(self) -> bytes:
        """The next byte that is not white space; empty at the end."""
        while True:
            match = _SPACE.match(self._buffer, self._at)
            assert match is not None  # the pattern also matches the empty string
            self._at = match.end()
            if self._at < len(self._buffer):
                return self._buffer[self._at : self._at + 1]
            if not self._more():
                return _END

    def _expect(self, byte: bytes) -> None:
        if self._peek() != byte:
            raise ValueError(f"expected {byte!r} at {self._base + self._at}")
        self._at += 1

    def _text(self, start: int, length: int) -> bytes:
        return self._buffer[start - self._base : start - self._base + length]

    def _more(self) -> bool:
        """Read on, at least as much again as is needed already; False at the end."""
        time.sleep(PAUSE_SECONDS)
        kept = self._buffer[self._at :]
        read = self._spool.read(self._base + len(self._buffer), max(CHUNK_BYTES, len(kept)))
        self._base += self._at
        self._at = 0
        self._buffer = kept + read
        return bool(read)
