"""What the tests of the core share: a real server each, a bare client of the bus, toy processes that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats as nats_py
import pytest
from nats.aio.client import Client as Nats

from aima_core.bus import nats_server
from aima_core.bus.nats_server import NatsServer
from aima_core.domain import Domain
from aima_core.testing import serving, settings_for
from tests.core import toy

ROOT = Path(__file__).parents[2]


def _serve(folder: Path) -> Iterator[NatsServer]:
    port = nats_server.free_port()
    server = nats_server.start(folder / "nats", port, folder / "nats.log", die_with_parent=False)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    """A server for one test, which may kill it."""
    yield from _serve(tmp_path)


@pytest.fixture(scope="module")
def shared_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server for the tests of a module that only talk over it."""
    yield from _serve(tmp_path_factory.mktemp("bus"))


@dataclass
class Bare:
    """A client that knows nothing of ours: nats-py and JSON."""

    nc: Nats
    folder: Path

    async def raw(
        self, unit: str, payload: bytes = b"", headers: dict[str, str] | None = None, timeout: float = 10
    ) -> Any:
        """Return the reply envelope to these bytes."""
        message = await self.nc.request(f"aima.{unit}", payload, timeout=timeout, headers=headers)
        return json.loads(message.data)

    async def ask(self, unit: str, headers: dict[str, str] | None = None, **data: Any) -> Any:
        """Return the reply envelope to this input."""
        return await self.raw(unit, json.dumps(data).encode(), headers)

    async def total(self, counter_id: str) -> int:
        """Return what a counter stands at; 0 when there is none."""
        reply = await self.ask("counter.get", counter_id=counter_id)
        return int(reply["data"]["total"]) if reply["success"] else 0

    async def events(self, domain: str = "counter") -> list[dict[str, Any]]:
        """Return the domain's whole log as it says it is."""
        found: list[dict[str, Any]] = []
        while page := (await self.ask(f"{domain}.log", after=len(found), limit=1000))["data"]["events"]:
            found += page
        return found

    def world(self) -> list[str]:
        """Return what was done outside, line by line."""
        file = self.folder / "counter" / "world"
        return file.read_text().splitlines() if file.exists() else []

    def outside(self, name: str, text: str = "") -> None:
        """Let a fact of the outside world be so."""
        (self.folder / "counter" / name).write_text(text)


@contextlib.asynccontextmanager
async def talking(folder: Path, server: NatsServer, *domains: Domain[Any]) -> AsyncIterator[Bare]:
    """Serve toy domains in this process (the counters unless told otherwise); give a bare client."""
    domains = domains or (toy.COUNTER,)
    async with serving(*domains, settings=settings_for(folder, server.url, *domains)):
        nc = await nats_py.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05)
        try:
            yield Bare(nc, folder)
        finally:
            await nc.close()


class Toy:
    """A toy domain as a process of its own."""

    def __init__(self, name: str, folder: Path, url: str) -> None:
        self.command = [sys.executable, "-m", "tests.core.toy_process", name, str(folder), url]
        self.log = folder / f"{name}.err"
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it; returns when it answers."""
        self.launch()
        assert self.process
        assert self.process.stdout
        line = await asyncio.to_thread(self.process.stdout.readline)
        assert line == b"ready\n", self.log.read_text()

    def launch(self) -> None:
        """Start it and look no further."""
        environ = {**os.environ, "PYTHONPATH": f"{ROOT / 'libs'}:{ROOT}"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env=environ)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End it and wait until it has ended; return its exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(20)
        assert self.process.stdout
        self.process.stdout.close()
        self.process = None
        return code


@pytest.fixture
def toys() -> Iterator[Callable[[str, Path, str], Toy]]:
    """Make toy processes; none outlives the test."""
    made: list[Toy] = []

    def make(name: str, folder: Path, url: str) -> Toy:
        made.append(Toy(name, folder, url))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
