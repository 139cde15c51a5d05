"""The rules of the inference domain: where requests may go, which are under way, what may happen to them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aima_core.errors import AimaError, EngineNotRunning, NotFound, ValidationFailed
from aima_core.testing import NOON, Given
from aima_core.units import Command, Event, Success
from services.inference import units as u
from services.inference.decider import Pool, Sweep, reply, todo
from services.inference.domain import INFERENCE
from services.inference.tasks import TASKS

SVC = "svc-a"


def record(process_id: str = "p0", ident: str = SVC, **other: Any) -> u.RecordRoute:
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
    return u.RecordRoute(**(route | other))


def added(process_id: str = "p0", ident: str = SVC, **other: Any) -> u.RouteAdded:
    return u.RouteAdded(**record(process_id, ident, **other).model_dump())


def removed(process_id: str = "p0", ident: str = SVC) -> u.RouteRemoved:
    return u.RouteRemoved(service_id=ident, process_id=process_id)


def changed(healthy: bool, process_id: str = "p0") -> u.RouteChanged:
    return u.RouteChanged(service_id=SVC, process_id=process_id, healthy=healthy)


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


def done(prompt: int = 0, completion: int = 0, first: float | None = None) -> u.RequestCompleted:
    return u.RequestCompleted(
        request_id="req-1",
        model="m",
        type="llm",
        service_id=SVC,
        process_id="p0",
        duration=2,
        time_to_first_token=first,
        prompt_tokens=prompt,
        completion_tokens=completion,
    )


def failed(error: str, code: str) -> u.RequestFailed:
    return u.RequestFailed(
        request_id="req-1",
        model="m",
        type="llm",
        service_id=SVC,
        process_id="p0",
        duration=2,
        error=error,
        error_code=code,
    )


def begin(model: str = "m", *types: str, avoid: str = "", needs_tools: bool = False) -> u.BeginRequest:
    return u.BeginRequest(
        model=model, types=types or ("llm",), timeout=60, holder="h", avoid=avoid, needs_tools=needs_tools
    )


def lease(model: str = "m", **more: Any) -> u.LeaseModel:
    return u.LeaseModel(model=model, timeout=60, **more)


def settle(outcome: u.Outcome, **said: Any) -> u.Settle:
    return u.Settle.model_validate({"request_id": "req-1", "outcome": outcome, **said})


def decided(given: Given[Pool], command: Command[Any]) -> list[Event] | type[AimaError]:
    try:
        return given.when(command)
    except AimaError as error:
        return type(error)


# --- a pool of one service, in every condition --------------------------------------------------------------------

POOLS: dict[str, list[Event]] = {
    "nothing": [],
    "a route": [added()],
    "unhealthy": [added(), changed(False)],
    "under way": [added(), begun()],
    "route lost": [added(), begun(), removed()],
}
IDENT = "req-b092e91d"  # made of the id of the call, `request-1`
STARTED = [begun(IDENT, started_at=NOON, expires_at=NOON + 60)]
HELD = [begun(IDENT, started_at=NOON, expires_at=NOON + 60, holder="h")]
CANCELLED = [failed("the request was cancelled", "CANCELLED")]
USAGE = {"prompt_tokens": 3, "completion_tokens": 4}
__: list[Event] = []
NO, NONE = EngineNotRunning, NotFound
DECIDED: dict[str, tuple[Command[Any], tuple[Any, ...]]] = {
    #                                       nothing, a route, unhealthy, under way, route lost
    "lease": (lease(), (NO, STARTED, NO, STARTED, NO)),
    "lease, right type": (lease(type="llm"), (NO, STARTED, NO, STARTED, NO)),
    "lease, wrong type": (lease(type="tts"), (NO, *([ValidationFailed] * 4))),
    "lease by the model's name": (lease("M"), (NO, STARTED, NO, STARTED, NO)),
    "lease by the service's name": (lease("a"), (NO, STARTED, NO, STARTED, NO)),
    "lease by the service's id": (lease(SVC), (NO, STARTED, NO, STARTED, NO)),
    "lease of another model": (lease("n"), (NO,) * 5),
    "begin": (begin(), (NO, HELD, NO, HELD, NO)),
    "begin, wrong type": (begin("m", "asr"), (NO, *([ValidationFailed] * 4))),
    "begin, with tools": (
        begin(needs_tools=True),
        (NO, ValidationFailed, NO, ValidationFailed, NO),
    ),
    "begin, avoiding the only one": (begin(avoid="p0"), (NO, HELD, NO, HELD, NO)),
    "settle": (settle("completed"), (NONE, NONE, NONE, [done()], [done()])),
    "settle, with usage": (
        settle("completed", usage=USAGE, time_to_first_token=0.5),
        (NONE, NONE, NONE, [done(3, 4, 0.5)], [done(3, 4, 0.5)]),
    ),
    "settle, cancelled": (settle("cancelled"), (NONE, NONE, NONE, CANCELLED, CANCELLED)),
    "settle, failed": (
        settle("failed", error="it broke"),
        (NONE, NONE, NONE, [failed("it broke", "EXECUTION_FAILED")], [failed("it broke", "EXECUTION_FAILED")]),
    ),
    "expired": (
        u.RecordExpired(service_id=SVC, request_id="req-1", error="late", error_code="TIMEOUT"),
        (__, __, __, [failed("late", "TIMEOUT")], [failed("late", "TIMEOUT")]),
    ),
    "expired, another": (u.RecordExpired(service_id=SVC, request_id="x", error="e", error_code="T"), (__,) * 5),
    "route": (record(), ([added()], __, __, __, [added()])),
    "another route": (record("p1"), ([added("p1")],) * 5),
    "route of another service": (record("q0", "svc-b"), ([added("q0", "svc-b")],) * 5),
    "unhealthy": (
        u.RecordHealth(service_id=SVC, process_id="p0", healthy=False),
        (__, [changed(False)], __, [changed(False)], __),
    ),
    "healthy": (u.RecordHealth(service_id=SVC, process_id="p0", healthy=True), (__, __, [changed(True)], __, __)),
    "another unhealthy": (u.RecordHealth(service_id=SVC, process_id="p1", healthy=False), (__,) * 5),
    "no route": (
        u.RecordNoRoute(service_id=SVC, process_id="p0"),
        (__, [removed()], [removed()], [removed()], __),
    ),
    "no routes": (u.RecordNoRoute(service_id=SVC), (__, [removed()], [removed()], [removed()], __)),
    "another route is gone": (u.RecordNoRoute(service_id=SVC, process_id="p1"), (__,) * 5),
}


@pytest.mark.parametrize(
    ("command", "events", "expected"),
    [
        pytest.param(command, POOLS[pool], outcome, id=f"{name}, {pool}")
        for name, (command, outcomes) in DECIDED.items()
        for pool, outcome in zip(POOLS, outcomes, strict=True)
    ],
)
def test_a_command_to_a_pool_comes_to(command: Command[Any], events: list[Event], expected: Any) -> None:
    assert decided(Given(INFERENCE, events), command) == expected


def test_no_command_is_missing_in_the_table() -> None:
    carried = set(TASKS)  # these reach the decider as BeginRequest
    assert {type(command) for command, _ in DECIDED.values()} | carried == {*INFERENCE.commands, *INFERENCE.internal}


@pytest.mark.parametrize(("pool", "events"), POOLS.items())
def test_leases_are_looked_after_for_as_long_as_there_are_any(pool: str, events: list[Event]) -> None:
    effects = [effect for found in Given(INFERENCE, events).world.values() for effect in todo(found)]
    assert effects == ([Sweep(SVC)] if pool in ("under way", "route lost") else [])


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
    "of one service only": ([*THREE, begun("1", "p0"), begun("2", "p1")], begin("svc-a"), "p0"),
    "of the service's name": (THREE, begin("b"), "q0"),
    "not the unhealthy one": ([*THREE, changed(False)], begin(), "p1"),
    "not the one to avoid": (THREE, begin(avoid="p0"), "p1"),
    "the avoided one rather than none": ([added("p0")], begin(avoid="p0"), "p0"),
    "the avoided one rather than an unhealthy one": (
        [added("p0"), added("p1"), changed(False, "p1")],
        begin(avoid="p0"),
        "p0",
    ),
    "of the right type": ([added("p0", type="embedding"), added("q0", "svc-b")], begin("m", "llm", "vlm"), "q0"),
}


@pytest.mark.parametrize(("events", "command", "process_id"), CHOSEN.values(), ids=CHOSEN)
def test_the_replica_is(events: list[Event], command: Command[Any], process_id: str) -> None:
    assert chosen(events, command) == process_id


def test_tools_need_a_template_that_takes_them() -> None:
    assert chosen([added("p0", tools=True)], begin(needs_tools=True)) == "p0"
    with pytest.raises(ValidationFailed) as refused:
        Given(INFERENCE, [added("p0")]).when(begin("M", needs_tools=True))
    assert refused.value.message == "tools: the chat template of M takes no tools"
    assert [field["field"] for field in refused.value.details["fields"]] == ["tools"]


REFUSALS: dict[str, tuple[list[Event], Command[Any], str, dict[str, Any]]] = {
    "no service": (
        [],
        begin("x"),
        "no running engine serves x; start a service for it (service.create, service.start)",
        {"reason": "NO_SERVICE", "model": "x", "services": []},
    ),
    "no healthy replica": (
        [added(), changed(False)],
        begin("M"),
        "no running engine serves M: its service has no healthy replica",
        {"reason": "NO_REPLICA", "model": "M", "services": [SVC]},
    ),
    "another type": (
        [added(type="embedding")],
        begin("M", "llm", "vlm"),
        "model: M is of type embedding; this needs llm or vlm",
        {"fields": [{"field": "model", "expected": "a model of type llm or vlm"}]},
    ),
}


@pytest.mark.parametrize(("events", "command", "message", "details"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_says_what_would_help(
    events: list[Event], command: Command[Any], message: str, details: dict[str, Any]
) -> None:
    with pytest.raises(AimaError) as refused:
        Given(INFERENCE, events).when(command)
    assert (refused.value.message, refused.value.details) == (message, details)


# --- leases -------------------------------------------------------------------------------------------------------


def test_a_lease_tells_where_to_ask_under_which_name_and_until_when() -> None:
    given = Given(INFERENCE, [added()])
    events = given.then(lease())
    assert reply(given.world, lease(), events) == u.Lease(
        request_id=IDENT,
        endpoint="http://p0",
        model="served",
        dialect="openai",
        expires_at="2026-01-01T12:01:00.000000Z",
    )
    given.then(u.RecordNoRoute(service_id=SVC))
    with pytest.raises(EngineNotRunning):
        reply(given.world, lease(), events)
    assert reply(given.world, settle("completed"), []) == Success()


def test_two_requests_of_one_id_are_two_leases() -> None:
    given = Given(INFERENCE, [added()])
    for _ in range(3):
        given.then(lease(), request_id="chosen by the caller")
    (pool,) = given.world.values()
    assert pool.outstanding("p0") == len(pool.requests) == 3


def test_a_pool_is_forgotten_when_nothing_of_it_is_left() -> None:
    given = Given(INFERENCE, [added(), begun()])
    given.then(u.RecordNoRoute(service_id=SVC))
    assert list(given.world) == [f"inference/{SVC}"]
    given.then(settle("completed"))
    assert given.world == {}
    assert Given(INFERENCE, [added(), removed()]).world == {}
    assert Given(INFERENCE, [added(), begun(), done()]).world == Given(INFERENCE, [added()]).world


# --- what holds of anything ---------------------------------------------------------------------------------------

services = st.sampled_from(["svc-a", "svc-b"])
processes = st.sampled_from(["p0", "p1", "p2"])
commands = st.one_of(
    st.builds(record, processes, services, tools=st.booleans()),
    st.builds(u.RecordHealth, service_id=services, process_id=processes, healthy=st.booleans()),
    st.builds(u.RecordNoRoute, service_id=services, process_id=st.one_of(st.just(""), processes)),
    st.builds(begin, st.sampled_from(["m", "svc-a", "nix"]), avoid=st.one_of(st.just(""), processes)),
    st.builds(lease, st.sampled_from(["m", "svc-b"])),
    st.builds(
        u.Settle,
        request_id=st.integers(0, 20).map(str),
        outcome=st.sampled_from(["completed", "failed", "cancelled"]),
    ),
)


@given(st.lists(commands, max_size=30), st.integers(0, 30))
def test_any_commands_are_decided_or_refused_as_declared_and_every_request_ends_once(
    asked: list[Command[Any]], cut: int
) -> None:
    given, events = Given[Pool](INFERENCE), list[Event]()
    ids: list[str] = []
    for number, drawn in enumerate(asked):
        command = drawn
        if isinstance(drawn, u.Settle) and ids:
            command = drawn.model_copy(update={"request_id": ids[int(drawn.request_id) % len(ids)]})
        outcome = decided(given, command)
        if isinstance(outcome, type):
            declared = u.Chat.spec.errors if isinstance(command, u.BeginRequest) else command.spec.errors
            assert issubclass(outcome, declared)
            continue
        new = given.then(command, request_id=str(number))
        events += new
        ids += [event.request_id for event in new if isinstance(event, u.RequestStarted)]
        if isinstance(command, u.Settle):
            assert decided(given, command) is NotFound
        elif not isinstance(command, u.BeginRequest | u.LeaseModel):
            assert given.when(command) == []
    ended = [e.request_id for e in events if isinstance(e, u.RequestCompleted | u.RequestFailed)]
    under_way = [ident for pool in given.world.values() for ident in pool.requests]
    assert sorted(ended + under_way) == sorted(ids)
    for pool in given.world.values():
        assert pool.routes or pool.requests
        assert len({route.process_id for route in pool.routes}) == len(pool.routes)
        assert sum(pool.outstanding(process) for process in ("p0", "p1", "p2")) == len(pool.requests)
    half = Given(INFERENCE, events[:cut])
    for event in events[cut:]:
        half.fold(event)
    assert half.world == Given(INFERENCE, events).world == given.world
