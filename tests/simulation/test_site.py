import asyncio
import sqlite3
from typing import Any

import nats.errors
import pytest
from nats.aio.msg import Msg

from aima_core.bus.client import Client
from aima_core.errors import Timeout, Unavailable
from tests.simulation.bus import Bus, Connection
from tests.simulation.clock import VirtualLoop, run
from tests.simulation.disk import Disk, SimulatedSqlite
from tests.simulation.life import LIFE, Life
from tests.simulation.site import Site


def test_a_service_starts_and_stops_by_the_real_code() -> None:
    async def main(loop: VirtualLoop) -> list[Any]:
        site = Site(loop)
        site.machine.kind = True
        await site.begin()
        client = Client(Connection(site.bus))  # type: ignore[arg-type]
        await client.ask("service.create", {"model_id": "a", "name": "a", "replicas": 2}, timeout=5)
        started = await client.ask("service.start", {"service_id": "svc-a"}, timeout=60)
        running = sorted(site.machine.programs)
        stopped = await client.ask("service.stop", {"service_id": "svc-a"}, timeout=60)
        assert not site.errors
        site.disk.close()
        return [started.data["status"], running, stopped.data["success"], sorted(site.machine.programs)]

    assert run(1, main) == ["running", ["svc-a-r0-1", "svc-a-r1-1"], True, []]


def test_a_process_that_is_killed_answers_nothing_and_its_log_goes_on() -> None:
    async def main(loop: VirtualLoop) -> list[Any]:
        site = Site(loop)
        await site.begin()
        client = Client(Connection(site.bus))  # type: ignore[arg-type]
        await client.ask("service.create", {"model_id": "a", "name": "a"}, timeout=5)
        asking = asyncio.create_task(client.ask("service.start", {"service_id": "svc-a"}, timeout=5))
        await asyncio.sleep(0.0005)
        site.kill("service")
        with pytest.raises((Timeout, Unavailable)):
            await asking
        with pytest.raises(Unavailable):
            await client.ask("service.get", {"service_id": "svc-a"}, timeout=5)
        await site.begin()
        answer = await client.ask("service.get", {"service_id": "svc-a"}, timeout=5)
        assert not site.errors
        site.disk.close()
        return [answer.data["id"], len([life for life in site.connections if life.name == "service"])]

    assert run(1, main) == ["svc-a", 1]


def test_what_the_dead_do_counts_for_nothing_and_their_code_ends() -> None:
    kept: list[str] = []

    async def main(loop: VirtualLoop) -> list[Any]:
        disk, life = Disk(), Life("toy")

        async def process() -> None:
            file = SimulatedSqlite(disk, life)
            await file.write(lambda connection: connection.execute("CREATE TABLE words (word TEXT)"))
            try:
                await file.write(lambda connection: connection.execute("INSERT INTO words VALUES ('alive')"))
                await asyncio.Event().wait()
            finally:
                kept.append("cleaning up")
                await file.write(lambda connection: connection.execute("INSERT INTO words VALUES ('dead')"))
                kept.append("never")

        LIFE.set(life)
        asyncio.create_task(process())  # noqa: RUF006 (its life keeps it)
        LIFE.set(None)
        await asyncio.sleep(5)
        await life.buried()
        words: sqlite3.Cursor = disk.file("toy").execute("SELECT word FROM words")
        kept.append(str(words.fetchall()))
        disk.close()
        return [len(life.tasks)]

    assert run(1, main) == [0]
    assert kept == ["cleaning up", "[('alive',)]"]


def test_messages_of_one_connection_keep_their_order_and_nobody_is_told_at_once() -> None:
    async def main(loop: VirtualLoop) -> list[bytes]:
        bus, taken = Bus(loop), list[bytes]()
        sender, receiver = Connection(bus), Connection(bus)

        async def take(message: Msg) -> None:
            taken.append(message.data)

        await receiver.subscribe("a.>", cb=take)
        for number in range(100):
            await sender.publish(f"a.{number}", b"%d" % number)
        await asyncio.sleep(5)
        with pytest.raises(nats.errors.NoRespondersError):
            await sender.request("b", timeout=60)
        receiver.drop()
        await sender.publish("a.b", b"late")
        await asyncio.sleep(5)
        return taken

    assert run(1, main) == [b"%d" % number for number in range(100)]
