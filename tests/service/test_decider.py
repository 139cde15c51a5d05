"""The rules of the service domain: tables are the specification, properties what holds of anything."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aima_core.errors import AimaError, Conflict, NotFound
from aima_core.testing import NOON, Given
from aima_core.units import Command, Event
from services.service import state
from services.service import units as u
from services.service.decider import id_of
from services.service.domain import SERVICE
from services.service.state import Service, todo

SVC = "svc-a"
R0, R1 = f"{SVC}-r0-1", f"{SVC}-r1-1"
STRAY = f"{SVC}-r0-9"
ENDPOINT = {R0: "http://n:1", R1: "http://n:2"}


def register(name: str = "a", *, named: bool = True, **other: Any) -> u.Register:
    asked: dict[str, Any] = {
        "name": name,
        "named": named,
        "model_id": "m",
        "model_name": "M",
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
    return u.Register(**(asked | other))


def created(name: str = "a", *, ident: str = "", **other: Any) -> u.ServiceCreated:
    fields = register(name, **other).model_dump(exclude={"named"})
    return u.ServiceCreated(service_id=ident or id_of(name), **fields)


def begin(engine: str = "toy") -> u.BeginStart:
    return u.BeginStart(
        service_id=SVC, wait=True, timeout=60, engine=engine, config={"slots": 4}, reason="it fits", tools=True
    )


def requested(replicas: int = 1, run: int = 1) -> u.StartRequested:
    return u.StartRequested(
        service_id=SVC,
        replicas=replicas,
        run=run,
        engine="toy",
        config={"slots": 4},
        reason="it fits",
        timeout=60,
        deadline=NOON + 60,
        tools=True,
    )


def of(process_id: str) -> dict[str, Any]:
    return {"service_id": SVC, "replica": 1 if process_id == R1 else 0, "process_id": process_id}


def progress(process_id: str = R0) -> u.ReplicaProgress:
    return u.ReplicaProgress(**of(process_id), phase="loading", message="loading", progress=40)


def up(process_id: str = R0) -> u.ReplicaStarted:
    return u.ReplicaStarted(
        **of(process_id),
        endpoint=ENDPOINT[process_id],
        node="n",
        service_name="a",
        model_id="m",
        model_name="M",
        model_type="llm",
        served_model="served",
        dialect="openai",
        tools=True,
    )


def health(status: u.Health, process_id: str = R0) -> u.ReplicaHealthChanged:
    return u.ReplicaHealthChanged(**of(process_id), status=status)


def down(process_id: str = R0, error: str = "it broke", code: str = "DIED", attempt: int = 1) -> u.ReplicaFailed:
    return u.ReplicaFailed(**of(process_id), error=error, error_code=code, attempt=attempt)


def gone(process_id: str = R0, replica: int | None = None) -> u.ReplicaEnded:
    return u.ReplicaEnded(**(of(process_id) if replica is None else of(process_id) | {"replica": replica}))


def started(*endpoints: str, status: Any = "running") -> u.ServiceStarted:
    return u.ServiceStarted(
        service_id=SVC, replicas=len(endpoints), endpoints=list(endpoints), duration=0, status=status
    )


def failed(error: str = "it broke", code: str = "DIED") -> u.ServiceFailed:
    return u.ServiceFailed(service_id=SVC, error=error, error_code=code)


def stop(force: bool = False) -> u.StopRequested:
    return u.StopRequested(service_id=SVC, force=force)


STOPPED = u.ServiceStopped(service_id=SVC, reason="requested")
DELETED = u.ServiceDeleted(service_id=SVC)


def stray(process_id: str = STRAY) -> u.StrayFound:
    return u.StrayFound(service_id=SVC, process_id=process_id)


def came(process_id: str = R0, phase: str = "loading") -> u.RecordReplicaProgress:
    return u.RecordReplicaProgress(service_id=SVC, process_id=process_id, phase=phase, message="loading", progress=40)


def ready(process_id: str = R0) -> u.RecordReplicaReady:
    return u.RecordReplicaReady(
        service_id=SVC,
        process_id=process_id,
        endpoint=ENDPOINT.get(process_id, "http://n:9"),
        node="n",
        served_model="served",
        dialect="openai",
    )


def sick(process_id: str = R0) -> u.RecordReplicaHealth:
    return u.RecordReplicaHealth(service_id=SVC, process_id=process_id, status="unhealthy")


def well(process_id: str = R0) -> u.RecordReplicaHealth:
    return u.RecordReplicaHealth(service_id=SVC, process_id=process_id, status="healthy")


def broke(process_id: str = R0, *, ended: bool = False) -> u.RecordReplicaFailed:
    return u.RecordReplicaFailed(
        service_id=SVC, process_id=process_id, error="it broke", error_code="DIED", ended=ended
    )


def ended(process_id: str = R0, reason: str = "requested") -> u.RecordReplicaEnded:
    return u.RecordReplicaEnded(service_id=SVC, process_id=process_id, reason=reason)


def late(run: int = 1) -> u.RecordTimedOut:
    return u.RecordTimedOut(service_id=SVC, run=run)


def decided(given: Given[Service], command: Command[Any]) -> list[Event] | type[AimaError]:
    try:
        return given.when(command)
    except AimaError as error:
        return type(error)


# --- a service with one replica, in every status ------------------------------------------------------------------

UP = [created(), requested(), up(), started(ENDPOINT[R0])]
STATUSES: dict[str, list[Event]] = {
    "nothing": [],
    "created": [created()],
    "starting": [created(), requested()],
    "running": UP,
    "degraded": [*UP, health("unhealthy")],
    "stopping": [*UP, stop()],
    "stopped": [*UP, stop(), gone(), STOPPED],
    "failed": [*UP, down(), failed()],
    "failed, gone": [*UP, down(), failed(), gone()],
}
ASKED_ENDED = "the engine was stopped (requested)"
BY_RESTART = "the engine was stopped (restart)"
GONE_BY_HAND = [down(error=ASKED_ENDED, code="STOPPED"), gone(), failed(ASKED_ENDED, "STOPPED")]
LATE = failed("1 of 1 replicas were not ready in time; last heard: the engine domain has not answered", "TIMEOUT")
AGAIN = [requested(run=2)]
FOUND, FOUND_R0 = [stray()], [stray(R0)]
__: list[Event] = []
NONE: tuple[Any, ...] = (__,) * 9
BROKEN = [down(), failed()]
DECIDED: dict[str, tuple[Command[Any], tuple[Any, ...]]] = {
    #  nothing, created, starting, running, degraded, stopping, stopped, failed, failed and gone
    "create": (register(), ([created()], __, __, __, __, __, __, __, __)),
    "create, other size": (register(replicas=2), ([created(replicas=2)], *((Conflict,) * 8))),
    "start": (begin(), (NotFound, [requested()], __, __, __, Conflict, AGAIN, AGAIN, AGAIN)),
    "start, unprepared": (begin(""), (NotFound, Conflict, __, __, __, Conflict, Conflict, Conflict, Conflict)),
    "stop": (u.StopService(service_id=SVC), (NotFound, __, [stop()], [stop()], [stop()], __, __, __, __)),
    "stop by force": (
        u.StopService(service_id=SVC, force=True),
        (NotFound, __, [stop(True)], [stop(True)], [stop(True)], [stop(True)], __, __, __),
    ),
    "delete": (
        u.DeleteService(service_id=SVC),
        (NotFound, [DELETED], Conflict, Conflict, Conflict, Conflict, [DELETED], Conflict, [DELETED]),
    ),
    "progress": (came(), (__, FOUND_R0, [progress()], __, __, __, FOUND_R0, __, FOUND_R0)),
    "progress, phase failed": (
        came(phase="failed"),
        (
            *(__, __),
            [u.ReplicaProgress(**of(R0), phase="failed", message="loading", progress=40)],
            *((__,) * 6),
        ),
    ),
    "ready": (
        ready(),
        (__, FOUND_R0, [up(), started(ENDPOINT[R0])], __, [health("healthy")], __, FOUND_R0, __, FOUND_R0),
    ),
    "unhealthy": (sick(), (__, __, __, [health("unhealthy")], __, __, __, __, __)),
    "healthy": (well(), (__, __, __, __, [health("healthy")], __, __, __, __)),
    "failed": (broke(), (__, __, BROKEN, BROKEN, BROKEN, __, __, __, __)),
    "failed, no process": (
        broke(ended=True),
        (__, __, *([[down(), gone(), failed()]] * 3), [gone(), STOPPED], __, [gone()], __),
    ),
    "ended": (ended(), (__, __, GONE_BY_HAND, GONE_BY_HAND, GONE_BY_HAND, [gone(), STOPPED], __, [gone()], __)),
    "restarted": (
        ended(reason="restart"),
        (
            *(__, __, [down(error=BY_RESTART, code="STOPPED"), gone(), failed(BY_RESTART, "STOPPED")]),
            *([health("unhealthy")], __, [gone(), STOPPED], __, [gone()], __),
        ),
    ),
    "timed out": (late(), (__, __, [LATE], __, __, __, __, __, __)),
    "timed out, other run": (late(2), NONE),
    "stray: progress": (came(STRAY), (__, *([FOUND] * 8))),
    "stray: on its way down": (came(STRAY, "failed"), NONE),
    "stray: ready": (ready(STRAY), (__, *([FOUND] * 8))),
    "stray: unhealthy": (sick(STRAY), NONE),
    "stray: failed": (broke(STRAY), NONE),
    "stray: ended": (ended(STRAY), NONE),
}

# --- a service with two replicas ----------------------------------------------------------------------------------

TWO = [created(replicas=2), requested(2)]
BOTH = [*TWO, up(R0), up(R1), started(ENDPOINT[R0], ENDPOINT[R1])]
TWO_STATUSES: dict[str, list[Event]] = {
    "starting": TWO,
    "one up": [*TWO, up(R0)],
    "one failed": [*TWO, down(R0)],
    "running": BOTH,
    "degraded": [*BOTH, down(R0)],
    "both unwell": [*BOTH, health("unhealthy", R0), health("unhealthy", R1)],
    "stopping": [*BOTH, stop()],
    "one gone": [*BOTH, stop(), gone(R0)],
    "failed": [*BOTH, down(R0), down(R1), failed()],
}
LATE_2 = failed("2 of 2 replicas were not ready in time; last heard: the engine domain has not answered", "TIMEOUT")
LATE_1 = failed("1 of 2 replicas were not ready in time; last heard: the engine domain has not answered", "TIMEOUT")
LATE_UP = started(ENDPOINT[R0], status="degraded")
ONE_UP = started(ENDPOINT[R1], status="degraded")
STOPPED_BY_HAND = [down(R1, ASKED_ENDED, "STOPPED"), gone(R1)]
TWO_DECIDED: dict[str, tuple[Command[Any], tuple[Any, ...]]] = {
    #  starting, one up, one failed, running, degraded, both unwell, stopping, one gone, failed
    "r1 ready": (
        ready(R1),
        (
            [up(R1)],
            [up(R1), started(ENDPOINT[R0], ENDPOINT[R1])],
            [up(R1), ONE_UP],
            *(__, __, [health("healthy", R1)], __, __, __),
        ),
    ),
    "r1 failed": (
        broke(R1),
        (
            [down(R1)],
            [down(R1), started(ENDPOINT[R0], status="degraded")],
            [down(R1), failed()],
            [down(R1)],
            [down(R1), failed()],
            [down(R1)],
            *(__, __, __),
        ),
    ),
    "r1 ended": (
        ended(R1),
        (
            STOPPED_BY_HAND,
            [*STOPPED_BY_HAND, started(ENDPOINT[R0], status="degraded")],
            [*STOPPED_BY_HAND, failed(ASKED_ENDED, "STOPPED")],
            STOPPED_BY_HAND,
            [*STOPPED_BY_HAND, failed(ASKED_ENDED, "STOPPED")],
            STOPPED_BY_HAND,
            [gone(R1)],
            [gone(R1), STOPPED],
            [gone(R1)],
        ),
    ),
    "r0 ended": (
        ended(R0),
        (
            [down(R0, ASKED_ENDED, "STOPPED"), gone(R0)],
            [down(R0, ASKED_ENDED, "STOPPED"), gone(R0)],
            [gone(R0)],
            [down(R0, ASKED_ENDED, "STOPPED"), gone(R0)],
            [gone(R0)],
            [down(R0, ASKED_ENDED, "STOPPED"), gone(R0)],
            [gone(R0)],
            __,
            [gone(R0)],
        ),
    ),
    "r0 unhealthy": (
        sick(R0),
        (__, [health("unhealthy", R0)], __, [health("unhealthy", R0)], __, __, __, __, __),
    ),
    "r0 healthy": (well(R0), (__, __, __, __, __, [health("healthy", R0)], __, __, __)),
    "timed out": (
        late(),
        ([LATE_2], [down(R1, LATE_1.error, "TIMEOUT"), LATE_UP], [LATE_2], __, __, __, __, __, __),
    ),
    "delete": (u.DeleteService(service_id=SVC), (Conflict,) * 9),
    "r0 again": (ready(R0), ([up(R0)], __, __, __, __, [health("healthy", R0)], __, [stray(R0)], __)),
}


def cases(table: dict[str, Any], statuses: dict[str, list[Event]]) -> list[Any]:
    return [
        pytest.param(command, statuses[status], outcome, id=f"{name}, {status}")
        for name, (command, outcomes) in table.items()
        for status, outcome in zip(statuses, outcomes, strict=True)
    ]


@pytest.mark.parametrize(("command", "events", "expected"), cases(DECIDED, STATUSES))
def test_one_replica_a_command_in_a_status_comes_to(command: Any, events: list[Event], expected: Any) -> None:
    assert decided(Given(SERVICE, events), command) == expected


@pytest.mark.parametrize(("command", "events", "expected"), cases(TWO_DECIDED, TWO_STATUSES))
def test_two_replicas_a_command_in_a_status_comes_to(command: Any, events: list[Event], expected: Any) -> None:
    assert decided(Given(SERVICE, events), command) == expected


def test_no_status_and_no_command_is_missing_in_the_tables() -> None:
    seen = {status: Given(SERVICE, events).world.get(f"service/{SVC}") for status, events in STATUSES.items()}
    for status, service in seen.items():
        assert (service.status if service else "nothing") == status.partition(",")[0]
    assert set(get_args(u.ServiceStatus)) <= set(seen)
    prepared = {u.CreateService, u.StartService}  # these reach the decider as Register and BeginStart
    assert {type(command) for command, _ in DECIDED.values()} | prepared == {*SERVICE.commands, *SERVICE.internal}


END, RUN = state.EndReplica(SVC, R0, force=False), state.RunReplica(SVC, R0, 0, 1)
CALLED_FOR: dict[str, list[Any]] = {
    "nothing": [],
    "created": [],
    "starting": [state.Expire(SVC, 1, NOON + 60), RUN],
    "running": [],
    "degraded": [],
    "stopping": [END],
    "stopped": [],
    "failed": [END],
    "failed, gone": [],
}


@pytest.mark.parametrize(("status", "events"), STATUSES.items())
def test_what_a_status_calls_for_is(status: str, events: list[Event]) -> None:
    def asked(events: list[Event]) -> list[Any]:
        return [effect for service in Given(SERVICE, events).world.values() for effect in todo(service)]

    assert asked(events) == CALLED_FOR[status]
    if events:  # a stray is sent away from any status
        sent_away = state.EndReplica(SVC, STRAY, force=False)
        assert set(asked([*events, stray()])) == {*CALLED_FOR[status], sent_away}
        assert asked([*events, stray(), gone(STRAY, -1)]) == CALLED_FOR[status]


def test_a_start_asks_only_for_the_replicas_that_nobody_has_heard_of() -> None:
    (service,) = Given(SERVICE, [*TWO, progress(R0)]).world.values()
    assert list(todo(service)) == [state.Expire(SVC, 1, NOON + 60), state.RunReplica(SVC, R1, 1, 1)]


def test_a_new_run_first_sends_away_what_is_left_of_the_last() -> None:
    given = Given(SERVICE, STATUSES["failed"])
    given.then(begin())
    (service,) = given.world.values()
    assert service.present() == (f"{SVC}-r0-2", R0)
    assert (service.error, service.error_code) == ("", "")
    assert set(todo(service)) == {END, state.Expire(SVC, 2, NOON + 60), state.RunReplica(SVC, f"{SVC}-r0-2", 0, 2)}
    assert given.then(ended(R0)) == [gone(R0, -1)]
    assert given.when(ready(R0)) == [stray(R0)]  # it has come back from the dead: away with it
    assert given.when(ready(f"{SVC}-r0-2"))[-1] == started("http://n:9")


def test_a_replica_that_was_started_again_behind_our_back_is_sent_away() -> None:
    given = Given(SERVICE, [*BOTH, down(R0), gone(R0)])
    assert given.then(ready(R0)) == [stray(R0)]
    (service,) = given.world.values()
    assert list(todo(service)) == [state.EndReplica(SVC, R0, force=False)]
    given.then(u.StopService(service_id=SVC))
    assert given.then(ended(R1)) == [gone(R1)]
    assert given.then(ended(R0)) == [gone(R0), STOPPED]


def test_a_start_settles_when_the_only_replica_left_is_well_again() -> None:
    given = Given(SERVICE, [*TWO, up(R0), health("unhealthy", R0), down(R1)])
    assert given.then(well(R0)) == [health("healthy", R0), started(ENDPOINT[R0], status="degraded")]
    assert given.then(well(R0)) == []


def test_a_start_does_not_settle_on_a_replica_that_does_not_answer() -> None:
    given = Given(SERVICE, [*TWO, up(R0), health("unhealthy", R0)])
    assert given.then(broke(R1)) == [down(R1)]
    assert given.when(late())[-1] == failed(
        "2 of 2 replicas were not ready in time; last heard: the engine domain has not answered", "TIMEOUT"
    )


def test_a_service_that_has_stopped_has_no_replicas() -> None:
    (service,) = Given(SERVICE, STATUSES["stopped"]).world.values()
    assert (service.members, service.present()) == ((), ())


def test_a_forced_stop_forces_whatever_is_left() -> None:
    (service,) = Given(SERVICE, [*BOTH, stop(), gone(R0), stop(force=True)]).world.values()
    assert list(todo(service)) == [state.EndReplica(SVC, R1, force=True)]


def test_a_stop_waits_for_strays_too() -> None:
    given = Given(SERVICE, [*STATUSES["stopping"], stray()])
    assert given.then(ended(R0)) == [gone(R0)]
    assert given.then(ended(STRAY)) == [gone(STRAY, -1), STOPPED]


def test_a_start_that_came_late_says_what_was_heard_last() -> None:
    event, _ = Given(SERVICE, [*TWO, progress(R1), up(R0)]).when(late())
    assert isinstance(event, u.ReplicaFailed)
    assert event.error == "1 of 2 replicas were not ready in time; last heard: loading"


def test_the_duration_of_a_start_is_counted_from_its_request() -> None:
    *_, event = Given(SERVICE, STATUSES["starting"]).when(ready(), at=NOON + 2.5)
    assert isinstance(event, u.ServiceStarted)
    assert event.duration == 2.5


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
    ],
)
def test_a_name_that_means_something_else_is_a_conflict_that_says_what(other: dict[str, Any]) -> None:
    with pytest.raises(Conflict) as refused:
        Given(SERVICE, [created()]).when(register(**other))
    (field,) = other
    assert refused.value.message == f"svc-a exists with another {field}"
    assert refused.value.details == {"reason": "ALREADY_EXISTS", "service_id": "svc-a"}


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


# --- what holds of anything ---------------------------------------------------------------------------------------

processes = st.sampled_from([f"{SVC}-r{replica}-{run}" for replica in (0, 1) for run in (1, 2, 3)])
asked_by_people = st.one_of(
    st.builds(begin, st.sampled_from(["toy", "toy", ""])),
    st.builds(u.StopService, service_id=st.just(SVC), force=st.booleans()),
    st.builds(u.DeleteService, service_id=st.just(SVC)),
    st.builds(register, replicas=st.sampled_from([1, 2])),
)
news = st.one_of(
    st.builds(came, processes, st.sampled_from(["loading", "creating", "failed"])),
    st.builds(ready, processes),
    st.builds(ready, processes),
    st.builds(sick, processes),
    st.builds(well, processes),
    st.builds(broke, processes, ended=st.booleans()),
    st.builds(ended, processes),
    st.builds(late, st.integers(1, 3)),
)
DECLARED: dict[type[Command[Any]], type[Command[Any]]] = {u.BeginStart: u.StartService, u.Register: u.CreateService}
replicas = st.sampled_from([1, 2])


def true_of_any(service: Service) -> None:
    """Check what no service may ever be."""
    effects = list(todo(service))
    ends = {effect.process_id for effect in effects if isinstance(effect, state.EndReplica)}
    match service.status:
        case "created" | "stopped":
            assert ends == set(service.present())  # nobody but strays, and those are sent away
            assert service.members == ()
        case "failed" | "stopping":
            assert ends == set(service.present())
        case "running":
            assert service.members
            assert service.answering() == service.members
        case "degraded":
            assert any(member.status in ("running", "unhealthy") for member in service.members)
            assert len(service.answering()) < len(service.members)
        case "starting":
            assert any(isinstance(effect, state.Expire) for effect in effects)
    if service.status in ("starting", "stopping"):
        assert effects
    assert len(set(service.present())) == len(service.present())


@given(replicas, st.lists(st.one_of(asked_by_people, news, news), max_size=40))
def test_any_commands_are_decided_or_refused_as_declared_and_leave_nothing_impossible(
    count: int, asked: list[Command[Any]]
) -> None:
    given = Given(SERVICE, [created(replicas=count)])
    for command in asked:
        outcome = decided(given, command)
        if isinstance(outcome, type):
            assert issubclass(outcome, DECLARED.get(type(command), type(command)).spec.errors)
            continue
        given.then(command)
        if not isinstance(command, u.DeleteService):
            assert given.when(command) == [], "asking again changes nothing"
        for service in given.world.values():
            true_of_any(service)


@given(replicas, st.lists(st.one_of(asked_by_people, news), max_size=30), st.integers(0, 60))
def test_folding_a_prefix_and_then_the_rest_is_folding_the_whole(count: int, asked: list[Any], cut: int) -> None:
    given = Given(SERVICE, [created(replicas=count)])
    events: list[Event] = [created(replicas=count)]
    for command in asked:
        if not isinstance(decided(given, command), type):
            events += given.then(command)
    half = Given(SERVICE, events[:cut])
    for event in events[cut:]:
        half.fold(event)
    assert half.world == Given(SERVICE, events).world == given.world


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

    def die(self, process_id: str) -> None:
        if process_id in self.alive:
            self.news.append(broke(process_id))
            self.end(process_id, "DIED")


ACTS = ["start", "stop", "delete", "perform", "perform", "hear", "hear", "die", "restart"]
steps = st.lists(
    st.tuples(
        st.sampled_from(ACTS),
        st.integers(0, 5),
    ),
    max_size=60,
)


@given(replicas, steps)
def test_whatever_happens_when_all_has_settled_only_the_answering_replicas_live(
    count: int, steps: list[tuple[str, int]]
) -> None:
    given, engines = Given(SERVICE, [created(replicas=count)]), Engines()

    def effects() -> list[Any]:
        found = [effect for service in given.world.values() for effect in todo(service)]
        return [effect for effect in found if not isinstance(effect, state.Expire)]

    def perform(effect: Any) -> None:
        if isinstance(effect, state.RunReplica):
            engines.run(effect.process_id)
            return
        engines.end(effect.process_id)
        hear_all()  # an end is only reported when all earlier news of it is in
        given.then(ended(effect.process_id))

    def hear_all() -> None:
        while engines.news:
            given.then(engines.news.pop(0))

    def one(choices: Any, which: int) -> Any:
        ordered = sorted(choices, key=str)
        return ordered[which % len(ordered)] if ordered else None

    for step, which in steps:
        match step:
            case "start" | "stop" | "delete":
                asked = {
                    "start": begin(),
                    "stop": u.StopService(service_id=SVC),
                    "delete": u.DeleteService(service_id=SVC),
                }[step]
                if not isinstance(decided(given, asked), type):
                    given.then(asked)
            case "perform" if effect := one(effects(), which):
                perform(effect)
            case "hear" if engines.news:
                given.then(engines.news.pop(0))
            case "die" if victim := one(engines.alive, which):
                engines.die(victim)
            case "restart" if victim := one(engines.alive, which):
                engines.end(victim, "restart")
                engines.run(victim)
        for service in given.world.values():
            true_of_any(service)
    for _ in range(20):
        hear_all()
        for effect in effects():
            perform(effect)
    assert effects() == []
    assert engines.news == []
    answering = {member.process_id for service in given.world.values() for member in service.answering()}
    assert engines.alive == answering
