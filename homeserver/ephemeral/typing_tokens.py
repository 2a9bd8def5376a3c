"""What a client's token says of typing: how far the client was told, by which process, and what it was told.

A process knows exactly what its own clients were told: everything up to a moment. A client that comes with the token
of another process, or of before a restart, would have to be told everything each time that it goes from one process to
the other. So its token also has a digest of who was typing in the rooms of its user: a client whose digest is the
present one knows everything.
"""

from __future__ import annotations

from dataclasses import dataclass

_PROCESS_BITS = 16
_DIGEST_BITS = 22
DIGEST_MAX = 2**_DIGEST_BITS - 1
NUMBER_MAX = 2**79 - 1
"""The greatest number that a point makes, until the year 2039."""


@dataclass(frozen=True, slots=True)
class Point:
    """A client was told of everything up to ``ms``."""

    ms: int
    """Milliseconds since the epoch, by the clock of that process."""
    process: int
    digest: int
    """Of who was typing then in the rooms of the user; 0 if nobody was."""

    def as_number(self) -> int:
        """All of it in one number, for a token."""
        return ((self.ms << _PROCESS_BITS | self.process) << _DIGEST_BITS) | self.digest

    @classmethod
    def of_number(cls, number: int) -> Point:
        """What a token says."""
        rest, digest = divmod(number, 2**_DIGEST_BITS)
        ms, process = divmod(rest, 2**_PROCESS_BITS)
        return cls(ms, process, digest)
