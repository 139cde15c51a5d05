"""SQLite files of a simulated machine: the real SQL, run in the loop. They are there after their process was killed."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from aima_core.store.sqlite import Sqlite
from tests.simulation.life import Life

T = TypeVar("T")


class Disk:
    """The files, each in memory. `on_commit` hears of every commit before its process does, and may kill that."""

    def __init__(self, on_commit: Callable[[Life], None] = lambda _: None) -> None:
        self.on_commit = on_commit
        self._files: dict[str, sqlite3.Connection] = {}

    def file(self, name: str) -> sqlite3.Connection:
        """Return a file, a new one if there is none of this name."""
        if name not in self._files:
            self._files[name] = sqlite3.connect(":memory:", isolation_level=None)
        return self._files[name]

    def close(self) -> None:
        """Let go of all files."""
        for file in self._files.values():
            file.close()


class SimulatedSqlite(Sqlite):
    """One file, as a process has it open."""

    def __init__(self, disk: Disk, life: Life) -> None:
        file: Any = disk.file(life.name)
        super().__init__(Path(life.name), file, file)
        self._disk, self._life = disk, life

    async def write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Commit; the process may be killed before it can hear of it."""
        result = await super().write(function)
        self._disk.on_commit(self._life)
        self._life.check()
        return result

    async def close(self) -> None:
        """Leave the file to the next one who opens it."""

    async def _hop(self, connection: Any, function: Callable[[Any], T]) -> T:  # type: ignore[override]
        self._life.check()
        return await asyncio.get_running_loop().run_in_executor(None, function, connection)
