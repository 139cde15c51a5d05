"""The real domain on a real nats-server: on this machine as it is, and with a stand-in for a GPU's driver."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aima_core.bus import nats_server
from aima_core.bus.client import Answer, Client
from aima_core.bus.nats_server import NatsServer
from aima_core.errors import AimaError, Conflict, NotFound, ValidationFailed
from aima_core.testing import serving, settings_for, until
from services.device.domain import DEVICE
from services.device.drivers import Probe, ProbedDevice, Sample
from services.device.drivers.host import HostProbe
from services.device.outside.adapter import DeviceOutside
from tests.toys.asking import unversioned


class StandIn:
    """A GPU that reads as the test says."""

    def __init__(self) -> None:
        self.there = True
        self.lost = False
        self.broken = False
        self.temperature = 50.0
        self.limit = 700.0

    def detect(self) -> list[ProbedDevice]:
        gpu = ProbedDevice("test-gpu-0", "Stand-in", "AIMA", "gpu", "paper", 100, ["cuda"], 64, "GPU-1", 5000)
        return [gpu] if self.there else []

    def sample(self, device_id: str) -> Sample:
        if self.broken:
            raise OSError("the driver answers with nonsense")
        return Sample(time.time(), 12.5, self.temperature, 70.0, 10, 100, self.lost)

    def set_power_limit(self, device_id: str, watts: float) -> float:
        before, self.limit = self.limit, watts
        return before


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    started = await asyncio.to_thread(
        nats_server.start, tmp_path / "nats", None, tmp_path / "nats.log", die_with_parent=False
    )
    yield started
    await asyncio.to_thread(started.stop)


@contextlib.asynccontextmanager
async def devices(tmp_path: Path, server: NatsServer, gpu: StandIn | None, interval: str) -> AsyncIterator[Client]:
    def probes(node: str, folder: Path) -> Sequence[Probe]:
        return [HostProbe(node, folder), *([gpu] if gpu else [])]

    domain = replace(DEVICE, outside=lambda context: DeviceOutside(context, probes))
    environ = {"AIMA_DEVICE_INTERVAL": interval, "AIMA_DEVICE_HISTORY": "5"}
    async with serving(domain, settings=settings_for(tmp_path / "data", server.url, domain, environ=environ)) as client:
        yield client


async def ask(client: Client, unit: str, asked: dict[str, Any] | None = None) -> Answer:
    return await client.ask(unit, asked or {}, timeout=10)


async def log(client: Client, unit: str) -> list[dict[str, Any]]:
    events = (await ask(client, "device.log", {"limit": 1000})).data["events"]
    return [event["data"] for event in events if event["type"] == unit]


async def refusal(client: Client, unit: str, asked: dict[str, Any]) -> AimaError:
    with pytest.raises(AimaError) as refused:
        await ask(client, unit, asked)
    return refused.value


async def test_this_machine_is_told_without_anybody_having_looked(tmp_path: Path, server: NatsServer) -> None:
    async with serving(DEVICE, settings=settings_for(tmp_path / "data", server.url, DEVICE)) as client:
        info = (await ask(client, "device.info", {"device_id": "test-cpu-0"})).data
        assert (info["id"], info["type"], info["node"]) == ("test-cpu-0", "cpu", "test")
        assert info["memory"] > 0
        assert info["memory_bandwidth"] > 0
        metrics = (await ask(client, "device.metrics", {"device_id": "test-cpu-0"})).data
        assert 0 < metrics["memory_used"] < metrics["memory_total"] == info["memory"]
        found = (await ask(client, "device.detect")).data["devices"]
        assert {"test-cpu-0", "test-disk-0"} <= {device["id"] for device in found}
        assert {tuple(device) for device in found} == {("id", "name", "vendor", "type", "memory", "stream_version")}


async def test_without_a_gpu_the_cpu_is_meant(tmp_path: Path, server: NatsServer) -> None:
    async with devices(tmp_path, server, None, "3600") as client:
        for unit, key in (("device.info", "id"), ("device.metrics", "device_id"), ("device.health", "device_id")):
            assert (await ask(client, unit)).data[key] == "test-cpu-0"


async def test_with_a_gpu_the_gpu_is_meant(tmp_path: Path, server: NatsServer) -> None:
    async with devices(tmp_path, server, StandIn(), "3600") as client:
        info = (await ask(client, "device.info")).data
        assert info.pop("stream_version") in (1, 2)  # detected, then healthy by the first sample
        assert info == {
            "id": "test-gpu-0",
            "name": "Stand-in",
            "vendor": "AIMA",
            "type": "gpu",
            "architecture": "paper",
            "capabilities": ["cuda"],
            "memory": 100,
            "memory_bandwidth": 5000,
            "cores": 64,
            "node": "test",
            "power_limit": None,
        }
        health = (await ask(client, "device.health")).data
        assert unversioned(health) == {"device_id": "test-gpu-0", "status": "healthy", "issues": []}
        metrics = (await ask(client, "device.metrics")).data
        assert metrics.pop("at").endswith("Z")
        assert unversioned(metrics) == {
            "device_id": "test-gpu-0",
            "utilization": 12.5,
            "temperature": 50.0,
            "power": 70.0,
            "memory_used": 10,
            "memory_total": 100,
            "history": None,
        }


async def test_devices_are_listed_with_what_is_free_of_them(tmp_path: Path, server: NatsServer) -> None:
    async with devices(tmp_path, server, StandIn(), "3600") as client:

        async def listed(**asked: Any) -> tuple[list[str], int]:
            page = (await ask(client, "device.list", asked)).data
            return [device["id"] for device in page["items"]], page["total"]

        gpu, cpu, disk = (await ask(client, "device.list")).data["items"]
        assert gpu == {
            "id": "test-gpu-0",
            "name": "Stand-in",
            "vendor": "AIMA",
            "type": "gpu",
            "node": "test",
            "memory": 100,
            "memory_free": 90,
            "cores": 64,
            "capabilities": ["cuda"],
            "memory_bandwidth": 5000,
            "stream_version": gpu["stream_version"],
        }
        assert 0 < cpu["memory_free"] < cpu["memory"]
        assert 0 < disk["memory_free"] < disk["memory"]
        assert (cpu["memory_bandwidth"] is not None, disk["memory_bandwidth"]) == (True, None)
        assert await listed(type="gpu") == (["test-gpu-0"], 1)
        assert await listed(type="cpu") == (["test-cpu-0"], 1)
        assert await listed(limit=1, offset=1) == (["test-cpu-0"], 3)
        error = await refusal(client, "device.list", {"type": "npu"})
        assert isinstance(error, ValidationFailed)


async def test_a_device_that_cannot_be_read_is_listed_without_what_is_free(tmp_path: Path, server: NatsServer) -> None:
    gpu = StandIn()
    gpu.broken = True
    async with devices(tmp_path, server, gpu, "3600") as client:
        (item,) = (await ask(client, "device.list", {"type": "gpu"})).data["items"]
        assert (item["memory"], item["memory_free"]) == (100, None)


async def test_each_device_is_an_event_once_and_looking_again_is_none(tmp_path: Path, server: NatsServer) -> None:
    gpu = StandIn()
    async with devices(tmp_path, server, gpu, "3600") as client:
        for _ in range(3):
            await ask(client, "device.detect")
        found = await log(client, "device.detected")
        assert [event["device_id"] for event in found] == ["test-cpu-0", "test-disk-0", "test-gpu-0"]
        assert found[2]["device"] == {
            "id": "test-gpu-0",
            "name": "Stand-in",
            "vendor": "AIMA",
            "type": "gpu",
            "architecture": "paper",
            "memory": 100,
            "node": "test",
            "capabilities": ["cuda"],
            "cores": 64,
            "uuid": "GPU-1",
            "memory_bandwidth": 5000,
        }
        gpu.there = False
        left = (await ask(client, "device.detect")).data["devices"]
        assert [device["id"] for device in left] == ["test-cpu-0", "test-disk-0"]
        assert await log(client, "device.removed") == [{"device_id": "test-gpu-0"}]
        assert (await refusal(client, "device.info", {"device_id": "test-gpu-0"})).reason == "DEVICE_NOT_FOUND"


async def test_a_hot_gpu_is_told_once_and_so_is_its_recovery(tmp_path: Path, server: NatsServer) -> None:
    gpu = StandIn()
    async with devices(tmp_path, server, gpu, "0.01") as client:

        async def is_now(status: str) -> list[dict[str, Any]]:
            async def so() -> list[dict[str, Any]] | None:
                changes = [e for e in await log(client, "device.health_changed") if e["device_id"] == "test-gpu-0"]
                return changes if changes and changes[-1]["new_status"] == status else None

            changes: list[dict[str, Any]] = await until(so)
            return changes

        await is_now("healthy")
        gpu.temperature = 91.5
        await is_now("critical")
        gpu.temperature = 50.0
        changes = await is_now("healthy")
        assert [(change["old_status"], change["new_status"], change["issues"]) for change in changes] == [
            ("unknown", "healthy", []),
            ("healthy", "critical", ["temperature 91.5 °C, above 90"]),
            ("critical", "healthy", []),
        ]
        alerts = [event for event in await log(client, "device.metrics_alert") if event["metric"] == "temperature"]
        assert alerts == [
            {"device_id": "test-gpu-0", "metric": "temperature", "value": 91.5, "threshold": 80.0},
            {"device_id": "test-gpu-0", "metric": "temperature", "value": 91.5, "threshold": 90.0},
        ]
        gpu.lost = True
        assert (await is_now("critical"))[-1]["issues"] == [
            "Stand-in is lost: it no longer answers; reset it or restart the machine"
        ]


async def test_the_history_is_short_and_in_order(tmp_path: Path, server: NatsServer) -> None:
    async with devices(tmp_path, server, StandIn(), "0.01") as client:

        async def full() -> list[dict[str, Any]] | None:
            history: list[dict[str, Any]] = (await ask(client, "device.metrics", {"history": True})).data["history"]
            return history if len(history) == 5 else None

        history = await until(full)
        assert [sample["at"] for sample in history] == sorted(sample["at"] for sample in history)
        assert set(history[0]) == {"at", "utilization", "temperature", "power", "memory_used", "memory_total"}


async def test_a_power_limit_is_set_once(tmp_path: Path, server: NatsServer) -> None:
    gpu = StandIn()
    asked = {"device_id": "test-gpu-0", "limit_watts": 300}
    async with devices(tmp_path, server, gpu, "3600") as client:
        message = await client.nc.request(
            "aima.device.set_power_limit", json.dumps(asked).encode(), 5, headers={"Aima-Dry-Run": "true"}
        )
        planned = json.loads(message.data)["data"]["events"]
        assert [(event["type"], event["data"]["limit_watts"]) for event in planned] == [("device.power_limit_set", 300)]
        assert gpu.limit == 700
        for _ in range(3):
            assert (await ask(client, "device.set_power_limit", asked)).data == {"success": True}
        assert gpu.limit == 300
        assert await log(client, "device.power_limit_set") == [
            {"device_id": "test-gpu-0", "limit_watts": 300.0, "previous_watts": 700.0}
        ]
        assert (await ask(client, "device.info")).data["power_limit"] == 300


async def test_what_cannot_be_is_refused_in_words(tmp_path: Path, server: NatsServer) -> None:
    async with devices(tmp_path, server, None, "3600") as client:
        error = await refusal(client, "device.set_power_limit", {"device_id": "test-cpu-0", "limit_watts": 50})
        assert isinstance(error, Conflict)
        assert error.message == "test-cpu-0 has no power limit that can be set"
        error = await refusal(client, "device.set_power_limit", {"device_id": "test-gpu-0", "limit_watts": 50})
        assert isinstance(error, NotFound)
        assert error.details["known"] == ["test-cpu-0", "test-disk-0"]
        for unit in ("device.info", "device.metrics", "device.health"):
            error = await refusal(client, unit, {"device_id": "test-gpu-3"})
            assert isinstance(error, NotFound)
            assert error.message == "there is no device test-gpu-3; known: test-cpu-0, test-disk-0"
        error = await refusal(client, "device.set_power_limit", {"device_id": "../x", "limit_watts": 0})
        assert isinstance(error, ValidationFailed)
        assert [field["field"] for field in error.details["fields"]] == ["device_id", "limit_watts"]


async def test_it_answers_under_its_nodes_name_and_its_addresses_can_be_read(
    tmp_path: Path, server: NatsServer
) -> None:
    async with devices(tmp_path, server, StandIn(), "3600") as client:
        assert (await ask(client, "device.info.test")).data["id"] == "test-gpu-0"
        for part, key in (("info", "id"), ("metrics", "device_id"), ("health", "device_id")):
            answer = await ask(client, "device.read", {"uri": f"asms://device/test-cpu-0/{part}"})
            assert answer.data["data"][key] == "test-cpu-0"


async def test_a_restart_records_nothing_that_has_not_changed(tmp_path: Path, server: NatsServer) -> None:
    for _ in range(2):
        async with devices(tmp_path, server, StandIn(), "3600") as client:
            assert (await ask(client, "device.health")).data["status"] == "healthy"
            detected = [event["device_id"] for event in await log(client, "device.detected")]
            # the processor's memory may look quicker the second time, when less runs beside the test
            assert sorted(set(detected)) == ["test-cpu-0", "test-disk-0", "test-gpu-0"]
            assert [detected.count(ident) for ident in ("test-disk-0", "test-gpu-0")] == [1, 1]
            changes = [e for e in await log(client, "device.health_changed") if e["device_id"] == "test-gpu-0"]
            assert len(changes) == 1
