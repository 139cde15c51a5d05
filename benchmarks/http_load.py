"""Load over HTTP from a process of its own: `python -m benchmarks.http_load PLAN`, a `Plan` in JSON; prints a `Seen`.

The client does as little as can be: one connection for each client, kept; a request that is made once; httptools'
parser. What it sees of an answer: its end, and when its tokens come.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from itertools import chain
from statistics import median
from typing import NamedTuple, cast

import httptools
import msgspec
import uvloop

from benchmarks.scratch import ROOT, cpu_seconds

_TOKEN = b'" token"'  # as the stand-in says each
_PATIENCE = 300.0  # seconds until a measurement has to be over


class Plan(msgspec.Struct, kw_only=True):
    """What is measured: so many clients, each sending the body again and again, `seconds` long or `each` times.

    `pids` are the processes whose work is counted.
    """

    host: str
    port: int
    body: dict[str, object]
    clients: int
    seconds: float = 0.0
    each: int = 0
    pids: list[int] = []


class Seen(msgspec.Struct):
    """What it came to: requests and tokens in all, in so many seconds; times are medians in seconds.

    `cpu`: seconds of processor time that the processes of the plan have used.
    """

    requests: int
    tokens: int
    seconds: float
    latency: float
    first_token: float
    cpu: float


class Client(asyncio.Protocol):
    """One connection, and the answer that comes on it. Raises RuntimeError for one that is no success."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tail = b""
        self.tokens = 0
        self.first_at = 0.0

    async def ask(self, request: bytes) -> None:
        """Return when the answer is whole."""
        assert self._transport
        self._parser = httptools.HttpResponseParser(self)
        self._ended = asyncio.get_running_loop().create_future()
        self.tokens, self.first_at, self._tail = 0, 0.0, b""
        self._transport.write(request)
        await self._ended

    def close(self) -> None:
        """Let go."""
        if self._transport:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's derive from nothing

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits."""
        if not self._ended.done():
            self._ended.set_exception(RuntimeError(f"the connection was lost: {exc}"))

    def on_body(self, body: bytes) -> None:
        """Count the tokens, also one that is cut in two."""
        seen = self._tail + body
        if count := seen.count(_TOKEN):
            self.first_at = self.first_at or time.perf_counter()
            self.tokens += count
        self._tail = seen[1 - len(_TOKEN) :] if self._parser.get_status_code() == 200 else seen

    def on_message_complete(self) -> None:
        """Tell who waits."""
        status = self._parser.get_status_code()
        if self._ended.done():
            return
        if status == 200:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(RuntimeError(f"answered {status}: {self._tail!r}"))


async def load(plan: Plan) -> Seen:
    """Connect, let every client ask once so that all is warm, then measure."""
    body = msgspec.json.encode(plan.body)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    loop, clients = asyncio.get_running_loop(), []
    for _ in range(plan.clients):
        clients.append((await loop.create_connection(Client, plan.host, plan.port))[1])
    await asyncio.gather(*(client.ask(request) for client in clients))
    before, begun = cpu_seconds(plan.pids), time.perf_counter()
    answers = list(chain(*await asyncio.gather(*(_ask(client, request, plan, begun) for client in clients))))
    seconds, cpu = time.perf_counter() - begun, cpu_seconds(plan.pids) - before
    for client in clients:
        client.close()
    return Seen(
        requests=len(answers),
        tokens=sum(answer.tokens for answer in answers),
        seconds=seconds,
        latency=median(answer.seconds for answer in answers),
        first_token=median(answer.first_token for answer in answers),
        cpu=cpu,
    )


class _Answer(NamedTuple):
    seconds: float
    first_token: float
    tokens: int


async def _ask(client: Client, request: bytes, plan: Plan, begun: float) -> list[_Answer]:
    answers: list[_Answer] = []
    at = begun
    while len(answers) < plan.each if plan.each else at < begun + plan.seconds:
        await client.ask(request)
        ended = time.perf_counter()
        answers.append(_Answer(ended - at, client.first_at - at, client.tokens))
        at = ended
    return answers


def measured(plan: Plan) -> Seen:
    """Carry a plan out in a process of its own. Raises RuntimeError with what went wrong there."""
    command = [sys.executable, "-m", "benchmarks.http_load", msgspec.json.encode(plan).decode()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=_PATIENCE)
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])
    return msgspec.json.decode(done.stdout, type=Seen)


if __name__ == "__main__":
    found = uvloop.run(load(msgspec.json.decode(sys.argv[1].encode(), type=Plan)))
    sys.stdout.buffer.write(msgspec.json.encode(found))
