"""A whole AIMA of its own, started as a user starts it, that tests may hurt; and the truths that must hold after."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil

from aima_core.bus.client import Client
from aima_core.bus.connection import connect
from aima_core.bus.credentials import OPERATOR, bus_user
from aima_core.errors import AimaError
from aima_core.settings import load
from aima_core.store.log import Log
from aima_core.store.records import Codec
from aima_core.testing import until
from services.cli import domains

ALL = tuple(domains.names())
PATIENT = 40.0  # seconds; the machine is shared, and a restart backs off


class System:
    """`aima up` on a data folder."""

    def __init__(self, data: Path, environ: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> None:
        self.data = data
        self._prefix = prefix
        first = _free_ports()
        # a bus of its own: on a port that others take too, they would meet while it is being restarted
        ports = {"AIMA_ENGINE_PORT_MIN": str(first), "AIMA_NATS_PORT": str(first + 39)}
        ports |= {"AIMA_GATEWAY_ADDR": f"127.0.0.1:{first + 38}"}
        own = {"AIMA_DATA": str(data), "AIMA_NODE": "test"} | ports
        kept = {key: value for key, value in os.environ.items() if not key.startswith("AIMA_")}
        self.environ = kept | own | {"AIMA_ENGINE_PORT_MAX": str(first + 37)} | (environ or {})
        self._up: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None

    async def start(self) -> None:
        """Start everything; return when every domain serves."""
        self.data.mkdir(parents=True, exist_ok=True)
        with (self.data / "up.log").open("ab") as log:
            self._up = subprocess.Popen(  # noqa: ASYNC220 (a fork, and nothing else waits)
                [*self._prefix, sys.executable, "-m", "services.cli.entry", "up", "--quiet"],
                env=self.environ,
                stderr=log,
                stdout=log,
            )
        await until((self.data / "nats.url").exists, within=PATIENT)
        settings = load({}, environ=self.environ, partial=True)
        nc = await connect(settings.nats.url, "test", user=bus_user(settings, OPERATOR))
        self._client = Client(nc)
        await self.serving()

    async def stop(self) -> int:
        """End everything in order, engines too; return the exit code of `aima up`."""
        assert self._up
        with contextlib.suppress(AimaError):
            await self.ask("engine.stop", name="llamacpp", force=True)
        if self._client:
            await self._client.nc.close()
        self.up.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(self._up.wait, PATIENT)
        for process in self.engines().values():
            process.kill()
        return code

    @property
    def up(self) -> psutil.Process:
        """The process of `aima up`, below what it was started through."""
        assert self._up
        started = psutil.Process(self._up.pid)
        return started.children()[0] if self._prefix else started

    @property
    def client(self) -> Client:
        """A client of the bus."""
        assert self._client
        return self._client

    async def ask(self, unit: str, /, timeout: float = 60, headers: dict[str, str] | None = None, **data: Any) -> Any:
        """Return the data that a unit answers."""
        return (await self.client.ask(unit, data, timeout=timeout, headers=headers)).data

    async def soon(self, unit: str, /, **data: Any) -> Any:
        """Ask until the domain, which may be restarting, answers."""

        async def answered() -> Any:
            try:
                return [await self.ask(unit, timeout=10, **data)]
            except AimaError as error:
                if error.code in ("UNAVAILABLE", "TIMEOUT"):
                    return None
                raise

        return (await until(answered, within=PATIENT))[0]

    # --- hurting it -----------------------------------------------------------------------------------------

    def pids(self) -> dict[str, int]:
        """Return the processes of `aima up` by name."""
        try:
            found: dict[str, int] = json.loads((self.data / "up.json").read_text())["children"]
        except (OSError, ValueError):
            return {}
        return found

    def kill(self, names: Iterable[str]) -> None:
        """Kill processes so that none can say goodbye."""
        pids = self.pids()
        for name in names:
            os.kill(pids[name], signal.SIGKILL)

    async def crash(self) -> None:
        """Kill `aima up` itself, and with a namespace of processes all that is in it, as a power cut would."""
        assert self._up
        await self.client.nc.close()
        self.up.kill()
        await asyncio.to_thread(self._up.wait, PATIENT)
        (self.data / "nats.url").unlink()

    async def when(self, event: str) -> None:
        """Return as soon as the bus says that an event of this type has happened."""
        happened = asyncio.Event()

        async def heard(_: Any) -> None:
            happened.set()

        subscription = await self.client.nc.subscribe(f"aima.events.{event}.>", cb=heard)
        await self.client.nc.flush()
        try:
            await asyncio.wait_for(happened.wait(), PATIENT)
        finally:
            with contextlib.suppress(Exception):  # the bus may be what was hurt
                await subscription.unsubscribe()

    async def serving(self) -> None:
        """Return when every domain answers."""

        async def all_answer() -> bool:
            try:
                return set(ALL) <= {info["name"] for info in await self.client.discover(wait=0.15)}
            except Exception:
                return False

        await until(all_answer, within=PATIENT)

    # --- what must be true ----------------------------------------------------------------------------------

    def engines(self) -> dict[str, psutil.Process]:
        """Return the engine processes of this AIMA that are alive, by the instance they are marked with."""
        found: dict[str, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cwd() != str(self.data / "engine") or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                instance = process.environ().get("AIMA_INSTANCE")
                if instance:
                    assert instance not in found, f"{instance} has two processes"
                    found[instance] = process
        return found

    async def assert_true(self, running: dict[str, int]) -> None:
        """Hold everything that is claimed against everything that is: services by id, with their running replicas."""

        async def at_rest() -> bool:
            services = (await self.soon("service.list"))["services"]
            statuses = [service["status"] for service in services]
            return not {"starting", "stopping"} & set(statuses) and len(self.engines()) == sum(running.values())

        await until(at_rest, within=PATIENT)

        async def same() -> bool:
            """Followers take a moment to hear."""
            instances = await self._instances()
            wanted = {f"{i['process_id']}-{i['run']}" for i in instances}
            slots = {slot["name"] for slot in (await self.soon("resource.allocations"))["allocations"]}
            models = (await self.soon("inference.models"))["models"]
            routes = sum(service["replicas"] for model in models for service in model["services"])
            alive = {i["process_id"] for i in instances} == set(self.engines())
            return alive and wanted == slots and routes == len(instances)

        await until(same, within=PATIENT)
        for service_id, replicas in running.items():
            found = await self.soon("service.get", service_id=service_id)
            assert found["active_replicas"] == replicas, found
            assert found["status"] == ("running" if replicas else found["status"]), found
        ports = [instance["port"] for instance in await self._instances()]
        assert len(ports) == len(set(ports))

    async def _instances(self) -> list[dict[str, Any]]:
        found = await self.soon("engine.get", name="llamacpp")
        return [instance for instance in found["instances"] if instance["status"] not in ("stopped", "error")]


async def assert_logs_hold(data: Path) -> dict[str, int]:
    """Hold every log against its own hashes, and JetStream's numbers aside: return how many events each has."""
    counts = {}
    for name in domains.names():
        domain = domains.load(name)
        log = await Log.open(data / name, name, Codec(domain.events, domain.upcasters))
        try:
            assert await log.verify() is None, f"the log of {name} was broken"
            rows = await log.file.read(lambda c: c.execute("SELECT count(*), max(position) FROM events").fetchone())
            assert rows[0] == (rows[1] or 0), f"the log of {name} has gaps"
            counts[name] = rows[0]
        finally:
            await log.close()
    return counts


@contextlib.asynccontextmanager
async def system(data: Path, environ: dict[str, str] | None = None) -> AsyncIterator[System]:
    """Run a whole AIMA for as long as the block lasts; afterwards nothing of it is left."""
    running = System(data, environ)
    await running.start()
    try:
        yield running
    finally:
        code = await running.stop()
        await until(lambda: not running.engines(), within=PATIENT)
    assert code == 0


def _free_ports() -> int:
    """Return the first of forty ports in a row that nobody uses now, as far from other tests as chance allows."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = 10_000 + probe.getsockname()[1] % 8_000 // 40 * 40  # below those of tests/toys/machine.py
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + 40):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
