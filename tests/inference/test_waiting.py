"""Requests without a free replica, on a real bus: they wait, wake a sleeping service, or are refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from aima_core.bus.client import Client
from aima_core.domain import Domain, Outside
from aima_core.errors import (
    AimaError,
    Conflict,
    EngineNotRunning,
    InsufficientResources,
    NotFound,
    Timeout,
    Unavailable,
    ValidationFailed,
)
from aima_core.settings import Settings
from aima_core.testing import serving, settings_for, until
from aima_core.units import Command, Event, Query, Success, View
from services.inference.domain import INFERENCE
from services.inference.rules.breaker import TRIAL
from services.service import units as service
from tests.inference.conftest import Gated
from tests.inference.test_domain import MODELS, asked, cry, log, up
from tests.toys.asking import ask, refused
from tests.toys.machine import Machine
from tests.toys.services import CRIER, Say
from tests.toys.stateless import Nothing
from tests.toys.tables import made_again

CREATED = {
    "service_id": "svc-a",
    "name": "a",
    "model_id": "toy",
    "model_name": "Toy",
    "model_type": "llm",
    "engine": "",
    "device": "auto",
    "resource_class": "medium",
    "replicas": 1,
    "persistent": False,
    "port": None,
    "config": {},
    "idle_timeout": 0,
    "autoscale": None,
}
START: dict[str, Any] = {
    "replicas": 1,
    "run": 1,
    "engine": "toy",
    "config": {},
    "reason": "",
    "timeout": 300,
    "deadline": 0,
}
COMING: dict[str, Any] = {
    "replica": 0,
    "process_id": "p0",
    "node": "n",
    "endpoint": "",
    "status": "starting",
    "phase": "loading",
    "progress": 40,
    "message": "reading weights",
    "error": None,
    "error_code": None,
    "restarts": 0,
    "retry_at": None,
    "attempts": [],
}


class Crier:
    """A stand-in for the service domain: publishes given events, and answers starts, first with `refusals`."""

    def __init__(self, *refusals: AimaError) -> None:
        self.refusals = list(refusals)
        self.started: list[str] = []
        crier = self

        class Status(Outside[Nothing]):
            async def answer(self, query: Query[Any]) -> View:
                assert isinstance(query, service.GetStatus)
                return service.StatusView.model_validate(
                    {
                        "id": query.service_id,
                        "status": "starting",
                        "health": "starting",
                        "summary": "it starts",
                        "replicas": [COMING],
                        "error": None,
                    }
                )

        def decide(world: Any, command: Command[Any], call: Any) -> list[Event]:
            if isinstance(command, Say):
                return CRIER.decide(world, command, call)
            assert isinstance(command, service.StartService)
            assert not command.wait
            crier.started.append(command.service_id)
            if crier.refusals:
                raise crier.refusals.pop(0)
            return [service.StartRequested(service_id=command.service_id, tools=False, **START)]

        def reply(_: Any, command: Command[Any], __: Any) -> View:
            if isinstance(command, Say):
                return Success()
            return service.StartOutcome(success=True, status="starting", message="")

        self.domain: Domain[Nothing] = Domain(
            name="service",
            about="A crier.",
            state=Nothing,
            events=service.EVENTS,
            commands=(Say, service.StartService),
            queries=(service.GetStatus,),
            decide=decide,
            evolve=lambda *_: Nothing(),
            reply=reply,
            outside=Status,
        )


def settings(site: Machine, *domains: Domain[Any], queue: int = 64) -> Settings:
    return settings_for(site.folder, site.nats.url, *domains, environ={"AIMA_INFERENCE_QUEUE": str(queue)})


@asynccontextmanager
async def running(site: Machine, crier: Crier | None = None, *, queue: int = 64) -> AsyncIterator[Client]:
    """Serve the inference domain, and a stand-in of the service domain that has published one service."""
    domains = (MODELS, (crier or Crier()).domain, INFERENCE)
    async with serving(*domains, settings=settings(site, *domains, queue=queue)) as client:
        await cry(client, "created", **CREATED)
        yield client


async def load(client: Client) -> dict[str, Any]:
    (found,) = (await ask(client, "inference.load", service_id="svc-a"))["services"]
    return dict(found)


async def metrics(client: Client) -> dict[str, Any]:
    return dict(await ask(client, "inference.metrics", service_id="svc-a"))


async def shows(client: Client, **wanted: Any) -> dict[str, Any]:
    """Wait until the load has these values; return the load."""

    async def seen() -> dict[str, Any] | None:
        found = await load(client)
        return found if found | wanted == found else None

    found: dict[str, Any] = await until(seen)
    return found


async def breaker(client: Client, wanted: str) -> None:
    async def seen() -> bool:
        return bool((await load(client))["replicas"][0]["breaker"] == wanted)

    await until(seen)


async def starts(client: Client, **other: Any) -> None:
    await cry(client, "start_requested", **START, tools=False)


async def runs(client: Client, *endpoints: str, slots: int = 1) -> None:
    """Publish that the service runs, with one replica at each endpoint."""
    for number, endpoint in enumerate(endpoints):
        await up(client, endpoint, f"p{number}", replica=number, slots=slots)
    await cry(client, "started", replicas=len(endpoints), endpoints=list(endpoints), duration=1, status="running")


def chat(client: Client, *, within: float = 20, **more: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(ask(client, "inference.chat", within=within, **asked("x", **more)))


def kinds(found: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, str]]:
    return [(kind, data["process_id"]) for kind, data in found if kind.startswith("request_")]


# --- busy ---------------------------------------------------------------------------------------------------------


async def test_of_two_hundred_at_once_as_many_are_served_as_there_is_room_and_the_rest_told_when_to_come_back(
    site: Machine, gated: Gated
) -> None:
    first, second = await gated(), await gated()
    async with running(site, queue=20) as client:
        await runs(client, first.endpoint, second.endpoint, slots=2)
        await shows(client, phase="running")
        tasks = [chat(client) for _ in range(200)]
        refusals: list[Any] = []

        def turned_away() -> bool:
            refusals[:] = [task.exception() for task in tasks if task.done()]
            return len(refusals) == 176

        await until(turned_away)
        for refusal in refusals:
            assert isinstance(refusal, Unavailable)
            details = refusal.details
            assert (details["reason"], details["queued"], details["outstanding"]) == ("QUEUE_FULL", 20, 4)
            assert details["retry_after"] >= 1
            assert refusal.message == (
                "the queue of service svc-a is full: 20 requests wait, and inference.queue allows no more;"
                f" ask again in {details['retry_after']} s"
            )
        full = await shows(client, outstanding=4, queued=20)
        assert [(one["outstanding"], one["slots"]) for one in full["replicas"]] == [(2, 2), (2, 2)]
        await until(lambda: (len(first.held), len(second.held)) == (2, 2))
        first.all("answer")
        second.all("answer")
        answers = await asyncio.gather(*(task for task in tasks if not (task.done() and task.exception())))
        assert [answer["content"] for answer in answers] == ["yes"] * 24
        after = await shows(client, outstanding=0, queued=0, refused=176)
        told, happened = await metrics(client), await log(client)
        begun = [data for kind, data in happened if kind == "request_started"]
        completed = [data for kind, data in happened if kind == "request_completed"]
        assert len(begun) == len(completed) == told["total_requests"] == 24
        assert told["completion_tokens"] == sum(data["completion_tokens"] for data in completed) == 240
        assert sum(data["count"] for kind, data in happened if kind == "requests_refused") == 176
        assert (told["refused"], told["failed"], told["queued"], told["outstanding"]) == (176, 0, 0, 0)
        assert sum(one["total_requests"] for one in told["replicas"]) == 24
        assert max(data["concurrency"] for data in begun) == 2
        assert after["last_used"] == pytest.approx(
            max(data["started_at"] + ended["duration"] for data, ended in _pairs(begun, completed)), abs=1e-5
        )
    live, again = await made_again(site, INFERENCE)
    assert sum(row[5] for row in live["usage"]) == 176
    assert again == live


def _pairs(begun: list[Any], completed: list[Any]) -> list[tuple[Any, Any]]:
    by_id = {data["request_id"]: data for data in completed}
    return [(data, by_id[data["request_id"]]) for data in begun]


FULL_SLOT = " (1 of 1 slots in use)"
HOW = "ask again in 1 s, or wait for a replica with wait: true (over HTTP: Prefer: wait=60)"


async def test_who_does_not_want_to_wait_is_told_at_once_that_all_are_busy(site: Machine, gated: Gated) -> None:
    gate = await gated()
    async with running(site) as client:
        await runs(client, gate.endpoint)
        held = chat(client)
        await shows(client, outstanding=1)
        for unit, data in (("inference.chat", asked("x", wait=False)), ("inference.lease", {"model": "Toy"})):
            error = await refused(client, unit, **data)
            assert (type(error), error.reason, error.details["retry_after"]) == (Unavailable, "BUSY", 1)
            assert error.message == f"no replica for Toy: the only replica of service svc-a is busy{FULL_SLOT}; {HOW}"
        waiting = chat(client)
        await shows(client, queued=1)
        behind = await refused(client, "inference.lease", model="Toy")
        assert behind.reason == "BUSY"
        assert behind.message == (
            f"no replica for Toy: the only replica of service svc-a is busy{FULL_SLOT}; requests waiting: 1; {HOW}"
        )
        gate.all("answer")
        assert [(await held)["content"], (await waiting)["content"]] == ["yes", "yes"]
        await shows(client, refused=3)


async def test_who_runs_out_of_time_while_waiting_has_been_refused_and_who_goes_away_has_not(
    site: Machine, gated: Gated
) -> None:
    gate = await gated()
    async with running(site) as client:
        await runs(client, gate.endpoint)
        held = chat(client)
        await shows(client, outstanding=1)
        late = await refused(client, "inference.chat", within=0.3, **asked("x"))
        assert (type(late), late.message) == (
            Timeout,
            "inference.chat timed out after 0.3 s: no replica for Toy: the only replica of service svc-a is busy"
            " (1 of 1 slots in use)",
        )
        await shows(client, queued=0, outstanding=1, refused=1)
        leaving = client.stream("inference.chat", asked("x"), timeout=60)
        assert await anext(leaving) == {"waiting": {"reason": "BUSY", "queued": 1}}
        await shows(client, queued=1)
        await leaving.aclose()  # type: ignore[attr-defined]  # it is a generator
        await shows(client, queued=0, outstanding=1, refused=1)
        gate.all("answer")
        await held
        assert kinds(await log(client)) == [("request_started", "p0"), ("request_completed", "p0")]
    live, _ = await made_again(site, INFERENCE)  # by its end it has recorded all that it counted
    assert sum(row[5] for row in live["usage"]) == 1


async def test_who_wants_parts_is_told_what_a_request_or_a_lease_waits_for_and_then_the_answer(
    site: Machine, gated: Gated
) -> None:
    gate = await gated()
    async with running(site) as client:
        await starts(client)
        answers = client.stream("inference.chat", asked("x"), timeout=20)
        leases = client.stream("inference.lease", {"model": "a", "wait": True}, timeout=20)
        first, second = await asyncio.gather(anext(answers), anext(leases))
        assert first == second == {"waiting": {"reason": "LOADING", "queued": 2}}
        assert await anext(answers) == first
        await runs(client, gate.endpoint, slots=2)
        gate.all("answer")
        *_, part, answer = [part async for part in answers]
        assert (part, answer.data["content"]) == ({"content": "yes"}, "yes")
        *parts, lease = [part async for part in leases]
        assert lease.data["endpoint"] == gate.endpoint
        assert parts in ([{"lease": lease.data}], [first, {"lease": lease.data}])


async def test_whenever_callers_give_up_no_request_of_theirs_is_left_under_way(site: Machine, gated: Gated) -> None:
    gate = await gated()
    async with running(site, queue=100) as client:
        await runs(client, gate.endpoint, slots=3)
        await shows(client, phase="running")
        tasks = [chat(client, within=0.001 + number / 2000) for number in range(80)]
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(one) for one in ended} == {Timeout}
        await shows(client, queued=0, outstanding=0)
        happened = kinds(await log(client))
        started, failed = (
            [one for one in happened if one[0] == kind] for kind in ("request_started", "request_failed")
        )
        assert len(started) == len(failed)
        gate.all("answer")
        assert (await chat(client))["content"] == "yes"


async def test_a_lease_whose_turn_comes_just_after_its_client_has_vanished_is_given_back(site: Machine) -> None:
    async with running(site, queue=100) as client:
        await runs(client, "http://127.0.0.1:9", slots=3)
        await shows(client, phase="running")
        held = [await ask(client, "inference.lease", model="Toy", timeout=600) for _ in range(3)]
        asked = {"model": "Toy", "queue": True, "timeout": 600}
        waiting = [asyncio.create_task(_parts(client.stream("inference.lease", asked, timeout=60))) for _ in range(30)]
        await shows(client, queued=30, outstanding=3)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for lease in held:
            await ask(client, "inference.settle", request_id=lease["request_id"], outcome="completed")
        await shows(client, queued=0, outstanding=0)
        ended = [data["error_code"] for kind, data in await log(client) if kind == "request_failed"]
        assert set(ended) == {"CANCELLED"}


async def _parts(stream: AsyncGenerator[Any, None]) -> list[Any]:
    async with aclosing(stream) as parts:
        return [part async for part in parts]


async def test_a_lease_that_nobody_heard_of_is_given_back(site: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "aima_core.bus.client._GRACE", 60.0
    )  # seconds: whatever is answered is heard, on the slowest machine
    async with running(site) as client:
        await runs(client, "http://127.0.0.1:9", slots=0)
        await shows(client, phase="running")
        asking = [
            ask(client, "inference.lease", within=0.0005 + number / 5000, model="Toy", wait=True, timeout=600)
            for number in range(100)
        ]
        ended = await asyncio.gather(*asking, return_exceptions=True)
        given = [one for one in ended if not isinstance(one, Timeout)]
        assert (await shows(client, queued=0, outstanding=len(given)))["refused"] == 0


async def test_a_lease_is_waited_for_planned_and_given_once_for_a_key(site: Machine, gated: Gated) -> None:
    async with running(site) as client:
        await runs(client, "http://127.0.0.1:9", slots=2)
        await shows(client, phase="running")

        async def lease(**headers: str) -> Any:
            data = {"model": "Toy", "wait": True, "timeout": 60}
            given = await client.nc.request("aima.inference.lease", json.dumps(data).encode(), 20, headers=headers)
            return json.loads(given.data)["data"]

        planned = await lease(**{"Aima-Dry-Run": "true"})
        assert [event["type"] for event in planned["events"]] == ["inference.request_started"]
        first = await lease(**{"Aima-Idempotency-Key": "k"})
        assert await lease(**{"Aima-Idempotency-Key": "k"}) == first
        await ask(client, "inference.lease", model="Toy")
        third = asyncio.create_task(lease())
        await shows(client, queued=1, outstanding=2)
        await ask(client, "inference.settle", request_id=first["request_id"], outcome="completed")
        assert (await third)["request_id"] != first["request_id"]
        await shows(client, queued=0, outstanding=2)


async def test_a_lease_that_only_probes_is_no_refusal_and_one_that_queues_waits_for_a_busy_model(
    site: Machine, gated: Gated
) -> None:
    gate = await gated()
    async with running(site) as client:
        await runs(client, gate.endpoint)
        held = chat(client)
        await shows(client, outstanding=1)
        assert (await refused(client, "inference.lease", model="Toy", probe=True)).reason == "BUSY"
        assert (await refused(client, "inference.lease", model="none", probe=True)).reason == "BUSY"  # asks nobody
        assert isinstance(await refused(client, "inference.lease", model="none"), NotFound)
        queueing = asyncio.create_task(ask(client, "inference.lease", model="Toy", type="vlm,llm", queue=True))
        await shows(client, queued=1)
        gate.all("answer")
        await held
        assert (await queueing)["process_id"] == "p0"
        await shows(client, queued=0, outstanding=1, refused=0)


async def test_a_lease_that_queues_does_not_wait_for_a_model_that_is_loading(site: Machine) -> None:
    async with running(site) as client:
        await starts(client)
        assert (await refused(client, "inference.lease", model="Toy", queue=True)).reason == "LOADING"
        await shows(client, queued=0, refused=1)


async def test_a_lease_avoids_the_replica_that_has_just_failed_it_while_there_is_another(site: Machine) -> None:
    async with running(site) as client:
        await runs(client, "http://127.0.0.1:9", "http://127.0.0.1:10", slots=0)
        await shows(client, phase="running")
        for avoided, other in (("p0", "p1"), ("p1", "p0")):
            for _ in range(2):  # also where the other one has more to do
                given = await ask(client, "inference.lease", model="Toy", avoid=avoided)
                assert given["process_id"] == other


# --- loading ------------------------------------------------------------------------------------------------------


async def test_a_request_waits_until_the_model_is_loaded(site: Machine, gated: Gated) -> None:
    gate = await gated()
    gate.all("answer")
    async with running(site) as client:
        await starts(client)
        tasks = [chat(client), asyncio.create_task(ask(client, "inference.lease", model="a", wait=True))]
        await shows(client, phase="starting", queued=2)
        await runs(client, gate.endpoint, slots=2)
        answer, lease = await asyncio.gather(*tasks)
        assert (answer["content"], lease["endpoint"]) == ("yes", gate.endpoint)


async def test_who_does_not_want_to_wait_is_told_how_far_it_is(site: Machine) -> None:
    async with running(site) as client:
        await starts(client)
        error = await refused(client, "inference.chat", **asked("x", wait=False))
        assert type(error) is Unavailable
        assert error.message == (
            "no replica for Toy: service svc-a is starting and has no running replica yet (40 %: reading weights);"
            f" {HOW}"
        )
        assert error.details.pop("retry_after") >= 1
        assert error.details == {
            "reason": "LOADING",
            "model": "Toy",
            "queued": 0,
            "outstanding": 0,
            "phase": "loading",
            "progress": 40,
            "message": "reading weights",
        }
        await shows(client, refused=1)


async def test_a_service_that_fails_tells_those_who_wait_for_it(site: Machine) -> None:
    async with running(site) as client:
        await starts(client)
        tasks = [chat(client) for _ in range(3)]
        await shows(client, queued=3)
        await cry(client, "failed", error="there is not enough memory", error_code="OUT_OF_MEMORY")
        for task in tasks:
            with pytest.raises(EngineNotRunning) as failed:
                await task
            assert "svc-a has failed: there is not enough memory; see service.status" in failed.value.message
            assert failed.value.details["error_code"] == "OUT_OF_MEMORY"
        assert await shows(client, queued=0, phase="failed")
        late = await refused(client, "inference.chat", **asked("x"))
        assert isinstance(late, EngineNotRunning)
        await shows(client, refused=3)  # those who have waited
        (model,) = (await ask(client, "inference.models"))["models"]
        assert (model["id"], model["status"]) == ("toy", "unavailable")


async def test_a_service_that_is_deleted_is_known_to_nobody(site: Machine) -> None:
    async with running(site) as client:
        assert (await metrics(client))["total_requests"] == 0
        await cry(client, "deleted")

        async def gone() -> bool:
            return bool((await ask(client, "inference.load")) == {"services": []})

        await until(gone)
        assert isinstance(await refused(client, "inference.metrics", service_id="svc-a"), NotFound)
        assert await ask(client, "inference.load", service_id="svc-a") == {"services": []}
        assert await ask(client, "inference.models") == {"models": []}


# --- asleep -------------------------------------------------------------------------------------------------------


async def sleeps(client: Client) -> None:
    await cry(client, "stop_requested", force=False, asleep=True)
    await shows(client, phase="asleep")


async def test_the_first_request_wakes_a_service_once_for_all_who_wait(site: Machine, gated: Gated) -> None:
    gate, crier = await gated(), Crier(Conflict("it is stopping", reason="STOPPING"))
    gate.all("answer")
    async with running(site, crier) as client:
        await sleeps(client)
        tasks = [chat(client) for _ in range(3)]
        await shows(client, phase="starting", queued=3)
        await runs(client, gate.endpoint)
        assert [answer["content"] for answer in await asyncio.gather(*tasks)] == ["yes"] * 3
        assert crier.started == ["svc-a", "svc-a"]  # it was still going to sleep at the first time


async def test_also_who_does_not_want_to_wait_wakes_it(site: Machine) -> None:
    crier = Crier()
    async with running(site, crier) as client:
        await sleeps(client)
        assert (await refused(client, "inference.chat", **asked("x", wait=False))).reason == "LOADING"
        await shows(client, phase="starting", queued=0)
        assert crier.started == ["svc-a"]


async def test_a_service_that_cannot_be_woken_tells_all_who_wait_why(site: Machine) -> None:
    crier = Crier(EngineNotRunning("no engine takes this format", reason="NO_ENGINE", format="x"))
    async with running(site, crier) as client:
        await sleeps(client)
        for task in [chat(client) for _ in range(3)]:
            with pytest.raises(EngineNotRunning) as told:
                await task
            assert told.value.details == {"reason": "NO_ENGINE", "format": "x"}
        assert await shows(client, queued=0, refused=3)


async def test_where_one_service_cannot_be_woken_the_next_is(site: Machine, gated: Gated) -> None:
    gate, crier = await gated(), Crier(EngineNotRunning("no engine"), EngineNotRunning("no engine"))
    gate.all("answer")
    async with running(site, crier) as client:
        await cry(client, "created", **CREATED | {"service_id": "svc-b", "name": "b"})
        for ident in ("svc-a", "svc-b"):
            await cry(client, "stop_requested", force=False, asleep=True, service_id=ident)
        await shows(client, phase="asleep")
        with pytest.raises(EngineNotRunning):
            await chat(client)
        assert crier.started == ["svc-a", "svc-b"]
        task = chat(client)
        await until(lambda: len(crier.started) == 3)
        await runs(client, gate.endpoint)
        assert (await task)["content"] == "yes"


async def test_a_service_that_another_may_stand_in_for_ends_nobodys_waiting(site: Machine, gated: Gated) -> None:
    gate, crier = await gated(), Crier(EngineNotRunning("no engine"))
    gate.all("answer")
    async with running(site, crier) as client:
        await cry(client, "created", **CREATED | {"service_id": "svc-b", "name": "b"})
        for ident in ("svc-a", "svc-b"):
            await cry(client, "stop_requested", force=False, asleep=True, service_id=ident)
        await shows(client, phase="asleep")
        task = chat(client)
        await until(lambda: crier.started == ["svc-a", "svc-b"])
        await up(client, gate.endpoint, "q0", service_id="svc-b", service_name="b")
        assert (await task)["content"] == "yes"


FULL = InsufficientResources("5 bytes are missing", reason="INSUFFICIENT_MEMORY", missing=5)


async def test_a_service_for_which_there_is_no_room_is_asked_for_until_there_is(site: Machine, gated: Gated) -> None:
    gate, crier = await gated(), Crier(FULL, FULL)
    gate.all("answer")
    async with running(site, crier) as client:
        await sleeps(client)
        tasks = [chat(client), chat(client)]
        await until(lambda: crier.started == ["svc-a"] * 3)
        await runs(client, gate.endpoint)
        assert [answer["content"] for answer in await asyncio.gather(*tasks)] == ["yes", "yes"]
        await shows(client, refused=0)


async def test_who_gets_no_room_in_time_or_does_not_want_to_wait_is_told_what_is_missing(site: Machine) -> None:
    crier = Crier(*[FULL] * 20)
    async with running(site, crier) as client:
        await sleeps(client)
        error = await refused(client, "inference.chat", **asked("x", wait=False))
        assert (type(error), error.reason) == (Unavailable, "LOADING")
        assert (error.details["phase"], error.details["message"]) == ("asleep", "5 bytes are missing")
        assert crier.started == ["svc-a"]  # nobody waits
        late = await refused(client, "inference.chat", within=1.5, **asked("x"))
        assert (type(late), late.message) == (
            Timeout,
            "inference.chat timed out after 1.5 s: service svc-a cannot be woken: 5 bytes are missing",
        )
        await shows(client, queued=0, refused=2)
        asked_for = len(crier.started)
        await until(lambda: not any(task.get_name() == "wake svc-a" for task in asyncio.all_tasks()))
        assert len(crier.started) == asked_for > 1  # no more, now that nobody waits


async def test_it_is_asked_until_it_answers_while_somebody_waits(site: Machine, gated: Gated) -> None:
    gate, crier = await gated(), Crier()
    gate.all("answer")
    crier_settings = settings(site, crier.domain)
    async with serving(INFERENCE, settings=settings(site, INFERENCE)) as client:
        async with serving(crier.domain, settings=crier_settings):
            await cry(client, "created", **CREATED)
            await sleeps(client)
        task = chat(client)
        await shows(client, queued=1)
        async with serving(crier.domain, settings=crier_settings):
            await shows(client, phase="starting")
            await runs(client, gate.endpoint)
            assert (await task)["content"] == "yes"
        assert crier.started == ["svc-a"]


# --- engines that fail --------------------------------------------------------------------------------------------


async def test_failures_and_a_failed_trial_keep_requests_away_until_one_succeeds(site: Machine, gated: Gated) -> None:
    gate = await gated()
    gate.all("break")
    async with running(site) as client:
        await runs(client, gate.endpoint, slots=0)
        for _ in range(2):
            assert (await refused(client, "inference.chat", **asked("x"))).reason == "ENGINE_FAILED"
        await breaker(client, "open")
        gate.always = ""
        waiting = [chat(client), chat(client)]
        await shows(client, queued=2)
        error = await refused(client, "inference.chat", **asked("x", wait=False))
        assert (error.reason, error.details["retry_after"]) == ("OPEN", 5)
        await until(lambda: len(gate.held) == 5)  # two requests and three trials
        found = await load(client)
        assert (found["outstanding"], found["queued"], found["replicas"][0]["breaker"]) == (1, 2, "half_open")
        gate.all("answer")
        await asyncio.gather(*waiting)
        await breaker(client, "closed")
    clients = {
        data["request_id"]: data["client"] for kind, data in await _closed_log(site) if kind == "request_started"
    }
    failed = [clients[data["request_id"]] for kind, data in await _closed_log(site) if kind == "request_failed"]
    assert failed == ["", TRIAL] * 2


async def test_a_request_that_the_engine_fails_while_it_answers_others_is_the_callers_fault(
    site: Machine, gated: Gated
) -> None:
    gate = await gated()
    gate.fails, gate.always = b"bad", "answer"
    async with running(site) as client:
        await runs(client, gate.endpoint, slots=0)
        for _ in range(5):
            error = await refused(client, "inference.chat", **asked("bad"))
            assert (type(error), error.reason, error.details["status"]) == (ValidationFailed, "REQUEST_FAILED", 500)
            assert (await ask(client, "inference.chat", **asked("good")))["content"] == "yes"
        found = await load(client)
        assert (found["refused"], found["replicas"][0]["breaker"]) == (0, "closed")


async def test_a_trial_tells_whether_a_replica_answers(site: Machine, gated: Gated, saying: Any) -> None:
    gate, refusing = await gated(), await saying(b'{"error": "no template"}', status="400 Bad")
    gate.all("answer")
    async with running(site) as client:
        await runs(client, gate.endpoint, refusing)
        await shows(client, phase="running")
        for process_id in ("p0", "p1"):
            result = await ask(client, "inference.try_replica", process_id=process_id)
            assert (result["process_id"], result["answered"], result["error"]) == (process_id, True, "")
            assert result["seconds"] > 0
        gate.all("hang up")
        recent = await ask(client, "inference.try_replica", process_id="p0", max_age=60)
        assert (recent["answered"], recent["seconds"]) == (True, 0.0)
        now = await ask(client, "inference.try_replica", process_id="p0")
        assert (now["answered"], now["error"]) == (False, "the engine closed the connection")
        assert (await refused(client, "inference.try_replica", process_id="p9")).reason == "REPLICA_NOT_FOUND"


async def _closed_log(site: Machine) -> list[tuple[str, dict[str, Any]]]:
    async with serving(INFERENCE, settings=settings(site, INFERENCE)) as client:
        return await log(client)


async def test_an_engine_that_says_nothing_is_blamed_and_an_impatient_caller_is_not(
    site: Machine, gated: Gated
) -> None:
    gate = await gated()
    async with running(site) as client:
        await runs(client, gate.endpoint, slots=0)
        await shows(client, phase="running")
        for task in [chat(client, within=0.3) for _ in range(3)]:
            with pytest.raises(Timeout):
                await task
        await breaker(client, "closed")
        for task in [chat(client, within=5.3, stream=True) for _ in range(3)]:
            with pytest.raises(Timeout):
                await task
        await until(lambda: len(gate.held) == 7)  # the seventh is a trial
        gate.all("break")
        await breaker(client, "open")
        codes = [data["error_code"] for kind, data in await log(client) if kind == "request_failed"]
        assert codes == ["TIMEOUT"] * 3 + ["NO_ANSWER"] * 3 + ["ENGINE_FAILED"]
        assert (await metrics(client))["refused"] == 0


async def test_only_a_gateway_is_believed_when_it_says_that_a_replica_failed_what_it_leased(site: Machine) -> None:
    async with running(site) as client:
        await runs(client, "http://127.0.0.1:9", slots=0)
        await shows(client, phase="running")
        for holder, wanted in (({}, "closed"), ({"holder": "gateway-0123456789abcdef"}, "open")):
            for _ in range(3):
                lease = await ask(client, "inference.lease", model="Toy", timeout=600, **holder)
                said = {"request_id": lease["request_id"], "outcome": "failed", "error_code": "ENGINE_GONE"}
                await ask(client, "inference.settle", **said)
            await breaker(client, wanted)
        codes = [data["error_code"] for kind, data in await log(client) if kind == "request_failed"]
        assert codes == ["CALLER_FAILED"] * 3 + ["ENGINE_GONE"] * 3 + ["ENGINE_UNREACHABLE"]  # the last is a trial's
        assert type(await refused(client, "inference.lease", model="Toy", holder="ours")) is ValidationFailed


async def test_a_request_that_the_engine_refuses_blames_nobody(site: Machine, saying: Any) -> None:
    endpoint = await saying(b'{"error": "no"}', status="404 Not Found")
    async with running(site) as client:
        await runs(client, endpoint)
        for _ in range(4):
            assert (await refused(client, "inference.chat", **asked("x"))).reason == "ENGINE_REFUSED"
        await breaker(client, "closed")


async def test_the_only_replica_is_tried_again_a_moment_after_it_has_hung_up(site: Machine, gated: Gated) -> None:
    gate = await gated()
    async with running(site) as client:
        await runs(client, gate.endpoint)
        task = chat(client)
        await until(lambda: gate.held)
        gate.held[0].set_result("hang up")
        gate.always = "answer"
        assert (await task)["content"] == "yes"
        assert kinds(await log(client)) == [
            ("request_started", "p0"),
            ("request_failed", "p0"),
            ("request_started", "p0"),
            ("request_completed", "p0"),
        ]


async def test_a_replica_in_place_of_one_that_has_died_is_waited_for(site: Machine, gated: Gated) -> None:
    dying, healed = await gated(), await gated()
    healed.all("answer")
    async with running(site) as client:
        await runs(client, dying.endpoint)
        task = chat(client)
        await until(lambda: dying.held)
        await cry(client, "replica_failed", replica=0, process_id="p0", error="e", error_code="E", attempt=1)
        (left,) = (await shows(client, outstanding=1))["replicas"]
        assert (left["process_id"], left["outstanding"], left["slots"], left["healthy"]) == ("p0", 1, 0, False)
        dying.all("hang up")
        await shows(client, queued=1, outstanding=0)
        await up(client, healed.endpoint, "p1")
        assert (await task)["content"] == "yes"
        assert kinds(await log(client))[-1] == ("request_completed", "p1")


async def test_a_replica_that_leaves_finishes_what_it_has_and_gets_no_more(site: Machine, gated: Gated) -> None:
    leaving, other = await gated(), await gated()
    other.all("answer")
    async with running(site) as client:
        await runs(client, leaving.endpoint)
        task = chat(client)
        await until(lambda: leaving.held)
        await cry(client, "replica_leaving", replica=0, process_id="p0", reason="scaled")
        found = await load(client)  # as of what the service domain has just said
        assert [(one["process_id"], one["outstanding"], one["slots"]) for one in found["replicas"]] == [("p0", 1, 0)]
        await up(client, other.endpoint, "p1", replica=1)
        assert (await chat(client))["content"] == "yes"
        leaving.all("answer")
        assert (await task)["content"] == "yes"
        last = await load(client)
        assert [(one["process_id"], one["outstanding"]) for one in last["replicas"]] == [("p1", 0)]


# --- figures ------------------------------------------------------------------------------------------------------


async def test_percentiles_and_speeds_are_those_of_the_events(site: Machine, gated: Gated) -> None:
    gate = await gated()
    gate.all("answer")
    async with running(site) as client:
        await runs(client, gate.endpoint, slots=4)
        await asyncio.gather(*(chat(client) for _ in range(40)))
        lease = await ask(client, "inference.lease", model="Toy")
        usage = {"prompt_tokens": 1, "completion_tokens": 10}
        said = {"request_id": lease["request_id"], "outcome": "completed", "usage": usage}
        await ask(client, "inference.settle", **said, time_to_first_token=0.25)
        completed = [data for kind, data in await log(client) if kind == "request_completed"]
        durations = sorted(data["duration"] for data in completed)
        told = await metrics(client)
        assert told["latency_p50"] == pytest.approx(durations[20], rel=0.011)
        assert told["latency_p99"] == pytest.approx(durations[39], rel=0.011)
        firsts = sorted(data["time_to_first_token"] for data in completed)
        assert told["time_to_first_token_p50"] == pytest.approx(firsts[20], rel=0.011)
        assert told["time_to_first_token_p99"] == pytest.approx(firsts[39], rel=0.011)
        assert told["requests_per_second"] == pytest.approx(41 / 60)
        assert told["tokens_per_second"] == pytest.approx(410 / 60)
        speeds = (await ask(client, "inference.speeds", model_id="toy"))["speeds"]
        assert {(one["engine"], one["device"], one["slots"]) for one in speeds} == {("toy", "", 4)}
        assert {one["concurrency"] for one in speeds} == {data["concurrency"] for data in completed}
        for one in speeds:
            # of a lease that says its first token came after the answer, there is no speed
            beside = [
                data["duration"] - data["time_to_first_token"]
                for data in completed
                if data["concurrency"] == one["concurrency"] and data["duration"] > data["time_to_first_token"]
            ]
            assert one["requests"] == len(beside)
            assert one["tokens_per_second"] == pytest.approx(10 * len(beside) / sum(beside))
        assert (await ask(client, "inference.speeds", model_id="nix")) == {"speeds": []}
