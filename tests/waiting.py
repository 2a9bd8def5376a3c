"""How patient tests are."""

from __future__ import annotations

WAIT_S = 60.0
"""How long a test waits for something that must happen.

It happens in milliseconds, so a passing test does not wait it out; but the machine may be busy with other things.
"""
