"""The log without the bus: decide, append and project through the runner, at so many outstanding.

Compared with: SQLite's own limit, the same rows made ready beforehand and written by executemany in batches of 256,
and (when it is installed) the `eventsourcing` package writing one event after another.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sqlite3
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvloop

from aima_core import call as calls
from aima_core.process.writer import Writer
from aima_core.store.log import SCHEMA, Log
from aima_core.store.records import Batch, Codec, Meta, Recorded
from benchmarks import counter
from benchmarks.report import Report
from benchmarks.scratch import Options, Scratch

BATCH = 256
NOTE = "n" * 120
INSERT = "INSERT INTO events VALUES (?,?,?,?,?,?,?,?)"


def run(scratch: Scratch, options: Options) -> Report:
    """Measure in turns, each in a file of its own."""
    amount = options.scaled(12_800, 2_560)
    rates: dict[str, list[float]] = {}
    for number in range(options.rounds):
        folder = scratch.folder / str(number)
        for name, found in {
            "limit": _limit(folder / "limit", amount),
            "append": uvloop.run(_append(folder / "append", amount)),
            "256": uvloop.run(_runner(folder / "many", amount, BATCH)),
            "64": uvloop.run(_runner(folder / "some", amount, 64)),
            "1": uvloop.run(_runner(folder / "one", amount // 10, 1)),
            "peer": _eventsourcing(folder / "peer", amount // 10),
        }.items():
            rates.setdefault(name, []).append(found)
    report = Report("the log")
    report.figure("executemany in batches of 256, FULL (the limit)", rates["limit"], "/s")
    report.figure("Log.append in batches of 256 (encoded and hashed)", rates["append"], "/s")
    for outstanding in ("1", "64", "256"):
        report.figure(f"Writer.run at {outstanding} outstanding", rates[outstanding], "/s")
    report.ratio("at 256: Writer.run / executemany", rates["256"], rates["limit"], at_least=0.5)
    report.ratio("Log.append / executemany", rates["append"], rates["limit"])
    if all(rates["peer"]):
        report.figure("eventsourcing one by one, FULL", rates["peer"], "/s")
        report.ratio("at 64: Writer.run / eventsourcing one by one", rates["64"], rates["peer"], at_least=5)
    else:
        report.note("the package eventsourcing is not installed: left out")
    return report


def _limit(folder: Path, amount: int) -> float:
    folder.mkdir(parents=True)
    connection = sqlite3.connect(folder / "log.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    for statement in (*SCHEMA.split(";"), *counter.TABLES.values()):
        connection.execute(statement)
    data, meta = counter.Added(counter_id="c0", amount=1, note=NOTE), calls.fresh()
    codec = Codec(counter.COUNTER.events)
    said = codec.encode(data), codec.encode(Meta.of(meta)), b"h" * 32
    rows = [(n + 1, f"counter/c{n % BATCH}", n // BATCH + 1, data.unit, 0.0, *said) for n in range(amount)]
    views = [(f"c{n % BATCH}", 1, 1) for n in range(amount)]
    begun = time.perf_counter()
    for start in range(0, amount, BATCH):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(INSERT, rows[start : start + BATCH])
        connection.executemany(counter.UPSERT, views[start : start + BATCH])
        connection.execute("COMMIT")
    took = time.perf_counter() - begun
    connection.close()
    return amount / took


async def _append(folder: Path, amount: int) -> float:
    log, runner = await _open(folder)
    meta, at = Meta.of(calls.fresh()), time.time()
    records = [
        Recorded(n + 1, f"counter/c{n % BATCH}", n // BATCH + 1, at, meta, _added(n), log.event_id(n + 1))
        for n in range(amount)
    ]
    statements = [statement for record in records for statement in counter.project(record)]
    begun = time.perf_counter()
    for start in range(0, amount, BATCH):
        await log.append(Batch(records[start : start + BATCH], statements[start : start + BATCH]))
    took = time.perf_counter() - begun
    await runner.close()
    await log.close()
    return amount / took


def _added(number: int) -> counter.Added:
    return counter.Added(counter_id=f"c{number % BATCH}", amount=1, note=NOTE)


async def _runner(folder: Path, amount: int, outstanding: int) -> float:
    log, runner = await _open(folder)
    commands = [counter.Add(counter_id=f"c{n}", amount=1, note=NOTE) for n in range(BATCH)]
    left, call = iter(range(amount)), calls.fresh()

    async def worker() -> None:
        for number in left:
            await runner.run(commands[number % BATCH], call)

    begun = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(outstanding)))
    took = time.perf_counter() - begun
    await runner.close()
    await log.close()
    return amount / took


async def _open(folder: Path) -> tuple[Log, Writer[counter.Counter]]:
    log = await Log.open(folder, "counter", Codec(counter.COUNTER.events))
    runner = Writer(counter.COUNTER, log, "bench")
    await runner.open()
    return log, runner


def _eventsourcing(folder: Path, amount: int) -> float:
    """Return 0 when the package is not there: it is no dependency of ours."""
    if importlib.util.find_spec("eventsourcing") is None:
        return 0.0
    sqlite: Any = importlib.import_module("eventsourcing.sqlite")
    persistence: Any = importlib.import_module("eventsourcing.persistence")
    folder.mkdir(parents=True)
    store = sqlite.SQLiteDatastore(db_name=str(folder / "log.db"))
    recorder = sqlite.SQLiteApplicationRecorder(store)
    recorder.create_table()
    origin = uuid4()
    state = Codec(counter.COUNTER.events).encode(_added(0))
    begun = time.perf_counter()
    for number in range(amount):
        recorder.insert_events([persistence.StoredEvent(origin, number + 1, "counter.added", state)])
    took = time.perf_counter() - begun
    store.close()
    return amount / took
