"""Requests through the gateway's OpenAI door: what it adds, what it carries, what it costs.

Compared with: the same engine asked directly, and through the LiteLLM proxy, by the same client. The engine is a
stand-in whose own work is next to nothing, started by a whole AIMA as a service of its own. What is counted as ours:
the processes of the gateway, of the inference domain (which records each request), and of the bus.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from aima_core.bus.client import Client
from aima_core.errors import AimaError
from benchmarks import litellm_proxy, load
from benchmarks.http_load import Plan, Seen, measured
from benchmarks.replicas import ask, up
from benchmarks.report import Report
from benchmarks.scratch import ROOT, Options, Scratch, pss_mib
from tests.stand_ins import tiny_models

MANIFEST = f"""
name: fast
about: An engine whose own work is next to nothing.
type: llm
version: "1"
command: ["{{python}}", "-P", "{ROOT / "benchmarks" / "fast_engine.py"}", "--port={{port}}", "--host={{host}}",
          "--model={{model_name}}"]
health: {{path: /health}}
endpoints: [/v1/chat/completions, /v1/models]
model_types: [llm]
formats: [gguf]
features: {{max_concurrent: 1000, max_context_length: 4096}}
devices: [cpu]
preference: {{cpu: 1000}}
"""
_MODEL = "tiny"
_PACE = 100  # tokens a second of each stream that has a pace
_STREAMS = 64
_ADDED = 2.0  # ms that a request may take longer at the median
_KEPT = 0.98  # of the streamed tokens a second
_TIMES = 10  # the peer's requests per second of processor time
_OURS, _PEER, _DIRECT = "through AIMA", "through LiteLLM", "directly"
_PROMPT = [{"role": "user", "content": "Tell me a long story about the sea."}]


@dataclass(frozen=True)
class Way:
    """A way to the engine: where it begins, and the processes on it."""

    host: str
    port: int
    pids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Load:
    """What the clients do. Without `tokens` of a stream the answers are whole; `pace` in tokens a second."""

    clients: int
    seconds: float = 0.0
    each: int = 0
    tokens: int = 0
    pace: int = 0

    def plan(self, way: Way) -> Plan:
        """Return it for a way."""
        body: dict[str, object] = {"model": _MODEL, "messages": _PROMPT, "max_tokens": self.tokens or 8}
        if self.tokens:
            body |= {"stream": True, "seed": self.pace}
        asked = Plan(host=way.host, port=way.port, body=body, clients=self.clients, pids=list(way.pids))
        asked.seconds, asked.each = self.seconds, self.each
        return asked


Found = dict[str, list[Seen]]


def run(scratch: Scratch, options: Options) -> Report:
    """Measure all ways in turns."""
    report = Report("gateway")
    model = tiny_models.tiny_gguf(scratch.folder / "tiny.gguf", name=_MODEL)
    url = up(scratch, MANIFEST)
    try:
        _measure(report, scratch, options, uvloop.run(_served(url, model)))
    finally:
        uvloop.run(_stopped(url))  # an engine outlives the AIMA that has started it
    return report


def _measure(report: Report, scratch: Scratch, options: Options, engine: str) -> None:
    ways = {_DIRECT: _way(engine), _OURS: _ours(scratch)}
    try:
        port, pids = litellm_proxy.serve(scratch, _MODEL, engine)
    except litellm_proxy.NotHere as error:
        report.note(f"without LiteLLM: {error}")
    else:
        ways[_PEER] = Way("127.0.0.1", port, tuple(pids))
    seconds = 2.5 * options.seconds
    loads = {
        "alone": Load(1, each=options.scaled(300, 60)),
        "first": Load(1, each=options.scaled(100, 30), tokens=2),
        "32": Load(32, seconds),
        "256": Load(256, seconds),
        "paced": Load(_STREAMS, each=1, tokens=options.scaled(400, 200), pace=_PACE),
        "unpaced": Load(_STREAMS, each=1, tokens=options.scaled(200, 100)),
    }
    found: dict[str, Found] = {name: defaultdict(list) for name in loads}
    for _ in range(options.scaled(options.rounds, 2)):
        for name, asked in loads.items():
            for way, where in ways.items():
                found[name][way].append(measured(asked.plan(where)))
    _tell(report, found, ways)


def _tell(report: Report, found: dict[str, Found], ways: dict[str, Way]) -> None:
    through = [way for way in ways if way != _DIRECT]
    for name, what, added_at_most in (("alone", "latency", _ADDED), ("first", "time to first token", None)):
        times = {way: [_typical(seen, name) for seen in found[name][way]] for way in ways}
        report.figure(f"1 client, {_DIRECT}: median {what}", times[_DIRECT], "ms")
        for way in through:
            added = [a - b for a, b in zip(times[way], times[_DIRECT], strict=True)]
            gate = added_at_most if way == _OURS else None
            report.figure(f"1 client, {way}: added to the median {what}", added, "ms", at_most=gate)
    for name in ("32", "256"):
        per_core = {way: [seen.requests / seen.cpu for seen in found[name][way]] for way in through}
        for way in ways:
            rates = [seen.requests / seen.seconds for seen in found[name][way]]
            report.figure(f"{name} clients, {way}: requests", rates, "/s")
        for way in through:
            report.figure(f"{name} clients, {way}: requests per second of processor time", per_core[way], "")
        if _PEER in ways:
            what = f"{name} clients: requests per second of processor time, AIMA / LiteLLM"
            report.ratio(what, per_core[_OURS], per_core[_PEER], at_least=_TIMES)
    for name, what in (("paced", f"{_PACE} tokens/s each"), ("unpaced", "as fast as can be")):
        speed = {way: [seen.tokens / seen.seconds for seen in found[name][way]] for way in ways}
        for way in ways:
            report.figure(f"{_STREAMS} streams, {what}, {way}: tokens", speed[way], "/s")
        for way in through:
            kept = _KEPT if way == _OURS and name == "paced" else None
            report.ratio(
                f"{_STREAMS} streams, {what}: tokens, {way} / {_DIRECT}", speed[way], speed[_DIRECT], at_least=kept
            )
    report.figure("memory of the gateway (PSS)", [pss_mib(ways[_OURS].pids[:1])], "MiB")
    report.figure("memory of gateway, inference and bus (PSS)", [pss_mib(ways[_OURS].pids)], "MiB")
    if _PEER in ways:
        report.figure("memory of LiteLLM (PSS)", [pss_mib(ways[_PEER].pids)], "MiB")


def _typical(seen: Seen, name: str) -> float:
    """Return the median in ms."""
    return (seen.first_token if name == "first" else seen.latency) * 1000


def _way(url: str, pids: Sequence[int] = ()) -> Way:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return Way(parts.hostname, parts.port, tuple(pids))


def _ours(scratch: Scratch) -> Way:
    """Return the gateway's address; its own process is the first of those that count."""
    data = scratch.folder / "data"
    children: dict[str, int] = json.loads((data / "up.json").read_text())["children"]
    (bus,) = scratch.servers
    assert bus.pid
    return _way((data / "gateway.url").read_text().strip(), (children["gateway"], children["inference"], bus.pid))


async def _served(url: str, model: Path) -> str:
    """Start a service on the stand-in; return where the engine is."""
    async with load.client(url) as nc:
        client = Client(nc)
        found = await ask(client, "model.import", path=str(model), name=_MODEL)
        created = await ask(client, "service.create", model_id=found["model_id"], name=_MODEL, engine="fast")
        await ask(client, "service.start", service_id=created["service_id"])
        lease = await ask(client, "inference.lease", model=_MODEL, wait=True)
        await ask(client, "inference.settle", request_id=lease["request_id"], outcome="cancelled")
        return str(lease["endpoint"])


async def _stopped(url: str) -> None:
    """End the service, and with it the engine."""
    async with load.client(url) as nc:
        with suppress(AimaError):  # it was not even created
            await ask(Client(nc), "service.stop", service_id=f"svc-{_MODEL}")
