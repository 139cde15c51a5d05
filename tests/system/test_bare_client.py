"""A client that has nothing but nats-py does everything: discover, pull, serve, chat, follow the events."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from tests.system.harness import System, system

pytestmark = pytest.mark.timeout(300)

CONTRACT = Path(__file__).with_name("units.txt")


async def ask(nc: Client, unit: str, headers: dict[str, str] | None = None, **data: Any) -> dict[str, Any]:
    reply = await nc.request(f"aima.{unit}", json.dumps(data).encode(), timeout=120, headers=headers)
    envelope: dict[str, Any] = json.loads(reply.data)
    assert envelope["success"], envelope
    found: dict[str, Any] = envelope["data"]
    return found


async def refused(nc: Client, unit: str, **data: Any) -> dict[str, Any]:
    reply = await nc.request(f"aima.{unit}", json.dumps(data).encode(), timeout=30)
    envelope: dict[str, Any] = json.loads(reply.data)
    assert not envelope["success"]
    error: dict[str, Any] = envelope["error"]
    assert reply.headers
    assert reply.headers["Nats-Service-Error-Code"].isdecimal()
    return error


async def discover(nc: Client) -> dict[str, dict[str, str]]:
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    await nc.publish("$SRV.INFO", b"", reply=inbox)
    units: dict[str, dict[str, str]] = {}
    try:
        while True:
            info = json.loads((await subscription.next_msg(timeout=1)).data)
            units |= {endpoint["subject"]: endpoint["metadata"] for endpoint in info["endpoints"]}
    except nats.errors.TimeoutError:
        return units


async def parts_of(nc: Client, unit: str, **data: Any) -> tuple[list[Any], dict[str, Any]]:
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    await nc.publish(f"aima.{unit}", json.dumps(data).encode(), reply=inbox)
    parts = []
    while True:
        message = await subscription.next_msg(timeout=60)
        assert message.headers
        if message.headers.get("Aima-Final") == "true":
            return parts, json.loads(message.data)
        assert message.headers["Aima-Seq"] == str(len(parts) + 1)
        parts.append(json.loads(message.data))


async def serve(nc: Client, weights: Path) -> str:
    model = await ask(nc, "model.import", path=str(weights), name="small")
    service = await ask(nc, "service.create", model_id=model["model_id"], name="bare", resource_class="small")
    started = await ask(nc, "service.start", service_id=service["service_id"])
    assert started["status"] == "running"
    return str(service["service_id"])


async def with_bare_client(aima: System) -> Client:
    return await nats.connect((aima.data / "nats.url").read_text().strip())


async def test_everything_from_discovery_to_deletion(tmp_path: Path, smollm2: Path) -> None:
    async with system(tmp_path / "data") as aima:
        nc = await with_bare_client(aima)
        units = await discover(nc)
        missing = [unit for unit in CONTRACT.read_text().split() if f"aima.{unit}" not in units]
        assert missing == []
        for subject, about in units.items():
            assert json.loads(about["input"])["type"] == "object", subject
            assert json.loads(about["output"])["type"] == "object", subject
            assert about["description"], subject
            assert json.loads(about["examples"]), subject
        service_id = await serve(nc, smollm2)
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        whole = await ask(nc, "inference.chat", model="small", messages=messages, temperature=0, max_tokens=16)
        assert whole["content"]
        assert whole["usage"]["total_tokens"] == whole["usage"]["prompt_tokens"] + whole["usage"]["completion_tokens"]
        parts, final = await parts_of(
            nc, "inference.chat", model="small", messages=messages, temperature=0, max_tokens=16, stream=True
        )
        assert "".join(part["content"] for part in parts) == final["data"]["content"] == whole["content"]
        text = await ask(nc, "inference.complete", model=service_id, prompt="Paris is the capital of", max_tokens=4)
        assert text["text"]
        await ask(nc, "service.stop", service_id=service_id)
        await ask(nc, "service.delete", service_id=service_id)
        assert (await refused(nc, "service.get", service_id=service_id))["code"] == "NOT_FOUND"
        await follow_from_the_beginning(nc, service_id)
        await nc.close()


async def follow_from_the_beginning(nc: Client, service_id: str) -> None:
    """The whole life of the service is in the stream, in order, and goes on live."""
    js = nc.jetstream()
    subscription = await js.subscribe(f"aima.events.service.*.{service_id}", ordered_consumer=True)
    seen = []
    while "service.deleted" not in seen:
        message = await subscription.next_msg(timeout=10)
        event = json.loads(message.data)
        assert event["version"] == len(seen) + 1
        seen.append(event["type"])
    assert [kind for kind in seen if "progress" not in kind] == [
        "service.created",
        "service.start_requested",
        "service.replica_started",
        "service.started",
        "service.stop_requested",
        "service.replica_ended",
        "service.stopped",
        "service.deleted",
    ]
    await ask(nc, "service.create", model_id="small", name="bare")
    live = json.loads((await subscription.next_msg(timeout=10)).data)
    assert live["type"] == "service.created"
    assert live["version"] == len(seen) + 1


async def test_each_kind_of_bad_input_gets_its_code_and_changes_nothing(tmp_path: Path, smollm2: Path) -> None:
    async with system(tmp_path / "data") as aima:
        nc = await with_bare_client(aima)
        await ask(nc, "model.import", path=str(smollm2), name="small")
        notes = tmp_path / "notes.gguf"
        notes.write_text("this is no model")
        cases: list[tuple[str, dict[str, Any], str, str]] = [
            ("service.create", {}, "VALIDATION_ERROR", "model_id"),
            ("service.create", {"model_id": "small", "replicas": "2"}, "VALIDATION_ERROR", "replicas"),
            ("service.create", {"model_id": "small", "replicas": 0}, "VALIDATION_ERROR", "replicas"),
            ("service.create", {"model_id": "small", "colour": "red"}, "VALIDATION_ERROR", "colour"),
            ("service.create", {"model_id": "small", "engine": "warp"}, "NOT_FOUND", "warp"),
            ("service.create", {"model_id": "nothing"}, "NOT_FOUND", "nothing"),
            ("service.start", {"service_id": "svc-nothing"}, "NOT_FOUND", "svc-nothing"),
            ("service.start", {"service_id": "../../etc"}, "VALIDATION_ERROR", "service_id"),
            ("model.import", {"path": str(notes)}, "VALIDATION_ERROR", str(notes)),
            ("model.import", {"path": f"{tmp_path}/../x.gguf"}, "VALIDATION_ERROR", "path"),
            ("model.import", {"path": "/nowhere/x.gguf"}, "NOT_FOUND", "/nowhere/x.gguf"),
            ("model.pull", {"source": "package", "repo": "../../evil"}, "VALIDATION_ERROR", "repo"),
            ("engine.start", {"name": "llamacpp"}, "VALIDATION_ERROR", "model_id"),
            ("engine.start", {"name": "llamacpp", "model_path": "/tmp/../x"}, "VALIDATION_ERROR", "model_path"),
            (
                "engine.start",
                {"name": "llamacpp", "model_id": "small", "config": {"slots": 1000}},
                "VALIDATION_ERROR",
                "config.slots",
            ),
            (
                "resource.allocate",
                {"name": "x", "type": "inference_native", "memory_bytes": 10**15},
                "INSUFFICIENT_RESOURCES",
                "",
            ),
            ("inference.chat", {"model": "small", "messages": []}, "VALIDATION_ERROR", "messages"),
            (
                "inference.chat",
                {"model": "small", "messages": [{"role": "king", "content": "x"}]},
                "VALIDATION_ERROR",
                "role",
            ),
            ("inference.chat", {"model": "none", "messages": [{"role": "user", "content": "x"}]}, "NOT_FOUND", "none"),
            (
                "inference.chat",
                {"model": "small", "messages": [{"role": "user", "content": "x"}]},
                "ENGINE_NOT_RUNNING",
                "small",
            ),
            ("inference.transcribe", {"model": "small", "audio": "AAAA"}, "ENGINE_NOT_RUNNING", "small"),
        ]
        before = {
            name: (await ask(nc, f"{name}.log", limit=1))["position"] for name in ("service", "engine", "inference")
        }
        for unit, data, code, named in cases:
            error = await refused(nc, unit, **data)
            assert error["code"] == code, (unit, data, error)
            assert named in json.dumps(error), (unit, data, error)
        after = {
            name: (await ask(nc, f"{name}.log", limit=1))["position"] for name in ("service", "engine", "inference")
        }
        assert after == before
        await nc.close()


async def test_a_port_that_another_program_holds_is_refused_by_name_and_left_alone(
    tmp_path: Path, smollm2: Path
) -> None:
    async with system(tmp_path / "data") as aima:
        nc = await with_bare_client(aima)
        await ask(nc, "model.import", path=str(smollm2), name="small")
        held = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = held.sockets[0].getsockname()[1]
        error = await refused(nc, "engine.start", name="llamacpp", model_id="small", port=port)
        assert (error["code"], error["details"]["reason"], error["details"]["port"]) == (
            "CONFLICT",
            "PORT_IN_USE",
            port,
        )
        created = await ask(nc, "service.create", model_id="small", name="busy", port=port)
        error = await refused(nc, "service.start", service_id=created["service_id"])
        assert str(port) in error["message"]
        assert (await ask(nc, "service.get", service_id=created["service_id"]))["status"] == "failed"
        held.close()
        await held.wait_closed()
        assert (await ask(nc, "service.start", service_id=created["service_id"]))["status"] == "running"
        other = await refused(nc, "engine.start", name="llamacpp", model_id="small", port=port)
        assert other["details"]["holder"] == "svc-busy-r0-2"
        await aima.assert_true({created["service_id"]: 1})
        await nc.close()
