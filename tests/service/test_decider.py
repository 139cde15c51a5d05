"""What may happen to a service at somebody's request: the table is the specification, properties hold of anything."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aima_core.errors import Conflict, NotFound
from aima_core.testing import NOON, Given
from aima_core.units import Command, Event
from services.service import internal as i
from services.service import units as u
from services.service.domain import SERVICE
from services.service.rules import lifecycle
from services.service.rules import todo as effects
from services.service.rules.decider import id_of, unknown
from services.service.rules.scaling import within
from services.service.rules.state import Service
from services.service.rules.todo import todo
from tests.service.given import (
    ASK_DELETE,
    ASK_SLEEP,
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
    R2,
    STOPPED,
    SVC,
    TWO,
    UP,
    WAITING,
    another,
    ask_stop,
    begin,
    broke,
    came,
    created,
    decided,
    down,
    ended,
    failed,
    gone,
    health,
    late,
    leaving,
    of_another,
    progress,
    ready,
    register,
    requested,
    scale,
    scaled,
    sick,
    sleep,
    started,
    stop,
    stopped,
    stray,
    up,
    well,
)

# --- a service of two replicas, in every status -------------------------------------------------------------------

IDLE = "no request for 60 s"
STATUSES: dict[str, list[Event]] = {
    "nothing": [],
    "created": [created(replicas=2)],
    "starting": TWO,
    "running": BOTH,
    "degraded, one waits": WAITING,
    "degraded, one given up": GIVEN_UP,
    "stopping": [*BOTH, stop(at=BEFORE)],
    "stopping, to sleep": [*BOTH, sleep(at=BEFORE)],
    "stopped": [*BOTH, stop(at=BEFORE), gone(R0), gone(R1), STOPPED],
    "stopped, asleep": [*BOTH, sleep(at=BEFORE), gone(R0), gone(R1), stopped(IDLE, asleep=True)],
    "failed": [*BROKEN, gone(R0), gone(R1)],
    "failed, being cleared away": BROKEN,
}
__: list[Event] = []
FIRST, ANEW = [requested(2)], [requested(2, run=2)]
R1_AGAIN = [another(f"{R1}-1", "started again")]
R1_SOONER = [another(f"{R1}-2", "started again")]  # it waits for its next try: now it does not
LATE = failed("2 of 2 replicas were not ready within 60 s; last report: none from the engine domain", "TIMEOUT")
HANGS = failed(f"{R0}, {R1} did not end in time; AIMA keeps trying", "STOP_TIMEOUT")
MORE, FEWER = scaled(2, 3), scaled(2, 1)
MORE_AT_ONCE = [MORE, another(f"{R2}-1", "requested")]
TO_SLEEP = [scaled(2, 0), sleep("scaled to 0")]

DECIDED: dict[str, tuple[Command[Any], dict[str, Any]]] = {
    # each is tried in every status; where none is named, nothing happens
    "create": (register(replicas=2), {"nothing": [created(replicas=2)]}),
    "create, of another size": (
        register(replicas=3),
        dict.fromkeys(STATUSES, Conflict) | {"nothing": [created(replicas=3)]},
    ),
    "start": (
        begin(),
        {
            "nothing": NotFound,
            "created": FIRST,
            "degraded, one waits": R1_SOONER,
            "degraded, one given up": R1_AGAIN,
            "stopping": Conflict,
            "stopping, to sleep": Conflict,
            "stopped": ANEW,
            "stopped, asleep": ANEW,
            "failed": ANEW,
            "failed, being cleared away": ANEW,
        },
    ),
    "start, too late to choose an engine": (
        begin(""),
        {
            "nothing": NotFound,
            "created": Conflict,
            "degraded, one waits": R1_SOONER,
            "degraded, one given up": R1_AGAIN,
            "stopping": Conflict,
            "stopping, to sleep": Conflict,
            "stopped": Conflict,
            "stopped, asleep": Conflict,
            "failed": Conflict,
            "failed, being cleared away": Conflict,
        },
    ),
    "more": (
        scale(3),
        {
            "nothing": NotFound,
            "created": [MORE],
            "starting": [MORE, another(f"{R2}-1", "requested", deadline=NOON + 40)],  # the start's own
            "running": MORE_AT_ONCE,
            "degraded, one waits": [MORE, another(f"{R2}-2", "requested")],
            "degraded, one given up": MORE_AT_ONCE,
            "stopping": [MORE],
            "stopping, to sleep": [MORE],
            "stopped": [MORE],
            "stopped, asleep": Conflict,  # asleep only since the engine would have been chosen
            "failed": [MORE],
            "failed, being cleared away": [MORE],
        },
    ),
    "more, and awake": (
        scale(3, start=begin()),
        {
            "nothing": NotFound,
            "created": [MORE],
            "starting": [MORE, another(f"{R2}-1", "requested", deadline=NOON + 40)],
            "running": MORE_AT_ONCE,
            "degraded, one waits": [MORE, another(f"{R2}-2", "requested")],
            "degraded, one given up": MORE_AT_ONCE,
            "stopping": [MORE],
            "stopping, to sleep": [MORE],
            "stopped": [MORE],
            "stopped, asleep": [MORE, requested(3, run=2)],
            "failed": [MORE],
            "failed, being cleared away": [MORE],
        },
    ),
    "more, by load": (
        scale(3, by_load=True),
        {
            "nothing": NotFound,
            "running": MORE_AT_ONCE,
            "degraded, one waits": [MORE, another(f"{R2}-2", "requested")],
            "degraded, one given up": MORE_AT_ONCE,
        },
    ),
    "fewer, by load": (
        scale(1, by_load=True),
        {
            "nothing": NotFound,
            "running": [FEWER, leaving(R1)],
            "degraded, one waits": [FEWER, leaving(f"{R1}-1")],
            "degraded, one given up": [FEWER, leaving(R1)],
        },
    ),
    "fewer": (
        scale(1),
        {
            "nothing": NotFound,
            "created": [FEWER],
            "starting": [FEWER, leaving(R1)],
            "running": [FEWER, leaving(R1)],
            "degraded, one waits": [FEWER, leaving(f"{R1}-1")],
            "degraded, one given up": [FEWER, leaving(R1)],
            "stopping": [FEWER],
            "stopping, to sleep": [FEWER],
            "stopped": [FEWER],
            "stopped, asleep": Conflict,
            "failed": [FEWER],
            "failed, being cleared away": [FEWER],
        },
    ),
    "as many": (scale(2), {"nothing": NotFound, "stopped, asleep": Conflict}),
    "as many, and awake": (scale(2, start=begin()), {"nothing": NotFound, "stopped, asleep": ANEW}),
    "none": (
        scale(0),
        {
            "nothing": NotFound,
            "created": [scaled(2, 0)],
            "starting": TO_SLEEP,
            "running": TO_SLEEP,
            "degraded, one waits": TO_SLEEP,
            "degraded, one given up": TO_SLEEP,
            "stopping": [scaled(2, 0)],
            "stopping, to sleep": [scaled(2, 0)],
            "stopped": [scaled(2, 0)],
            "stopped, asleep": [scaled(2, 0)],
            "failed": [scaled(2, 0)],
            "failed, being cleared away": [scaled(2, 0)],
        },
    ),
    "stop": (
        ask_stop(),
        {
            "nothing": NotFound,
            "starting": [stop()],
            "running": [stop()],
            "degraded, one waits": [stop()],
            "degraded, one given up": [stop()],
            "stopping, to sleep": [stop()],
            "stopped, asleep": [stop(), STOPPED],
            "failed": [stop(), STOPPED],
            "failed, being cleared away": [stop()],
        },
    ),
    "stop by force": (
        ask_stop(force=True),
        {
            "nothing": NotFound,
            "starting": [stop(force=True)],
            "running": [stop(force=True)],
            "degraded, one waits": [stop(force=True)],
            "degraded, one given up": [stop(force=True)],
            "stopping": [stop(force=True)],
            "stopping, to sleep": [stop(force=True)],
            "stopped, asleep": [stop(force=True), STOPPED],
            "failed": [stop(force=True), STOPPED],
            "failed, being cleared away": [stop(force=True)],
        },
    ),
    "put to sleep": (
        ASK_SLEEP,
        {"running": [sleep()], "degraded, one waits": [sleep()], "degraded, one given up": [sleep()]},
    ),
    "delete": (
        ASK_DELETE,
        {
            "nothing": NotFound,
            "created": [DELETED],
            "starting": Conflict,
            "running": Conflict,
            "degraded, one waits": Conflict,
            "degraded, one given up": Conflict,
            "stopping": Conflict,
            "stopping, to sleep": Conflict,
            "stopped": [DELETED],
            "stopped, asleep": [DELETED],
            "failed": [DELETED],
            "failed, being cleared away": Conflict,
        },
    ),
    "the start has timed out": (late(), {"starting": [LATE]}),
    "the start of another run has timed out": (late(2), {}),
    "the stop has timed out": (late(stopping=True), {"stopping": [HANGS], "stopping, to sleep": [HANGS]}),
    "the stop of another run has timed out": (late(2, stopping=True), {}),
}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("asked", DECIDED)
def test_a_command_in_a_status_comes_to(asked: str, status: str) -> None:
    command, outcomes = DECIDED[asked]
    assert decided(Given(SERVICE, STATUSES[status]), command) == outcomes.get(status, __)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("asked", DECIDED)
def test_asking_again_changes_nothing(asked: str, status: str) -> None:
    command, outcomes = DECIDED[asked]
    given = Given(SERVICE, STATUSES[status])
    if not isinstance(outcomes.get(status, __), type) and asked != "delete":
        given.then(command)
        assert given.when(command) == __


def test_no_status_and_no_command_is_missing_in_the_table() -> None:
    for status, events in STATUSES.items():
        service = Given(SERVICE, events).world.get(f"service/{SVC}")
        assert (service.status if service else "nothing") == status.partition(",")[0]
        assert service is None or service.asleep == (status == "stopped, asleep")
    assert {status.partition(",")[0] for status in STATUSES} == {"nothing", *get_args(u.ServiceStatus)}
    assert {status for _, outcomes in DECIDED.values() for status in outcomes} <= set(STATUSES)
    prepared = {u.CreateService, u.StartService, u.ScaleService}  # these reach the decider as Register, Begin...
    news = {kind for kind in SERVICE.internal if "process_id" in kind.model_fields}  # see test_replicas.py
    assert {type(command) for command, _ in DECIDED.values()} | prepared | news == {
        *SERVICE.commands,
        *SERVICE.internal,
    }


# --- stories that the table does not tell -------------------------------------------------------------------------


def test_a_start_that_was_in_time_for_some_goes_on_with_them_and_tries_the_others_anew() -> None:
    given = Given(SERVICE, [*TWO, progress(R1), up(R0)])
    error = "1 of 2 replicas were not ready within 60 s; last report: loading"
    at = NOON + 40
    assert given.then(late(), at=at) == [
        down(R1, error, "TIMEOUT", at=at),
        another(f"{R1}-1", f"TIMEOUT: {error}", restarts=1, not_before=at + 0.517, deadline=at + 300.517),
        started(ENDPOINT[R0], status="degraded", duration=60.0),
    ]
    assert given.when(late()) == []


def test_a_start_does_not_settle_on_a_replica_that_does_not_answer() -> None:
    given = Given(SERVICE, [*TWO, up(R0), health("unhealthy", R0), down(R1, code="MODEL_INVALID")])
    assert given.when(late()) == [
        failed("2 of 2 replicas were not ready within 60 s; last report: MODEL_INVALID: it broke", "TIMEOUT")
    ]


def test_what_was_given_up_before_a_start_timed_out_stays_given_up() -> None:
    given = Given(SERVICE, [created(replicas=3), requested(3), up(R0), down(R1, code="MODEL_INVALID"), progress(R2)])
    events = given.then(late())
    assert [event.process_id for event in events if isinstance(event, u.ReplicaRequested)] == [f"{R2}-1"]
    assert events[-1] == started(ENDPOINT[R0], status="degraded", duration=0)


def test_the_duration_of_a_start_is_counted_from_its_request() -> None:
    *_, event = Given(SERVICE, ONE).when(ready(), at=BEFORE + 2.5)
    assert event == started(ENDPOINT[R0], duration=2.5)


def test_a_start_has_the_time_that_was_asked_for() -> None:
    (event,) = Given(SERVICE, [created()]).when(begin().model_copy(update={"timeout": 7.0}))
    assert event == msgspec.structs.replace(requested(), timeout=7.0, deadline=NOON + 7)


def test_a_new_run_first_sends_away_what_is_left_of_the_last() -> None:
    given = Given(SERVICE, [*UP, down(code="MODEL_INVALID"), failed()])
    given.then(begin())
    (service,) = given.world.values()
    assert service.present() == (f"{SVC}-r0-2", R0)
    assert (service.error, service.error_code, service.launches) == ("", "", 0)
    assert given.then(ended(R0)) == [gone(R0)]
    assert given.when(ready(R0)) == [stray(R0)]  # it has come back from the dead: away with it
    assert given.when(ready(f"{SVC}-r0-2"))[-1] == started("http://n:9", duration=0)


def test_a_stop_waits_for_strays_too() -> None:
    given = Given(SERVICE, [*UP, stop(), stray()])
    assert given.then(ended(R0)) == [gone(R0)]
    assert given.then(ended(f"{SVC}-r0-9")) == [gone(f"{SVC}-r0-9", -1), STOPPED]


def test_of_a_service_that_has_stopped_nothing_is_there_but_it_is_known_what_was() -> None:
    (service,) = Given(SERVICE, STATUSES["stopped"]).world.values()
    assert (service.present(), service.answering()) == ((), ())
    assert [(replica.process_id, replica.status) for replica in service.replica_set] == [(R0, "ended"), (R1, "ended")]


def test_a_stop_of_what_was_on_its_way_to_sleep_lets_nothing_wake_it() -> None:
    given = Given(SERVICE, STATUSES["stopping, to sleep"])
    given.then(ask_stop())
    given.then(ended(R0))
    assert given.then(ended(R1)) == [gone(R1), STOPPED]
    (service,) = given.world.values()
    assert not service.asleep


@pytest.mark.parametrize(
    ("going", "force", "expected"),
    [
        (stop(asleep=True, made_room_for=OTHER), False, stop(made_room_for=OTHER)),
        (stop(asleep=True, made_room_for=OTHER), True, stop(force=True, made_room_for=OTHER)),
        (stop(force=True, asleep=True), False, stop(force=True)),
        (stop(force=True, asleep=True, made_room_for=OTHER), False, stop(force=True, made_room_for=OTHER)),
    ],
)
def test_a_stop_on_top_of_another_keeps_its_force_and_for_whom_it_makes_room(
    going: Event, force: bool, expected: Event
) -> None:
    given = Given(SERVICE, [*UP, going])
    assert given.then(ask_stop(force)) == [expected]
    assert given.when(ask_stop(force)) == []


@pytest.mark.parametrize(("going", "asleep"), [(stop(), False), (sleep(), True)])
def test_a_stop_that_took_too_long_ends_when_the_last_process_does(going: u.StopRequested, asleep: bool) -> None:
    given = Given(SERVICE, [*BOTH, going])
    assert given.then(late(stopping=True)) == [HANGS]
    assert given.then(ended(R0)) == [gone(R0)]
    (service,) = given.world.values()
    assert (service.status, service.error_code, service.asleep) == ("failed", "STOP_TIMEOUT", False)
    assert given.then(ended(R1)) == [gone(R1), stopped(going.reason, asleep=asleep)]
    (service,) = given.world.values()
    assert (service.status, service.error, service.error_code, service.asleep) == ("stopped", "", "", asleep)


@pytest.mark.parametrize(
    ("events", "last"),
    [
        ([*ONE, down(code="PREEMPTED"), gone(), another(f"{R0}-1", "again", restarts=1)], "PREEMPTED: it broke"),
        ([*ONE, down(), another(f"{R0}-1", "again", restarts=1), progress(f"{R0}-1")], "loading"),
        (ONE, "none from the engine domain"),
    ],
)
def test_a_start_that_has_timed_out_tells_what_was_last_heard_of_a_replica(events: list[Event], last: str) -> None:
    error = f"1 of 1 replicas were not ready within 60 s; last report: {last}"
    assert Given(SERVICE, events).when(late(), at=NOON + 40) == [failed(error, "TIMEOUT")]


# --- how many replicas --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "wanted", "expected"),
    [
        (None, 0, 1),
        (None, 1, 1),
        (None, 7, 7),
        ((0, 4), 0, 1),
        ((0, 4), 4, 4),
        ((0, 4), 5, 4),
        ((2, 4), 0, 2),
        ((2, 4), 1, 2),
        ((2, 4), 3, 3),
    ],
)
def test_a_service_that_is_awake_has_replicas_within_its_bounds(
    bounds: tuple[int, int] | None, wanted: int, expected: int
) -> None:
    autoscale = None if bounds is None else {"min": bounds[0], "max": bounds[1], "target_concurrency": 4.0}
    assert within(created(autoscale=autoscale), wanted) == expected
    (event,) = Given(SERVICE, [created(autoscale=autoscale, replicas=wanted)]).when(begin())
    assert event == requested(expected)


@pytest.mark.parametrize("replicas", [1, 5])
def test_a_number_beyond_its_bounds_asked_of_a_sleeping_service_is_not_asked_for_again_when_it_is_awake(
    replicas: int,
) -> None:
    bounds = {"min": 2.0, "max": 3.0, "target_concurrency": 4.0}
    given = Given(SERVICE, [created(replicas=2, autoscale=bounds), *STATUSES["stopped, asleep"][1:]])
    given.then(scale(replicas, start=begin()))
    assert given.when(scale(replicas, start=begin())) == []


# --- making room --------------------------------------------------------------------------------------------------

FOR_A = stop(reason=f"made room for {SVC}", asleep=True, made_room_for=SVC)
MADE_ROOM = of_another([FOR_A])[0]
assert isinstance(MADE_ROOM, u.StopRequested)
MADE_ROOM = msgspec.structs.replace(MADE_ROOM, reason=f"made room for {SVC}", made_room_for=SVC)
PERSISTENT = [created(replicas=2, persistent=True), *BOTH[1:]]
MAKES_ROOM: dict[str, tuple[list[Event], list[Event]]] = {
    # what has happened to the other service, what the start adds to its own events
    **{status: (events, []) for status, events in STATUSES.items() if not status.startswith(("running", "degraded"))},
    "running": (BOTH, [MADE_ROOM]),
    "degraded, one waits": (WAITING, [MADE_ROOM]),
    "degraded, one given up": (GIVEN_UP, [MADE_ROOM]),
    "running, persistent": (PERSISTENT, []),
}


@pytest.mark.parametrize(("events", "expected"), MAKES_ROOM.values(), ids=MAKES_ROOM)
def test_an_idle_service_goes_to_sleep_in_the_decision_that_needs_its_memory(
    events: list[Event], expected: list[Event]
) -> None:
    given = Given(SERVICE, [created(), *of_another(events)])
    assert given.when(begin(makes_room=(OTHER,))) == [requested(), *expected]
    given = Given(SERVICE, [*UP, *of_another(events)])
    assert given.when(scale(2, makes_room=(OTHER,))) == [scaled(1, 2), another(f"{R1}-1", "requested"), *expected]


def test_every_status_is_in_the_table_of_making_room() -> None:
    assert set(STATUSES) <= set(MAKES_ROOM)


def test_as_many_services_as_are_named_make_room_in_their_order() -> None:
    third = "svc-c"
    given = Given(SERVICE, [created(), *of_another(BOTH), *of_another(BOTH, third)])
    events = given.then(begin(makes_room=(third, OTHER)))
    assert events == [requested(), msgspec.structs.replace(MADE_ROOM, service_id=third), MADE_ROOM]
    assert given.when(begin(makes_room=(third, OTHER))) == []


def test_nobody_makes_room_for_what_is_refused() -> None:
    given = Given(SERVICE, [*STATUSES["stopping"], *of_another(BOTH)])
    with pytest.raises(Conflict):
        given.when(begin(makes_room=(OTHER,)))


def test_nobody_makes_room_for_what_runs_already() -> None:
    given = Given(SERVICE, [*UP, *of_another(BOTH)])
    assert given.when(begin(makes_room=(OTHER,))) == []
    assert given.when(scale(1, makes_room=(OTHER,))) == []


def test_who_made_room_is_asleep_when_it_has_ended_and_says_for_whom() -> None:
    given = Given(SERVICE, [created(), *of_another(UP)])
    given.then(begin(makes_room=(OTHER,)))
    events = given.then(i.RecordReplicaEnded(service_id=OTHER, process_id=f"{OTHER}-r0-1"))
    assert events[-1] == u.ServiceStopped(service_id=OTHER, reason=f"made room for {SVC}", asleep=True)
    assert given.world[f"service/{OTHER}"].asleep


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ident"),
    [
        ("chat", "svc-chat"),
        ("My Chat.v2_x", "svc-my-chat-v2-x"),
        ("a" * 60, "svc-" + "a" * 50),
        ("a" * 49 + "-b", "svc-" + "a" * 49),
    ],
)
def test_the_id_of_a_service_is_made_of_its_name(name: str, ident: str) -> None:
    assert id_of(name) == ident


@pytest.mark.parametrize(
    "other",
    [
        {"model_id": "n"},
        {"engine": "other"},
        {"device": "gpu"},
        {"resource_class": "large"},
        {"replicas": 2},
        {"persistent": True},
        {"port": 20000},
        {"config": {"slots": 1}},
        {"idle_timeout": 5},
        {"autoscale": {"min": 0, "max": 2, "target_concurrency": 4}},
        {"priority": 6},
    ],
)
def test_a_name_that_means_something_else_is_a_conflict_that_says_what(other: dict[str, Any]) -> None:
    with pytest.raises(Conflict) as refused:
        Given(SERVICE, [created()]).when(register(**other))
    (field,) = other
    assert refused.value.message == (
        f"svc-a already exists with different values of: {field}; choose another name, or delete it first"
    )
    assert refused.value.details == {"reason": "ALREADY_EXISTS", "service_id": "svc-a"}


def test_a_refusal_names_the_nearest_services_first_and_no_more_than_twenty() -> None:
    world = {f"service/{ident}": Service(ident, created()) for ident in [f"svc-{'x' * n}" for n in range(30, 51)]}
    world["service/svc-chat"] = Service("svc-chat", created())
    told = unknown(world, "svc-chap")
    assert told.message.startswith("there is no service svc-chap; known: svc-chat, svc-x")
    assert told.message.endswith("x and 2 more")
    assert len(told.details["known"]) == 20
    assert unknown({}, "svc-chap").message == "there is no service svc-chap; known: none"


@pytest.mark.parametrize("name", ["a", "a" * 50])
def test_a_second_service_of_a_model_gets_a_name_of_its_own(name: str) -> None:
    given = Given(SERVICE, [created(name)])
    (first,) = given.when(register(name, named=False), request_id="1")
    (again,) = given.when(register(name, named=False), request_id="1")
    (second,) = given.when(register(name, named=False), request_id="2")
    assert first == again
    assert len({first.stream, second.stream, f"service/{id_of(name)}"}) == 3
    assert isinstance(first, u.ServiceCreated)
    assert first.service_id == id_of(first.name)
    assert len(first.name) <= 50


@pytest.mark.parametrize(
    ("command", "message", "details"),
    [
        (begin(), "svc-a is stopping; start it when it has stopped", {"reason": "STOPPING"}),
        (ASK_DELETE, "svc-a is stopping; delete it when it has stopped", {"reason": "RUNNING", "status": "stopping"}),
    ],
)
def test_a_refusal_says_what_to_do(command: Command[Any], message: str, details: dict[str, Any]) -> None:
    with pytest.raises(Conflict) as refused:
        Given(SERVICE, STATUSES["stopping"]).when(command)
    assert (refused.value.message, refused.value.details) == (message, details)


def test_a_service_that_runs_is_not_deleted() -> None:
    with pytest.raises(Conflict) as refused:
        Given(SERVICE, UP).when(ASK_DELETE)
    assert refused.value.message == "svc-a is running; stop it first: aima call service.stop service_id=svc-a"


def test_a_service_that_is_being_cleared_away_is_deleted_when_asked_again() -> None:
    given = Given(SERVICE, [*UP, down(code="MODEL_INVALID"), failed()])
    with pytest.raises(Conflict) as refused:
        given.when(ASK_DELETE)
    assert refused.value.message == (
        f"svc-a (failed) has processes that are still ending: {R0}; delete it when they have ended"
    )
    given.then(ended(R0))
    assert given.when(ASK_DELETE) == [DELETED]


# --- what holds of anything ---------------------------------------------------------------------------------------

CODES = ["DIED", "MODEL_INVALID", "INSUFFICIENT_MEMORY", "PREEMPTED", "TIMEOUT", "UNRESPONSIVE", "REBOOTED"]
DECLARED: dict[type[Command[Any]], type[Command[Any]]] = {
    i.Register: u.CreateService,
    i.BeginStart: u.StartService,
    i.BeginScale: u.ScaleService,
}
LATER = [0.0, 0.1, 3.0, 15.0, 70.0]  # seconds
BOUNDS = {"min": 0.0, "max": 3.0, "target_concurrency": 4.0}
abouts = st.builds(
    created,
    replicas=st.just(2),
    persistent=st.booleans(),
    idle_timeout=st.sampled_from([0.0, 60.0]),
    autoscale=st.sampled_from([None, BOUNDS]),
)
# what is looked at may begin anywhere in a life
lives = st.builds(
    lambda about, events: [about, *events[1:]], abouts, st.sampled_from([e for e in STATUSES.values() if e])
)
steps = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 11), st.sampled_from(LATER)), max_size=40)


def command(service: Service | None, what: int, which: int) -> Command[Any]:
    """Return one of all commands; news is of a process that the service knows, or has known, or never knew."""
    run = service.run if service else 1
    known = service.present() if service else ()
    processes = [*known, *known, R0, f"{SVC}-r0-{run}-{which}", f"{SVC}-r1-{run}"]
    process = processes[which % len(processes)]
    one = which % 2 == 0
    match what:
        case 0 | 1:
            return begin("" if which == 0 else "toy")
        case 2 | 3:
            return scale(which % 5, start=begin() if which > 5 else None)
        case 4:
            return ask_stop(force=one)
        case 5:
            return ASK_SLEEP
        case 6:
            return ASK_DELETE if which < 3 else register(replicas=2)
        case 7:
            return late(run + which // 8, stopping=one)
        case 8:
            return came(process, ["loading", "creating", "failed"][which % 3])
        case 9 | 10 | 11:
            return ready(process)
        case 12:
            return sick(process) if one else well(process)
        case 13 | 14:
            return broke(process, CODES[(which * 5 + what) % len(CODES)], gone=which % 3 == 0)
        case _:
            return ended(process, "restart" if which % 3 == 0 else "requested")


def check(service: Service) -> None:
    """Check what no service may ever be."""
    wanted = list(todo(service))
    ends = {effect.process_id for effect in wanted if isinstance(effect, effects.EndReplica)}
    limits = {effect.process_id for effect in wanted if isinstance(effect, effects.ExpireReplica)}
    silent = {effect.process_id for effect in wanted if isinstance(effect, effects.ReplaceSilent)}
    expires = [effect for effect in wanted if isinstance(effect, effects.Expire)]
    runs = [effect for effect in wanted if isinstance(effect, effects.RunReplica)]
    assert len(set(service.present())) == len(service.present())
    assert len(wanted) == len(set(wanted))
    assert not {effect.replica for effect in runs} & {process.replica for process in service.leaving}
    if service.runs:
        assert len(service.replica_set) == service.desired_replicas > 0
        assert len({replica.number for replica in service.replica_set}) == service.desired_replicas
        assert any(replica.hopeful for replica in service.replica_set), "nobody would ever mend it"
        # one that somebody restarts is unhealthy too, but not silent
        assert silent == {m.process_id for m in service.replica_set if m.status == "unhealthy" and m.silent_since}
        on_the_way = {m.process_id for m in service.replica_set if m.status in lifecycle.ON_THE_WAY}
        assert on_the_way == limits or expires, "it could wait for ever"
        assert not ends & on_the_way
    else:
        assert ends == set(service.present())
        assert not runs
        assert not silent
    match service.status:
        case "created" | "stopped":
            assert all(replica.status == "ended" for replica in service.replica_set)
            assert not expires
        case "running":
            assert service.answering() == service.replica_set
        case "degraded":
            assert len(service.answering()) < len(service.replica_set)
        case "starting" | "stopping":
            assert len(expires) == 1
            assert service.present()


@settings(max_examples=300)
@given(lives, steps)
def test_any_commands_are_decided_or_refused_as_declared_and_leave_nothing_impossible(
    life: list[Event], asked: list[tuple[int, int, float]]
) -> None:
    given, at = Given(SERVICE, life), NOON
    processes: list[str] = []
    for number, (what, which, later) in enumerate(asked):
        at += later
        asking = command(given.world.get(f"service/{SVC}"), what, which)
        outcome = decided(given, asking, at=at)
        if isinstance(outcome, type):
            assert issubclass(outcome, DECLARED.get(type(asking), type(asking)).spec.errors)
            continue
        events = given.then(asking, at=at, request_id=str(number))
        if not isinstance(asking, u.DeleteService):
            assert given.when(asking, at=at, request_id=str(number)) == [], "asking again changes nothing"
        processes += [event.process_id for event in events if isinstance(event, u.ReplicaRequested)]
        for service in given.world.values():
            check(service)
        if any(isinstance(event, u.StartRequested | u.ServiceDeleted) for event in events):
            processes = []
    assert len(set(processes)) == len(processes), "no process is another's again"


@given(lives, steps, st.integers(0, 60))
def test_folding_a_prefix_and_then_the_rest_is_folding_the_whole(
    life: list[Event], asked: list[tuple[int, int, float]], cut: int
) -> None:
    given, at = Given(SERVICE, life), NOON
    events = list(life)
    for what, which, later in asked:
        at += later
        asking = command(given.world.get(f"service/{SVC}"), what, which)
        if not isinstance(decided(given, asking, at=at), type):
            events += given.then(asking, at=at)
    half = Given(SERVICE, events[:cut])
    for event in events[cut:]:
        half.fold(event)
    assert half.world == Given(SERVICE, events).world == given.world


processes = st.builds(
    lambda replica, run, launch: f"{SVC}-r{replica}-{run}{f'-{launch}' if launch else ''}",
    st.integers(0, 2),
    st.integers(1, 2),
    st.integers(0, 2),
)
numbers = st.integers(0, 3)
anything: dict[type[Event], st.SearchStrategy[Any]] = {
    u.ServiceCreated: st.builds(created, replicas=st.integers(1, 3)),
    u.StartRequested: st.builds(requested, st.integers(1, 3), st.integers(1, 2)),
    u.ReplicaRequested: st.builds(another, processes, st.just("again"), restarts=numbers),
    u.ReplicaLeaving: st.builds(leaving, processes),
    u.ReplicaProgress: st.builds(progress, processes),
    u.ReplicaStarted: st.builds(up, processes),
    u.ReplicaHealthChanged: st.builds(health, st.sampled_from(["healthy", "unhealthy"]), processes),
    u.ReplicaFailed: st.builds(down, processes, code=st.sampled_from(CODES), attempt=numbers),
    u.ReplicaEnded: st.builds(gone, processes),
    u.StrayFound: st.builds(stray, processes),
    u.ServiceStarted: st.builds(started, status=st.sampled_from(["running", "degraded"])),
    u.ServiceScaled: st.builds(scaled, numbers, numbers),
    u.ServiceFailed: st.builds(failed),
    u.StopRequested: st.builds(stop, st.booleans(), asleep=st.booleans()),
    u.ServiceStopped: st.just(STOPPED),
    u.ServiceDeleted: st.just(DELETED),
}


def test_every_event_type_is_among_anything() -> None:
    assert set(anything) == set(u.EVENTS)


@settings(max_examples=300)
@given(st.lists(st.one_of(*anything.values()), max_size=40))
def test_folding_never_raises_and_what_the_tables_do_not_allow_changes_nothing(events: list[Event]) -> None:
    given = Given(SERVICE, [created()])
    for event in events:
        before = given.world.get(f"service/{SVC}")
        given.fold(event)
        after = given.world.get(f"service/{SVC}")
        if before is None or after is None or isinstance(event, u.ServiceCreated):
            continue
        list(todo(after))
        table = lifecycle.SERVICE.get(type(event))
        if table is not None and before.status not in table:
            assert after == before
        elif table is not None:
            to = table[before.status]
            assert after.status in ((to, "degraded") if to == "running" else (to,))
        else:
            assert after.status == before.status or {after.status, before.status} == {"running", "degraded"}
        if (replicas := lifecycle.REPLICA.get(type(event))) is not None:
            for was, now in zip(before.replica_set, after.replica_set, strict=True):
                if was.process_id != of_process(event) or was.status not in replicas:
                    assert now == was
                else:
                    assert now.status in (was.status, replicas[was.status])


def of_process(event: Any) -> str:
    return str(event.process_id)


# --- with an engine domain that does as it is asked ---------------------------------------------------------------


class Engines:
    """The engine domain as a service sees it: processes that live, and news of them in order, possibly late."""

    def __init__(self) -> None:
        self.alive: set[str] = set()
        self.news: list[Command[Any]] = []

    def run(self, process_id: str) -> None:
        if process_id not in self.alive:
            self.alive.add(process_id)
            self.news += [came(process_id), ready(process_id)]

    def end(self, process_id: str, reason: str = "requested") -> None:
        if process_id in self.alive:
            self.alive.discard(process_id)
            self.news.append(ended(process_id, reason))

    def die(self, process_id: str, code: str) -> None:
        if process_id in self.alive:
            self.news.append(broke(process_id, code))
            self.end(process_id, code)


ACTS = [
    *("start", "start", "stop", "sleep", "more", "fewer", "none", "delete"),
    *("perform", "perform", "perform", "perform", "hear", "hear", "hear", "die", "break", "hang", "restart"),
]


@settings(max_examples=300)
@given(
    st.builds(created, replicas=st.integers(1, 3), persistent=st.booleans()),
    st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 5)), max_size=60),
)
def test_whatever_happens_when_all_has_settled_only_the_answering_replicas_live(
    about: u.ServiceCreated, acts: list[tuple[str, int]]
) -> None:
    given, engines = Given(SERVICE, [about]), Engines()

    def called_for() -> list[Any]:
        found = [effect for service in given.world.values() for effect in todo(service)]
        return [effect for effect in found if not isinstance(effect, effects.Expire | effects.ExpireReplica)]

    def perform(effect: Any) -> None:
        match effect:
            case effects.RunReplica(process_id=process_id):
                engines.run(process_id)
            case effects.ReplaceSilent(process_id=process_id):
                given.then(broke(process_id, "UNRESPONSIVE"))
            case effects.EndReplica(process_id=process_id):
                engines.end(process_id)
                hear_all()  # an end is only reported when all earlier news of it is in
                given.then(ended(process_id))

    def hear_all() -> None:
        while engines.news:
            given.then(engines.news.pop(0))

    def one(choices: Any, which: int) -> Any:
        ordered = sorted(choices, key=str)
        return ordered[which % len(ordered)] if ordered else None

    def ask(what: str) -> None:
        asked: dict[str, Command[Any]] = {
            "start": begin(),
            "stop": ask_stop(),
            "sleep": ASK_SLEEP,
            "more": scale(3, start=begin()),
            "fewer": scale(1, start=begin()),
            "none": scale(0),
            "delete": ASK_DELETE,
        }
        if not isinstance(decided(given, asked[what]), type):
            given.then(asked[what])

    for act, which in acts:
        victim = one(engines.alive, which)
        match act:
            case "perform":
                if effect := one(called_for(), which):
                    perform(effect)
            case "hear":
                if engines.news:
                    given.then(engines.news.pop(0))
            case "die" | "break" | "hang" | "restart" if victim is None:
                pass
            case "die":
                engines.die(victim, "DIED")
            case "break":
                engines.die(victim, "MODEL_INVALID")
            case "hang":
                engines.news.append(sick(victim))
            case "restart":
                engines.end(victim, "restart")
                engines.run(victim)
            case _:
                ask(act)
        for service in given.world.values():
            check(service)
    for _ in range(20):
        hear_all()
        for effect in called_for():
            perform(effect)
    assert called_for() == []
    assert engines.news == []
    answering = {replica.process_id for service in given.world.values() for replica in service.answering()}
    assert engines.alive == answering
    for service in given.world.values():
        assert service.status not in ("starting", "stopping")
