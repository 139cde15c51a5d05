"""The decisions of the inference domain: replicas of requests, running requests, and the ends of requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aima_core.errors import AimaError, EngineNotRunning, NotFound, Unavailable, ValidationFailed
from aima_core.testing import NOON, Given, call
from aima_core.units import Command, Event, Success
from services.inference import internal as i
from services.inference import units as u
from services.inference.domain import INFERENCE
from services.inference.outside.engine_requests import REQUEST_KINDS
from services.inference.rules.breaker import TRIAL
from services.inference.rules.decider import reply
from services.inference.rules.routing import sleeper
from services.inference.rules.state import Pool, Sweep, todo

SVC = "svc-a"


def service(ident: str = SVC, **other: Any) -> u.ServiceAdded:
    name = ident.removeprefix("svc-")
    said = {"service_id": ident, "service_name": name, "model_id": "m", "model_name": "M", "type": "llm"}
    return u.ServiceAdded(**(said | other))


def phase(phase: u.Phase, ident: str = SVC, error: str = "", code: str = "") -> u.PhaseChanged:
    return u.PhaseChanged(service_id=ident, phase=phase, error=error, error_code=code)


def record(process_id: str = "p0", ident: str = SVC, **other: Any) -> i.RecordRoute:
    route: dict[str, Any] = {
        "service_id": ident,
        "service_name": ident.removeprefix("svc-"),
        "model_id": "m",
        "model_name": "M",
        "type": "llm",
        "process_id": process_id,
        "endpoint": f"http://{process_id}",
        "served_model": "served",
        "dialect": "openai",
        "tools": False,
    }
    return i.RecordRoute(**(route | other))


def added(process_id: str = "p0", ident: str = SVC, **other: Any) -> u.RouteAdded:
    return u.RouteAdded(**record(process_id, ident, **other).model_dump())


def removed(process_id: str = "p0", ident: str = SVC) -> u.RouteRemoved:
    return u.RouteRemoved(service_id=ident, process_id=process_id)


def changed(healthy: bool, process_id: str = "p0", ident: str = SVC) -> u.RouteChanged:
    return u.RouteChanged(service_id=ident, process_id=process_id, healthy=healthy)


def begun(request_id: str = "req-1", process_id: str = "p0", ident: str = SVC, **other: Any) -> u.RequestStarted:
    started: dict[str, Any] = {
        "request_id": request_id,
        "model": "m",
        "type": "llm",
        "service_id": ident,
        "process_id": process_id,
        "started_at": NOON - 2,
        "expires_at": NOON + 58,
        "holder": "",
    }
    return u.RequestStarted(**(started | other))


def renewed() -> u.LeaseRenewed:
    return u.LeaseRenewed(request_id="req-1", service_id=SVC, expires_at=NOON + 120)


def done(prompt: int = 0, completion: int = 0, first: float | None = None, **other: Any) -> u.RequestCompleted:
    said: dict[str, Any] = {
        "request_id": "req-1",
        "model": "m",
        "type": "llm",
        "service_id": SVC,
        "process_id": "p0",
        "duration": 2,
        "time_to_first_token": first,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
    }
    return u.RequestCompleted(**(said | other))


def failed(error: str, code: str, **other: Any) -> u.RequestFailed:
    said: dict[str, Any] = {
        "request_id": "req-1",
        "model": "m",
        "type": "llm",
        "service_id": SVC,
        "process_id": "p0",
        "duration": 2,
        "error": error,
        "error_code": code,
    }
    return u.RequestFailed(**(said | other))


def begin(model: str = "m", *types: str, **other: Any) -> i.BeginRequest:
    return i.BeginRequest(model=model, types=types or ("llm",), timeout=60, holder="h", **other)


def settle(outcome: u.Outcome, **said: Any) -> u.Settle:
    return u.Settle.model_validate({"request_id": "req-1", "outcome": outcome, **said})


def decided(given: Given[Pool], command: Command[Any]) -> list[Event] | type[AimaError] | str:
    """Return the events; for an error, its reason if it is Unavailable, or else its class."""
    try:
        return given.when(command)
    except AimaError as error:
        return error.reason if type(error) is Unavailable else type(error)


# --- a pool of one service, in every condition --------------------------------------------------------------------

BLAMED = [
    event
    for number in range(3)
    for event in (
        begun(str(number), slots=1, client=TRIAL if number == 2 else ""),
        failed("", "ENGINE_GONE", request_id=str(number)),
    )
]
RUNNING: list[Event] = [service(), phase("running"), added(slots=1)]
POOLS: dict[str, list[Event]] = {
    "nothing": [],
    "a route": [added()],
    "unhealthy": [added(), changed(False)],
    "under way": [added(), begun()],
    "route lost": [added(), begun(), removed()],
    "stopped": [service()],
    "starting": [service(), phase("starting")],
    "asleep": [service(), phase("asleep")],
    "failed": [service(), phase("failed", error="no memory", code="OUT_OF_MEMORY")],
    "running": RUNNING,
    "full": [*RUNNING, begun()],
    "broken": [*RUNNING, *BLAMED],
    "healing": [service(), phase("running"), begun()],
    "settled": [*RUNNING, begun(), done()],
    "deleted": [*RUNNING, begun(), u.ServiceRemoved(service_id=SVC), removed()],
}
IDENT = "req-b092e91d"  # made of the id of the call, `request-1`


def started(concurrency: int, slots: int = 0, ident: str = IDENT) -> list[Event]:
    now: dict[str, Any] = {
        "started_at": NOON,
        "expires_at": NOON + 60,
        "holder": "h",
        "concurrency": concurrency,
        "slots": slots,
    }
    return [begun(ident, **now)]


__: list[Event] = []
NO, BAD, NONE, BUSY, LOAD = EngineNotRunning, ValidationFailed, NotFound, "BUSY", "LOADING"
ONE, TWO, OF1 = started(1), started(2), started(1, 1)
UNTIL = {"unhealthy": "UNHEALTHY", "starting": LOAD, "asleep": LOAD, "full": BUSY, "broken": "OPEN", "healing": LOAD}
NOT = dict.fromkeys(("nothing", "route lost", "stopped", "failed", "deleted"), NO)
PLACED = {**UNTIL, **NOT, "a route": ONE, "under way": TWO, "running": OF1, "settled": OF1}
ENDS = ("under way", "route lost", "full", "healing", "deleted")  # where req-1 is under way
ROUTED = ("a route", "unhealthy", "under way", "running", "full", "broken", "settled")
KNOWN = [name for name in POOLS if name != "nothing"]


def at(names: Iterable[str], outcome: Any) -> dict[str, Any]:
    return dict.fromkeys(names, outcome)


def ends(event: Event, **other: Any) -> dict[str, Any]:
    return at(POOLS, NONE) | at(ENDS, [event]) | other


def where(names: Iterable[str], outcome: Any) -> dict[str, Any]:
    """Return a row that expects the outcome in the named conditions, and no events in all others."""
    return at(POOLS, __) | at(names, outcome)


def to_phase(wanted: u.Phase, *but: str, routes: bool) -> dict[str, Any]:
    """Return a row that expects a new phase except in `but`, and the removal of routes unless `routes` is true."""
    outcome: dict[str, Any] = {"nothing": __}
    for name in KNOWN:
        gone = [removed()] if name in ROUTED and not routes else []
        outcome[name] = [*([] if name in but else [phase(wanted)]), *gone]
    return outcome


OLD = ("a route", "unhealthy", "under way")  # running as far as anybody knows
USAGE = {"prompt_tokens": 3, "completion_tokens": 4}
DECIDED: dict[str, tuple[Command[Any], dict[str, Any]]] = {
    "begin": (begin(), PLACED),
    "begin, by the model's name": (begin("M"), PLACED),
    "begin, by the service's name": (begin("a"), PLACED),
    "begin, by the service's id": (begin(SVC), PLACED),
    "begin, any type": (begin().model_copy(update={"types": ()}), PLACED),
    "begin, wrong type": (begin("m", "asr"), at(POOLS, BAD) | {"nothing": NO}),
    "begin, another model": (begin("n"), at(POOLS, NO)),
    "begin, with tools": (
        begin(needs_tools=True),
        PLACED | at(("a route", "under way", "running", "full", "broken", "settled"), BAD),
    ),
    "begin, avoiding the only one": (begin(avoid="p0"), PLACED),
    "begin, strictly avoiding the only one": (
        begin(avoid="p0", strictly=True),
        PLACED | at(("a route", "under way", "running", "full", "settled"), LOAD),
    ),
    "begin, with an id": (
        begin(request_id="mine"),
        PLACED
        | {"a route": started(1, ident="mine"), "under way": started(2, ident="mine")}
        | at(("running", "settled"), started(1, 1, ident="mine")),
    ),
    "settle": (settle("completed"), ends(done(), settled=__)),
    "settle, with usage": (
        settle("completed", usage=USAGE, time_to_first_token=0.5),
        ends(done(3, 4, 0.5), settled=__),
    ),
    "settle, cancelled": (settle("cancelled"), ends(failed("the request was cancelled", "CANCELLED"))),
    "settle, failed": (settle("failed", error="it broke"), ends(failed("it broke", "CALLER_FAILED"))),
    "settle, failed with a code": (
        settle("failed", error_code="ENGINE_REFUSED"),
        ends(failed("the request failed", "ENGINE_REFUSED")),
    ),
    "settle, failed with a code that only who carries requests for us may give": (
        settle("failed", error_code="ENGINE_GONE"),
        ends(failed("the request failed", "CALLER_FAILED")),
    ),
    "settle, another": (u.Settle(request_id="x", outcome="completed"), at(POOLS, NONE)),
    "renew": (u.Renew(request_id="req-1", timeout=120), ends(renewed())),
    "renew, another": (u.Renew(request_id="x"), at(POOLS, NONE)),
    "expired": (
        i.RecordExpired(service_id=SVC, request_id="req-1", error="late", error_code="TIMEOUT"),
        where(ENDS, [failed("late", "TIMEOUT")]),
    ),
    "refused": (
        i.RecordRefused(service_id=SVC, count=3),
        where(KNOWN, [u.RequestsRefused(service_id=SVC, count=3)]),
    ),
    "service": (
        i.RecordService(service_id=SVC, service_name="a", model_id="m", model_name="M", type="llm"),
        where(("nothing", "a route", "unhealthy", "under way", "route lost", "deleted"), [service()]),
    ),
    "service is gone": (
        i.RecordRemoved(service_id=SVC),
        where(KNOWN, [u.ServiceRemoved(service_id=SVC)])
        | at(("running", "full", "broken", "settled"), [u.ServiceRemoved(service_id=SVC), removed()])
        | at(OLD, [removed()])
        | at(("route lost", "deleted"), __),
    ),
    "starting": (i.RecordPhase(service_id=SVC, phase="starting"), to_phase("starting", "starting", routes=True)),
    "running": (
        i.RecordPhase(service_id=SVC, phase="running"),
        to_phase("running", "running", "full", "broken", "settled", "healing", *OLD, routes=True),
    ),
    "stopped": (
        i.RecordPhase(service_id=SVC, phase="stopped"),
        to_phase("stopped", "stopped", "route lost", "deleted", routes=False),
    ),
    "asleep": (i.RecordPhase(service_id=SVC, phase="asleep"), to_phase("asleep", "asleep", routes=False)),
    "failed": (i.RecordPhase(service_id=SVC, phase="failed"), to_phase("failed", "failed", routes=False)),
    "route": (record(), where([name for name in POOLS if name not in ROUTED], [added()])),
    "another route": (record("p1"), where(POOLS, [added("p1")])),
    "route of another service": (record("q0", "svc-b"), where(POOLS, [added("q0", "svc-b")])),
    "unhealthy": (
        i.RecordHealth(service_id=SVC, process_id="p0", healthy=False),
        where([name for name in ROUTED if name != "unhealthy"], [changed(False)]),
    ),
    "healthy": (
        i.RecordHealth(service_id=SVC, process_id="p0", healthy=True),
        where(["unhealthy"], [changed(True)]),
    ),
    "another unhealthy": (i.RecordHealth(service_id=SVC, process_id="p1", healthy=False), where((), __)),
    "no route": (i.RecordNoRoute(service_id=SVC, process_id="p0"), where(ROUTED, [removed()])),
    "another route is gone": (i.RecordNoRoute(service_id=SVC, process_id="p1"), where((), __)),
}


@pytest.mark.parametrize(
    ("command", "events", "expected"),
    [
        pytest.param(command, events, outcomes[pool], id=f"{name}, {pool}")
        for name, (command, outcomes) in DECIDED.items()
        for pool, events in POOLS.items()
    ],
)
def test_a_command_to_a_pool_comes_to(command: Command[Any], events: list[Event], expected: Any) -> None:
    assert decided(Given(INFERENCE, events), command) == expected


def test_no_command_is_missing_in_the_table() -> None:
    carried = {*REQUEST_KINDS, u.LeaseModel, u.TryReplica}  # these reach the decider as BeginRequest
    assert {type(command) for command, _ in DECIDED.values()} | carried == {*INFERENCE.commands, *INFERENCE.internal}


def test_only_who_has_asked_may_settle_or_renew() -> None:
    world = Given(INFERENCE, [*RUNNING, begun(owner="ci")]).world
    for command in (settle("completed"), u.Renew(request_id="req-1")):
        for principal in ("", "other"):
            with pytest.raises(NotFound):
                INFERENCE.decide(world, command, msgspec.structs.replace(call(), principal=principal))
        (event,) = INFERENCE.decide(world, command, msgspec.structs.replace(call(), principal="ci"))
        assert event.request_id == "req-1"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("pool", "events"), POOLS.items())
def test_leases_are_looked_after_for_as_long_as_there_are_any(pool: str, events: list[Event]) -> None:
    effects = [effect for found in Given(INFERENCE, events).world.values() for effect in todo(found)]
    sweeps = [effect for effect in effects if isinstance(effect, Sweep)]
    assert sweeps == ([Sweep(SVC)] if pool in ENDS else [])


# --- which replica ------------------------------------------------------------------------------------------------

THREE: list[Event] = [added("p0"), added("p1"), added("q0", "svc-b")]


def chosen(events: list[Event], command: Command[Any]) -> str:
    (event,) = Given(INFERENCE, events).when(command)
    assert isinstance(event, u.RequestStarted)
    return event.process_id


CHOSEN: dict[str, tuple[list[Event], Command[Any], str]] = {
    "the first of equals": (THREE, begin(), "p0"),
    "the one with the fewest": ([*THREE, begun("1", "p0")], begin(), "p1"),
    "of any service of the model": ([*THREE, begun("1", "p0"), begun("2", "p1")], begin(), "q0"),
    "two against one": (
        [
            *THREE,
            begun("1", "p0"),
            begun("2", "p0"),
            begun("3", "p1"),
            begun("4", "q0", "svc-b"),
            begun("5", "q0", "svc-b"),
        ],
        begin(),
        "p1",
    ),
    "the fewest for what it takes": (
        [added("p0", slots=2), added("p1", slots=8), begun("1", "p0"), begun("2", "p1"), begun("3", "p1")],
        begin(),
        "p1",
    ),
    "one that has room": ([added("p0", slots=1), added("p1", slots=1), begun("1", "p0")], begin(), "p1"),
    "one whose breaker is closed": ([added("p0"), added("p1"), *BLAMED], begin(), "p1"),
    "of one service only": ([*THREE, begun("1", "p0"), begun("2", "p1")], begin("svc-a"), "p0"),
    "of the service's name": (THREE, begin("b"), "q0"),
    "not the unhealthy one": ([*THREE, changed(False)], begin(), "p1"),
    "not the one to avoid": (THREE, begin(avoid="p0"), "p1"),
    "strictly not the one to avoid": (THREE, begin(avoid="p0", strictly=True), "p1"),
    "the avoided one rather than none": ([added("p0")], begin(avoid="p0"), "p0"),
    "the avoided one rather than an unhealthy one": (
        [added("p0"), added("p1"), changed(False, "p1")],
        begin(avoid="p0"),
        "p0",
    ),
    "of the right type": ([added("p0", type="embedding"), added("q0", "svc-b")], begin("m", "llm", "vlm"), "q0"),
    "one that takes tools": (
        [added("p0"), added("q0", "svc-b", tools=True)],
        begin(needs_tools=True),
        "q0",
    ),
}


@pytest.mark.parametrize(("events", "command", "process_id"), CHOSEN.values(), ids=CHOSEN)
def test_the_replica_is(events: list[Event], command: Command[Any], process_id: str) -> None:
    assert chosen(events, command) == process_id


def test_a_request_remembers_what_it_runs_on_and_beside_how_many() -> None:
    given = Given(INFERENCE, [added(slots=4, engine="toy", device="gpu"), begun("0")])
    (event,) = given.then(begin(request_id="req-1"), at=NOON - 2)
    now: dict[str, Any] = {
        "expires_at": NOON + 58,
        "holder": "h",
        "concurrency": 2,
        "engine": "toy",
        "device": "gpu",
        "slots": 4,
    }
    assert event == begun(**now)
    copied: dict[str, Any] = {"concurrency": 2, "engine": "toy", "device": "gpu", "slots": 4}
    assert given.when(settle("completed")) == [done(**copied)]


SLEEPERS: dict[str, tuple[dict[str, u.Phase], set[str], str | None]] = {
    "nothing": ({}, set(), None),
    "none": ({"a": "stopped", "b": "failed"}, set(), None),
    "the first": ({"a": "stopped", "b": "asleep", "c": "asleep"}, set(), "b"),
    "none while another starts": ({"a": "asleep", "b": "starting"}, set(), None),
    "none while another runs": ({"a": "asleep", "b": "running"}, set(), None),
    "the next, as one was refused": ({"a": "asleep", "b": "asleep"}, {"a"}, "b"),
    "the only one, although it was refused": ({"a": "asleep", "b": "stopped"}, {"a"}, "a"),
    "the first, as all were refused": ({"a": "asleep", "b": "asleep"}, {"a", "b"}, "a"),
}


@pytest.mark.parametrize(("phases", "refused", "expected"), SLEEPERS.values(), ids=SLEEPERS)
def test_the_service_to_wake_is(phases: dict[str, u.Phase], refused: set[str], expected: str | None) -> None:
    assert sleeper([Pool(ident, phase=phase) for ident, phase in phases.items()], refused) == expected


BROKEN_BEFORE = [
    event
    for number in range(3)
    for event in (
        begun(str(number), started_at=NOON - 20, slots=1, client=TRIAL if number == 2 else ""),
        failed("", "ENGINE_GONE", request_id=str(number)),
    )
]
REFUSALS: dict[str, tuple[list[Event], Command[Any], str, dict[str, Any]]] = {
    "no service": (
        [],
        begin("x"),
        "no running replica serves x: it has no service;"
        " create one with service.create and start it with service.start",
        {"reason": "NO_SERVICE", "model": "x", "services": []},
    ),
    "not started yet": (
        [service()],
        begin("M"),
        "no running replica serves M: service svc-a was never started; start it with service.start",
        {"reason": "NO_REPLICA", "model": "M", "services": [SVC]},
    ),
    "created anew": (
        [*RUNNING, begun(), phase("stopped"), removed(), u.ServiceRemoved(service_id=SVC), service()],
        begin("M"),
        "no running replica serves M: service svc-a was never started; start it with service.start",
        {"reason": "NO_REPLICA", "model": "M", "services": [SVC]},
    ),
    "stopped": (
        [service(), phase("starting"), phase("stopped")],
        begin("M"),
        "no running replica serves M: service svc-a is stopped; start it with service.start",
        {"reason": "NO_REPLICA", "model": "M", "services": [SVC]},
    ),
    "failed": (
        POOLS["failed"],
        begin("M"),
        "no running replica serves M: service svc-a has failed: no memory;"
        " see service.status, then start it again with service.start",
        {"reason": "NO_REPLICA", "model": "M", "services": [SVC], "error_code": "OUT_OF_MEMORY"},
    ),
    "unhealthy": (
        POOLS["unhealthy"],
        begin("M"),
        "no replica for M: the only replica of service svc-a is unhealthy (no reply to its health check)",
        {"reason": "UNHEALTHY", "services": [SVC], "retry_after": 5},
    ),
    "silent while it works": (
        [*POOLS["unhealthy"], begun(), begun("2")],
        begin("M"),
        "no replica for M: the only replica of service svc-a is busy (its health check gets no reply while it works on"
        " 2 requests)",
        {"reason": "BUSY", "services": [SVC]},
    ),
    "asleep": (
        POOLS["asleep"],
        begin("M"),
        "no replica for M: service svc-a is asleep; requests wake it",
        {"reason": "LOADING", "services": [SVC]},
    ),
    "starting": (
        POOLS["starting"],
        begin("M"),
        "no replica for M: service svc-a is starting and has no running replica yet",
        {"reason": "LOADING", "services": [SVC]},
    ),
    "replacing": (
        POOLS["healing"],
        begin("M"),
        "no replica for M: service svc-a has no running replica at the moment; AIMA replaces failed replicas",
        {"reason": "LOADING", "services": [SVC]},
    ),
    "broken": (
        POOLS["broken"],
        begin("M"),
        "no replica for M: the only replica of service svc-a is paused after 3 failed requests in a row"
        " (next trial in 5.0 s)",
        {"reason": "OPEN", "services": [SVC], "retry_after": 5},
    ),
    "on trial": (
        [*RUNNING, *BROKEN_BEFORE, begun("4", started_at=NOON - 1, slots=1)],
        begin("M"),
        "no replica for M: the only replica of service svc-a is paused after 3 failed requests in a row"
        " (until a trial request succeeds)",
        {"reason": "OPEN", "services": [SVC], "retry_after": 1},
    ),
    "avoided": (
        RUNNING,
        begin("M", avoid="p0", strictly=True),
        "no replica for M: the only replica of service svc-a is avoided for a moment (it has just failed this request)",
        {"reason": "LOADING", "services": [SVC]},
    ),
    "of two services": (
        [*RUNNING, begun(), added("p1"), changed(False, "p1"), added("q0", "svc-b"), changed(False, "q0", "svc-b")],
        begin("M"),
        "no replica for M: none of the 2 replicas of service svc-a takes requests: 1 busy (1 of 1 slots in use),"
        " 1 unhealthy (no reply to its health check); the only replica of service svc-b is unhealthy (no reply to its"
        " health check)",
        {"reason": "BUSY", "services": [SVC, "svc-b"]},
    ),
    "one of them without tools": (
        [added(), added("p1", tools=True, slots=1), begun("1", "p1")],
        begin("M", needs_tools=True),
        "no replica for M: none of the 2 replicas of service svc-a takes requests: 1 without support for tools,"
        " 1 busy (1 of 1 slots in use)",
        {"reason": "BUSY", "services": [SVC]},
    ),
    "full": (
        POOLS["full"],
        begin("M"),
        "no replica for M: the only replica of service svc-a is busy (1 of 1 slots in use)",
        {"reason": "BUSY", "services": [SVC]},
    ),
    "another type": (
        [added(type="embedding")],
        begin("M", "llm", "vlm"),
        "model: M is of type embedding; this request needs llm or vlm",
        {"fields": [{"field": "model", "expected": "a model of type llm or vlm"}]},
    ),
    "no tools": (
        [added()],
        begin("M", needs_tools=True),
        "tools: the chat template of M does not support tools",
        {"fields": [{"field": "tools", "expected": "none: the model's chat template does not support tools"}]},
    ),
}


@pytest.mark.parametrize(("events", "command", "message", "details"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_says_what_would_help(
    events: list[Event], command: Command[Any], message: str, details: dict[str, Any]
) -> None:
    with pytest.raises(AimaError) as refused:
        Given(INFERENCE, events).when(command)
    assert (refused.value.message, refused.value.details) == (message, details)


# --- requests -----------------------------------------------------------------------------------------------------


def test_a_command_that_is_no_flow_has_nothing_more_to_say() -> None:
    assert reply({}, settle("completed"), []) == Success()


def test_two_requests_of_one_id_are_two_requests() -> None:
    given = Given(INFERENCE, [added()])
    for _ in range(3):
        given.then(begin(), request_id="chosen by the caller")
    (pool,) = given.world.values()
    assert pool.outstanding("p0") == len(pool.requests) == 3


def test_requests_under_way_on_a_replica_that_leaves_end_as_ever() -> None:
    given = Given(INFERENCE, [*RUNNING, begun()])
    given.then(i.RecordNoRoute(service_id=SVC, process_id="p0"))
    (pool,) = given.world.values()
    assert (pool.routes, pool.outstanding("p0")) == ((), 1)
    assert given.then(settle("completed")) == [done()]
    (pool,) = given.world.values()
    assert pool.outstanding("p0") == 0


def test_a_pool_of_an_older_log_is_forgotten_when_nothing_of_it_is_left() -> None:
    given = Given(INFERENCE, [added(), begun()])
    given.then(i.RecordNoRoute(service_id=SVC, process_id="p0"))
    assert list(given.world) == [f"inference/{SVC}"]
    given.then(settle("completed"))
    assert given.world == {}
    assert Given(INFERENCE, [added(), removed()]).world == {}
    given = Given(INFERENCE, [added()])
    given.then(i.RecordPhase(service_id=SVC, phase="stopped"))
    assert given.world == {}


def test_a_service_is_known_from_its_creation_until_it_is_deleted_and_its_last_request_has_ended() -> None:
    given = Given(INFERENCE, [service()])
    for command in (record(), begin(request_id="req-1"), i.RecordPhase(service_id=SVC, phase="stopped")):
        given.then(command)
    given.then(i.RecordRemoved(service_id=SVC))
    assert list(given.world) == [f"inference/{SVC}"]
    given.then(settle("completed"))
    assert given.world == {}


def test_a_request_may_be_settled_in_the_same_way_again_for_as_long_as_a_thousand_others() -> None:
    given = Given(INFERENCE, [*RUNNING, begun(), done()])
    assert given.when(settle("completed", usage=USAGE)) == []
    for number in range(999):
        given.fold(begun(str(number)))
        given.fold(done(request_id=str(number)))
    assert given.when(settle("completed")) == []
    assert decided(given, settle("cancelled")) is NotFound
    given.fold(begun("one more"))
    given.fold(done(request_id="one more"))
    assert decided(given, settle("completed")) is NotFound
    given = Given(INFERENCE, [*RUNNING, begun(), failed("", "TIMEOUT")])
    assert given.when(settle("failed")) == []
    assert decided(given, settle("completed")) is NotFound


# --- what holds of anything ---------------------------------------------------------------------------------------

services = st.sampled_from(["svc-a", "svc-b"])
processes = st.sampled_from(["p0", "p1", "p2"])
commands = st.one_of(
    st.builds(record, processes, services, tools=st.booleans(), slots=st.integers(0, 2)),
    st.builds(
        i.RecordService,
        service_id=services,
        service_name=st.just("a"),
        model_id=st.just("m"),
        model_name=st.just("M"),
        type=st.just("llm"),
    ),
    st.builds(i.RecordRemoved, service_id=services),
    st.builds(
        i.RecordPhase,
        service_id=services,
        phase=st.sampled_from(["stopped", "starting", "running", "asleep", "failed"]),
    ),
    st.builds(i.RecordHealth, service_id=services, process_id=processes, healthy=st.booleans()),
    st.builds(i.RecordNoRoute, service_id=services, process_id=processes),
    st.builds(
        begin,
        st.sampled_from(["m", "svc-a", "nix"]),
        avoid=st.one_of(st.just(""), processes),
        strictly=st.booleans(),
        needs_tools=st.booleans(),
    ),
    st.builds(begin, st.sampled_from(["m", "svc-b"])),
    st.builds(
        u.Settle,
        request_id=st.integers(0, 20).map(str),
        outcome=st.sampled_from(["completed", "failed", "cancelled"]),
        error_code=st.sampled_from([None, "ENGINE_GONE", "ENGINE_REFUSED"]),
    ),
    st.builds(i.RecordRefused, service_id=services, count=st.integers(1, 3)),
)


@example([record("p0"), begin("m"), i.RecordPhase(service_id=SVC, phase="asleep")], 0)
@given(st.lists(commands, max_size=40), st.integers(0, 40))
def test_any_commands_are_decided_or_refused_as_declared_and_every_request_ends_once(
    asked: list[Command[Any]], cut: int
) -> None:
    given, events = Given[Pool](INFERENCE), list[Event]()
    ids: list[str] = []
    for number, drawn in enumerate(asked):
        command = drawn
        if isinstance(drawn, u.Settle) and ids:
            command = drawn.model_copy(update={"request_id": ids[int(drawn.request_id) % len(ids)]})
        declared = u.Chat.spec.errors if isinstance(command, i.BeginRequest) else command.spec.errors
        try:
            new = given.then(command, request_id=str(number), at=NOON + number)
        except declared:
            continue
        events += new
        ids += [event.request_id for event in new if isinstance(event, u.RequestStarted)]
        if isinstance(command, u.Settle):
            assert decided(given, command) in ([], NotFound)
        elif not isinstance(command, i.BeginRequest | i.RecordRefused):
            assert given.when(command) == []
    ended = [e.request_id for e in events if isinstance(e, u.RequestCompleted | u.RequestFailed)]
    under_way = [ident for pool in given.world.values() for ident in pool.requests]
    assert sorted(ended + under_way) == sorted(ids)
    for pool in given.world.values():
        assert pool.added or pool.routes or pool.requests
        assert len({route.process_id for route in pool.routes}) == len(pool.routes)
        counted = Counter(request.process_id for request in pool.requests.values())
        assert pool.by_process == counted
        for event in events:
            if isinstance(event, u.RequestStarted) and event.slots:
                assert event.concurrency <= event.slots
    half = Given(INFERENCE, events[:cut])
    for event in events[cut:]:
        half.fold(event)
    assert half.world == Given(INFERENCE, events).world == given.world
