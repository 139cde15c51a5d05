"""What an engine domain that has ended since has left in its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aima_core.process.writer import Writer
from aima_core.store.log import Log
from aima_core.store.records import Codec
from aima_core.testing import call
from aima_core.units import Command
from services.engine.domain import ENGINE


async def recorded(folder: Path, command: Command[Any], *, at: float) -> None:
    """Let a command have been decided then (Unix seconds) by a process that ended before it acted."""
    log = await Log.open(folder, "engine", Codec(ENGINE.events))
    runner = Writer(ENGINE, log, "test")
    await runner.open()
    await runner.run(command, call(at=at))
    await runner.close()
    await log.close()
