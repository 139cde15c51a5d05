"""A nats-server, the model domain in this process or as a process of its own, and a client that knows JSON only."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats as nats_py
import pytest
from nats.aio.client import Client as Nats

from aima_core.bus import nats_server
from aima_core.bus.nats_server import NatsServer
from aima_core.domain import Domain
from aima_core.process.writer import Writer
from aima_core.store.log import Log
from aima_core.store.records import Codec
from aima_core.testing import serving, settings_for, until
from services.model.domain import MODEL
from tests.stand_ins.hub import Hub
from tests.stand_ins.tiny_models import tiny_gguf

ROOT = Path(__file__).parents[2]
Reply = dict[str, Any]


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server for the tests of a module."""
    folder = tmp_path_factory.mktemp("bus")
    server = nats_server.start(folder / "nats", nats_server.free_port(), folder / "nats.log", die_with_parent=False)
    yield server
    server.stop()


@pytest.fixture
def weights(tmp_path: Path) -> bytes:
    return tiny_gguf(tmp_path / "weights.gguf").read_bytes()


@pytest.fixture
def hub(weights: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has maker/tiny."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub({"tiny-Q4_K_M.gguf": weights}) as hub:
        yield hub


@dataclass
class Asking:
    """A client of one test; `root` is the model domain's folder."""

    nc: Nats
    root: Path

    async def ask(self, unit: str, /, headers: dict[str, str] | None = None, **data: Any) -> Reply:
        """Return the whole reply envelope."""
        message = await self.nc.request(f"aima.model.{unit}", json.dumps(data).encode(), timeout=60, headers=headers)
        reply: Reply = json.loads(message.data)
        return reply

    async def data(self, unit: str, /, **data: Any) -> Any:
        """Return what a unit answers."""
        reply = await self.ask(unit, **data)
        assert reply["success"], reply
        return reply["data"]

    async def error(self, unit: str, /, **data: Any) -> Any:
        """Return what a unit refuses with."""
        reply = await self.ask(unit, **data)
        assert not reply["success"], reply
        return reply["error"]

    async def events(self, kind: str = "") -> list[Any]:
        """Return the log, or all events of one type in it."""
        found: list[Any] = []
        while page := (await self.data("log", after=found[-1]["position"] if found else 0, limit=1000))["events"]:
            found += page
        return [event for event in found if kind in ("", event["type"].removeprefix("model."))]

    async def comes(self, kind: str, count: int = 1) -> Any:
        """Wait until an event of the type is recorded for the `count`th time and return it."""

        async def look() -> Any:
            events = await self.events(kind)
            return events[count - 1] if len(events) >= count else None

        return await until(look, within=60)

    def lying(self) -> list[str]:
        """Return all files that the domain has of models."""
        folders = [self.root / "pulls", self.root / "files"]
        found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return sorted(path.relative_to(self.root).as_posix() for path in found)


@contextlib.asynccontextmanager
async def asking(folder: Path, server: NatsServer) -> AsyncIterator[Asking]:
    """Give a client of whoever serves models from the folder."""
    nc = await nats_py.connect(server.url)
    try:
        yield Asking(nc, folder / "model")
    finally:
        await nc.close()


@contextlib.asynccontextmanager
async def models(
    folder: Path, server: NatsServer, *others: Domain[Any], environ: dict[str, str] | None = None
) -> AsyncIterator[Asking]:
    """Serve the model domain, and others beside it, in this process."""
    settings = settings_for(folder, server.url, MODEL, *others, environ=environ)
    async with serving(MODEL, *others, settings=settings), asking(folder, server) as client:
        yield client


class ModelProcess:
    """`python -m services.model`, or the same with a place at which it kills itself."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.environ = {**os.environ, "PYTHONPATH": f"{ROOT / 'libs'}:{ROOT}", "AIMA_DATA": str(folder)}
        self.environ |= {"AIMA_NATS_URL": url, "AIMA_NODE": "test"}
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self, client: Asking, kills_itself: str = "") -> None:
        """Start it; returns when it answers, or has ended."""
        module = ["tests.model.kills_itself", kills_itself] if kills_itself else ["services.model"]
        self._launch(module)

        async def serves() -> bool:
            assert self.process
            if kills_itself and self.process.poll() is not None:
                return True
            assert self.process.poll() is None, (self.folder / "model.err").read_text()
            with contextlib.suppress(nats_py.errors.Error, TimeoutError):
                await client.nc.request("aima.model.list", b"", timeout=1)
                return True
            return False

        await until(serves, within=60)

    def _launch(self, module: list[str]) -> None:
        with (self.folder / "model.err").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", *module], stderr=log, cwd=ROOT, env=self.environ)

    async def ended(self) -> int:
        """Wait until it has ended by itself and return its exit code."""
        assert self.process
        return await asyncio.to_thread(self.process.wait, 60)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End it and wait until it has ended."""
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def process(tmp_path: Path, nats: NatsServer) -> Iterator[ModelProcess]:
    """The model domain as a process, not yet started; it does not outlive the test."""
    process = ModelProcess(tmp_path, nats.url)
    yield process
    if process.process:
        process.kill()


def tables(folder: Path) -> list[Any]:
    """Return all rows of the read tables."""
    with contextlib.closing(sqlite3.connect(folder / "model" / "log.db")) as connection:
        return [connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in MODEL.tables]


async def rebuilt(folder: Path) -> list[Any]:
    """Return the same after all of them were made anew from the log, whose chain of hashes holds."""
    log = await Log.open(folder / "model", "model", Codec(MODEL.events))
    try:
        assert await log.verify() is None
        runner = Writer(MODEL, log, "test")
        await runner.open()
        await runner.rebuild()
        await runner.close()
    finally:
        await log.close()
    return tables(folder)
