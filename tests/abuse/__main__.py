"""Run attacks, print what came of them, and fail if one broke a bar: ``make abuse``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.abuse.attack import Attack, all_attacks
from tests.abuse.measuring import FULL, Result, measure
from tests.abuse.stage import Stages
from tests.abuse.watching import Watch
from tests.interop.servers import ROOT
from tests.postgresql import PostgresqlServer

ATTACKERS_NICENESS = 5
"""The attackers leave the processors to the server and the innocent user when there are too few for all."""


def main() -> int:
    """Exit status 0 if every attack held, 1 if one broke a bar, 2 for bad usage."""
    parser = argparse.ArgumentParser(prog="python -m tests.abuse", description=__doc__)
    parser.add_argument("attacks", nargs="*", help="names of attacks or of their modules; all if there is none")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="attack the code in this folder instead of ours")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), help="only on this one")
    parser.add_argument("--list", action="store_true", help="print the attacks, and do nothing")
    options = parser.parse_args()
    known = all_attacks()
    if unknown := [n for n in options.attacks if n not in known and n not in {a.subject for a in known.values()}]:
        parser.error(f"no such attack: {', '.join(unknown)}")
    chosen = [a for a in known.values() if not options.attacks or {a.name, a.subject} & set(options.attacks)]
    if options.list:
        for attack in chosen:
            print(f"{attack.subject:<16}{attack.name:<44}{'quick ' if attack.is_quick else '      '}{attack.summary}")
        return 0
    rounds = [(a, d) for a in chosen for d in a.databases if options.database in (None, d)]
    # Right under /tmp: the path of a Unix socket may have about 100 characters.
    with tempfile.TemporaryDirectory(prefix="homeserver-abuse-", dir="/tmp") as directory:
        return _run(rounds, Path(directory), options.checkout.resolve())


def _run(rounds: list[tuple[Attack, str]], directory: Path, checkout: Path) -> int:
    postgresql = None
    (directory / "postgresql").mkdir()
    directory.chmod(0o755)
    if any(database == "postgresql" for _, database in rounds):
        postgresql = PostgresqlServer(directory / "postgresql", os.environ.get("HOMESERVER_TEST_POSTGRES"))
        postgresql.start()
    os.nice(ATTACKERS_NICENESS)
    stages = Stages(directory, checkout, postgresql)
    broken = []
    try:
        for attack, database in rounds:
            print(f"\n{attack.name} ({database}): {attack.summary}", flush=True)
            result = _measure(attack, database, stages)
            print(f"  {result.line()}")
            for fault in result.faults:
                print(f"  BROKEN: {fault}", flush=True)
            if result.faults:
                broken.append(f"{attack.name} ({database})")
    finally:
        if postgresql is not None:
            postgresql.stop()
    print(f"\n{len(rounds) - len(broken)} of {len(rounds)} held" + (f"; broken: {', '.join(broken)}" if broken else ""))
    return 1 if broken else 0


def _measure(attack: Attack, database: str, stages: Stages) -> Result:
    with stages.new(database, attack.settings) as stage, Watch(stage.base_url) as watch:
        return measure(attack, stage, watch, FULL)


if __name__ == "__main__":
    sys.exit(main())
