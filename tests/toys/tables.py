"""Read tables, as they are and as the log makes them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from aima_core.domain import Domain
from aima_core.process.writer import Writer
from aima_core.store.log import Log
from aima_core.store.records import Codec
from tests.toys.machine import Machine


async def made_again(machine: Machine, domain: Domain[Any]) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Return the read tables of a domain that has been closed: as they are, and as its log alone makes them."""
    file = machine.folder / domain.name / "log.db"
    live = _tables(file, domain)
    connection = sqlite3.connect(file)
    for name in domain.tables:
        connection.execute(f"DELETE FROM {name}")
    connection.commit()
    connection.close()
    log = await Log.open(file.parent, domain.name, Codec(domain.events, domain.upcasters))
    try:
        assert await log.verify() is None
        runner = Writer(domain, log, "test")
        await runner.open()
        world = dict(runner.states.committed)
        assert await runner.rebuild() == runner.states.position
        assert runner.states.committed == world
        await runner.close()
    finally:
        await log.close()
    return live, _tables(file, domain)


def _tables(file: Path, domain: Domain[Any]) -> dict[str, list[Any]]:
    connection = sqlite3.connect(file)
    found = {name: connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in domain.tables}
    connection.close()
    return found
