"""The real inference domain on a real bus, with stand-ins for the service domain and for engines."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

from aima_core.bus.client import Answer, Client
from aima_core.errors import EngineNotRunning, NotFound, Timeout, Unavailable, ValidationFailed
from aima_core.testing import serving, until
from services.inference.domain import INFERENCE
from services.inference.outside.engine_requests import REQUEST_KINDS
from tests.inference.conftest import Gated, Real, StandIn, Start
from tests.toys.asking import ask, events, refused
from tests.toys.machine import Machine
from tests.toys.models import model_view, shelf
from tests.toys.services import CRIER, REPLICA
from tests.toys.tables import made_again

SECRET = "xyzzy4711"
FAILED = {"status": "error", "error": "no such package", "source": "package", "repo": "gone"}
MODELS = shelf(
    model_view("Toy"),
    model_view("Voice", type="tts"),
    model_view("Gone", path="", type="", format="", **FAILED),
    model_view("Damaged", **FAILED),
)
ALL = (MODELS, CRIER, INFERENCE)


@pytest.fixture
async def client(site: Machine) -> AsyncIterator[Client]:
    async with serving(*ALL, settings=site.settings(*ALL)) as client:
        yield client


async def up(client: Client, endpoint: str, process_id: str = "p0", **other: Any) -> None:
    """Let the stand-in of the service domain publish that a replica has started at an endpoint."""
    data = REPLICA | {"process_id": process_id, "endpoint": endpoint}
    await ask(client, "service.say", type="service.replica_started", data=data | other)


async def cry(client: Client, event: str, **data: Any) -> None:
    await ask(client, "service.say", type=f"service.{event}", data={"service_id": "svc-a"} | data)


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "Toy", "messages": [{"role": "user", "content": text}]} | more


async def stream(client: Client, unit: str, data: dict[str, Any]) -> list[Any]:
    """Return the parts of an answer and the answer itself."""
    return [part.data if isinstance(part, Answer) else part async for part in client.stream(unit, data, timeout=20)]


async def log(client: Client) -> list[tuple[str, dict[str, Any]]]:
    return [(event["type"].partition(".")[2], event["data"]) for event in await events(client, "inference")]


async def ended(client: Client, kind: str) -> dict[str, Any]:
    """Wait until the last event in the log is of a kind; return its data."""

    async def seen() -> dict[str, Any] | None:
        found = await log(client)
        return found[-1][1] if found and found[-1][0] == kind else None

    found: dict[str, Any] = await until(seen)
    return found


async def served(client: Client) -> dict[str, Any]:
    (model,) = (await ask(client, "inference.models"))["models"]
    found: dict[str, Any] = model["services"][0]
    return found


async def outstanding(client: Client, wanted: int) -> None:
    async def seen() -> bool:
        return bool((await served(client))["outstanding"] == wanted)

    await until(seen)


async def replicas(client: Client, wanted: int) -> None:
    async def seen() -> bool:
        models = (await ask(client, "inference.models"))["models"]
        return bool(sum(service["replicas"] for model in models for service in model["services"]) == wanted)

    await until(seen)


def connected(engine: StandIn) -> bool:
    connections = psutil.Process(engine.process.pid).net_connections("tcp")
    return any(connection.status == psutil.CONN_ESTABLISHED for connection in connections)


async def test_a_question_asked_right_after_the_news_of_a_replica_is_answered(client: Client, stand_in: Start) -> None:
    engine = await stand_in()
    await up(client, engine.endpoint)
    answer = await ask(client, "inference.chat", **asked("good day", max_tokens=3))
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    ident = answer.pop("id")
    assert answer == {
        "content": "echo: good day",
        "finish_reason": "stop",
        "tool_calls": None,
        "usage": usage,
        "model": "toy",
    }
    for name in ("toy", "Toy", "a", "svc-a"):
        parts = await stream(client, "inference.chat", asked("good day", model=name, max_tokens=2, stream=True))
        assert parts[:-1] == [{"content": "echo:"}, {"content": " good"}]
        assert parts[-1]["content"] == "echo: good"
    whole = await ask(client, "inference.complete", model="toy", prompt="one two", max_tokens=2)
    assert whole["text"] == "echo: one"
    parts = await stream(client, "inference.complete", {"model": "toy", "prompt": "one", "max_tokens": 2})
    assert parts == [
        {"text": "echo:"},
        {"text": " one"},
        {
            "text": "echo: one",
            "finish_reason": "stop",
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        },
    ]
    wrong = await refused(client, "inference.embed", model="toy", input="x")
    assert (type(wrong), wrong.message) == (ValidationFailed, "model: toy is of type llm; this request needs embedding")
    await up(client, engine.endpoint, "q0", service_id="svc-b", service_name="b", model_id="e", model_type="embedding")
    vectors = await ask(client, "inference.embed", model="e", input=["ab", "c"])
    assert vectors["embeddings"] == [[2.0, 0.0, 1.0], [1.0, 1.0, 1.0]]
    first = (await log(client))[1:3]
    assert [(kind, data["request_id"]) for kind, data in first] == [
        ("request_started", ident),
        ("request_completed", ident),
    ]
    assert 0 < first[1][1]["time_to_first_token"] <= first[1][1]["duration"]


async def test_what_nobody_serves_is_refused_with_what_would_help(client: Client) -> None:
    unknown = await refused(client, "inference.chat", **asked("x", model="nix"))
    assert (type(unknown), unknown.reason) == (NotFound, "MODEL_NOT_FOUND")
    idle = await refused(client, "inference.chat", **asked("x"))
    assert isinstance(idle, EngineNotRunning)
    assert idle.message == (
        "no running replica serves Toy: it has no service;"
        " create one with service.create and start it with service.start"
    )
    examples = {unit.spec.name: {**unit.spec.examples[0], "model": "Voice"} for unit in REQUEST_KINDS}
    for unit, data in examples.items():
        error = await refused(client, unit, **data)
        assert (type(error), error.reason) == (EngineNotRunning, "NO_SERVICE"), unit
        error = await refused(client, unit, **{**data, "model": "nix"})
        assert isinstance(error, NotFound), unit
    for unit in ("inference.lease",):
        assert isinstance(await refused(client, unit, model="nix"), NotFound)
        assert isinstance(await refused(client, unit, model="Toy"), EngineNotRunning)
    bad = await refused(client, "inference.chat", model="", messages=[{"role": "judge", "content": "x"}], top_p=2)
    assert [field["field"] for field in bad.details["fields"]] == ["model", "messages.0.role", "top_p"]
    assert await ask(client, "inference.models") == {"models": []}
    assert await ask(client, "inference.voices") == {"voices": []}
    assert await log(client) == []


async def test_a_model_whose_pull_has_failed_is_not_there_unless_it_was_before(client: Client) -> None:
    for unit, data in (("inference.chat", asked("x", model="Gone")), ("inference.lease", {"model": "gone"})):
        error = await refused(client, unit, **data)
        assert (type(error), error.reason) == (NotFound, "MODEL_NOT_FOUND")
        assert error.message == (
            "model gone has no files, because its pull has failed: no such package;"
            " try again: aima call model.pull source=package repo=gone"
        )
        damaged = await refused(client, unit, **{**data, "model": "Damaged"})
        assert (type(damaged), damaged.reason) == (EngineNotRunning, "NO_SERVICE")


async def test_without_the_other_domains_a_request_is_refused_soon(site: Machine) -> None:
    async with serving(INFERENCE, settings=site.settings(INFERENCE)) as client:
        error = await refused(client, "inference.chat", within=5, **asked("x"))
        assert isinstance(error, EngineNotRunning)


async def test_requests_go_where_the_fewest_are_under_way_and_never_to_the_unwell(
    client: Client, stand_in: Start
) -> None:
    first, second = await stand_in("--sleep-per-request", "1.5"), await stand_in("--sleep-per-request", "1.5")
    await up(client, first.endpoint, "p0")
    await up(client, second.endpoint, "p1", replica=1)
    await replicas(client, 2)
    await asyncio.gather(*(ask(client, "inference.chat", **asked("x")) for _ in range(4)))
    assert (len(first.asked()), len(second.asked())) == (2, 2)
    await cry(client, "replica_health_changed", replica=0, process_id="p0", status="unhealthy")

    await replicas(client, 1)
    await asyncio.gather(*(ask(client, "inference.chat", **asked("x")) for _ in range(2)))
    assert (len(first.asked()), len(second.asked())) == (2, 4)
    await cry(client, "stop_requested", force=False)

    async def closed() -> bool:
        return bool((await ask(client, "inference.models"))["models"] == [])

    await until(closed)
    assert isinstance(await refused(client, "inference.chat", **asked("x")), EngineNotRunning)


async def test_an_engine_that_is_gone_before_the_first_byte_is_no_loss_while_there_is_another(
    client: Client, stand_in: Start
) -> None:
    dead, alive = await stand_in(), await stand_in()
    await up(client, dead.endpoint, "p0")
    await up(client, alive.endpoint, "p1", replica=1)
    dead.kill()
    answer = await ask(client, "inference.chat", **asked("good day", max_tokens=2))
    assert answer["content"] == "echo: good"
    requests = [(kind, data["process_id"]) for kind, data in await log(client) if kind.startswith("request")]
    assert requests == [
        ("request_started", "p0"),
        ("request_failed", "p0"),
        ("request_started", "p1"),
        ("request_completed", "p1"),
    ]
    alive.kill()
    error = await refused(client, "inference.chat", **asked("x"))
    assert isinstance(error, Unavailable)
    assert error.details == {"reason": "ENGINE_GONE", "begun": False}


async def test_an_engine_that_dies_in_the_middle_of_an_answer_nobody_watches_is_no_loss_while_there_is_another(
    client: Client, gated: Gated
) -> None:
    dying, other = await gated(), await gated()
    dying.all("break off")
    other.all("answer")
    await up(client, dying.endpoint, "p0")
    await up(client, other.endpoint, "p1", replica=1)
    answer = await ask(client, "inference.chat", **asked("x"))
    assert (answer["content"], answer["usage"]["completion_tokens"]) == ("yes", 10)
    requests = [(kind, data["process_id"]) for kind, data in await log(client) if kind.startswith("request")]
    assert requests == [
        ("request_started", "p0"),
        ("request_failed", "p0"),
        ("request_started", "p1"),
        ("request_completed", "p1"),
    ]
    other.all("break off")
    error = await refused(client, "inference.chat", **asked("x"))
    assert isinstance(error, Unavailable)
    assert error.details == {"reason": "ENGINE_GONE", "begun": True}


async def test_an_engine_that_dies_in_the_middle_of_an_answer_is_told_and_not_asked_again_elsewhere(
    client: Client, stand_in: Start
) -> None:
    dying, other = await stand_in("--token-delay", "1", "--tokens", "50"), await stand_in()
    await up(client, dying.endpoint, "p0")
    await up(client, other.endpoint, "p1", replica=1)
    answers = client.stream("inference.chat", asked("good day"), timeout=20)
    assert await anext(answers) == {"content": "echo:"}
    dying.kill()
    with pytest.raises(Unavailable) as gone:
        await anext(answers)
    assert gone.value.details == {"reason": "ENGINE_GONE", "begun": True}
    failed = await ended(client, "request_failed")
    assert (failed["error"], failed["error_code"]) == ("the engine closed the connection", "ENGINE_GONE")
    assert other.asked() == []
    assert (await served(client))["outstanding"] == 0


async def test_a_caller_who_goes_away_or_whose_time_is_up_stops_the_engine(client: Client, stand_in: Start) -> None:
    engine = await stand_in("--token-delay", "0.05", "--tokens", "2000")
    await up(client, engine.endpoint)
    answers = client.stream("inference.chat", asked("good day"), timeout=60)
    assert await anext(answers) == {"content": "echo:"}
    await answers.aclose()  # type: ignore[attr-defined]  # it is a generator
    gone = await ended(client, "request_failed")
    assert (gone["error"], gone["error_code"]) == ("the caller left, or the deadline passed", "CANCELLED")
    await until(lambda: not connected(engine))
    late = await refused(client, "inference.chat", within=0.5, **asked("good day"))
    assert isinstance(late, Timeout)
    assert (await ended(client, "request_failed"))["error_code"] == "CANCELLED"  # it had begun to answer
    await until(lambda: not connected(engine))
    cut = client.stream("inference.chat", asked("good day"), timeout=0.5)
    with pytest.raises(Timeout):
        [_ async for _ in cut]
    assert (await ended(client, "request_failed"))["error_code"] == "CANCELLED"
    await until(lambda: not connected(engine))
    assert await served(client) == {
        "service_id": "svc-a",
        "name": "a",
        "replicas": 1,
        "outstanding": 0,
        "requests": 3,
        "failed": 0,
        "cancelled": 3,
        "prompt_tokens": 0,
        "completion_tokens": 0,
    }


async def test_a_request_to_which_the_engine_says_nothing_before_its_deadline_is_late(
    client: Client, gated: Gated
) -> None:
    await up(client, (await gated()).endpoint)
    await replicas(client, 1)
    assert isinstance(await refused(client, "inference.chat", within=1, **asked("good day")), Timeout)
    late = await ended(client, "request_failed")
    assert (late["error"], late["error_code"]) == ("the engine sent nothing before the deadline", "TIMEOUT")


async def test_a_real_engine_stops_when_the_time_of_a_caller_is_up_who_wants_no_parts(
    client: Client, llamacpp: Real
) -> None:
    await up(client, llamacpp.endpoint)
    list_of_many = {"type": "array", "items": {"type": "boolean"}, "minItems": 1000}
    endless = {"response_format": {"type": "json_schema", "json_schema": {"schema": list_of_many}}}
    asking = asyncio.create_task(refused(client, "inference.chat", within=3, **asked("List.", **endless)))
    await until(llamacpp.busy)
    assert isinstance(await asking, Timeout)
    await until(llamacpp.idle, within=15)  # to its end it would take half a minute
    # it is the caller's deadline and the unit's own: which of the two is heard of first is chance
    assert (await ended(client, "request_failed"))["error_code"] in ("CANCELLED", "TIMEOUT")
    short = await ask(client, "inference.chat", **asked("Say hello.", max_tokens=3))
    assert short["usage"]["completion_tokens"] == 3


async def test_a_lease_says_whether_its_engine_stops_for_a_client_who_leaves_a_whole_answer(client: Client) -> None:
    await up(client, "http://127.0.0.1:9")
    assert (await ask(client, "inference.lease", model="Toy"))["cancels_whole"] is True
    await up(client, "http://127.0.0.1:9", "q0", service_id="svc-b", service_name="b", cancels_whole=False)
    assert (await ask(client, "inference.lease", model="svc-b"))["cancels_whole"] is False


async def test_a_lease_is_settled_once_or_expires(client: Client) -> None:
    await up(client, "http://127.0.0.1:9")
    lease = await ask(client, "inference.lease", model="Toy", type="llm", timeout=60)
    assert (lease["endpoint"], lease["model"], lease["dialect"]) == ("http://127.0.0.1:9", "served", "openai")
    assert (await served(client))["outstanding"] == 1
    said = {"request_id": lease["request_id"], "outcome": "completed"}
    usage = {"prompt_tokens": 10, "completion_tokens": 20}
    await ask(client, "inference.settle", **said, usage=usage, time_to_first_token=0.25)
    completed = await ended(client, "request_completed")
    assert (completed["prompt_tokens"], completed["completion_tokens"]) == (10, 20)
    assert completed["time_to_first_token"] == 0.25
    assert await ask(client, "inference.settle", **said) == {"success": True}
    otherwise = said | {"outcome": "failed"}
    assert isinstance(await refused(client, "inference.settle", **otherwise), NotFound)
    kept = await ask(client, "inference.lease", model="Toy", timeout=0.5)
    renewal = await ask(client, "inference.renew", request_id=kept["request_id"], timeout=600)
    assert renewal["expires_at"] > kept["expires_at"]
    short = await ask(client, "inference.lease", model="Toy", timeout=0.6)
    expired = await ended(client, "request_failed")
    assert (expired["request_id"], expired["error_code"]) == (short["request_id"], "TIMEOUT")
    assert expired["error"] == "the lease was not settled in time"
    wrong = await refused(client, "inference.lease", model="Toy", type="tts")
    assert isinstance(wrong, ValidationFailed)
    planned = await client.nc.request(
        "aima.inference.chat", json.dumps(asked("x")).encode(), 10, headers={"Aima-Dry-Run": "true"}
    )
    assert [event["type"] for event in json.loads(planned.data)["data"]["events"]] == ["inference.request_started"]
    counts = await served(client)
    assert (counts["outstanding"], counts["requests"], counts["failed"]) == (1, 2, 1)  # what was renewed is still there


async def test_after_a_restart_the_leases_of_others_still_stand_and_our_own_requests_have_failed(
    site: Machine, stand_in: Start
) -> None:
    engine = await stand_in("--sleep-per-request", "60")
    async with serving(MODELS, CRIER, settings=site.settings(MODELS, CRIER)):
        settings = site.settings(INFERENCE)
        async with serving(INFERENCE, settings=settings) as client:
            await up(client, engine.endpoint)
            lease = await ask(client, "inference.lease", model="Toy", timeout=600)
            caller = asyncio.create_task(refused(client, "inference.chat", **asked("x")))
            await outstanding(client, 2)
            copy = site.folder / "crashed"
            copy.mkdir()
            source = sqlite3.connect(site.folder / "inference" / "log.db")
            target = sqlite3.connect(copy / "log.db")
            source.backup(target)  # the log as a crash would leave it: the request is under way
            source.close()
            target.close()
            engine.kill()
            assert isinstance(await caller, Unavailable)
        for file in (site.folder / "inference").glob("log.db*"):
            file.unlink()
        (copy / "log.db").rename(site.folder / "inference" / "log.db")
        async with serving(INFERENCE, settings=settings) as client:
            failed = await ended(client, "request_failed")
            assert failed["error"] == "the process that sent the request has ended"
            assert failed["request_id"] != lease["request_id"]
            assert (await served(client))["outstanding"] == 1
            await ask(client, "inference.settle", request_id=lease["request_id"], outcome="failed", error="E")


async def test_what_is_asked_and_answered_is_nowhere_but_on_its_way(
    site: Machine, stand_in: Start, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    engine = await stand_in("--token-delay", "0.02")
    caplog.set_level("DEBUG")
    async with serving(*ALL, settings=site.settings(*ALL)) as client:
        await up(client, engine.endpoint)
        answer = await ask(client, "inference.chat", **asked(SECRET))
        assert SECRET in answer["content"]
        parts = await stream(client, "inference.chat", asked(SECRET))
        assert SECRET in parts[-1]["content"]
        assert SECRET in (await ask(client, "inference.complete", model="Toy", prompt=SECRET))["text"]
        await up(client, engine.endpoint, "w0", service_id="svc-w", model_id="w", served_model=f"other-{SECRET[:3]}")
        quoted = await refused(client, "inference.chat", **asked(SECRET, model="w"))
        assert quoted.reason == "ENGINE_REFUSED"
        leaving = client.stream("inference.chat", asked(SECRET), timeout=20)
        await anext(leaving)
        await leaving.aclose()  # type: ignore[attr-defined]  # it is a generator
        await ended(client, "request_failed")
        counts = [
            (data["prompt_tokens"], data["completion_tokens"])
            for kind, data in await log(client)
            if kind == "request_completed"
        ]
        failures = [data["error"] for kind, data in await log(client) if kind == "request_failed"]
        shown = {
            one["services"][0]["service_id"]: one["services"][0]
            for one in (await ask(client, "inference.models"))["models"]
        }
    assert failures == ["ENGINE_REFUSED", "the caller left, or the deadline passed"]
    assert counts == [(1, 8)] * 3
    assert [shown["svc-a"][count] for count in ("requests", "failed", "cancelled")] == [4, 0, 1]
    assert (shown["svc-a"]["prompt_tokens"], shown["svc-a"]["completion_tokens"]) == (3, 24)
    assert (shown["svc-w"]["requests"], shown["svc-w"]["failed"]) == (1, 1)
    for file in site.folder.rglob("*"):
        assert file.is_dir() or SECRET.encode() not in file.read_bytes(), file
    output = capfd.readouterr()
    for text in (output.out, output.err, caplog.text, (site.folder.parent / "nats.log").read_text()):
        assert SECRET not in text


async def test_tables_made_again_from_the_log_are_the_live_ones(site: Machine, stand_in: Start) -> None:
    engine = await stand_in()
    async with serving(*ALL, settings=site.settings(*ALL)) as client:
        await up(client, engine.endpoint)
        await up(client, engine.endpoint, "q0", service_id="svc-b", service_name="b", model_id="k", model_name="K")
        for model in ("toy", "toy", "k"):
            await ask(client, "inference.chat", **asked("one two three", model=model))
        engine.kill()
        await refused(client, "inference.chat", **asked("x"))
        await up(client, engine.endpoint, "p1")
        await cry(client, "replica_ended", replica=0, process_id="p0")
        await ask(client, "inference.load")  # takes it in
    live, again = await made_again(site, INFERENCE)
    assert live["usage"] == [("svc-a", "", 5, 3, 0, 0, 6, 16), ("svc-b", "q0", 1, 0, 0, 0, 3, 8)]
    assert live["replicas"] == [("svc-a", "p1"), ("svc-b", "q0")]
    assert [row[:2] + row[4:7] for row in live["speeds"]] == [("k", "toy", 1, 1, 8), ("toy", "toy", 1, 2, 16)]
    assert sum(row[4] for row in live["seconds"]) == 6
    assert sum(row[6] for row in live["sketches"]) == 6  # of each the duration and the time to the first token
    assert again == live
