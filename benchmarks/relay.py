"""How long after its commit an event is delivered by JetStream.

Compared with: the same relay that looks into the log every 10 ms instead of being woken.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import msgspec
import uvloop
from nats.aio.msg import Msg

from aima_core import call as calls
from aima_core.process.relay import Relay, ensure_stream
from aima_core.process.writer import Writer
from aima_core.store.log import Log
from aima_core.store.records import Codec, Recorded
from benchmarks import load
from benchmarks.counter import COUNTER, Add
from benchmarks.report import Report, percentile
from benchmarks.scratch import Options, Scratch

POLL = 0.010  # seconds


class Polling(Relay):
    """Looks every 10 ms whether there is something to copy."""

    def on_commit(self, *_: Any) -> None:
        """Hear nothing."""

    async def _next(self, position: int) -> list[Recorded]:
        while True:
            if page := await self._log.events(position, limit=256):
                return page
            await asyncio.sleep(POLL)


def run(scratch: Scratch, options: Options) -> Report:
    """Measure woken and polled in turns."""
    found: dict[str, list[list[float]]] = {"woken": [], "polled": []}
    for number in range(options.rounds):
        for name, kind in (("woken", Relay), ("polled", Polling)):
            place = f"{name}-{number}"
            found[name].append(uvloop.run(_visible(scratch, place, kind, options.scaled(150, 60))))
    report = Report("events on JetStream")
    p50 = {name: [median(took) * 1000 for took in rounds] for name, rounds in found.items()}
    for name, rounds in found.items():
        report.figure(f"{name}: delivered after commit, p50", p50[name], "ms")
        report.figure(f"{name}: delivered after commit, p99", [percentile(r, 0.99) * 1000 for r in rounds], "ms")
    report.ratio("p50: woken by the commit / a poll every 10 ms", p50["woken"], p50["polled"], at_most=0.2)
    return report


async def _visible(scratch: Scratch, place: str, kind: type[Relay], count: int) -> list[float]:
    """Return the seconds from commit to delivery of each event, one at a time."""
    server = scratch.nats(place)
    log = await Log.open(scratch.folder / place / "log", "counter", Codec(COUNTER.events))
    runner = Writer(COUNTER, log, "bench")
    await runner.open()
    committed: dict[int, float] = {}
    delivered: dict[int, float] = {}
    arrived = asyncio.Event()

    def note(records: Sequence[Recorded], _: Mapping[str, Any]) -> None:
        committed.update({record.position: time.perf_counter() for record in records})

    async def deliver(message: Msg) -> None:
        delivered[msgspec.json.decode(message.data)["position"]] = time.perf_counter()
        arrived.set()

    async with load.client(server.url) as nc:
        relay = kind(nc, log, "bench")
        runner.listeners += [note, relay.on_commit]
        await ensure_stream(nc.jetstream())
        await nc.jetstream().subscribe("aima.events.counter.>", cb=deliver, ordered_consumer=True)
        copying = asyncio.create_task(relay.run())
        try:
            for number in range(count):
                arrived.clear()
                await runner.run(Add(counter_id=f"c{number % 16}", amount=1), calls.fresh())
                await asyncio.wait_for(arrived.wait(), 10)
                await asyncio.sleep(random.uniform(0, POLL))  # so that a poll is met at any phase
        finally:
            copying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await copying
            await runner.close()
            await log.close()
    server.stop()
    return [delivered[position] - committed[position] for position in sorted(committed)][5:]
