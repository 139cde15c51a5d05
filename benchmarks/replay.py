"""Starting from a long log: fold it all, fold what a snapshot lacks, make the read tables anew.

Compared with: a raw loop that only reads the same rows and decodes them with msgspec.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from aima_core.process.writer import Writer
from aima_core.store.log import Log, link
from aima_core.store.records import Codec, Meta
from benchmarks.counter import COUNTER, Added, Counter
from benchmarks.report import Report
from benchmarks.scratch import Options, Scratch

STREAMS = 1000
PAGE = 10_000
TAIL = 10_000
INSERT = "INSERT INTO events VALUES (?,?,?,?,?,?,?,?)"


def run(scratch: Scratch, options: Options) -> Report:
    """Make the log once; measure in turns."""
    return uvloop.run(_run(scratch, options))


async def _run(scratch: Scratch, options: Options) -> Report:
    amount, tabled = options.scaled(1_000_000, 100_000), options.scaled(200_000, 20_000)
    report = Report(f"replay of {amount:,} events")
    await _folds(report, scratch.folder / "folds", amount, options.rounds)
    await _tables(report, scratch.folder / "tables", tabled, options.rounds)
    return report


async def _folds(report: Report, folder: Path, amount: int, rounds: int) -> None:
    """Fold the whole log, and the tail behind a snapshot."""
    log = await Log.open(folder, "counter", Codec(COUNTER.events))
    raw: list[float] = []
    full: list[float] = []
    tail: list[float] = []
    try:
        rows = _rows(log, amount)
        made = await _timed(_write(log, islice(rows, amount - TAIL)))
        await (await _opened(log, amount - TAIL)).close()  # which leaves a snapshot
        kept = await log.file.read(_kept)
        made += await _timed(_write(log, rows))
        for _ in range(rounds):
            raw.append(await _timed(log.file.read(_raw)))
            await log.save_snapshot("", 0, ())
            full.append(await _started(log, amount))
            await log.save_snapshot(*kept)
            tail.append(await _started(log, amount))
        proof = await _timed(log.verify())
    finally:
        await log.close()
    report.figure("written with executemany and the chain of hashes", [amount / made], "/s")
    report.figure("the chain of hashes verified", [amount / proof], "/s")
    report.figure("raw loop: read and decoded", raw, "s")
    report.figure("folded from the log", full, "s")
    report.figure(f"folded from a snapshot and the last {TAIL:,}", tail, "s")
    report.figure("folded from the log, per second", [amount / seconds for seconds in full], "/s")
    report.ratio("folded from the log / raw loop", full, raw)
    report.ratio("snapshot and tail / folded from the log", tail, full)


async def _tables(report: Report, folder: Path, amount: int, rounds: int) -> None:
    """Fold all and make the read tables anew, as `aima log rebuild` does; of a shorter log: each event is a write."""
    log = await Log.open(folder, "counter", Codec(COUNTER.events))
    raw: list[float] = []
    anew: list[float] = []
    try:
        await _write(log, _rows(log, amount))
        runner = await _opened(log, amount)
        for _ in range(rounds):
            raw.append(await _timed(log.file.read(_raw)))
            anew.append(await _timed(runner.rebuild()))
        await runner.close()
    finally:
        await log.close()
    report.figure(
        f"folded, and read tables made anew, from {amount:,}: per second", [amount / seconds for seconds in anew], "/s"
    )
    report.ratio("folded, and read tables made anew / raw loop", anew, raw)


async def _timed(work: Awaitable[Any]) -> float:
    begun = time.perf_counter()
    await work
    return time.perf_counter() - begun


async def _opened(log: Log, amount: int) -> Writer[Counter]:
    """Return a runner that has folded the log as it does at the start of a process."""
    runner = Writer(COUNTER, log, "bench")
    await runner.open()
    assert runner.states.position == amount, runner.states.position
    assert sum(counter.total for counter in runner.states.committed.values()) == amount
    return runner


async def _started(log: Log, amount: int) -> float:
    begun = time.perf_counter()
    runner = await _opened(log, amount)
    took = time.perf_counter() - begun
    await runner.close()
    return took


def _rows(log: Log, amount: int) -> Iterator[tuple[Any, ...]]:
    encode, tip = log.codec.encode, b"\0" * 32
    meta = encode(Meta("0123456789abcdef", "0123456789abcdef", "", "", "00-" + "a" * 52, "bench"))
    for n in range(amount):
        ident = f"c{n % STREAMS}"
        data = encode(Added(counter_id=ident, amount=1, note="n" * 40))
        row = (n + 1, f"counter/{ident}", n // STREAMS + 1, Added.unit, 1.0 + n)
        tip = link(tip, row, data, meta)
        yield (*row, data, meta, tip)


async def _write(log: Log, rows: Iterator[tuple[Any, ...]]) -> None:
    # the default of 2 MiB holds too little of the index on streams: without this it is written several times as slowly
    await log.file.write(lambda connection: connection.execute("PRAGMA cache_size=-262144"))
    while page := list(islice(rows, 50_000)):
        await log.file.write(partial(_insert, page))
    await log.file.write(lambda connection: connection.execute("PRAGMA cache_size=-2000"))


def _insert(rows: list[tuple[Any, ...]], connection: sqlite3.Connection) -> None:
    connection.executemany(INSERT, rows)


def _raw(connection: sqlite3.Connection) -> int:
    decode = msgspec.json.Decoder(Added).decode
    cursor, count = connection.execute("SELECT stream, version, type, data FROM events ORDER BY position"), 0
    while page := cursor.fetchmany(PAGE):
        for _, _, _, data in page:
            decode(data)
            count += 1
    return count


def _kept(connection: sqlite3.Connection) -> tuple[str, int, list[tuple[str, int, bytes]]]:
    """Return the snapshot as `Log.save_snapshot` takes it."""
    said = connection.execute("SELECT value FROM facts WHERE name = 'snapshot'").fetchone()[0]
    fingerprint, _, position = said.partition(" ")
    return fingerprint, int(position), connection.execute("SELECT stream, version, state FROM snapshot").fetchall()
