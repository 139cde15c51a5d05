"""What the read table holds after each event, what is shown of a service, and what the commands answer."""

from __future__ import annotations

import sqlite3
from typing import Any, get_args

import pytest

from aima_core.domain import World
from aima_core.errors import AimaError
from aima_core.store.records import Meta, Recorded
from aima_core.testing import NOON, Given
from aima_core.units import Command, Event, Success
from services.inference import units as inference
from services.service import internal as i
from services.service import units as u
from services.service.domain import SERVICE
from services.service.rules import views
from services.service.rules.decider import Prepared
from services.service.rules.replies import reply
from services.service.rules.state import Service
from tests.service.given import (
    ASK_DELETE,
    BEFORE,
    BOTH,
    BROKEN,
    DELETED,
    ENDPOINT,
    GIVEN_UP,
    ONE,
    OTHER,
    R0,
    R1,
    REBOOT,
    STOPPED,
    SVC,
    TWO,
    UP,
    WAITING,
    again,
    another,
    ask_stop,
    begin,
    created,
    down,
    failed,
    gone,
    health,
    leaving,
    of_another,
    progress,
    register,
    requested,
    scale,
    scaled,
    sleep,
    started,
    stop,
    stopped,
    stray,
    up,
)

# --- the read table -----------------------------------------------------------------------------------------------

AT = [f"2026-01-01T12:00:0{second}.000000Z" for second in range(10)]


def row(status: str, at: int) -> tuple[str, ...]:
    return (SVC, "a", "m", status, AT[0], AT[at])


AFTER: dict[type[Event], tuple[list[Event], list[tuple[str, ...]]]] = {
    u.ServiceCreated: ([created()], [row("created", 0)]),
    u.StartRequested: (ONE, [row("starting", 1)]),
    u.ReplicaProgress: ([*ONE, progress()], [row("starting", 1)]),
    u.ReplicaStarted: ([*ONE, up()], [row("starting", 1)]),
    u.ServiceStarted: (UP, [row("running", 3)]),
    u.ReplicaHealthChanged: ([*UP, health("unhealthy")], [row("running", 3)]),
    u.ReplicaFailed: ([*UP, down()], [row("running", 3)]),
    u.ReplicaRequested: ([*UP, down(), again(f"{R0}-1", 1, 0.5)], [row("running", 3)]),
    u.ServiceScaled: ([*UP, scaled(1, 2)], [row("running", 3)]),
    u.ReplicaLeaving: ([*UP, leaving(R0)], [row("running", 3)]),
    u.ServiceFailed: ([*UP, down(), failed()], [row("failed", 5)]),
    u.StopRequested: ([*UP, stop()], [row("stopping", 4)]),
    u.ReplicaEnded: ([*UP, stop(), gone()], [row("stopping", 4)]),
    u.ServiceStopped: ([*UP, sleep(), gone(), STOPPED], [row("stopped", 6)]),
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


# --- a service ----------------------------------------------------------------------------------------------------

BOUNDS = {"min": 0.0, "max": 3.0, "target_concurrency": 4.0}
SHOWN: dict[str, Any] = {
    "id": SVC,
    "name": "a",
    "model_id": "m",
    "model_name": "M",
    "model_type": "llm",
    "status": "degraded",
    "replicas": 2,
    "active_replicas": 1,
    "asleep": False,
    "resource_class": "medium",
    "engine": "toy",
    "device": "cpu",
    "persistent": False,
    "priority": 5,
    "idle_timeout": 0.0,
    "autoscale": None,
    "port": None,
    "config": {},
    "endpoints": [ENDPOINT[R0]],
    "error": None,
    "error_code": None,
    "reason": "it fits",
    "metrics": None,
    "stream_version": None,
}


def test_a_service_is_shown_with_all_that_is_known_of_it() -> None:
    assert views.service_view(service(GIVEN_UP)).model_dump() == SHOWN


def test_a_service_that_has_failed_says_why() -> None:
    shown = views.service_view(service(BROKEN)).model_dump()
    assert shown == SHOWN | {
        "status": "failed",
        "active_replicas": 0,
        "endpoints": [],
        "error": "it broke",
        "error_code": "MODEL_INVALID",
    }


def test_a_service_that_sleeps_says_so() -> None:
    events = [created(idle_timeout=60, autoscale=BOUNDS), *UP[1:], sleep(), gone(), stopped("no request for 60 s")]
    assert views.service_view(service(events)).model_dump() == SHOWN | {
        "status": "stopped",
        "replicas": 1,
        "active_replicas": 0,
        "asleep": True,
        "idle_timeout": 60.0,
        "autoscale": {"min": 0, "max": 3, "target_concurrency": 4.0},
        "endpoints": [],
    }
    assert not views.service_view(service([*UP, stop(), gone(), STOPPED])).asleep


def test_a_service_that_was_never_started_shows_what_was_asked_for() -> None:
    asked: dict[str, Any] = {"engine": "other", "replicas": 3, "port": 20000, "config": {"slots": 2}}
    asked |= {"persistent": True, "priority": 9}
    shown = views.service_view(service([created(device="gpu", resource_class="large", **asked)])).model_dump()
    assert shown == SHOWN | asked | {
        "status": "created",
        "device": "gpu",
        "resource_class": "large",
        "active_replicas": 0,
        "endpoints": [],
        "reason": "",
    }


def test_the_figures_of_a_service_are_those_of_the_inference_domain() -> None:
    figures = {
        "requests_per_second": 1.5,
        "latency_p50": 0.25,
        "latency_p99": 2.5,
        "time_to_first_token_p50": 0.05,
        "time_to_first_token_p99": None,
        "total_requests": 90,
        "error_rate": 0.1,
        "tokens_per_second": 12.5,
        "outstanding": 3,
        "queued": 2,
        "refused": 4,
    }
    counts = {"failed": 9, "cancelled": 2, "prompt_tokens": 5, "completion_tokens": 7}
    more = {**counts, "service_id": SVC, "replicas": []}
    found = views.metrics(inference.ServiceMetrics.model_validate(figures | more))
    assert found.model_dump() == figures
    assert views.service_view(service(UP), found).metrics == found


# --- its status ---------------------------------------------------------------------------------------------------

START = f"aima call service.start service_id={SVC}"
FIX = f"fix the cause, then start it with: {START}"
KILL = f"to kill the rest: aima call service.stop service_id={SVC} force=true"
SILENT = "no reply to its health check for 0 s; AIMA replaces it after 10 s of silence"
FIRST_0, FIRST, SECOND = f"{R0}-1", f"{R1}-1", f"{R1}-2"
EVICTED = again(FIRST, 1, 0.5, "PREEMPTED: it broke", at=NOON + 2)
NO_ROOM = down(R1, "4 GiB are missing", "INSUFFICIENT_MEMORY")
FOUR_TIMES = [
    *BOTH,
    *(event for n in range(1, 4) for event in (down(R1 if n == 1 else f"{R1}-{n - 1}"), again(f"{R1}-{n}", n, 0.5))),
    *(down(f"{R1}-3"), gone(f"{R1}-3")),
]
SUMMARIES: dict[str, tuple[list[Event], str, str, str, str | None]] = {
    # what has happened: status, health, the line, the error
    "created": ([created()], "created", "none", f"not started yet; start it with: {START}", None),
    "asked": (
        TWO,
        "starting",
        "starting",
        f"0 of 2 replicas answer; {R0} waits for the engine domain to start it",
        None,
    ),
    "starting": (
        [*TWO, up(R0), progress(R1)],
        "starting",
        "starting",
        f"1 of 2 replicas answer; {R1} is starting: loading",
        None,
    ),
    "starting, who has come least far": (
        [*TWO, progress(R0)],
        *("starting", "starting", f"0 of 2 replicas answer; {R1} waits for the engine domain to start it", None),
    ),
    "starting, one is tried again": (
        [*TWO, up(R0), down(R1), again(FIRST, 1, 0.5, by=NOON + 40), progress(FIRST)],
        *(
            "starting",
            "starting",
            f"1 of 2 replicas answer; {FIRST} is starting: loading (last failure: DIED: it broke)",
            "it broke",
        ),
    ),
    "running": (BOTH, "running", "healthy", "2 of 2 replicas answer", None),
    "waiting for the next try": (
        [*BOTH, down(R1), again(FIRST, 1, 7.4)],
        *("degraded", "degraded"),
        "1 of 2 replicas answer; replica 1 restarts in 7 s (restart 1) after DIED: it broke",
        "it broke",
    ),
    "waiting, its time has come": (
        [*BOTH, down(R1, at=BEFORE), gone(R1), again(FIRST, 2, 0.5, at=BEFORE)],
        *("degraded", "degraded"),
        f"1 of 2 replicas answer; {FIRST} waits for the engine domain to start it (last failure: DIED: it broke)",
        "it broke",
    ),
    "evicted": (
        [*BOTH, down(R1, code="PREEMPTED"), EVICTED],
        *("degraded", "degraded"),
        "1 of 2 replicas answer; replica 1 restarts in 2 s (restart 1) after PREEMPTED: it broke",
        "it broke",
    ),
    "waiting for memory": (
        [*BOTH, NO_ROOM, again(FIRST, 1, 64.0, "INSUFFICIENT_MEMORY: 4 GiB are missing")],
        *("degraded", "degraded"),
        "1 of 2 replicas answer; replica 1 restarts in 64 s (restart 1) after INSUFFICIENT_MEMORY: 4 GiB are missing",
        "4 GiB are missing",
    ),
    "given up at once": (
        GIVEN_UP,
        *("degraded", "degraded"),
        f"1 of 2 replicas answer; {R1} was given up after 1 attempt: MODEL_INVALID: it broke; {FIX}",
        "it broke",
    ),
    "given up, and not gone yet": (
        GIVEN_UP[:-1],
        *("degraded", "degraded"),
        f"1 of 2 replicas answer; {R1} was given up after 1 attempt: MODEL_INVALID: it broke; {FIX}",
        "it broke",
    ),
    "given up after four tries": (
        FOUR_TIMES,
        *("degraded", "degraded"),
        f"1 of 2 replicas answer; {R1}-3 was given up after 4 attempts: DIED: it broke; {FIX}",
        "it broke",
    ),
    "given up before hung": (
        [*GIVEN_UP, health("unhealthy", R0)],
        *("degraded", "unhealthy"),
        f"0 of 2 replicas answer; {R1} was given up after 1 attempt: MODEL_INVALID: it broke; {FIX}",
        "it broke",
    ),
    "hung": (
        [*BOTH, health("unhealthy", R0)],
        *(
            "degraded",
            "degraded",
            f"1 of 2 replicas answer; {R0} is unhealthy: {SILENT}",
            None,
        ),
    ),
    "hung before waiting": (
        [*WAITING, health("unhealthy", R0)],
        *(
            "degraded",
            "unhealthy",
            f"0 of 2 replicas answer; {R0} is unhealthy: {SILENT}",
            "it broke",
        ),
    ),
    "back, and its failure forgotten": (
        [*BOTH, down(R1), again(FIRST, 1, 0.5), up(FIRST)],
        *("running", "healthy", "2 of 2 replicas answer", None),
    ),
    "stopping": (
        [*BOTH, stop(), gone(R0)],
        *("stopping", "stopping", f"waiting for {R1} to end (requested); {KILL}", None),
    ),
    "to sleep": (
        [*BOTH, sleep()],
        *("stopping", "stopping", f"waiting for {R0}, {R1} to end (no request for 60 s)", None),
    ),
    "stopped": ([*UP, stop(), gone(), STOPPED], "stopped", "none", f"stopped; start it with: {START}", None),
    "stopped by a reboot": (
        [*UP, stop(force=True, reason=REBOOT), gone(), stopped(REBOOT)],
        *("stopped", "none", f"stopped ({REBOOT}); start it with: {START}", None),
    ),
    "asleep": (
        [*UP, sleep(), gone(), stopped("no request for 60 s")],
        *("stopped", "none", "asleep (no request for 60 s); the next request wakes it", None),
    ),
    "asleep, a replica had failed long before": (
        [*UP, down(), gone(), again(FIRST_0, 1, 0.5), up(FIRST_0), sleep(), gone(FIRST_0), stopped()],
        *("stopped", "none", "asleep (no request for 60 s); the next request wakes it", None),
    ),
    "asleep for another": (
        [*UP, stop(reason=f"made room for {OTHER}", asleep=True, made_room_for=OTHER), gone(), stopped()],
        *("stopped", "none", f"asleep (made room for {OTHER}); the next request wakes it", None),
    ),
    "failed": (
        BROKEN,
        *("failed", "unhealthy", f"MODEL_INVALID: it broke; {FIX}", "it broke"),
    ),
    "a stop that took too long": (
        [*UP, stop(), failed(f"{R0} did not end in time; AIMA keeps trying", "STOP_TIMEOUT")],
        *("failed", "unhealthy"),
        f"STOP_TIMEOUT: {R0} did not end in time; AIMA keeps trying; "
        f"to kill it now: aima call engine.stop name={R0} force=true",
        f"{R0} did not end in time; AIMA keeps trying",
    ),
}


def now(memory: dict[str, int] | None = None, making_room: tuple[str, ...] = ()) -> views.Now:
    return views.Now(NOON, 10.0, memory or {}, making_room)


@pytest.mark.parametrize(("events", "status", "health", "summary", "error"), SUMMARIES.values(), ids=SUMMARIES)
def test_a_status_says_in_one_line(
    events: list[Event], status: str, health: str, summary: str, error: str | None
) -> None:
    shown = views.status_view(service(events), now())
    assert (shown.id, shown.status, shown.health, shown.summary, shown.error) == (SVC, status, health, summary, error)


def summary(events: list[Event], **more: Any) -> str:
    return views.status_view(service(events), now(**more)).summary


def test_a_replica_that_waits_for_others_says_for_whom() -> None:
    lead = f"0 of 1 replicas answer; {R0} waits for"
    memory = "memory from services that are going to sleep for it"
    assert summary(ONE, making_room=(OTHER, "svc-c")) == f"{lead} {memory}: {OTHER}, svc-c"
    after = [*UP, down(at=BEFORE), again(FIRST_0, 1, 0.5, at=BEFORE)]  # its last process has not ended
    assert summary(after) == (
        f"0 of 1 replicas answer; {FIRST_0} waits for its previous process to end: {R0} (last failure: DIED: it broke)"
    )


def test_a_replica_that_is_restarted_through_its_engine_is_not_called_silent() -> None:
    line = f"0 of 1 replicas answer; {R0} is being restarted by the engine domain"
    assert summary([*UP, health("unhealthy", R0, at=0.0)]) == line


def test_a_stop_names_five_processes_and_no_kill_when_it_kills_already() -> None:
    events = [created(replicas=7), requested(7, at=BEFORE), stop(force=True)]
    names = ", ".join(f"{SVC}-r{number}-1" for number in range(5))
    assert summary(events) == f"waiting for {names} and 2 more to end (requested)"


def test_every_status_has_its_line() -> None:
    assert {status for _, status, *_ in SUMMARIES.values()} == set(get_args(u.ServiceStatus))


AT_BEFORE, RETRY = "2026-01-01T11:59:40.000000Z", "2026-01-01T11:59:40.500000Z"


def test_a_status_shows_each_replica() -> None:
    shown = views.status_view(service(WAITING), now({R0: 123, R1: 456}))
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
            "error_code": None,
            "restarts": 0,
            "retry_at": None,
            "memory_bytes": 123,
            "attempts": [],
        },
        {
            "replica": 1,
            "process_id": FIRST,
            "node": "",
            "endpoint": "",
            "status": "waiting",
            "phase": "",
            "progress": 0.0,
            "message": "",
            "error": "it broke",
            "error_code": "DIED",
            "restarts": 1,
            "retry_at": RETRY,
            "memory_bytes": None,
            "attempts": [{"process_id": R1, "at": AT_BEFORE, "error": "it broke", "error_code": "DIED"}],
        },
    ]


def test_a_replica_shows_how_far_it_is_and_how_its_earlier_processes_ended() -> None:
    events = [*WAITING, progress(FIRST), down(FIRST, "boom", "BOOM", 2), again(SECOND, 2, 1.0), progress(SECOND)]
    shown = views.status_view(service(events), now()).replicas[1]
    assert (shown.status, shown.phase, shown.progress, shown.message) == ("starting", "loading", 40.0, "loading")
    assert (shown.error, shown.error_code, shown.restarts, shown.retry_at) == ("boom", "BOOM", 2, None)
    assert [(past.process_id, past.error_code) for past in shown.attempts] == [(R1, "DIED"), (FIRST, "BOOM")]


LOGGED: dict[str, tuple[list[Event], list[str]]] = {
    "created": ([created()], []),
    "running": (BOTH, [R0, R1]),
    "one is tried again": (WAITING, [R0, R1, FIRST]),
    "one was given up": (GIVEN_UP, [R0, R1]),
    "failed": (BROKEN, [R0, R1]),
    "stopped": ([*BOTH, stop(), gone(R0), gone(R1), STOPPED], [R0, R1]),
    "four times": (FOUR_TIMES, [R0, R1, f"{R1}-1", f"{R1}-2", f"{R1}-3"]),
}


@pytest.mark.parametrize(("events", "expected"), LOGGED.values(), ids=LOGGED)
def test_the_logs_that_tell_how_it_fares_are_of(events: list[Event], expected: list[str]) -> None:
    assert views.logged(service(events)) == expected


# --- answers of commands ------------------------------------------------------------------------------------------

STOP, WAITS = ask_stop(), None
AGAIN = another(FIRST, "started again")
MADE_ROOM = of_another([sleep()])[0]


def outcome(status: u.ServiceStatus, message: str) -> u.StartOutcome:
    return u.StartOutcome(success=True, status=status, message=message)


def start(wait: bool = True) -> i.BeginStart:
    return begin(wait=wait)


def scales(replicas: int, message: str) -> u.ScaleOutcome:
    return u.ScaleOutcome(success=True, replicas=replicas, message=message)


ANSWERS: dict[str, tuple[Command[Any], list[Event], list[Event], Any]] = {
    # command, what had happened before, what has happened since it was decided, the answer
    "create": (register(), [], [created()], u.ServiceRef(service_id=SVC)),
    "create again": (register(), [created()], [], u.ServiceRef(service_id=SVC)),
    "create another": (register(named=False), [created()], [created("a-1")], u.ServiceRef(service_id="svc-a-1")),
    "start": (start(), [created()], [requested()], WAITS),
    "start, not waiting": (start(False), [created()], [requested()], outcome("starting", "it fits")),
    "start, one of two up": (start(), [created(replicas=2)], [requested(2), up(R0)], WAITS),
    "start, one is tried again": (
        start(),
        [created(replicas=2)],
        [requested(2), down(R0), again(f"{R0}-1", 1, 0.5)],
        WAITS,
    ),
    "start, up": (start(), [created()], UP[1:], outcome("running", "it fits")),
    "start, partly up": (
        start(),
        [created(replicas=2)],
        [*TWO[1:], down(R0, code="MODEL_INVALID"), up(R1), started(ENDPOINT[R1], status="degraded")],
        outcome("degraded", "it fits"),
    ),
    "start, another made room": (start(), [created(), *of_another(UP)], [requested(), MADE_ROOM], WAITS),
    "start, another made room, up": (
        start(),
        [created(), *of_another(UP)],
        [requested(), MADE_ROOM, up(), started(ENDPOINT[R0])],
        outcome("running", "it fits"),
    ),
    "start, another that made room has failed": (
        start(),
        [created(), *of_another(UP)],
        [requested(), MADE_ROOM, *of_another([failed()])],
        WAITS,
    ),
    "start, up already": (start(), UP, [], outcome("running", "already running")),
    "start, up already, not waiting": (start(False), UP, [], outcome("running", "already running")),
    "start, degraded already": (start(), WAITING, [], outcome("degraded", "already degraded")),
    "start, what was given up is tried again": (
        start(),
        GIVEN_UP,
        [AGAIN],
        outcome("degraded", "starting 1 of 2 replicas again"),
    ),
    "start, under way": (start(), ONE, [], WAITS),
    "start, under way, not waiting": (start(False), ONE, [], outcome("starting", "already starting")),
    "start, under way, up": (
        start(),
        ONE,
        [up(), started(ENDPOINT[R0])],
        outcome("running", "already running"),
    ),
    "start, failed": (
        start(),
        [created()],
        [requested(), down(code="MODEL_INVALID"), failed(code="MODEL_INVALID")],
        "ExecutionFailed MODEL_INVALID it broke",
    ),
    "start, failed, and gone since": (
        start(),
        [created()],
        [requested(), down(), failed(), gone(), requested(run=2)],
        "ExecutionFailed DIED it broke",
    ),
    "start, late": (start(), [created()], [requested(), failed("x", "TIMEOUT")], "Timeout TIMEOUT x"),
    "start, no memory": (
        start(),
        [created()],
        [requested(), failed("x", "OUT_OF_MEMORY")],
        "InsufficientResources OUT_OF_MEMORY x",
    ),
    "start, no room": (
        start(),
        [created()],
        [requested(), failed("x", "INSUFFICIENT_MEMORY")],
        "InsufficientResources INSUFFICIENT_MEMORY x",
    ),
    "start, failed before we looked": (start(), BROKEN, [], "ExecutionFailed MODEL_INVALID it broke"),
    "start, stopped": (
        start(),
        [created()],
        [requested(), stop()],
        "ExecutionFailed STOPPED svc-a was stopped while it was starting",
    ),
    "start, stopped, and started by another": (
        start(),
        [created()],
        [requested(), stop(), STOPPED, requested(run=2)],
        "ExecutionFailed STOPPED svc-a was stopped while it was starting",
    ),
    "start, stopped, which took too long": (
        start(),
        [created()],
        [requested(), stop(), failed("x", "STOP_TIMEOUT")],
        "ExecutionFailed STOPPED svc-a was stopped while it was starting",
    ),
    "start, stopped before we looked": (
        start(),
        [*UP, stop(), gone(), STOPPED],
        [],
        "ExecutionFailed STOPPED svc-a was stopped while it was starting",
    ),
    "start, deleted": (
        start(),
        [created()],
        [DELETED],
        "ExecutionFailed DELETED svc-a was deleted while it was starting",
    ),
    "stop": (STOP, UP, [stop()], WAITS),
    "stop, gone": (STOP, UP, [stop(), gone(), STOPPED], Success()),
    "stop, one of two gone": (STOP, BOTH, [stop(), gone(R0)], WAITS),
    "stop, nothing there": (STOP, [created()], [], Success()),
    "stop, asleep": (STOP, [*UP, sleep(), gone(), stopped()], [stop(), STOPPED], Success()),
    "stop, failed and not yet gone": (STOP, BROKEN, [], WAITS),
    "stop, failed and gone": (STOP, BROKEN, [gone(R0), gone(R1)], Success()),
    "stop, took too long": (STOP, UP, [stop(), failed(code="STOP_TIMEOUT")], WAITS),
    "stop, took too long, gone at last": (STOP, UP, [stop(), failed(code="STOP_TIMEOUT"), gone()], Success()),
    "stop, a stray is left": (STOP, [*UP, stop(), gone(), STOPPED, stray()], [], WAITS),
    "stop, started anew by another": (STOP, [*UP, stop(), gone(), STOPPED], [requested(run=2)], Success()),
    "stop, up again by another": (
        STOP,
        [*UP, stop(), gone(), STOPPED],
        [requested(run=2), up(f"{SVC}-r0-2"), started("http://n:9")],
        Success(),
    ),
    "stop, degraded again by another": (
        STOP,
        [*UP, stop(), gone(), STOPPED],
        [requested(2, run=2), up(f"{SVC}-r0-2"), down(f"{SVC}-r1-2"), started("http://n:9", status="degraded")],
        Success(),
    ),
    "stop, deleted": (STOP, [created()], [DELETED], Success()),
    "delete": (ASK_DELETE, [created()], [DELETED], Success()),
    "scale": (scale(2), UP, [scaled(1, 2), another(FIRST, "requested")], scales(2, "2 replicas")),
    "scale, to sleep": (
        scale(0),
        UP,
        [scaled(1, 0), sleep()],
        scales(0, "asleep: the next request wakes it, with one replica"),
    ),
    "scale, stopped": (scale(2), [created()], [scaled(1, 2)], scales(2, "2 replicas from the next start on")),
}


def answer(world: World[Service], command: Command[Any], since: list[Event]) -> Any:
    try:
        return reply(world, command, since)
    except AimaError as error:
        return f"{type(error).__name__} {error.reason} {error.message}"


@pytest.mark.parametrize(("command", "before", "since", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_the_answer_is(command: Command[Any], before: list[Event], since: list[Event], expected: Any) -> None:
    assert answer(Given(SERVICE, [*before, *since]).world, command, since) == expected


def test_every_command_has_an_answer() -> None:
    assert {type(command) for command, *_ in ANSWERS.values()} == set(get_args(Prepared))
