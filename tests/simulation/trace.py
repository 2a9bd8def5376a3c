"""What happened in a run, line by line, and a hash of it by which two runs are compared."""

from __future__ import annotations

import asyncio
from hashlib import sha256


class Trace:
    """Lines with their time. The hash covers bodies too, which are not kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._hash = sha256()

    def note(self, line: str, *bodies: bytes) -> None:
        """Add a line; ``bodies`` go into the hash alone."""
        line = f"{asyncio.get_running_loop().time():10.4f} {line}"
        self.lines.append(line)
        self._hash.update(line.encode("utf-8", "surrogatepass"))
        for body in bodies:
            self._hash.update(body)

    @property
    def hash(self) -> str:
        """Equal for two runs in which the same happened in the same order."""
        return self._hash.hexdigest()
