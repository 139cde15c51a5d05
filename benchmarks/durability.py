"""What was acknowledged is there after SIGKILL in the middle of load; nothing else matters as much.

Each round kills the process while 64 commands are outstanding, opens its log and looks for every acknowledged one.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
from pathlib import Path

import msgspec
import nats.errors
import uvloop
from nats.aio.client import Client as Nats

from aima_core.store.log import Log
from aima_core.store.records import Codec
from benchmarks import load
from benchmarks.counter import COUNTER, Added
from benchmarks.report import Report
from benchmarks.scratch import Options, Scratch

OUTSTANDING = 64


def run(scratch: Scratch, options: Options) -> Report:
    """Kill, look, start again on the same log."""
    server = scratch.nats()
    folder = scratch.folder / "data"
    acknowledged: set[str] = set()
    missing = unheard = broken = 0
    for number in range(options.rounds):
        child = scratch.python("benchmarks.serve", "full", str(folder), server.url)
        acknowledged |= uvloop.run(_load(server.url, child, f"{number}"))
        scratch.end(child)
        recorded, intact = uvloop.run(_recorded(folder))
        missing = max(missing, len(acknowledged - recorded))
        unheard = len(recorded - acknowledged)
        broken += not intact
    report = Report("durability")
    report.figure("killed in the middle of load", [float(options.rounds)], "times")
    report.figure("commands acknowledged", [float(len(acknowledged))], "")
    report.figure("recorded but not acknowledged (what idempotency keys are for)", [float(unheard)], "")
    report.count("acknowledged but missing after SIGKILL", missing, must_be=0)
    report.count("logs whose chain of hashes is broken", broken, must_be=0)
    return report


async def _load(url: str, child: subprocess.Popen[bytes], name: str) -> set[str]:
    """Return the notes of the commands that were acknowledged before the process was killed."""
    heard: set[str] = set()
    dead = asyncio.Event()

    async def worker(nc: Nats, number: int) -> None:
        sent = 0
        while not dead.is_set():
            note = f"{name}-{number}-{sent}"
            payload = msgspec.json.encode({"counter_id": f"c{number % 8}", "note": note})
            try:
                reply = await nc.request("aima.counter.add", payload, timeout=0.5)
            except (TimeoutError, nats.errors.Error):
                continue
            if msgspec.json.decode(reply.data)["success"]:
                heard.add(note)
            sent += 1

    async with load.client(url) as nc:
        workers = [asyncio.create_task(worker(nc, number)) for number in range(OUTSTANDING)]
        await asyncio.sleep(random.uniform(0.5, 1.0))
        child.kill()
        child.wait()
        await asyncio.sleep(0.05)  # replies that the server had when the process died
        dead.set()
        await asyncio.gather(*workers)
    return heard


async def _recorded(folder: Path) -> tuple[set[str], bool]:
    log = await Log.open(folder / "counter", "counter", Codec(COUNTER.events))
    try:
        notes: set[str] = set()
        after = 0
        while page := await log.events(after, limit=10_000):
            notes |= {record.event.note for record in page if isinstance(record.event, Added)}
            after = page[-1].position
        return notes, await log.verify() is None
    finally:
        await log.close()
