"""Command line of the benchmark."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from pathlib import Path

import uvloop

from benchmarks.http import RequestFailed
from benchmarks.measuring import Figure
from benchmarks.paths import PATHS
from benchmarks.servers import Bench, NotForRunningServer, own_servers, running_server

SECONDS = 5.0


def main() -> int:
    """Measure, print, and say whether all went well."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the paths that matter.")
    parser.add_argument("--base-url", help="a server that runs already, with open registration and no rate limits")
    parser.add_argument("--pid", type=int, help="its process, for CPU and memory")
    parser.add_argument("--only", metavar="PATHS", help=f"some of: {', '.join(PATHS)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long each path of free length lasts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(PATHS)
    if unknown := [name for name in names if name not in PATHS]:
        parser.error(f"no such path: {', '.join(unknown)}")
    with (
        tempfile.TemporaryDirectory(prefix="homeserver-bench-") as directory,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        bench: AbstractAsyncContextManager[Bench] = (
            running_server(options.base_url, options.pid, options.seconds)
            if options.base_url
            else own_servers(Path(directory), options.seconds)
        )
        results, is_well = runner.run(_measure(bench, names))
    if options.json:
        figures = {name: [asdict(figure) for figure in figures] for name, figures in results.items()}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if is_well else 1


async def _measure(
    context: AbstractAsyncContextManager[Bench], names: list[str]
) -> tuple[dict[str, list[Figure]], bool]:
    results: dict[str, list[Figure]] = {}
    is_well = True
    async with context as bench:
        for name in names:
            print(f"\n{name}: {(PATHS[name].__doc__ or '').strip()}")
            try:
                results[name] = await PATHS[name](bench)
            except NotForRunningServer as error:
                print(f"  left out: {error}")
            except (RequestFailed, RuntimeError, ExceptionGroup) as error:
                print(f"  failed: {error!r}")
                is_well = False
            for figure in results.get(name, ()):
                print(f"  {figure.name:<28}{figure.value:>12,.3f} {figure.unit}", flush=True)
    return results, is_well


if __name__ == "__main__":
    sys.exit(main())
