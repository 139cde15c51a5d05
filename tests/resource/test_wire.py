"""The real domain on a real nats-server, beside two small peers: an engine whose instances end, and devices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import psutil
import pytest

from aima_core.bus import nats_server
from aima_core.bus.client import Answer, Client
from aima_core.bus.nats_server import NatsServer
from aima_core.call import IDEMPOTENCY_KEY, Call
from aima_core.domain import Domain, World
from aima_core.errors import AimaError, Conflict, InsufficientResources, NotFound, ValidationFailed
from aima_core.testing import serving, settings_for, until
from aima_core.units import Command, Event, Ref, Success, View
from services.device.units import Device, DeviceDetected, DeviceRemoved
from services.engine.units import EngineStopped
from services.resource.domain import RESOURCE

GB = 10**9


class End(Command[Success], unit="engine.end"):
    """An instance has ended."""

    process_id: Annotated[str, Ref("engine")]
    run: int


class Plug(Command[Success], unit="device.plug"):
    """A GPU is there, or is gone."""

    number: int
    present: bool = True


class Nothing(msgspec.Struct, frozen=True):
    """These peers remember nothing."""


def decide(world: World[Nothing], command: Command[Any], call: Call) -> list[Event]:
    match command:
        case End(process_id=process_id, run=run):
            return [
                EngineStopped(
                    process_id=process_id, name="toy", reason="requested", exit_code=0, service_id="", run=run
                )
            ]
        case Plug(number=number, present=True):
            device = Device(
                id=f"test-gpu-{number}",
                name="toy",
                vendor="toy",
                type="gpu",
                architecture="toy",
                memory=8,
                node="test",
            )
            return [DeviceDetected(device_id=device.id, device=device)]
        case Plug(number=number):
            return [DeviceRemoved(device_id=f"test-gpu-{number}")]
    raise TypeError(command)


def evolve(state: Nothing | None, event: Event) -> Nothing | None:
    return Nothing()


def reply(world: Mapping[str, Nothing], command: Command[Any], events: Sequence[Event]) -> View | None:
    return Success(success=True)


def peer(name: str, events: Iterable[type[Event]], command: type[Command[Any]]) -> Domain[Nothing]:
    return Domain(
        name=name,
        about="A peer.",
        state=Nothing,
        events=tuple(events),
        commands=(command,),
        decide=decide,
        evolve=evolve,
        reply=reply,
    )


ENGINE = peer("engine", [EngineStopped], End)
DEVICE = peer("device", [DeviceDetected, DeviceRemoved], Plug)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    started = await asyncio.to_thread(
        nats_server.start, tmp_path / "nats", None, tmp_path / "nats.log", die_with_parent=False
    )
    yield started
    await asyncio.to_thread(started.stop)


@pytest.fixture
async def client(tmp_path: Path, server: NatsServer) -> AsyncIterator[Client]:
    async with serving(RESOURCE, settings=settings_for(tmp_path / "data", server.url, RESOURCE)) as client:
        yield client


async def ask(client: Client, unit: str, asked: dict[str, Any]) -> Answer:
    return await client.ask(unit, asked, timeout=10)


async def allocate(client: Client, name: str, memory: int = 1000, **more: Any) -> str:
    asked = {"name": name, "type": "inference_native", "memory_bytes": memory, **more}
    answer = await ask(client, "resource.allocate", asked)
    return str(answer.data["slot_id"])


async def names(client: Client, **where: Any) -> list[str]:
    answer = await ask(client, "resource.allocations", where)
    return [slot["name"] for slot in answer.data["allocations"]]


async def refusal(client: Client, unit: str, asked: dict[str, Any]) -> AimaError:
    with pytest.raises(AimaError) as refused:
        await ask(client, unit, asked)
    return refused.value


async def test_a_slot_is_held_until_it_is_released(client: Client) -> None:
    assert await allocate(client, "a", 1000, priority=7) == "slot-a"
    (slot,) = (await ask(client, "resource.allocations", {})).data["allocations"]
    since = slot.pop("since")
    assert since.startswith("20")
    assert since.endswith("Z")
    assert slot == {
        "slot_id": "slot-a",
        "name": "a",
        "type": "inference_native",
        "memory": 1000,
        "gpu_fraction": 0.0,
        "priority": 7,
        "status": "active",
        "owner": "local",
        "stream_version": 1,
    }
    await ask(client, "resource.update_slot", {"slot_id": "slot-a", "memory_limit": 400, "status": "idle"})
    budget = (await ask(client, "resource.budget", {})).data
    assert budget["reserved"] == 400
    assert budget["pools"]["memory"]["available"] == budget["total"] - 400
    for _ in range(2):
        assert (await ask(client, "resource.release", {"slot_id": "slot-a"})).data == {"success": True}
    assert await names(client) == []
    assert [
        event["type"] for event in (await ask(client, "resource.log", {"stream": "resource/slot-a"})).data["events"]
    ] == [
        "resource.allocated",
        "resource.slot_updated",
        "resource.released",
    ]


async def test_the_budget_is_the_machines_memory_less_the_reserve(client: Client) -> None:
    status = (await ask(client, "resource.status", {})).data
    total = status["memory"]["total"]
    assert 0 < total <= psutil.virtual_memory().total
    assert status["memory"]["budget"] == total - max(int(total * 0.1), 512 * 2**20)
    assert status["memory"]["used"] == total - status["memory"]["available"]
    assert status["storage"]["total"] > 0
    assert status["pressure"] in ("low", "medium", "high", "critical")
    assert list((await ask(client, "resource.budget", {})).data["pools"]) == ["memory"]


async def test_what_does_not_fit_is_refused_with_who_holds_the_rest(client: Client) -> None:
    await allocate(client, "a", 1000)
    budget = (await ask(client, "resource.budget", {})).data["total"]
    asked = {"name": "b", "type": "docker_container", "memory_bytes": budget - 999}
    error = await refusal(client, "resource.allocate", asked)
    assert isinstance(error, InsufficientResources)
    assert error.details == {
        "reason": "INSUFFICIENT_MEMORY",
        "requested": budget - 999,
        "available": budget - 1000,
        "missing": 1,
        "lacking": "memory",
        "holders": [A],
    }


A = {"slot_id": "slot-a", "name": "a", "memory": 1000, "priority": 5, "status": "active"}


async def test_whether_there_is_room_is_told_with_who_holds_it_and_who_would_make_it(client: Client) -> None:
    async def could(memory: int, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = (await ask(client, "resource.can_allocate", {"memory_bytes": memory, **more})).data
        return found

    await allocate(client, "a", 1000)
    budget = (await ask(client, "resource.budget", {})).data["total"]
    asked = {"name": "b", "type": "docker_container", "memory_bytes": budget - 999}
    error = await refusal(client, "resource.allocate", asked)
    assert await could(budget - 999) == {
        "can_allocate": False,
        "reason": error.message,
        "requested": budget - 999,
        "available": budget - 1000,
        "missing": 1,
        "lacking": "memory",
        "holders": [A],
        "would_preempt": [],
    }
    told = await could(1000, count=100)
    assert 100_000 < told.pop("available") <= budget - 1000
    assert told == {
        "can_allocate": True,
        "reason": None,
        "requested": 100_000,
        "missing": None,
        "lacking": None,
        "holders": [A],
        "would_preempt": [],
    }
    assert (await could(budget // 100, count=100))["can_allocate"] is False  # all of them or none
    gpu = await could(0, gpu_fraction=0.5)
    assert (gpu["lacking"], gpu["missing"]) == ("accelerator", None)
    assert "no GPU has been detected" in gpu["reason"]
    # the budget would have it once the slot is free; whether the system has it now is the machine's affair
    leaving = await could(budget - 999, freeing=["slot-a", "slot-a", "slot-unknown"])
    assert leaving["lacking"] in (None, "system")
    assert leaving["holders"] == []
    higher = await could(budget - 999, priority=6)
    assert (higher["lacking"], higher["would_preempt"]) in ((None, ["slot-a"]), ("system", []))
    assert await names(client) == ["a"]
    for bad in ({"count": 0}, {"gpu_fraction": 1.5}, {"freeing": ["a"]}, {"freeing": ["slot-a"] * 101}):
        assert isinstance(
            await refusal(client, "resource.can_allocate", {"memory_bytes": 1, **bad}), ValidationFailed
        ), bad


async def test_bad_input_and_unknown_slots_are_refused_by_name(client: Client) -> None:
    error = await refusal(client, "resource.allocate", {"name": "A b", "type": "x", "memory_bytes": -1, "more": 1})
    assert isinstance(error, ValidationFailed)
    assert [field["field"] for field in error.details["fields"]] == ["name", "type", "memory_bytes", "more"]
    error = await refusal(client, "resource.update_slot", {"slot_id": "slot-none", "status": "idle"})
    assert isinstance(error, NotFound)
    assert error.reason == "SLOT_NOT_FOUND"
    await allocate(client, "a", 1000)
    error = await refusal(client, "resource.allocate", {"name": "a", "type": "system_service", "memory_bytes": 1})
    assert isinstance(error, Conflict)
    assert error.reason == "ALREADY_EXISTS"
    error = await refusal(
        client,
        "resource.allocate",
        {"name": "g", "type": "system_service", "memory_bytes": 1, "gpu_fraction": 0.5},
    )
    assert error.reason == "NO_ACCELERATOR"
    assert await names(client) == ["a"]


async def test_two_hundred_asking_at_once_for_one_slot_get_one(client: Client) -> None:
    slots = await asyncio.gather(*(allocate(client, "a", 1000) for _ in range(200)))
    assert set(slots) == {"slot-a"}
    events = (await ask(client, "resource.log", {"stream": "resource/slot-a"})).data["events"]
    assert [event["type"] for event in events] == ["resource.allocated"]


async def test_a_dry_run_says_what_would_happen_and_reserves_nothing(client: Client) -> None:
    nc = client.nc
    asked = {"name": "a", "type": "inference_native", "memory_bytes": 1000}
    message = await nc.request(
        "aima.resource.allocate", json.dumps(asked).encode(), 5, headers={"Aima-Dry-Run": "true"}
    )
    planned = json.loads(message.data)["data"]
    assert [(event["type"], event["stream"]) for event in planned["events"]] == [
        ("resource.allocated", "resource/slot-a")
    ]
    assert planned["effects"] == []
    assert await names(client) == []


async def test_one_idempotency_key_allocates_once(client: Client) -> None:
    asked = json.dumps({"name": "a", "type": "inference_native", "memory_bytes": 1000}).encode()
    headers = {IDEMPOTENCY_KEY: "k-1"}
    answers = []
    for _ in range(2):
        message = await client.nc.request("aima.resource.allocate", asked, 5, headers=headers)
        answers.append(json.loads(message.data)["data"])
        await ask(client, "resource.release", {"slot_id": "slot-a"})
    assert answers == [{"slot_id": "slot-a", "stream_version": 1}] * 2
    events = (await ask(client, "resource.log", {"stream": "resource/slot-a"})).data["events"]
    assert [event["type"] for event in events] == ["resource.allocated", "resource.released"]


async def test_the_slot_of_an_ended_engine_is_freed_without_anybody_asking(tmp_path: Path, server: NatsServer) -> None:
    settings = settings_for(tmp_path / "data", server.url, RESOURCE, ENGINE)
    async with serving(RESOURCE, ENGINE, settings=settings) as client:
        await allocate(client, "eng-1-1")
        await allocate(client, "eng-1-2")
        await ask(client, "engine.end", {"process_id": "eng-1", "run": 1})

        async def freed() -> bool:
            return await names(client) == ["eng-1-2"]

        await until(freed)


async def test_an_engine_that_ended_while_we_were_away_holds_nothing_when_we_are_back(
    tmp_path: Path, server: NatsServer
) -> None:
    settings = settings_for(tmp_path / "data", server.url, RESOURCE, ENGINE)
    async with serving(RESOURCE, settings=settings) as client:
        await allocate(client, "eng-1-1")
    async with serving(ENGINE, settings=settings) as client:
        await ask(client, "engine.end", {"process_id": "eng-1", "run": 1})
    async with serving(RESOURCE, ENGINE, settings=settings) as client:

        async def freed() -> bool:
            return await names(client) == []

        await until(freed)


async def test_gpus_are_shared_out_as_they_are_found_and_lost(tmp_path: Path, server: NatsServer) -> None:
    settings = settings_for(tmp_path / "data", server.url, RESOURCE, DEVICE)
    async with serving(RESOURCE, DEVICE, settings=settings) as client:

        async def gpus() -> float:
            pool = (await ask(client, "resource.budget", {})).data["pools"].get("accelerator", {"total": 0})
            return float(pool["total"])

        async def there(count: int) -> None:
            async def so() -> bool:
                return await gpus() == count

            await until(so)

        for number in (0, 1, 1):
            await ask(client, "device.plug", {"number": number})
        await there(2)
        for name in ("a", "b"):
            await allocate(client, name, gpu_fraction=0.75)
        asked = {"name": "c", "type": "inference_native", "memory_bytes": 0, "gpu_fraction": 0.75}
        error = await refusal(client, "resource.allocate", asked)
        assert error.reason == "INSUFFICIENT_ACCELERATORS"
        assert error.details["missing"] == 0.25
        await ask(client, "device.plug", {"number": 1, "present": False})
        await there(1)


async def test_its_addresses_can_be_read(client: Client) -> None:
    await allocate(client, "a", 1000)

    async def read(uri: str) -> Any:
        return (await ask(client, "resource.read", {"uri": uri})).data["data"]

    assert [slot["name"] for slot in (await read("asms://resource/allocations"))["allocations"]] == ["a"]
    assert (await read("asms://resource/budget"))["reserved"] == 1000
    assert (await read("asms://resource/status"))["memory"]["reserved"] == 1000


async def test_slots_outlive_the_process(tmp_path: Path, server: NatsServer) -> None:
    settings = settings_for(tmp_path / "data", server.url, RESOURCE)
    async with serving(RESOURCE, settings=settings) as client:
        await allocate(client, "a", 1000)
    async with serving(RESOURCE, settings=settings) as client:
        assert await names(client) == ["a"]
        assert await allocate(client, "a", 1000) == "slot-a"
        events = (await ask(client, "resource.log", {"stream": "resource/test"})).data["events"]
        assert [event["type"] for event in events].count("resource.capacity_changed") == 1
