"""Commands over the bus, end to end: client, nats-server, validation, decision, durable append, reply.

Compared with: a bare nats-py echo (what the client and the server cost without us), the same domain with a
transaction for each command (what grouping commits gains), the same service without storage (what the log costs).
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import AsyncExitStack
from statistics import median

import uvloop
from nats.aio.client import Client as Nats

from benchmarks import load
from benchmarks.report import Report, percentile
from benchmarks.scratch import Options, Scratch, cpu_seconds

KINDS = ("echo", "unstored", "full", "unrelayed", "single")
COPIED = ("full", "single")
OUTSTANDING = (1, 64, 256)
BUSY = 64  # where the processor time of a command is looked at


def run(scratch: Scratch, options: Options) -> Report:
    """Measure every kind in turns."""
    urls, pids = {}, {}
    for kind in KINDS:
        urls[kind] = scratch.nats(kind).url
        child = scratch.python("benchmarks.serve", kind, str(scratch.folder / kind), urls[kind])
        pids[kind] = child.pid
    alone: dict[str, list[float]] = defaultdict(list)
    late: dict[str, list[float]] = defaultdict(list)
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    used: dict[str, list[float]] = defaultdict(list)

    async def measure() -> None:
        async with AsyncExitStack() as stack:
            clients = {kind: await stack.enter_async_context(load.client(url)) for kind, url in urls.items()}
            for kind in KINDS:
                await load.rate(clients[kind], subject(kind), 64, 0.3, load.PAYLOADS)
                await quiet(kind, clients[kind])
            for _ in range(options.rounds):
                for kind in KINDS:
                    took = await load.latencies(clients[kind], subject(kind), options.scaled(400, 200), load.PAYLOADS)
                    alone[kind].append(median(took) * 1000)
                    late[kind].append(percentile(took, 0.99) * 1000)
                    rates[kind, 1].append(len(took) / sum(took))
                    await quiet(kind, clients[kind])
                for outstanding in OUTSTANDING[1:]:
                    for kind in KINDS:
                        before, begun = cpu_seconds([pids[kind]]), time.perf_counter()
                        found = await load.rate(
                            clients[kind], subject(kind), outstanding, options.seconds, load.PAYLOADS
                        )
                        rates[kind, outstanding].append(found)
                        if outstanding == BUSY:
                            answered = found * (time.perf_counter() - begun)
                            used[kind].append((cpu_seconds([pids[kind]]) - before) / answered * 1e6)
                        await quiet(kind, clients[kind])

    uvloop.run(measure())
    return _report(alone, late, rates, used)


def subject(kind: str) -> str:
    """Return where a kind is asked."""
    return "echo" if kind == "echo" else "aima.counter.add"


async def quiet(kind: str, nc: Nats) -> None:
    """Wait until the copy of what was just measured is through."""
    if kind in COPIED:
        await load.settled(nc, "counter")


def _report(
    alone: dict[str, list[float]],
    late: dict[str, list[float]],
    rates: dict[tuple[str, int], list[float]],
    used: dict[str, list[float]],
) -> Report:
    report = Report("commands over the bus")
    names = {
        "echo": "nats-py echo",
        "unstored": "without storage",
        "full": "FULL, grouped",
        "unrelayed": "FULL, grouped, no JetStream copy",
        "single": "FULL, a transaction per command",
    }
    for kind, name in names.items():
        report.figure(f"{name}: p50 alone", alone[kind], "ms")
        report.figure(f"{name}: p99 alone", late[kind], "ms")
        for outstanding in OUTSTANDING:
            report.figure(f"{name}: at {outstanding} outstanding", rates[kind, outstanding], "/s")
        report.figure(f"{name}: CPU of the service per command at {BUSY}", used[kind], "us")
    report.ratio("at 64: grouped / a transaction per command", rates["full", 64], rates["single", 64], at_least=8)
    report.ratio("at 256: grouped / a transaction per command", rates["full", 256], rates["single", 256])
    report.ratio("at 64: FULL / without storage", rates["full", 64], rates["unstored", 64], at_least=0.35)
    report.ratio(
        "at 64: FULL without the JetStream copy / without storage", rates["unrelayed", 64], rates["unstored", 64]
    )
    report.ratio("at 256: FULL / without storage", rates["full", 256], rates["unstored", 256])
    report.ratio("p50 alone: FULL / echo", alone["full"], alone["echo"], at_most=2.5)
    report.ratio("p50 alone: without storage / echo", alone["unstored"], alone["echo"])
    return report
