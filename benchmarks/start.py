"""Starting every domain: how soon all of them answer, and the memory they share.

Compared with: the same domains as independent processes (`python -m services.X`), all started at once, on a
nats-server that runs already in both cases.
"""

from __future__ import annotations

import asyncio
import time

import nats.errors
import psutil
import uvloop
from nats.aio.client import Client as Nats

from benchmarks import load
from benchmarks.report import Report
from benchmarks.scratch import Options, Scratch, pss_mib
from services.cli import domains

_PATIENCE = 60.0  # seconds
_REST = 1.0  # seconds after which the memory of what has just started is looked at


def run(scratch: Scratch, options: Options) -> Report:
    """Start and end everything in turns."""
    names = domains.names()
    ready: dict[str, list[float]] = {"forked": [], "independent": []}
    memory: dict[str, list[float]] = {"forked": [], "independent": []}
    ways: dict[str, list[tuple[str, ...]]] = {
        "forked": [("services.cli.entry", "up", "--quiet")],
        "independent": [(f"services.{name}",) for name in names],
    }
    for number in range(options.rounds):
        for way, modules in ways.items():
            server = scratch.nats(f"{way}-{number}")
            data = scratch.folder / f"{way}-{number}" / "data"
            env = {"AIMA_DATA": str(data), "AIMA_NATS_URL": server.url}
            begun = time.perf_counter()
            children = [scratch.python(*module, env=env, ready=False) for module in modules]
            try:
                ready[way].append(uvloop.run(_ready(server.url, names)) - begun)
                time.sleep(_REST)
                memory[way].append(pss_mib([process.pid for process in _all(scratch)]))
            finally:
                for child in children:
                    child.terminate()
                for child in children:
                    scratch.end(child)
                server.stop()
    report = Report(f"starting {len(names)} domains")
    for way in ready:
        report.figure(f"{way}: all of them answer after", ready[way], "s")
        report.figure(f"{way}: PSS in all", memory[way], "MiB")
    report.ratio("ready: forked from one parent / independent", ready["forked"], ready["independent"], at_most=0.25)
    report.ratio("PSS: forked from one parent / independent", memory["forked"], memory["independent"], at_most=0.3)
    return report


async def _ready(url: str, names: list[str]) -> float:
    """Return the time at which the last domain has begun to answer."""
    async with load.client(url) as nc:
        async with asyncio.timeout(_PATIENCE):
            await asyncio.gather(*(_answers(nc, name) for name in names))
    return time.perf_counter()


async def _answers(nc: Nats, name: str) -> None:
    while True:
        try:
            await nc.request(f"$SRV.PING.{name}", b"", timeout=1)
            return
        except (TimeoutError, nats.errors.Error):
            await asyncio.sleep(0.01)


def _all(scratch: Scratch) -> list[psutil.Process]:
    return [process for process in scratch.marked() if process.name() != "nats-server"]
