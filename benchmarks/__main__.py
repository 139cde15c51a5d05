"""Run benchmarks: `python -m benchmarks [name ...] [--quick] [--json] [--model FILE]`."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks import (
    bus,
    commands,
    durability,
    estimate,
    gateway,
    queries,
    relay,
    replay,
    replicas,
    start,
    store,
    tokens,
)
from benchmarks.report import Report
from benchmarks.scratch import Options, Scratch, scratch

ALL: dict[str, Callable[[Scratch, Options], Report]] = {
    "bus": bus.run,
    "commands": commands.run,
    "store": store.run,
    "queries": queries.run,
    "relay": relay.run,
    "replay": replay.run,
    "tokens": tokens.run,
    "gateway": gateway.run,
    "start": start.run,
    "replicas": replicas.run,
    "estimate": estimate.run,
    "durability": durability.run,
}


def main() -> int:
    """Run what was asked for, printing each table as soon as it is there. With --strict a missed gate exits with 1."""
    given = _arguments()
    options = Options(quick=given.quick, seconds=0.3 if given.quick else 0.8, model=given.model, before=given.before)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # cleans up, as Ctrl-C does
    reports = []
    busy = f"load average {os.getloadavg()[0]:.1f} before it begins"
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {busy}", file=sys.stderr)
    for name in given.names or ALL:
        begun = time.monotonic()
        try:
            with scratch() as place:
                report = ALL[name](place, options)
        except KeyboardInterrupt:
            return 130
        reports.append(report)
        print(f"{report.text()}\n", file=sys.stderr if given.json else sys.stdout, flush=True)
        print(f"({name}: {time.monotonic() - begun:.0f} s)", file=sys.stderr)
    if given.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode([r.document() for r in reports])).decode() + "\n")
    missed = [f"{report.name}: {line.what}" for report in reports for line in report.missed]
    if missed:
        print("gates missed:\n  " + "\n  ".join(missed), file=sys.stderr)
    return 1 if missed and given.strict else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Ratios against limits measured in the same run.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(ALL)}; default: all")
    parser.add_argument("--quick", action="store_true", help="smaller amounts and shorter measurements")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, tables on stderr")
    parser.add_argument("--model", type=Path, help="a GGUF file for the token benchmark, instead of pulling one")
    parser.add_argument(
        "--before", type=commands.checkout, help="another checkout, whose commands are measured as well"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a gate was missed")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in ALL]:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(ALL)}")
    return given


if __name__ == "__main__":
    sys.exit(main())
