"""The read tables after each event, the views made from them, and the commands that `react` returns."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aima_core.store.records import Meta, Recorded
from aima_core.testing import NOON, Given
from aima_core.units import Event
from services.inference import internal as i
from services.inference import units as u
from services.inference.domain import INFERENCE
from services.inference.outside.adapter import react
from services.inference.rules import statistics, views
from services.inference.rules.breaker import TRIAL
from services.service import units as service_units
from tests.inference.test_decider import (
    SVC,
    added,
    begun,
    changed,
    done,
    failed,
    phase,
    record,
    removed,
    renewed,
    service,
)

T, PERIOD = 1_767_268_800, 5_890_896  # noon: the first second and the first period of both rings
Tables = dict[str, list[tuple[Any, ...]]]


def recorded(event: Event, at: float = NOON) -> Recorded:
    return Recorded(1, event.stream, 1, at, Meta(), event, "")


@contextmanager
def projected(events: Iterable[Event | tuple[Event, float]]) -> Iterator[sqlite3.Connection]:
    """Yield the tables after events. An event without a time of its own happens at noon."""
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    for statement in views.TABLES.values():
        connection.execute(statement)
    for one in events:
        event, at = one if isinstance(one, tuple) else (one, NOON)
        for sql, values in views.project(recorded(event, at)):
            connection.execute(sql, values)
    try:
        yield connection
    finally:
        connection.close()


def tables(events: Iterable[Event | tuple[Event, float]]) -> Tables:
    """Return the rows of each table that is not empty."""
    with projected(events) as connection:
        found = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in views.TABLES}
    return {name: [tuple(row) for row in rows] for name, rows in found.items() if rows}


P0, REST = (SVC, "p0"), (SVC, "")
REFUSED = u.RequestsRefused(service_id=SVC, count=2)
TWO_SECONDS, HALF_A_SECOND = 35, -34  # buckets, of which each begins 2 % above the one before
HOUR = 3600.0  # seconds
GONE = u.ServiceRemoved(service_id=SVC)
KNOWN: Tables = {"services": [(SVC,)]}
AFTER: dict[str, tuple[list[Any], Tables]] = {
    "service added": ([service()], KNOWN),
    "a lease renewed": ([service(), renewed()], KNOWN),
    "service added, of an id that was another's": (
        [added(), failed("x", "Y"), REFUSED, done(1, 2), removed(), service()],
        KNOWN,
    ),
    "service removed": ([service(), failed("x", "Y"), REFUSED, done(), GONE], {}),
    "service removed, with requests under way": (
        [service(), added(), done(), GONE, removed(), failed("x", "Y"), REFUSED, done(1, 2, 0.5)],
        {},
    ),
    "service removed and added": (
        [service(), GONE, done(), service(), REFUSED],
        {**KNOWN, "usage": [(*REST, 0, 0, 0, 2, 0, 0)]},
    ),
    "of a service that nobody knows": ([begun(), failed("x", "Y"), REFUSED, done(1, 2, 0.5)], {}),
    "phase changed": ([service(), phase("running")], KNOWN),
    "route added": ([added(), added()], {**KNOWN, "replicas": [P0]}),
    "route changed": ([added(), changed(False)], {**KNOWN, "replicas": [P0]}),
    "route removed": (
        [added(), done(1, 2, 0.5), (failed("x", "Y"), NOON + 1), removed()],
        {
            **KNOWN,
            "usage": [(*REST, 2, 1, 0, 0, 1, 2)],
            "seconds": [(*REST, 0, T, 1, 0, 2), (*REST, 1, T + 1, 1, 1, 0)],
            "sketches": [
                (*REST, "duration", 0, PERIOD, TWO_SECONDS, 1),
                (*REST, "time_to_first_token", 0, PERIOD, HALF_A_SECOND, 1),
            ],
        },
    ),
    "routes removed, of which one was used an hour before the others": (
        [
            *(added(), added("p1"), added("p2"), (done(), NOON - HOUR + 16)),
            *(done(process_id="p1"), done(process_id="p1"), done(process_id="p2")),
            *(removed("p1"), removed(), removed("p2")),
        ],
        {
            **KNOWN,
            "usage": [(*REST, 4, 0, 0, 0, 0, 0)],
            "seconds": [(*REST, 0, T, 3, 0, 0)],
            "sketches": [(*REST, "duration", 0, PERIOD, TWO_SECONDS, 3)],
        },
    ),
    "routes removed, the one that was used an hour before first": (
        [added(), added("p1"), (done(), NOON - HOUR + 16), done(process_id="p1"), removed(), removed("p1")],
        {
            **KNOWN,
            "usage": [(*REST, 2, 0, 0, 0, 0, 0)],
            "seconds": [(*REST, 0, T, 1, 0, 0)],
            "sketches": [(*REST, "duration", 0, PERIOD, TWO_SECONDS, 1)],
        },
    ),
    "ended on a replica that is gone": (
        [added(), removed(), failed("x", "Y"), done(1, 2)],
        {
            **KNOWN,
            "usage": [(*REST, 2, 1, 0, 0, 1, 2)],
            "seconds": [(*REST, 0, T, 2, 1, 2)],
            "sketches": [(*REST, "duration", 0, PERIOD, TWO_SECONDS, 1)],
        },
    ),
    "request started": ([added(), begun()], {**KNOWN, "replicas": [P0]}),
    "request completed": (
        [added(), done(3, 4, 0.5), done(10, 20)],
        {
            **KNOWN,
            "replicas": [P0],
            "usage": [(*P0, 2, 0, 0, 0, 13, 24)],
            "seconds": [(*P0, 0, T, 2, 0, 24)],
            "sketches": [
                (*P0, "duration", 0, PERIOD, TWO_SECONDS, 2),
                (*P0, "time_to_first_token", 0, PERIOD, HALF_A_SECOND, 1),
            ],
        },
    ),
    "request completed, a turn of the rings later": (
        [added(), done(3, 4), done(3, 4), (done(1, 1), NOON + 60 * 64)],
        {
            **KNOWN,
            "replicas": [P0],
            "usage": [(*P0, 3, 0, 0, 0, 7, 9)],
            "seconds": [(*P0, 0, T + 60 * 64, 1, 0, 1)],
            "sketches": [(*P0, "duration", 0, PERIOD + 12, TWO_SECONDS, 1)],
        },
    ),
    "request completed, on something known": (
        [
            service(),
            done(1, 8, 0.5, engine="toy", device="gpu", slots=4, concurrency=2),
            done(1, 16, engine="toy", device="gpu", slots=4, concurrency=2),
            done(1, 9, engine="toy", device="gpu", slots=4, concurrency=3),
            done(1, 7, engine="toy", device="gpu", slots=4, concurrency=3),
            done(1, 9, 2.0, engine="toy", device="gpu", slots=4, concurrency=3),
        ],
        {
            **KNOWN,
            "usage": [(*REST, 5, 0, 0, 0, 5, 49)],
            "seconds": [(*REST, 0, T, 5, 0, 49)],
            "sketches": [
                (*REST, "duration", 0, PERIOD, TWO_SECONDS, 5),
                (*REST, "time_to_first_token", 0, PERIOD, HALF_A_SECOND, 1),
                (*REST, "time_to_first_token", 0, PERIOD, TWO_SECONDS, 1),
            ],
            "speeds": [("m", "toy", "gpu", 4, 2, 2, 24, 3.5), ("m", "toy", "gpu", 4, 3, 1, 9, 2.0)],
        },
    ),
    "request completed, in no time": (
        [service(), done(duration=0.0), done(duration=-1.0)],
        {
            **KNOWN,
            "usage": [(*REST, 2, 0, 0, 0, 0, 0)],
            "seconds": [(*REST, 0, T, 2, 0, 0)],
            "sketches": [(*REST, "duration", 0, PERIOD, -690, 2)],
        },
    ),
    "request failed": (
        [added(), failed("x", "Y")],
        {**KNOWN, "replicas": [P0], "usage": [(*P0, 1, 1, 0, 0, 0, 0)], "seconds": [(*P0, 0, T, 1, 1, 0)]},
    ),
    "request cancelled: no fault of the service's": (
        [added(), failed("gone", "CANCELLED")],
        {**KNOWN, "replicas": [P0], "usage": [(*P0, 1, 0, 1, 0, 0, 0)], "seconds": [(*P0, 0, T, 1, 0, 0)]},
    ),
    "request refused by the engine: failed, but no fault of the service's": (
        [added(), failed("too long", "ENGINE_REFUSED")],
        {**KNOWN, "replicas": [P0], "usage": [(*P0, 1, 1, 0, 0, 0, 0)], "seconds": [(*P0, 0, T, 1, 0, 0)]},
    ),
    "requests refused": (
        [added(), REFUSED, REFUSED],
        {**KNOWN, "replicas": [P0], "usage": [(*REST, 0, 0, 0, 4, 0, 0)]},
    ),
}


@pytest.mark.parametrize(("events", "expected"), AFTER.values(), ids=AFTER)
def test_the_rows_after_these_events_are(events: list[Any], expected: Tables) -> None:
    assert tables(events) == expected


def test_every_event_type_is_in_the_table() -> None:
    kinds = {type(one[0] if isinstance(one, tuple) else one) for events, _ in AFTER.values() for one in events}
    assert kinds == set(u.EVENTS)


# --- figures ------------------------------------------------------------------------------------------------------


def measured(events: list[Any], now: float = NOON, queued: int = 0) -> u.ServiceMetrics:
    """Return the metrics of a service after events."""
    given = Given(INFERENCE, [one[0] if isinstance(one, tuple) else one for one in events])
    with projected(events) as connection:

        def rows(sql: str, *values: Any) -> list[Any]:
            return connection.execute(sql, (SVC, *values)).fetchall()

        found = statistics.Rows(
            rows(statistics.USAGE),
            rows(statistics.RECENT, *statistics.last_minute(now)),
            rows(statistics.LATENCIES, *statistics.last_hour(now)),
        )
        return statistics.metrics(given.world[f"inference/{SVC}"], found, queued)


NOTHING: dict[str, Any] = {
    "requests_per_second": 0.0,
    "latency_p50": None,
    "latency_p99": None,
    "time_to_first_token_p50": None,
    "time_to_first_token_p99": None,
    "total_requests": 0,
    "failed": 0,
    "cancelled": 0,
    "error_rate": 0.0,
    "tokens_per_second": 0.0,
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "outstanding": 0,
}


def test_figures_are_told_of_a_service_and_of_each_of_its_replicas() -> None:
    assert measured([service()]).model_dump() == {
        **NOTHING,
        "service_id": SVC,
        "refused": 0,
        "queued": 0,
        "replicas": [],
    }
    events = [service(), added(), added("p1"), begun(), done(3, 60, 0.5), begun("2"), failed("", "Y", process_id="p1")]
    told = measured([*events, REFUSED], queued=7).model_dump()
    two, half = pytest.approx(2, rel=0.01), pytest.approx(0.5, rel=0.01)
    first = NOTHING | {
        "requests_per_second": 1 / 60,
        **{"latency_p50": two, "latency_p99": two, "time_to_first_token_p50": half, "time_to_first_token_p99": half},
        **{"total_requests": 1, "tokens_per_second": 1.0, "prompt_tokens": 3, "completion_tokens": 60},
    }
    second = NOTHING | {"requests_per_second": 1 / 60, "total_requests": 1, "failed": 1, "error_rate": 1.0}
    both = {"requests_per_second": 2 / 60, "total_requests": 2, "failed": 1, "error_rate": 0.5}
    assert told == {
        **first,
        **both,
        "outstanding": 1,
        "service_id": SVC,
        "refused": 2,
        "queued": 7,
        "replicas": [{**first, "process_id": "p0", "outstanding": 1}, {**second, "process_id": "p1"}],
    }


def test_what_is_a_minute_old_is_no_rate_and_what_is_an_hour_old_no_latency() -> None:
    events = [service(), added(), done(1, 60)]
    assert measured(events, NOON + 59).tokens_per_second == 1.0
    later = measured(events, NOON + 60)
    assert (later.tokens_per_second, later.requests_per_second, later.error_rate) == (0.0, 0.0, 0.0)
    assert measured(events, NOON + 3599).latency_p50 == pytest.approx(2, rel=0.01)
    assert measured(events, NOON + 3600).latency_p50 is None
    assert measured(events, NOON + 3600).total_requests == 1


@given(
    st.lists(st.tuples(st.floats(1e-6, 600), st.sampled_from(["p0", "p1"])), min_size=1, max_size=200),
    st.integers(0, 200),
)
def test_percentiles_are_those_of_the_exact_values_within_one_percent_wherever_they_came_from(
    durations: list[tuple[float, str]], leaves: int
) -> None:
    ended: list[Any] = [done(duration=duration, process_id=process) for duration, process in durations]
    told = measured([service(), added(), added("p1"), *ended[:leaves], removed("p1"), *ended[leaves:]])
    ordered = sorted(duration for duration, _ in durations)
    for quantile, value in ((0.5, told.latency_p50), (0.99, told.latency_p99)):
        assert value == pytest.approx(ordered[int(quantile * (len(ordered) - 1))], rel=0.0101)


happened = st.one_of(
    st.builds(
        done,
        st.integers(0, 9),
        st.integers(0, 99),
        st.one_of(st.none(), st.floats(0, 9)),
        process_id=st.sampled_from(["p0", "p1", "p2"]),
        duration=st.floats(-1, 99),
        engine=st.sampled_from(["", "toy"]),
    ),
    st.builds(failed, st.just(""), st.just("E"), process_id=st.sampled_from(["p0", "p1"])),
    st.builds(u.RequestsRefused, service_id=st.just(SVC), count=st.integers(1, 9)),
    st.builds(added, st.sampled_from(["p0", "p1"])),
    st.builds(removed, st.sampled_from(["p0", "p1"])),
)


@given(st.lists(st.tuples(happened, st.floats(0, 400)), max_size=50))
def test_counters_are_the_sums_of_the_events_and_rings_what_their_time_holds(
    drawn: list[tuple[Event, float]],
) -> None:
    at, events = NOON, list[tuple[Event, float]]()
    for event, after in drawn:
        at += after
        events.append((event, at))
    told = measured([(service(), NOON), *events], at)
    completed = [(event, when) for event, when in events if isinstance(event, u.RequestCompleted)]
    broken = [(event, when) for event, when in events if isinstance(event, u.RequestFailed)]
    assert told.total_requests == len(completed) + len(broken)
    assert told.failed == len(broken)
    assert told.refused == sum(event.count for event, _ in events if isinstance(event, u.RequestsRefused))
    assert told.prompt_tokens == sum(event.prompt_tokens for event, _ in completed)
    assert told.completion_tokens == sum(event.completion_tokens for event, _ in completed)
    lately = [when for _, when in completed + broken if int(when) > int(at) - 60]
    assert told.requests_per_second == len(lately) / 60


def test_speeds_are_told_by_what_the_requests_ran_on() -> None:
    events = AFTER["request completed, on something known"][0]
    with projected(events) as connection:
        told = statistics.speeds(connection.execute(statistics.SPEEDS, ("m",)).fetchall())
    on = {"engine": "toy", "device": "gpu", "slots": 4}
    assert told.model_dump()["speeds"] == [
        {**on, "concurrency": 2, "requests": 2, "tokens_per_second": 24 / 3.5},
        {**on, "concurrency": 3, "requests": 1, "tokens_per_second": 4.5},
    ]


def test_the_load_is_told_of_replicas_that_leave_too() -> None:
    events = [service(), phase("running"), added(slots=4), added("p1"), begun(), begun("2", "p1"), removed("p1")]
    events += [REFUSED, changed(False)]
    for number in range(3):
        client = TRIAL if number == 2 else ""
        events += [begun(f"x{number}", client=client), failed("", "ENGINE_GONE", request_id=f"x{number}")]
    (pool,) = Given(INFERENCE, events).world.values()
    assert statistics.load(pool, 5, NOON).model_dump() == {
        "service_id": SVC,
        "phase": "running",
        "outstanding": 2,
        "queued": 5,
        "refused": 2,
        "last_used": NOON,
        "replicas": [
            {
                "process_id": "p0",
                "outstanding": 1,
                "slots": 4,
                "healthy": False,
                "busy_until": NOON + 58,
                "breaker": "open",
            },
            {
                "process_id": "p1",
                "outstanding": 1,
                "slots": 0,
                "healthy": False,
                "busy_until": NOON + 58,
                "breaker": "closed",
            },
        ],
    }
    assert statistics.load(pool, 0, NOON + 5).replicas[0].breaker == "half_open"


def test_models_are_listed_with_the_services_of_each_also_of_those_that_do_not_run() -> None:
    world = Given(
        INFERENCE,
        [
            added("p0"),
            added("p1"),
            changed(False, "p1"),
            begun(),
            added("q0", "svc-b", model_id="k", model_name="K", type="embedding"),
            added("r0", "svc-c"),
            service("svc-d", model_id="n", model_name="N"),
        ],
    ).world
    rows = [
        {"service_id": SVC, "process_id": "", "requests": 1, "failed": 1, "cancelled": 0}
        | {"prompt_tokens": 0, "completion_tokens": 4},
        {
            "service_id": SVC,
            "process_id": "p0",
            "requests": 2,
            "failed": 0,
            "cancelled": 1,
            "prompt_tokens": 13,
            "completion_tokens": 20,
        },
    ]
    nothing = {"outstanding": 0, "requests": 0, "failed": 0, "cancelled": 0, "prompt_tokens": 0, "completion_tokens": 0}
    used = {"outstanding": 1, "requests": 3, "failed": 1, "cancelled": 1, "prompt_tokens": 13, "completion_tokens": 24}
    k = {
        "id": "k",
        "name": "K",
        "type": "embedding",
        "status": "running",
        "services": [{"service_id": "svc-b", "name": "b", "replicas": 1, **nothing}],
    }
    m = {
        "id": "m",
        "name": "M",
        "type": "llm",
        "status": "running",
        "services": [
            {"service_id": SVC, "name": "a", "replicas": 1, **used},
            {"service_id": "svc-c", "name": "c", "replicas": 1, **nothing},
        ],
    }
    n = {
        "id": "n",
        "name": "N",
        "type": "llm",
        "status": "unavailable",
        "services": [{"service_id": "svc-d", "name": "d", "replicas": 0, **nothing}],
    }
    assert statistics.models(world.values(), rows, None).model_dump()["models"] == [k, m, n]
    assert statistics.models(world.values(), rows, "embedding").model_dump()["models"] == [k]
    assert statistics.models(world.values(), rows, "tts").models == []


def test_a_model_without_a_healthy_replica_is_unavailable() -> None:
    (model,) = statistics.models(Given(INFERENCE, [added(), changed(False)]).world.values(), [], None).models
    assert (model.status, model.services[0].replicas) == ("unavailable", 0)


# --- news ---------------------------------------------------------------------------------------------------------

OF: dict[str, Any] = {"service_id": SVC, "replica": 0, "process_id": "p0"}
ROUTE: dict[str, Any] = {
    **OF,
    "endpoint": "http://p0",
    "node": "n",
    "service_name": "a",
    "model_id": "m",
    "model_name": "M",
    "model_type": "llm",
    "served_model": "served",
    "dialect": "openai",
    "tools": False,
}
CREATED = service_units.ServiceCreated(
    service_id=SVC,
    name="a",
    model_id="m",
    model_name="M",
    model_type="llm",
    engine="",
    device="auto",
    resource_class="medium",
    replicas=1,
    persistent=False,
    port=None,
    config={},
    idle_timeout=0,
    autoscale=None,
)
START = service_units.StartRequested(
    service_id=SVC,
    replicas=1,
    run=1,
    engine="toy",
    config={},
    reason="",
    timeout=300,
    deadline=0,
    tools=False,
)
UP = service_units.ServiceStarted(service_id=SVC, replicas=1, endpoints=[], duration=1, status="running")
LEFT = [i.RecordNoRoute(service_id=SVC, process_id="p0")]


def to(phase: u.Phase, **why: str) -> list[Any]:
    return [i.RecordPhase(service_id=SVC, phase=phase, **why)]


NEWS: dict[str, tuple[Event, list[Any]]] = {
    "created": (
        CREATED,
        [i.RecordService(service_id=SVC, service_name="a", model_id="m", model_name="M", type="llm")],
    ),
    "to be started": (START, to("starting")),
    "replica started": (
        service_units.ReplicaStarted(**ROUTE, slots=4, engine="toy", device="gpu", cancels_whole=False),
        [record(slots=4, engine="toy", device="gpu", cancels_whole=False)],
    ),
    "well": (
        service_units.ReplicaHealthChanged(**OF, status="healthy"),
        [i.RecordHealth(service_id=SVC, process_id="p0", healthy=True)],
    ),
    "unwell": (
        service_units.ReplicaHealthChanged(**OF, status="unhealthy"),
        [i.RecordHealth(service_id=SVC, process_id="p0", healthy=False)],
    ),
    "leaving": (service_units.ReplicaLeaving(**OF, reason="r"), LEFT),
    "replica failed": (service_units.ReplicaFailed(**OF, error="e", error_code="E", attempt=1), LEFT),
    "ended": (service_units.ReplicaEnded(**OF), LEFT),
    "started": (UP, to("running")),
    "failed": (
        service_units.ServiceFailed(service_id=SVC, error="e", error_code="E"),
        to("failed", error="e", error_code="E"),
    ),
    "to be stopped": (service_units.StopRequested(service_id=SVC, force=False), to("stopped")),
    "to sleep": (service_units.StopRequested(service_id=SVC, force=False, asleep=True), to("asleep")),
    "stopped": (service_units.ServiceStopped(service_id=SVC, reason="requested"), to("stopped")),
    "asleep": (service_units.ServiceStopped(service_id=SVC, reason="idle", asleep=True), to("asleep")),
    "deleted": (service_units.ServiceDeleted(service_id=SVC), [i.RecordRemoved(service_id=SVC)]),
}


@pytest.mark.parametrize(("event", "commands"), NEWS.values(), ids=NEWS)
def test_news_of_a_service_calls_for(event: Event, commands: list[Any]) -> None:
    assert list(react(recorded(event))) == commands


def test_all_that_is_followed_is_reacted_to() -> None:
    assert {type(event) for event, _ in NEWS.values()} == set(INFERENCE.follows["service"])
