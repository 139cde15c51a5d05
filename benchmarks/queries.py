"""Queries over the bus: a point query answered from memory, and one answered from a read table.

Compared with: a bare nats-py echo, which is what the client and the server cost without us.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import AsyncExitStack
from statistics import median

import msgspec
import uvloop

from benchmarks import load
from benchmarks.report import Report
from benchmarks.scratch import Options, Scratch

SUBJECTS = {"echo": "echo", "memory": "aima.counter.peek", "table": "aima.counter.get"}
NAMES = {"echo": "nats-py echo", "memory": "from memory", "table": "from a read table"}
ASKED = [msgspec.json.encode({"counter_id": f"c{n}"}) for n in range(256)]


def run(scratch: Scratch, options: Options) -> Report:
    """Measure in turns."""
    urls = {kind: scratch.nats(kind).url for kind in ("echo", "full")}
    for kind, url in urls.items():
        scratch.python("benchmarks.serve", kind, str(scratch.folder / kind), url)
    alone: dict[str, list[float]] = defaultdict(list)
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)

    async def measure() -> None:
        async with AsyncExitStack() as stack:
            echo, full = [await stack.enter_async_context(load.client(url)) for url in urls.values()]
            clients = {"echo": echo, "memory": full, "table": full}
            for payload in load.PAYLOADS:
                await full.request("aima.counter.add", payload, timeout=10)
            await load.settled(full, "counter")
            for _ in range(options.rounds):
                for kind, nc in clients.items():
                    took = await load.latencies(nc, SUBJECTS[kind], options.scaled(400, 200), ASKED)
                    alone[kind].append(median(took) * 1000)
                    rates[kind, 1].append(len(took) / sum(took))
                for kind, nc in clients.items():
                    rates[kind, 64].append(await load.rate(nc, SUBJECTS[kind], 64, options.seconds, ASKED))

    uvloop.run(measure())
    report = Report("queries over the bus")
    for kind, name in NAMES.items():
        report.figure(f"{name}: p50 alone", alone[kind], "ms")
        for outstanding in (1, 64):
            report.figure(f"{name}: at {outstanding} outstanding", rates[kind, outstanding], "/s")
    for kind in ("memory", "table"):
        report.ratio(f"p50 alone: {NAMES[kind]} / echo", alone[kind], alone["echo"])
        report.ratio(f"at 64: {NAMES[kind]} / echo", rates[kind, 64], rates["echo", 64])
    return report
