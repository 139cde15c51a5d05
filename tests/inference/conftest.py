"""Fixtures for the tests of the inference domain: stand-in engines, a real engine, engines with a given answer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from aima_core.testing import until
from services.engine.outside.health_check import healthy
from tests.engine.programs import STAND_IN
from tests.toys.machine import Machine, machine


@dataclass
class StandIn:
    """A stand-in engine and its log."""

    process: subprocess.Popen[bytes]
    endpoint: str
    log: Path

    def asked(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith("POST")]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


def _launch(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


Start = Callable[..., Awaitable[StandIn]]


@pytest.fixture
def stand_in(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Start]:
    """Start stand-in engines; none outlives the test."""
    started: list[StandIn] = []

    async def start(*options: str, model: str = "served") -> StandIn:
        port = free_port()
        log = tmp_path / f"engine-{port}.log"
        command = [sys.executable, "-S", str(STAND_IN), "--port", str(port), "--model", model, *options]
        started.append(StandIn(_launch(command, log), f"http://127.0.0.1:{port}", log))
        await until(lambda: healthy(started[-1].endpoint, "/health", 1))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@dataclass
class Real:
    """A real engine with one slot."""

    endpoint: str

    async def busy(self) -> bool:
        """Whether the engine reports that it works on a request."""
        async with httpx2.AsyncClient() as http:
            (slot,) = (await http.get(f"{self.endpoint}/slots")).json()
        return bool(slot["is_processing"])

    async def idle(self) -> bool:
        """Whether the engine reports that it works on no request."""
        return not await self.busy()


@pytest.fixture
async def llamacpp(tmp_path: Path, free_port: Callable[[], int], smollm2: Path) -> AsyncIterator[Real]:
    """Start llama.cpp with a small model, under the name `served`."""
    port = free_port()
    engine = Real(f"http://127.0.0.1:{port}")
    options = (f"--model={smollm2}", "--alias=served", f"--port={port}", "--slots=1", "--threads=2")
    process = _launch([sys.executable, "-m", "services.engine.llamacpp_server", *options], tmp_path / "llamacpp.log")
    try:
        await until(lambda: healthy(engine.endpoint, "/health", 1), within=60)
        yield engine
    finally:
        process.kill()
        process.wait(10)


def said(body: dict[str, Any]) -> bytes:
    """Return an event of a streamed answer."""
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def chunk(**choice: Any) -> bytes:
    """Return an event with the new part of the only choice."""
    return said({"choices": [choice]})


DONE = b"data: [DONE]\n\n"
USED = said({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 10}})
YES = chunk(delta={"content": "yes"}) + chunk(delta={}, finish_reason="stop") + USED + DONE


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Machine]:
    async with machine(tmp_path) as found:
        yield found


Saying = Callable[..., Awaitable[str]]


@pytest.fixture
async def saying() -> AsyncIterator[Saying]:
    """Start an engine that answers every request with these bytes and closes the connection."""
    servers: list[asyncio.Server] = []

    async def start(
        body: bytes, *, status: str = "200 OK", length: int | None = None, kind: str = "text/event-stream"
    ) -> str:
        declared = len(body) if length is None else length

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            wanted = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(wanted.split(b":")[1]))
            head_of = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {declared}\r\n\r\n"
            writer.write(head_of.encode() + body)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


class Gate:
    """An engine that holds every request until the test says how to end it.

    It answers a request that contains the text `fails` with a 500 at once.
    """

    def __init__(self) -> None:
        self.held: list[asyncio.Future[str]] = []
        self.always = ""
        self.fails = b""

    async def open(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    def all(self, what: str) -> None:
        """End the held requests and all later ones: "answer", "break off" the answer, "break" with a 500, "hang up"."""
        self.always = what
        for held in self.held:
            if not held.done():
                held.set_result(what)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        wanted = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await reader.readexactly(int(wanted.split(b":")[1]))
        held = asyncio.get_running_loop().create_future()
        self.held.append(held)
        if self.fails and self.fails in body:
            held.set_result("break")
        elif self.always:
            held.set_result(self.always)
        match await held:
            case "answer":
                self._say(writer, "200 OK", YES)
            case "break off":
                self._say(writer, "200 OK", chunk(delta={"content": "ye"}))
            case "break":
                self._say(writer, "500 Broken", b"")
        writer.close()

    def _say(self, writer: asyncio.StreamWriter, status: str, body: bytes) -> None:
        writer.write(f"HTTP/1.1 {status}\r\nContent-Type: text/event-stream\r\n\r\n".encode() + body)


Gated = Callable[[], Awaitable[Gate]]


@pytest.fixture
async def gated() -> AsyncIterator[Gated]:
    """Start engines that hold their requests; end the held requests after the test."""
    gates: list[Gate] = []

    async def start() -> Gate:
        gates.append(Gate())
        await gates[-1].open()
        return gates[-1]

    yield start
    for gate in gates:
        gate.all("hang up")
        gate.server.close()
        await gate.server.wait_closed()
