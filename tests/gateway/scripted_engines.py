"""What the tests of the doors to models share: engines that do what a test tells them, and a gateway before them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from aima_core.bus import nats_server
from aima_core.bus.nats_server import NatsServer
from aima_core.domain import Domain
from aima_core.testing import until
from services.inference.domain import INFERENCE
from tests.gateway.conftest import Site, bus, gateway, in_background, visit
from tests.toys.asking import events
from tests.toys.models import model_view, shelf
from tests.toys.services import CRIER, REPLICA

KINDS = {"Voice": "tts", "Ears": "asr", "Brush": "diffusion", "Judge": "rerank"}
MODELS = shelf(model_view("Toy"), model_view("Other"), *(model_view(name, type=kind) for name, kind in KINDS.items()))
HELLO: Any = [{"role": "user", "content": "good day"}]


class Line:
    """A request to an engine, and the way back."""

    def __init__(self, path: str, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        self.path = path
        self.head = head
        self.body = body
        self._writer = writer

    @property
    def asked(self) -> Any:
        """What is asked, as JSON."""
        return json.loads(self.body)

    async def answer(self, data: Any, status: int = 200) -> None:
        """Answer as a whole."""
        body = json.dumps(data).encode()
        await self.raw(b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n" % status)
        await self.raw(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    async def stream(self) -> None:
        """Begin to answer in events."""
        await self.raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def event(self, data: Any, end: bytes = b"\n\n") -> None:
        """Send an event."""
        await self.chunk(b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + end)

    async def said(self, text: str, finish: str | None = None) -> None:
        """Send a piece of text."""
        await self.event(chunk(text, finish))

    async def done(self, prompt: int = 2, completion: int = 3) -> None:
        """End the events as an engine does that was asked for its usage."""
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        await self.event({"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": usage})
        await self.event(b"[DONE]")
        await self.raw(b"0\r\n\r\n")

    async def chunk(self, block: bytes) -> None:
        """Send a block of the body."""
        await self.raw(b"%x\r\n%b\r\n" % (len(block), block))

    async def raw(self, block: bytes) -> None:
        """Send bytes."""
        self._writer.write(block)
        await self._writer.drain()


Script = Callable[[Line], Awaitable[None]]


def chunk(text: str | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a chunk of a streamed chat."""
    choice = {"index": 0, "delta": {"content": text} | more, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "served", "choices": [choice]}


def completion(text: str | None, finish: str = "stop", **more: Any) -> dict[str, Any]:
    """Return a whole chat completion."""
    message = {"role": "assistant", "content": text} | more
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    choices = [{"index": 0, "message": message, "finish_reason": finish}]
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "served", "choices": choices, "usage": usage}


async def greet(line: Line) -> None:
    """Answer a chat well: "hi there!"."""
    if not line.asked.get("stream"):
        return await line.answer(completion("hi there!"))
    await line.stream()
    await line.said("hi")
    await line.said(" there!", "stop")
    await line.done()
    return None


async def hang_up(_: Line) -> None:
    """Go away without a word."""


@dataclass
class Engine:
    """An engine, each of whose requests is answered as the script says; then it hangs up."""

    script: Script = greet
    endpoint: str = ""
    lines: list[Line] = field(default_factory=list)
    gone: int = 0  # how often a client has gone before the script had ended
    _server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        assert self._server
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            body = await reader.readexactly(int(length.partition(b":")[2]))
            self.lines.append(Line(head.split(b" ")[1].decode(), head, body, writer))
            answering = asyncio.ensure_future(self.script(self.lines[-1]))
            leaving = asyncio.ensure_future(reader.read())
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            self.gone += not answering.done()
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone += 1
        finally:
            writer.close()


@dataclass
class Place:
    """A gateway with the real inference domain, a crier for the service domain, and engines."""

    site: Site
    openai: AsyncOpenAI
    _stack: contextlib.AsyncExitStack
    begin: int = 0  # what is behind this position of inference's log has happened here
    services: set[str] = field(default_factory=set)

    async def engine(self, script: Script = greet, process_id: str = "p0", **replica: Any) -> Engine:
        """Start an engine, and let the service domain say that it is a replica's."""
        engine = Engine(script)
        await engine.open()
        self._stack.push_async_callback(engine.close)
        await self.announce(engine, process_id, **replica)
        return engine

    async def announce(self, engine: Engine, process_id: str = "p0", **replica: Any) -> None:
        """Let the service domain say that a replica answers."""
        told = REPLICA | {"process_id": process_id, "endpoint": engine.endpoint, "tools": True} | replica
        self.services.add(told["service_id"])
        await self.site.ask("service.say", type="service.replica_started", data=told)

        async def routed() -> bool:
            found = await self.load(told["service_id"])
            return any(one["process_id"] == process_id for service in found for one in service["replicas"])

        await until(routed)

    async def load(self, service_id: str = "svc-a") -> list[dict[str, Any]]:
        """Return what a service has to do, as a list of at most one."""
        found: list[dict[str, Any]] = (await self.site.ask("inference.load", service_id=service_id))["services"]
        return found

    async def waiting(self, queued: int, outstanding: int) -> None:
        """Return when so many requests wait, and so many are under way."""

        async def seen() -> bool:
            (load,) = await self.load()
            return (load["queued"], load["outstanding"]) == (queued, outstanding)

        await until(seen)

    async def outcomes(self, count: int) -> list[dict[str, Any]]:
        """Return what the requests came to, as soon as there are so many; the type stands beside the data."""

        async def seen() -> list[dict[str, Any]]:
            log = await events(self.site.client, "inference")
            kinds = {"inference.request_completed": "completed", "inference.request_failed": "failed"}
            here = [one for one in log if one["position"] > self.begin and one["type"] in kinds]
            here = [one for one in here if not one["data"]["request_id"].startswith("trial-")]
            found = [{"kind": kinds[one["type"]]} | one["data"] for one in here]
            return found if len(found) >= count else []

        ended: list[dict[str, Any]] = await until(seen)
        assert len(ended) == count, ended
        return ended

    async def leave(self) -> None:
        """Leave nothing to whoever comes next: no request, no service and no key."""
        for service in self.services:
            await until(lambda service=service: self._at_rest(service))
            await self.site.ask("service.say", type="service.deleted", data={"service_id": service})
            await until(lambda service=service: self._gone(service))
        for key in (await self.site.ask("gateway.list_keys"))["keys"]:
            await self.site.ask("gateway.revoke_key", key_id=key["id"])

    async def _at_rest(self, service_id: str) -> bool:
        return all((one["queued"], one["outstanding"]) == (0, 0) for one in await self.load(service_id))

    async def _gone(self, service_id: str) -> bool:
        return not await self.load(service_id)


@contextlib.asynccontextmanager
async def place(
    folder: Path, nats: NatsServer, port: int, crier: Domain[Any] = CRIER, **environ: str
) -> AsyncIterator[Place]:
    """Serve a gateway and the inference domain for as long as the block lasts; `crier` is the service domain."""
    async with (
        gateway(folder, nats, port, MODELS, crier, INFERENCE, **environ) as site,
        contextlib.AsyncExitStack() as stack,
        client_of(site) as openai,
    ):
        yield Place(site, openai, stack)


@contextlib.contextmanager
def shared_place(folder: Path, crier: Domain[Any] = CRIER, **environ: str) -> Iterator[Site]:
    """Serve the same for tests of which each comes by `visit_place`."""
    with bus(folder) as server:
        served = gateway(folder / "data", server, nats_server.free_port(), MODELS, crier, INFERENCE, **environ)
        with in_background(served) as site:
            yield site


@contextlib.asynccontextmanager
async def visit_place(shared: Site) -> AsyncIterator[Place]:
    """Give a place that others come to before and after, without what they brought."""
    async with visit(shared) as site, contextlib.AsyncExitStack() as stack, client_of(site) as openai:
        found = Place(site, openai, stack, begin=(await site.ask("inference.log"))["position"])
        try:
            yield found
        finally:
            await found.leave()


def client_of(site: Site, key: str = "none") -> AsyncOpenAI:
    """Return the client that OpenAI gives out, as it is but for its retries."""
    return AsyncOpenAI(base_url=f"{site.url}/v1", api_key=key, max_retries=0, timeout=30)


def events_of(body: bytes) -> list[Any]:
    """Return the data of server-sent events; text that is no JSON as it is."""
    found = []
    for event in body.decode().split("\n\n")[:-1]:
        data = "".join(line.removeprefix("data: ") for line in event.split("\n") if line.startswith("data: "))
        found.append(data if data == "[DONE]" else json.loads(data))
    return found
