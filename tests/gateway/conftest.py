"""What the tests of the doors share: a gateway and other domains in this process, on a bus of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest

from aima_core.bus import nats_server
from aima_core.bus.client import Client
from aima_core.bus.connection import connect
from aima_core.bus.nats_server import NatsServer
from aima_core.domain import Domain
from aima_core.testing import serving, settings_for, until
from services.gateway.domain import GATEWAY
from tests.core.toy import COUNTER
from tests.gateway.toy import PARCEL

T = TypeVar("T")
ADMIN = "admin-secret"  # a key of the settings, which may do everything


@dataclass
class Site:
    """A gateway, and what is beside it."""

    url: str
    http: httpx2.AsyncClient
    client: Client
    folder: Path
    nats: NatsServer

    async def get(self, path: str, **more: Any) -> httpx2.Response:
        """Return the answer to GET."""
        return await self.http.get(path, **more)

    async def post(self, path: str, data: Any = None, **more: Any) -> httpx2.Response:
        """Return the answer to POST with this JSON."""
        return await self.http.post(path, json={} if data is None else data, **more)

    async def ask(self, unit: str, /, **data: Any) -> Any:
        """Return the data that a unit answers on the bus."""
        return (await self.client.ask(unit, data, timeout=20)).data

    async def key(self, name: str, *scopes: str, **limits: Any) -> dict[str, str]:
        """Make a key; return the headers that show it."""
        made = await self.ask("gateway.create_key", name=name, scopes=list(scopes), **limits)
        return {"Authorization": f"Bearer {made['key']}"}

    def world(self) -> list[str]:
        """Return what happened to the parcels, line by line."""
        file = self.folder / "parcel" / "world"
        return file.read_text().splitlines() if file.exists() else []


@contextlib.asynccontextmanager
async def gateway(
    folder: Path, server: NatsServer, port: int, *domains: Domain[Any], verify: Any = True, **environ: str
) -> AsyncIterator[Site]:
    """Serve the gateway beside these domains (the toys unless told otherwise); settings as in the environment."""
    served = (GATEWAY, *(domains or (COUNTER, PARCEL)))
    given = {"AIMA_GATEWAY_ADDR": f"127.0.0.1:{port}"} | environ
    async with serving(*served, settings=settings_for(folder, server.url, *served, environ=given)) as client:
        url = (folder / "gateway.url").read_text().strip()
        async with httpx2.AsyncClient(base_url=url, timeout=30, verify=verify) as http:
            site = Site(url, http, client, folder, server)
            await until(lambda: _knows(site, {domain.name for domain in served}))
            yield site


async def _knows(site: Site, domains: set[str]) -> bool:
    health = await site.get("/api/v2/health")
    return health.status_code == 200 and domains <= set(health.json().get("dependencies", ()))


@contextlib.contextmanager
def in_background(opening: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Hold open, in a thread with a loop of its own, what tests with other loops reach over the network."""
    opened: Future[T] = Future()
    loops: list[asyncio.AbstractEventLoop] = []
    over = asyncio.Event()

    async def hold() -> None:
        loops.append(asyncio.get_running_loop())
        try:
            async with opening as found:
                opened.set_result(found)
                await over.wait()
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

    thread = threading.Thread(target=asyncio.run, args=(hold(),))
    thread.start()
    found = opened.result()
    try:
        yield found
    finally:
        loops[0].call_soon_threadsafe(over.set)
        thread.join()


@contextlib.contextmanager
def bus(folder: Path) -> Iterator[NatsServer]:
    """Run a nats-server."""
    server = nats_server.start(folder / "nats", nats_server.free_port(), folder / "nats.log", die_with_parent=False)
    try:
        yield server
    finally:
        server.stop()


@contextlib.asynccontextmanager
async def visit(shared: Site) -> AsyncIterator[Site]:
    """Give a gateway that others use too, with connections of one's own."""
    nc = await connect(shared.nats.url, "test")
    try:
        async with httpx2.AsyncClient(base_url=shared.url, timeout=30) as http:
            yield replace(shared, http=http, client=Client(nc))
    finally:
        await nc.close()


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    """A server for one test, which may kill it."""
    with bus(tmp_path) as server:
        yield server


@pytest.fixture(scope="package")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A gateway that asks nobody for a key, beside the toys, for all tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("site")
    with bus(folder) as server, in_background(gateway(folder / "data", server, nats_server.free_port())) as found:
        yield found


@pytest.fixture
async def site(shared_site: Site) -> AsyncIterator[Site]:
    """The gateway that tests share. What it remembers, or has done, is of all of them."""
    async with visit(shared_site) as found:
        yield found


@pytest.fixture
async def own_site(tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]) -> AsyncIterator[Site]:
    """The same for one test alone, which may hurt it."""
    async with gateway(tmp_path / "data", nats, free_port()) as found:
        yield found


@pytest.fixture
async def locked(tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]) -> AsyncIterator[Site]:
    """A gateway whose commands need a key, beside the toys."""
    environ = {"AIMA_GATEWAY_AUTH": "required", "AIMA_API_KEYS": f"admin:{ADMIN}"}
    async with gateway(tmp_path / "data", nats, free_port(), **environ) as found:
        yield found


@dataclass
class Told:
    """One server-sent event."""

    kind: str
    ident: str
    data: Any


@contextlib.asynccontextmanager
async def listening(site: Site, path: str, **more: Any) -> AsyncIterator[Callable[[], Any]]:
    """Give a function that returns the next server-sent event of a path; None when there are no more."""
    async with site.http.stream("GET", path, **more) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.aiter_lines()

        async def heard() -> Told | None:
            told, complete = Told("", "", None), False
            async for line in lines:
                name, _, text = line.partition(": ")
                match name:
                    case "event":
                        told.kind = text
                    case "id":
                        told.ident = text
                    case "data":
                        told.data, complete = json.loads(text), True
                    case "" if not line and complete:
                        return told
            return None

        async def next_event(within: float = 20) -> Told | None:
            async with asyncio.timeout(within):
                return await heard()

        yield next_event
