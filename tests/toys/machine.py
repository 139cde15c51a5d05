"""A machine for one test: a bus, a data folder, ports, and an engine of the tests."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import random
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aima_core.bus import nats_server
from aima_core.bus.nats_server import NatsServer
from aima_core.domain import Domain
from aima_core.settings import Settings
from aima_core.testing import settings_for
from services.engine.runtimes import Handle
from services.engine.runtimes.process import ProcessRuntime
from tests.engine.programs import STAND_IN

MANIFEST = f"""
name: toy
about: A stand-in.
type: llm
version: "1"
command: ["{{python}}", "-S", {STAND_IN}, "--port={{port}}", "--host={{host}}", "--model={{model_name}}"]
options:
  context_length: {{about: Tokens., type: int, minimum: 1, default: 10}}
  slots: {{about: Requests at once., type: int, minimum: 1, maximum: 8, default: 1}}
  delay_start: {{about: Seconds., type: float, args: ["--delay-start={{delay_start}}"]}}
  fail_with: {{about: A message., type: str, args: ["--fail-with={{fail_with}}"]}}
  die_after: {{about: Seconds., type: float, args: ["--die-after={{die_after}}"]}}
  sleep_per_request: {{about: Seconds., type: float, args: ["--sleep-per-request={{sleep_per_request}}"]}}
  one_thread: {{about: Whether it works on one connection at a time., type: int, args: ["--one-thread={{one_thread}}"]}}
  token_delay: {{about: Seconds., type: float, args: ["--token-delay={{token_delay}}"]}}
  tokens: {{about: Of an answer., type: int, args: ["--tokens={{tokens}}"]}}
health: {{path: /health, interval: 0.1, timeout: 1}}
endpoints: [/v1/chat/completions]
model_types: [llm, embedding]
formats: [gguf]
features: {{supports_streaming: true, supports_tools: true, max_context_length: 100, cancels_whole: false}}
devices: [cpu]
preference: {{cpu: 1000}}
failures:
  - {{pattern: "out of memory", error_code: OUT_OF_MEMORY, message: there is not enough memory}}
  - {{pattern: "boom: (?P<why>.+)", error_code: BOOM, message: "it went boom, {{why}}"}}
"""


@contextlib.contextmanager
def port_slice(count: int = 12) -> Iterator[range]:
    """Hold ports that nobody listens on and no other test is given, below those that the system hands out itself."""
    folder = Path(tempfile.gettempdir()) / "aima-test-ports"
    folder.mkdir(exist_ok=True)
    starts = list(range(20_000, 32_000, count))
    random.shuffle(starts)
    for start in starts:
        ports = range(start, start + count)
        with (folder / str(start)).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            if all(_free(port) for port in ports):
                yield ports
                return
    raise AssertionError("no ports are free")


def _free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


@dataclass
class Machine:
    """A bus, a data folder, ports: what AIMA has to itself during one test."""

    folder: Path
    nats: NatsServer
    ports: range
    weights: Path

    def settings(self, *domains: Domain[Any], **environ: str) -> Settings:
        ports = {"AIMA_ENGINE_PORT_MIN": str(self.ports[0]), "AIMA_ENGINE_PORT_MAX": str(self.ports[-1])}
        served = any(domain.name == "engine" for domain in domains)
        return settings_for(self.folder, self.nats.url, *domains, environ=(ports if served else {}) | environ)

    def runtime(self) -> ProcessRuntime:
        """Return a look at the engines of this machine beside the engine domain's own."""
        home = self.folder / "engine"
        return ProcessRuntime(home, hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16])

    async def living(self) -> list[Handle]:
        return await self.runtime().list()

    async def pids(self) -> list[int]:
        return [handle.pid for handle in await self.living()]


@contextlib.asynccontextmanager
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    """Give a machine with the toy engine on it; afterwards nothing that was started there may be left."""
    manifests = tmp_path / "data" / "engine" / "manifests"
    manifests.mkdir(parents=True)
    (manifests / "toy.yaml").write_text(MANIFEST)
    weights = tmp_path / "m.gguf"
    weights.write_bytes(b"GGUF" + bytes(996))
    server = await asyncio.to_thread(
        nats_server.start, tmp_path / "nats", None, tmp_path / "nats.log", die_with_parent=False
    )
    with port_slice() as ports:
        made = Machine(tmp_path / "data", server, ports, weights)
        try:
            yield made
            left = await made.living()
            assert left == [], "engines are left behind"
        finally:
            runtime = made.runtime()
            for handle in await runtime.list():
                await runtime.stop(handle, 0, True)
            await asyncio.to_thread(server.stop)
