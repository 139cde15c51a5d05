"""Serve the counters in one of several ways: `python -m benchmarks.serve KIND FOLDER URL`; prints a line when ready.

full       the product's own process, nothing changed: grouped commits, synchronous=FULL
unrelayed  the same without the copy to JetStream
single     the same domain, wire, log and copy, but a transaction for each command (the peer)
unstored   the same service that writes nothing and copies nothing (the limit)
echo       a bare nats-py responder that sends back what it gets (the limit)
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nats
import uvloop
from nats.aio.msg import Msg

from aima_core import structured_logs
from aima_core.call import Call
from aima_core.process import domain_process
from aima_core.process.relay import Relay
from aima_core.process.writer import Decision, Writer
from aima_core.store.log import Log
from aima_core.store.records import Batch
from aima_core.testing import settings_for
from aima_core.units import Command
from benchmarks.counter import COUNTER, Counter

ECHO = "echo"


class OneByOne(Writer[Counter]):
    """Decides the next command when the one before is committed, as services without grouped commits do."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._one = asyncio.Lock()

    async def run(self, command: Command[Any], call: Call, **more: Any) -> Decision:
        """Decide and commit one command at a time."""
        async with self._one:
            return await super().run(command, call, **more)


class Forgetful(Log):
    """Takes everything and writes nothing."""

    async def append(self, batch: Batch) -> None:
        """Forget."""


class Idle(Relay):
    """Copies nothing."""

    def on_commit(self, *_: Any) -> None:
        """Let it pass."""

    async def run(self) -> None:
        """Return at once."""


CHANGED: dict[str, dict[str, Any]] = {
    "full": {},
    "unrelayed": {"Relay": Idle},
    "single": {"Writer": OneByOne},
    "unstored": {"Log": Forgetful, "Relay": Idle},
}


async def echo(url: str) -> None:
    """Answer until told to stop."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    nc = await nats.connect(url)

    async def answer(message: Msg) -> None:
        await nc.publish(message.reply, message.data)

    await nc.subscribe(ECHO, cb=answer)
    await nc.flush()
    ready()
    await stop.wait()
    await nc.close()


def ready() -> None:
    """Say so."""
    print("ready", flush=True)


def main(kind: str, folder: Path, url: str) -> None:
    """Serve until SIGTERM."""
    if kind == ECHO:
        uvloop.run(echo(url))
        return
    structured_logs.set_up(COUNTER.name, "warning")
    with patch.multiple(domain_process, **CHANGED[kind]) if CHANGED[kind] else contextlib.nullcontext():
        domain_process.run(COUNTER, settings_for(folder, url, COUNTER), ready)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
