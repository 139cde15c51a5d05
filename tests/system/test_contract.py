"""Every unit of the real domains: its reply has the declared type, and the versions that it shows are accepted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from aima_core import call as calls
from aima_core.bus.client import Client
from aima_core.domain import Domain
from aima_core.errors import AimaError
from aima_core.testing import serving
from aima_core.units import Command, Unit
from services.device.domain import DEVICE
from services.device.outside.adapter import DeviceOutside
from services.engine.domain import ENGINE
from services.gateway.domain import GATEWAY
from services.inference.domain import INFERENCE
from services.model.domain import MODEL
from services.resource.domain import RESOURCE
from services.service.domain import SERVICE
from tests.device.test_domain_wire import StandIn
from tests.stand_ins.tiny_models import tiny_gguf
from tests.toys.asking import events
from tests.toys.machine import Machine, machine

GPU = "test-gpu-0"
CARD = StandIn()
WITH_GPU: Domain[Any] = replace(DEVICE, outside=lambda context: DeviceOutside(context, lambda *_: [CARD]))
DOMAINS = (WITH_GPU, MODEL, RESOURCE, ENGINE, SERVICE, INFERENCE, GATEWAY)
UNITS: dict[str, type[Unit[Any]]] = {unit.spec.name: unit for domain in DOMAINS for unit in domain.units}
# these units need an engine or a hub that a test has not; that they fail is shown elsewhere
UNSERVED = {
    *("inference.embed", "inference.transcribe", "inference.synthesize", "inference.generate_image"),
    *("inference.generate_video", "inference.rerank", "inference.detect", "inference.complete", "model.pull"),
}
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}]}


@dataclass
class Asker:
    """Asks units and checks each reply against the unit's class."""

    client: Client
    site: Machine
    asked: set[str] = field(default_factory=set)

    async def __call__(self, unit: str, /, **data: Any) -> Any:
        reply = (await self.client.ask(unit, data, timeout=60)).data
        UNITS[unit].output.model_validate(reply)
        assert reply.keys() == UNITS[unit].output.model_fields.keys()
        self.asked.add(unit)
        return reply

    async def expecting(self, unit: str, version: int, *, dry: bool, **data: Any) -> str:
        """Ask for a command at a version of its stream; return the reason of a refusal, empty for none."""
        headers = {calls.EXPECTED_VERSION: str(version)} | ({calls.DRY_RUN: "true"} if dry else {})
        try:
            await self.client.ask(unit, data, timeout=60, headers=headers)
        except AimaError as error:
            return error.reason
        return ""


@pytest.fixture
async def ask(tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Asker]:
    monkeypatch.setenv("OLLAMA_REGISTRY", "http://127.0.0.1:9")
    async with machine(tmp_path) as site:
        tiny_gguf(site.weights)
        environ = {"AIMA_GATEWAY_ADDR": f"127.0.0.1:{free_port()}"}
        async with serving(*DOMAINS, settings=site.settings(*DOMAINS, **environ)) as client:
            asker = Asker(client, site)
            await asker("model.import", path=str(site.weights), name="Tiny")
            await asker("service.create", model_id="tiny", name="chat")
            yield asker


async def test_every_unit_replies_with_the_type_that_it_declares(ask: Asker) -> None:
    await ask("device.detect")
    for unit in ("info", "metrics", "health", "list"):
        await ask(f"device.{unit}")
    await ask("device.set_power_limit", device_id=GPU, limit_watts=300)

    await ask("model.create", name="planned", type="llm")
    await ask("model.get", model_id="Tiny")
    await ask("model.list")
    await ask("model.estimate_resources", model_id="Tiny")
    assert (await ask("model.verify", model_id="Tiny"))["valid"]
    await ask("model.search", query="tiny", source="package")
    await ask("model.delete", model_id="planned")

    await ask("resource.allocate", name="a", type="inference_native", memory_bytes=1000)
    for unit in ("status", "budget", "allocations"):
        await ask(f"resource.{unit}")
    await ask("resource.can_allocate", memory_bytes=1000, freeing=["slot-a"])
    await ask("resource.update_slot", slot_id="slot-a", memory_limit=500)
    await ask("resource.release", slot_id="slot-a")

    await ask("engine.install", name="toy")
    await ask("engine.start", name="toy", model_id="tiny", process_id="eng-a")
    await ask("engine.get", name="toy")
    await ask("engine.list")
    await ask("engine.features", name="toy")
    await ask("engine.check_config", name="toy", config={"slots": 2})
    await ask("engine.logs", process_id="eng-a")
    await ask("engine.restart", name="eng-a")
    await ask("engine.stop", name="eng-a")

    await ask("service.recommend", model_id="tiny")
    assert (await ask("service.start", service_id="chat"))["status"] == "running"
    for unit in ("get", "status", "logs", "history"):
        await ask(f"service.{unit}", service_id="chat")
    await ask("service.list")

    assert (await ask("inference.chat", **CHAT))["content"]
    (load,) = (await ask("inference.load", service_id="chat"))["services"]
    assert (await ask("inference.try_replica", process_id=load["replicas"][0]["process_id"]))["answered"]
    lease = await ask("inference.lease", model="chat")
    await ask("inference.renew", request_id=lease["request_id"])
    await ask("inference.settle", request_id=lease["request_id"], outcome="completed")
    await ask("inference.metrics", service_id="chat")
    await ask("inference.models")
    await ask("inference.speeds", model_id="tiny")
    await ask("inference.voices")

    key = await ask("gateway.create_key", name="ci")
    await ask("gateway.list_keys")
    await ask("gateway.identify", key=key["key"])
    await ask("gateway.revoke_key", key_id=key["key_id"])

    await ask("service.scale", service_id="chat", replicas=0)
    await ask("service.stop", service_id="chat")
    await ask("service.delete", service_id="chat")
    assert ask.asked == UNITS.keys() - UNSERVED


@dataclass(frozen=True)
class Row:
    """A command with a stream: the names of its stream, its other fields, and the query and path of its version."""

    refs: tuple[str, ...]
    view: str
    by: str = ""
    item: str = ""
    more: dict[str, Any] = field(default_factory=dict)


_SERVICE = ("svc-chat", "chat")
COMMANDS = {
    "device.set_power_limit": Row((GPU,), "device.info", "device_id", more={"limit_watts": 250}),
    "model.verify": Row(("tiny", "Tiny"), "model.get", "model_id"),
    "engine.install": Row(("toy",), "engine.get", "name"),
    "resource.update_slot": Row(("slot-a",), "resource.allocations", item="allocations", more={"memory_limit": 500}),
    "resource.release": Row(("slot-a",), "resource.status", item="slots"),
    "service.start": Row(_SERVICE, "service.get", "service_id"),
    "service.scale": Row(_SERVICE, "service.status", "service_id", more={"replicas": 1}),
    "service.stop": Row(_SERVICE, "service.list", item="services"),
    "service.delete": Row(_SERVICE, "service.get", "service_id"),
    "gateway.revoke_key": Row(("ID",), "gateway.list_keys", item="keys"),
    "model.delete": Row(("tiny", "Tiny"), "model.list", item="items"),
}


async def test_a_command_accepts_the_version_that_a_view_shows_by_id_and_by_name_and_no_other(ask: Asker) -> None:
    assert COMMANDS.keys() == {  # resource.allocate derives the id of its slot from the name
        name for name, unit in UNITS.items() if issubclass(unit, Command) and unit.spec.stream
    } - {"resource.allocate"}
    await ask("resource.allocate", name="a", type="inference_native", memory_bytes=1000)
    key = await ask("gateway.create_key", name="ci")
    for unit, row in COMMANDS.items():
        refs = tuple(key["key_id"] if ref == "ID" else ref for ref in row.refs)
        stream = f"{unit.partition('.')[0]}/{refs[0]}"
        for ref in refs:
            view = await ask(row.view, **({row.by: ref} if row.by else {}))
            if row.item:
                view = next(item for item in view[row.item] if refs[0] in item.values())
            version = view["stream_version"]
            data = {UNITS[unit].spec.stream or "": ref, **row.more}
            assert await ask.expecting(unit, version, dry=True, **data) == "", (unit, ref)
            for other in (version - 1, version + 1):
                if other >= 0:
                    assert await ask.expecting(unit, other, dry=True, **data) == "VERSION_CONFLICT", (unit, ref)
                    assert await ask.expecting(unit, other, dry=False, **data) == "VERSION_CONFLICT", (unit, ref)
        answer = await ask.client.ask(unit, data, timeout=60, headers={calls.EXPECTED_VERSION: str(version)})
        log = await events(ask.client, stream.partition("/")[0], stream)
        assert answer.meta["version"] in range(version, len(log) + 1), unit


async def test_a_repeated_create_replies_with_the_version_that_its_stream_has(ask: Asker) -> None:
    await ask("service.start", service_id="chat")
    shown = await ask("service.get", service_id="chat")
    again = await ask.client.ask("service.create", {"model_id": "tiny", "name": "chat"}, timeout=20)
    assert again.data == {"service_id": "svc-chat", "stream_version": again.meta["version"]}
    assert again.meta["version"] >= shown["stream_version"] > 1
    assert await ask.expecting("service.stop", again.meta["version"], dry=True, service_id="chat") == ""
    imported = await ask.client.ask("model.import", {"path": str(ask.site.weights), "name": "Tiny"}, timeout=20)
    assert imported.meta["version"] == (await ask("model.get", model_id="tiny"))["stream_version"] == 2
    await ask("service.stop", service_id="chat")
