"""Write the lock files: for running, for development, and for the Synapse that the interop tests run against.

Run by ``make lock``, with uv in the environment. The files work on every platform and name no package index.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPILE = (
    *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--upgrade"),
    *("--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--custom-compile-command", "make lock"),
)


def main() -> None:
    """See the module."""
    lock("requirements-dev.lock", "pyproject.toml", "--extra", "test", "--extra", "dev")
    # What runs is locked as it was tested.
    lock("requirements.lock", "pyproject.toml", "--constraint", "requirements-dev.lock")
    lock("requirements-interop.lock", "--group", "pyproject.toml:interop")


def lock(output: str, *what: str) -> None:
    """Choose versions for what the arguments to uv name, and write them to ``output``."""
    subprocess.run([*COMPILE, *what, "--output-file", output], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
