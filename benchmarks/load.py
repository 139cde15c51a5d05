"""Load on the bus: so many requests outstanding for so long, from a bare nats-py client."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import nats
from nats.aio.client import Client as Nats

from aima_core.process.relay import STREAM

PAYLOADS = [msgspec.json.encode({"counter_id": f"c{n}", "amount": 1, "note": "n" * 120}) for n in range(256)]
_TIMEOUT = 30.0  # seconds


@asynccontextmanager
async def client(url: str) -> AsyncIterator[Nats]:
    """Give a connection."""
    nc = await nats.connect(url, pending_size=32 * 1024 * 1024)
    try:
        yield nc
    finally:
        await nc.close()


async def latencies(nc: Nats, subject: str, count: int, payloads: list[bytes]) -> list[float]:
    """Return the seconds that each of `count` requests took, one at a time."""
    found = []
    for payload in itertools.islice(itertools.cycle(payloads), count):
        begun = time.perf_counter()
        _check((await nc.request(subject, payload, timeout=_TIMEOUT)).data)
        found.append(time.perf_counter() - begun)
    return found


async def rate(nc: Nats, subject: str, outstanding: int, seconds: float, payloads: list[bytes]) -> float:
    """Return the requests answered per second with `outstanding` under way at any time."""
    done = 0
    until = time.perf_counter() + seconds

    async def worker(number: int) -> None:
        nonlocal done
        for payload in itertools.cycle(payloads[number % len(payloads) :] + payloads[: number % len(payloads)]):
            if time.perf_counter() >= until:
                return
            _check((await nc.request(subject, payload, timeout=_TIMEOUT)).data)
            done += 1

    begun = time.perf_counter()
    await asyncio.gather(*(worker(number) for number in range(outstanding)))
    return done / (time.perf_counter() - begun)


async def settled(nc: Nats, domain: str) -> None:
    """Wait until JetStream has a copy of all that the domain has recorded, so that the next measurement has no rest."""
    for _ in range(3000):
        page = msgspec.json.decode((await nc.request(f"aima.{domain}.log", b'{"limit":1}', timeout=_TIMEOUT)).data)
        state = (await nc.jetstream().stream_info(STREAM)).state
        if state.messages >= page["data"]["position"]:
            return
        await asyncio.sleep(0.02)
    raise TimeoutError("the copy on JetStream does not catch up")


def _check(data: bytes) -> None:
    if data.startswith(b'{"success":false'):
        raise RuntimeError(data.decode())
