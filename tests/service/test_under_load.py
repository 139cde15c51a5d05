"""Replicas that come, go and die while requests run: real domains, real processes of an engine that takes its time."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aima_core.bus.client import Answer, Client
from aima_core.errors import AimaError, Unavailable
from aima_core.testing import serving, until
from tests.service.test_domain import ALL, QUICK, create, get, pid_of, start, stop
from tests.toys.asking import ask
from tests.toys.machine import Machine, machine

CLIENTS = 8
SLOW = {"slots": 4, "token_delay": 0.1, "tokens": 12}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Machine]:
    async with machine(tmp_path) as found:
        yield found


@pytest.fixture
async def client(site: Machine) -> AsyncIterator[Client]:
    async with serving(*ALL, settings=site.settings(*ALL, **QUICK)) as client:
        yield client


@dataclass
class Seen:
    """What a client saw of its request."""

    parts: int = 0
    answer: dict[str, Any] | None = None
    error: AimaError | None = None


async def stream(client: Client, seen: Seen, text: str) -> Seen:
    asked = {"model": "a", "messages": [{"role": "user", "content": text}], "stream": True}
    try:
        async for part in client.stream("inference.chat", asked, timeout=30):
            if isinstance(part, Answer):
                seen.answer = part.data
            else:
                seen.parts += 1
    except AimaError as error:
        seen.error = error
    return seen


async def test_a_replica_that_dies_takes_only_the_requests_that_it_had_begun_to_answer(
    client: Client, site: Machine
) -> None:
    await create(client, replicas=2, config=SLOW)
    await start(client)
    found = [Seen() for _ in range(CLIENTS + 4)]
    early = [asyncio.create_task(stream(client, seen, f"early {n}")) for n, seen in enumerate(found[:CLIENTS])]
    await until(lambda: all(seen.parts for seen in found[:CLIENTS]))
    late = [asyncio.create_task(stream(client, seen, f"late {n}")) for n, seen in enumerate(found[CLIENTS:])]
    await until(lambda: _queued(client, 4))  # both replicas are full: these wait
    os.kill(await pid_of(site, "svc-a-r0-1"), signal.SIGKILL)
    await asyncio.gather(*early, *late)
    lost = [seen for seen in found if seen.error]
    assert len(lost) == CLIENTS // 2
    for seen in lost:
        assert isinstance(seen.error, Unavailable)
        assert (seen.error.reason, seen.error.details["begun"]) == ("ENGINE_GONE", True)
        assert seen.parts
    assert all(seen.answer for seen in found if not seen.error)
    assert all(seen.answer for seen in found[CLIENTS:])
    await stop(client)


async def _queued(client: Client, count: int) -> bool:
    (load,) = (await ask(client, "inference.load", service_id="svc-a"))["services"]
    return bool(load["queued"] == count)


async def test_a_service_that_grows_and_shrinks_under_load_loses_no_request(client: Client, site: Machine) -> None:
    await create(client, config=SLOW | {"tokens": 4})
    await start(client)
    found: list[Seen] = []
    busy = True

    async def keep_asking(name: int) -> None:
        while busy:
            found.append(await stream(client, Seen(), f"client {name}"))

    callers = [asyncio.create_task(keep_asking(name)) for name in range(6)]
    for replicas in (3, 1, 2):
        await ask(client, "service.scale", service_id="svc-a", replicas=replicas)
        await until(lambda wanted=replicas: _answering(client, wanted))  # type: ignore[misc]
        seen = len(found)
        await until(lambda before=seen: len(found) >= before + 6)  # type: ignore[misc]
    busy = False
    await asyncio.gather(*callers)
    assert [seen.error for seen in found if seen.error] == []
    metrics = (await get(client))["metrics"]
    assert metrics["total_requests"] == len(found)
    assert metrics["latency_p50"] > 0.3
    await stop(client)


async def _answering(client: Client, count: int) -> bool:
    view = await get(client)
    return (view["active_replicas"], view["status"]) == (count, "running")
