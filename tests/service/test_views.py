"""What the read table holds after each event, what a status says, and what the commands answer."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

from aima_core.domain import World
from aima_core.errors import AimaError
from aima_core.records import Meta, Recorded
from aima_core.testing import NOON, Given
from aima_core.units import Command, Event, Success
from services.service import units as u
from services.service import views
from services.service.domain import SERVICE
from services.service.state import Service
from tests.service.test_decider import (
    BOTH,
    DELETED,
    ENDPOINT,
    R0,
    R1,
    STATUSES,
    STOPPED,
    SVC,
    TWO,
    UP,
    begin,
    created,
    down,
    failed,
    gone,
    health,
    progress,
    register,
    requested,
    started,
    stop,
    stray,
    up,
)

AT = [f"2026-01-01T12:00:0{second}.000000Z" for second in range(8)]


def row(status: str, at: int) -> tuple[str, ...]:
    return (SVC, "a", "m", status, AT[0], AT[at])


AFTER: dict[type[Event], tuple[list[Event], list[tuple[str, ...]]]] = {
    u.ServiceCreated: ([created()], [row("created", 0)]),
    u.StartRequested: ([created(), requested()], [row("starting", 1)]),
    u.ReplicaProgress: ([created(), requested(), progress()], [row("starting", 1)]),
    u.ReplicaStarted: ([created(), requested(), up()], [row("starting", 1)]),
    u.ServiceStarted: (UP, [row("running", 3)]),
    u.ReplicaHealthChanged: ([*UP, health("unhealthy")], [row("running", 3)]),
    u.ReplicaFailed: ([*UP, down()], [row("running", 3)]),
    u.ServiceFailed: ([*UP, down(), failed()], [row("failed", 5)]),
    u.StopRequested: ([*UP, stop()], [row("stopping", 4)]),
    u.ReplicaEnded: ([*UP, stop(), gone()], [row("stopping", 4)]),
    u.ServiceStopped: ([*UP, stop(), gone(), STOPPED], [row("stopped", 6)]),
    u.StrayFound: ([created(), stray()], [row("created", 0)]),
    u.ServiceDeleted: ([created(), DELETED], []),
}


@pytest.mark.parametrize(("events", "expected"), AFTER.values(), ids=[kind.unit for kind in AFTER])
def test_the_rows_after_these_events_are(events: list[Event], expected: list[tuple[str, ...]]) -> None:
    connection = sqlite3.connect(":memory:")
    for statement in views.TABLES.values():
        connection.execute(statement)
    other = created("other", ident="svc-other")
    for number, event in enumerate([*events, other]):
        recorded = Recorded(number + 1, event.stream, number + 1, NOON + number, Meta(), event, "")
        for sql, values in views.project(recorded):
            connection.execute(sql, values)
    rows = connection.execute("SELECT * FROM services ORDER BY id").fetchall()
    connection.close()
    at = AT[len(events)]
    assert rows == [*expected, ("svc-other", "other", "m", "created", at, at)]


def test_every_event_type_is_in_the_table() -> None:
    assert set(AFTER) == set(u.EVENTS)
    assert all(events[-1].unit == kind.unit for kind, (events, _) in AFTER.items())


def test_a_start_that_only_partly_worked_is_degraded_in_the_table() -> None:
    event = started(ENDPOINT[R1], status="degraded")
    ((_, values),) = views.project(Recorded(1, event.stream, 1, NOON, Meta(), event, ""))
    assert values == ("degraded", AT[0], SVC)


def service(events: list[Event]) -> Service:
    (found,) = Given(SERVICE, events).world.values()
    return found


# --- views --------------------------------------------------------------------------------------------------------


def test_a_service_is_shown_with_all_that_is_known_of_it() -> None:
    shown = views.service_view(service([*BOTH, down(R0), health("healthy", R1)])).model_dump()
    assert shown == {
        "id": SVC,
        "name": "a",
        "model_id": "m",
        "model_name": "M",
        "model_type": "llm",
        "status": "degraded",
        "replicas": 2,
        "active_replicas": 1,
        "resource_class": "medium",
        "engine": "toy",
        "device": "auto",
        "persistent": False,
        "port": None,
        "config": {},
        "endpoints": [ENDPOINT[R1]],
        "error": None,
        "error_code": None,
        "reason": "it fits",
        "metrics": None,
    }


def test_a_service_that_was_never_started_shows_what_was_asked_for() -> None:
    shown = views.service_view(service([created(engine="other", replicas=3, port=20000, config={"slots": 2})]))
    assert (shown.engine, shown.replicas, shown.active_replicas) == ("other", 3, 0)
    assert (shown.port, shown.config, shown.reason, shown.endpoints) == (20000, {"slots": 2}, "", [])


SUMMARIES: dict[str, tuple[list[Event], str, str, str]] = {
    "created": (
        [created()],
        *("created", "none", f"not started yet; start it with: aima call service.start service_id={SVC}"),
    ),
    "asked": (TWO, "starting", "starting", f"0 of 2 replicas answer; {R0}: asked for"),
    "starting": ([*TWO, up(R0), progress(R1)], "starting", "starting", f"1 of 2 replicas answer; {R1}: loading"),
    "running": (BOTH, "running", "healthy", "2 of 2 replicas answer"),
    "one died": ([*BOTH, down(R1)], "degraded", "degraded", f"1 of 2 replicas answer; {R1}: it broke"),
    "one hangs": (
        [*BOTH, health("unhealthy", R0)],
        *("degraded", "degraded", f"1 of 2 replicas answer; {R0}: it does not answer its health check"),
    ),
    "stopping": ([*BOTH, stop(), gone(R0)], "stopping", "stopping", "waiting for 1 processes to end"),
    "stopped": (
        STATUSES["stopped"],
        *("stopped", "none", f"stopped; start it with: aima call service.start service_id={SVC}"),
    ),
    "failed": (STATUSES["failed"], "failed", "unhealthy", "DIED: it broke"),
}


@pytest.mark.parametrize(("events", "status", "health", "summary"), SUMMARIES.values(), ids=SUMMARIES)
def test_a_status_says_in_one_line(events: list[Event], status: str, health: str, summary: str) -> None:
    shown = views.status_view(service(events))
    assert (shown.status, shown.health, shown.summary) == (status, health, summary)


def test_a_status_shows_each_replica() -> None:
    shown = views.status_view(service([*TWO, up(R0), progress(R1)]))
    assert [replica.model_dump() for replica in shown.replicas] == [
        {
            "replica": 0,
            "process_id": R0,
            "node": "n",
            "endpoint": ENDPOINT[R0],
            "status": "running",
            "phase": "ready",
            "progress": 100.0,
            "message": "",
            "error": None,
            "restarts": 0,
        },
        {
            "replica": 1,
            "process_id": R1,
            "node": "",
            "endpoint": "",
            "status": "starting",
            "phase": "loading",
            "progress": 40.0,
            "message": "loading",
            "error": None,
            "restarts": 0,
        },
    ]


# --- answers of commands ------------------------------------------------------------------------------------------

STOP = u.StopService(service_id=SVC)
WAITS = None


def outcome(status: u.ServiceStatus, message: str) -> u.StartOutcome:
    return u.StartOutcome(success=True, status=status, message=message)


def start(wait: bool = True) -> u.BeginStart:
    return begin().model_copy(update={"wait": wait})


ANSWERS: dict[str, tuple[Command[Any], list[Event], list[Event], Any]] = {
    # command, what had happened before, what has happened since it was decided, the answer
    "create": (register(), [], [created()], u.ServiceRef(service_id=SVC)),
    "create again": (register(), [created()], [], u.ServiceRef(service_id=SVC)),
    "create another": (
        register(named=False),
        [created()],
        [created("a-1")],
        u.ServiceRef(service_id="svc-a-1"),
    ),
    "start": (start(), [created()], [requested()], WAITS),
    "start, not waiting": (start(False), [created()], [requested()], outcome("starting", "it fits")),
    "start, up": (start(), [created()], UP[1:], outcome("running", "it fits")),
    "start, partly up": (
        start(),
        [created(replicas=2)],
        [*TWO[1:], down(R0), up(R1), started(ENDPOINT[R1], status="degraded")],
        outcome("degraded", "it fits"),
    ),
    "start, up already": (start(), UP, [], outcome("running", "it is running already")),
    "start, degraded already": (
        start(),
        [*BOTH, down(R0)],
        [],
        outcome("degraded", "it is degraded already"),
    ),
    "start, under way": (start(), [created(), requested()], [], WAITS),
    "start, under way, not waiting": (
        start(False),
        [created(), requested()],
        [],
        outcome("starting", "it is starting already"),
    ),
    "start, failed": (start(), [created()], [requested(), down(), failed()], "ExecutionFailed DIED"),
    "start, late": (start(), [created()], [requested(), failed("x", "TIMEOUT")], "Timeout TIMEOUT"),
    "start, no memory": (
        start(),
        [created()],
        [requested(), failed("x", "OUT_OF_MEMORY")],
        "InsufficientResources OUT_OF_MEMORY",
    ),
    "start, no slot": (
        start(),
        [created()],
        [requested(), failed("x", "INSUFFICIENT_MEMORY")],
        "InsufficientResources INSUFFICIENT_MEMORY",
    ),
    "start, failed before we looked": (start(), STATUSES["failed"], [], "ExecutionFailed DIED"),
    "start, stopped": (start(), [created()], [requested(), stop()], "ExecutionFailed STOPPED"),
    "start, stopped before we looked": (start(), STATUSES["stopped"], [], "ExecutionFailed STOPPED"),
    "start, deleted": (start(), [created()], [DELETED], "ExecutionFailed DELETED"),
    "stop": (STOP, UP, [stop()], WAITS),
    "stop, gone": (STOP, UP, [stop(), gone(), STOPPED], Success()),
    "stop, one of two gone": (STOP, BOTH, [stop(), gone(R0)], WAITS),
    "stop, nothing there": (STOP, [created()], [], Success()),
    "stop, failed and not yet gone": (STOP, STATUSES["failed"], [], WAITS),
    "stop, failed and gone": (STOP, STATUSES["failed"], [gone()], Success()),
    "stop, a stray is left": (STOP, [*STATUSES["stopped"], stray()], [], WAITS),
    "stop, started anew by another": (STOP, STATUSES["stopped"], [requested(run=2)], Success()),
    "stop, deleted": (STOP, [created()], [DELETED], Success()),
    "delete": (u.DeleteService(service_id=SVC), [created()], [DELETED], Success()),
}


def answer(world: World[Service], command: Command[Any], since: list[Event]) -> Any:
    try:
        return views.reply(world, command, since)
    except AimaError as error:
        return f"{type(error).__name__} {error.reason}"


@pytest.mark.parametrize(("command", "before", "since", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_the_answer_is(command: Command[Any], before: list[Event], since: list[Event], expected: Any) -> None:
    assert answer(Given(SERVICE, [*before, *since]).world, command, since) == expected
