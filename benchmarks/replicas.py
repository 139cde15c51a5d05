"""Two replicas beside one: requests per second of a whole AIMA, on an engine that only waits.

The engine is the tests' stand-in, which sleeps a fifth of a second for each request and then answers, so that two
cores are enough for both; a real engine would be bound by them.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import uvloop

from aima_core.bus import nats_server
from aima_core.bus.client import Client
from aima_core.errors import AimaError
from benchmarks import load
from benchmarks.report import Report, percentile
from benchmarks.scratch import ROOT, Options, Scratch, wait_until
from services.cli import domains
from tests.stand_ins import tiny_models

SLEEP, SLOTS = 0.2, 4  # seconds of a request; requests that a replica works on at once
_CLIENTS = 16  # twice what both replicas take at once, so that there is always one that waits
_AT_LEAST = 1.8  # times the requests of one replica

MANIFEST = f"""
name: sleeper
about: An engine that only waits.
type: llm
version: "1"
command: ["{{python}}", "-S", "{ROOT / "tests" / "stand_ins" / "engine.py"}", "--port={{port}}", "--host={{host}}",
          "--model={{model_name}}", "--sleep-per-request={SLEEP}"]
options:
  slots: {{about: Requests at once., type: int, minimum: 1, default: {SLOTS}}}
health: {{path: /health}}
endpoints: [/v1/chat/completions]
model_types: [llm]
formats: [gguf]
features: {{max_concurrent: 4, max_context_length: 4096}}
devices: [cpu]
preference: {{cpu: 1000}}
"""


def run(scratch: Scratch, options: Options) -> Report:
    """Measure with one replica and with two, in turns."""
    report = Report("replicas")
    model = scratch.folder / "tiny.gguf"
    tiny_models.tiny_gguf(model)
    url = up(scratch, MANIFEST)
    uvloop.run(_measure(report, url, model, options))
    return report


def up(scratch: Scratch, manifest: str = "") -> str:
    """Start a whole AIMA, with an engine of its own if one is given; return the bus when every domain answers."""
    server = scratch.nats()
    data = scratch.folder / "data"
    if manifest:
        folder = data / "engine" / "manifests"
        folder.mkdir(parents=True)
        (folder / "own.yaml").write_text(manifest)
    first = nats_server.free_port()
    env = {
        "AIMA_DATA": str(data),
        "AIMA_NATS_URL": server.url,
        "AIMA_ENGINE_PORT_MIN": str(min(first, 60_000)),
        "AIMA_ENGINE_PORT_MAX": str(min(first, 60_000) + 100),
    }
    scratch.python("services.cli.entry", "up", "--quiet", env=env, ready=False)

    async def all_answer() -> bool:
        async with load.client(server.url) as nc:
            return set(domains.names()) <= {info["name"] for info in await Client(nc).discover(wait=0.15)}

    for _ in wait_until():
        if uvloop.run(all_answer()):
            break
    return server.url


async def ask(client: Client, unit: str, **data: Any) -> Any:
    """Return what a unit answers."""
    return (await client.ask(unit, data, timeout=120)).data


async def _measure(report: Report, url: str, model: Path, options: Options) -> None:
    async with load.client(url) as nc:
        client = Client(nc)
        found = await ask(client, "model.import", path=str(model), name="tiny")
        created = await ask(client, "service.create", model_id=found["model_id"], name="sleeper", engine="sleeper")
        service_id = created["service_id"]
        await ask(client, "service.start", service_id=service_id)
        speed: dict[int, list[float]] = {1: [], 2: []}
        waits: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.rounds):
            for replicas in speed:
                await _scaled(client, service_id, replicas)
                took: list[float] = []
                begun = time.perf_counter()
                await asyncio.gather(*(_client(client, options.scaled(20, 6), took) for _ in range(_CLIENTS)))
                speed[replicas].append(len(took) / (time.perf_counter() - begun))
                waits[replicas].append(percentile(took, 0.5) * 1000)
        await ask(client, "service.stop", service_id=service_id)
    for replicas in speed:
        report.figure(f"{replicas} replicas of {SLOTS} slots: requests", speed[replicas], "/s")
        report.figure(f"{replicas} replicas, {_CLIENTS} clients: median latency", waits[replicas], "ms")
    limit = [SLOTS / SLEEP] * len(speed[1])
    report.ratio("requests per second, one replica / what its slots allow", speed[1], limit)
    report.ratio("requests per second, two replicas / one", speed[2], speed[1], at_least=_AT_LEAST)


async def _scaled(client: Client, service_id: str, replicas: int) -> None:
    await ask(client, "service.scale", service_id=service_id, replicas=replicas)
    for _ in range(600):
        found = await ask(client, "service.get", service_id=service_id)
        if (found["active_replicas"], found["status"]) == (replicas, "running"):
            return
        await asyncio.sleep(0.05)
    raise AimaError("the service was not scaled in time")


async def _client(client: Client, count: int, took: list[float]) -> None:
    for _ in range(count):
        begun = time.perf_counter()
        messages = [{"role": "user", "content": "wait"}]
        await ask(client, "inference.chat", model="sleeper", messages=messages)
        took.append(time.perf_counter() - begun)
