"""Run seeds: ``python -m tests.simulation 1000:1050 [--version 11] [--trace]``. See README.md."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from functools import partial

FAILURES_SHOWN = 4
LINE_MAX = 400


def main() -> None:
    """Print a line for each seed; for one that fails, what is wrong and how to run it again."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seeds", help="a seed, or FIRST:END")
    parser.add_argument("--version", help="the room version; without it, the seed decides")
    parser.add_argument("--trace", action="store_true", help="print what happened")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--mutation", help="a fault to put back, such as A1: see mutations.py")
    parser.add_argument("--strict", action="store_true", help="look for known faults as well")
    parser.add_argument("--brief", action="store_true", help="print only which checks failed")
    arguments = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets of strings follows from it, and what a server does first may follow from that.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    from tests.simulation.checks import KNOWN_FAULTS
    from tests.simulation.processes import run_all
    from tests.simulation.simulation import simulate

    first, _, end = arguments.seeds.partition(":")
    seeds = range(int(first), int(end) if end else int(first) + 1)
    failed: Counter[str] = Counter()
    failing = 0
    run = partial(simulate, version=arguments.version, mutation=arguments.mutation, strict=arguments.strict)
    began = time.perf_counter()
    for outcome in run_all(seeds, run, arguments.jobs):
        known = KNOWN_FAULTS.intersection(outcome.failures) if not arguments.strict else set()
        shown = dict(outcome.failures) if len(seeds) == 1 else None
        for name in sorted(known):
            del outcome.failures[name]
        status = "failed " + ", ".join(outcome.failures) if outcome.failures else "ok"
        if known:
            status += f" (known: {', '.join(sorted(known))})"
        print(f"seed {outcome.seed} version {outcome.version}: {outcome.hash[:16]} {outcome.cpu:.1f} s {status}")
        if arguments.trace:
            print("\n".join(outcome.trace))
        if outcome.failures:
            failing += 1
            failed.update(outcome.failures.keys())
        for name, wrong in (shown or outcome.failures).items() if not arguments.brief else ():
            print(f"  {name}:")
            for line in wrong[:FAILURES_SHOWN]:
                print(f"    {line[:LINE_MAX]}")
        if outcome.failures:
            print(f"  again: make simulate SEEDS={outcome.seed} VERSION={outcome.version}")
        sys.stdout.flush()
    for name, count in failed.most_common():
        print(f"{name}: {count}")
    print(f"{len(seeds) - failing} of {len(seeds)} seeds hold, {time.perf_counter() - began:.0f} s")
    sys.exit(1 if failing else 0)


if __name__ == "__main__":
    main()
