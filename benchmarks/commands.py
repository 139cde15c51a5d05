"""The command line: how long a command takes, beside the least that Python and the NATS client take to start.

The commands run one after another in turns with their limits, against a running system. `--before FOLDER` measures the
same commands of another checkout in the same run, with the same Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from aima_core.bus.nats_server import free_port
from benchmarks.report import Report
from benchmarks.scratch import ROOT, Options, Scratch, wait_until
from services.cli import domains

_LIMITS = {"python -c pass": "pass", "python -c 'import nats, msgspec'": "import nats, msgspec"}
_PROGRAM = "from services.cli.entry import main; main()"  # what the installed script does
_COMMANDS: dict[str, tuple[str, ...]] = {
    "aima --version": ("--version",),
    "aima --help": ("--help",),
    "aima service list": ("service", "list"),
    "aima service list -o json": ("service", "list", "-o", "json"),
    "aima service create --help": ("service", "create", "--help"),
    "aima call service.list": ("call", "service.list"),
    "aima status": ("status",),
    "aima units": ("units",),
    "aima units service.create": ("units", "service.create"),
    "aima keys list": ("keys", "list"),
    "aima config path": ("config", "path"),
}
_COMPLETIONS = {"completion of a domain": "aima ser", "completion of an id": "aima service start "}
_ASK = "aima service.list alone, over an open connection"


def run(scratch: Scratch, options: Options) -> Report:
    """Measure every command in turns."""
    env = _system(scratch)
    ways: dict[str, Callable[[], float]] = {
        name: lambda code=code: _timed(["-c", code], env) for name, code in _LIMITS.items()
    }
    checkouts = {"": ROOT, **({"before: ": options.before} if options.before else {})}
    for prefix, root in checkouts.items():
        own = {**env, "PYTHONPATH": os.pathsep.join((str(root / "libs"), str(root)))}
        for name, words in _COMMANDS.items():
            ways[f"{prefix}{name}"] = lambda words=words, own=own: _timed(["-c", _PROGRAM, *words], own)
        for name, line in _COMPLETIONS.items():
            asked = {**own, "_AIMA_COMPLETE": "complete_bash", "COMP_WORDS": line}
            asked["COMP_CWORD"] = str(line.count(" "))
            ways[f"{prefix}{name}"] = lambda asked=asked: _timed(["-c", _PROGRAM], asked)
    for way in ways.values():  # the first run of each writes bytecode, and learns who is on the bus
        way()
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.scaled(21, 7)):
        for name, way in ways.items():
            took[name].append(way())
    return _report(took, _request(env, options.scaled(200, 50)))


def _report(took: dict[str, list[float]], request: float) -> Report:
    report = Report("commands")
    for name, seconds in took.items():
        report.figure(name, [each * 1000 for each in seconds], "ms")
    report.figure(_ASK, [request * 1000], "ms")
    bare, client = took["python -c pass"], took["python -c 'import nats, msgspec'"]
    report.ratio("aima --version / python -c pass", took["aima --version"], bare, at_most=2.5)
    alone = [seconds - request for seconds in took["aima service list"]]
    report.ratio("aima service list without its request / import nats, msgspec", alone, client, at_most=2.0)
    for name in (*_COMMANDS, *_COMPLETIONS):
        if f"before: {name}" in took:
            report.ratio(f"{name}: now / before", took[name], took[f"before: {name}"])
    return report


def _system(scratch: Scratch) -> dict[str, str]:
    """Start everything; return the environment of commands that use it."""
    data = scratch.folder / "data"
    first = free_port()
    env = {"AIMA_DATA": str(data), "AIMA_NATS_PORT": str(first), "AIMA_GATEWAY_ADDR": f"127.0.0.1:{free_port()}"}
    scratch.python("services.cli.entry", "up", "--quiet", env=env, ready=False)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIMA_", "PYTHONPATH"))}
    env = kept | env | {"COLUMNS": "120"}
    for _ in wait_until():
        told = subprocess.run(
            [sys.executable, "-c", _PROGRAM, "status"], env=env, cwd=ROOT, capture_output=True, check=False
        )
        if told.stdout.count(b"serving") == len(domains.names()):
            break
    return env


def _timed(arguments: Sequence[str], env: dict[str, str]) -> float:
    began = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, *arguments], env=env, cwd="/", capture_output=True, check=False, stdin=subprocess.DEVNULL
    )
    took = time.perf_counter() - began
    if ended.returncode:
        raise RuntimeError(f"{arguments} exited with {ended.returncode}: {ended.stderr.decode()}")
    return took


def _request(env: dict[str, str], number: int) -> float:
    """Return the median time in seconds of the request that `aima service list` sends, over an open connection."""
    code = f"""
import asyncio, os, statistics, time
from pathlib import Path
import nats

async def main():
    nc = await nats.connect((Path(os.environ["AIMA_DATA"]) / "nats.url").read_text().strip())
    took = []
    for _ in range({number}):
        began = time.perf_counter()
        await nc.request("aima.service.list", b"{{}}", timeout=5)
        took.append(time.perf_counter() - began)
    await nc.close()
    print(statistics.median(took))

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return float(done.stdout)


def checkout(folder: str) -> Path:
    """Return the folder of another checkout; raise ValueError if it is none."""
    path = Path(folder).absolute()
    if not (path / "services" / "cli" / "entry.py").is_file():
        raise ValueError(f"{folder} is not a checkout of AIMA")
    return path
