"""What a client's token says about typing: how much the client was told, by which process, and what.

A process knows exactly what its own clients were told: everything up to a moment. A client with a token from another
process, or from before a restart, would have to be told everything whenever it changes between processes. So the token
also has a digest of who was typing in the user's rooms: if it equals the current one, the client knows everything.
"""

from __future__ import annotations

from dataclasses import dataclass

_PROCESS_BITS = 16
_DIGEST_BITS = 22
DIGEST_MAX = 2**_DIGEST_BITS - 1
NUMBER_MAX = 2**79 - 1
"""The greatest number of a point, until the year 2039."""


@dataclass(frozen=True, slots=True)
class Point:
    """A point up to which a client was told everything."""

    ms: int
    """Milliseconds since the epoch, by the clock of that process."""
    process: int
    digest: int
    """The digest of who was typing then in the rooms of the user; 0 if nobody was."""

    def as_number(self) -> int:
        """The point as one number, for a token."""
        return ((self.ms << _PROCESS_BITS | self.process) << _DIGEST_BITS) | self.digest

    @classmethod
    def of_number(cls, number: int) -> Point:
        """The point that a number of a token stands for."""
        rest, digest = divmod(number, 2**_DIGEST_BITS)
        ms, process = divmod(rest, 2**_PROCESS_BITS)
        return cls(ms, process, digest)
