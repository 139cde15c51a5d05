"""The rules of the engine domain: tables are the specification, properties what holds of anything."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aima_core.errors import AimaError, Conflict, NotFound, Unavailable
from aima_core.testing import NOON, Given
from aima_core.units import Command, Event
from services.engine import internal as i
from services.engine import units as u
from services.engine.domain import ENGINE
from services.engine.rules import state
from services.engine.rules.state import InstanceState, todo

ID = "eng-1"
PORTS = (18100, 18101, 18102)


def begin(ident: str = ID, **other: Any) -> i.BeginStart:
    asked: dict[str, Any] = {
        "process_id": ident,
        "name": "toy",
        "type": "llm",
        "runtime": "process",
        "service_id": "svc-a",
        "model_id": "m",
        "model_name": "M",
        "model_path": "/models/m.gguf",
        "model_type": "llm",
        "config": {"slots": 2},
        "host": "127.0.0.1",
        "port": None,
        "free_ports": PORTS,
        "memory": 1000,
        "priority": 5,
        "wait": True,
        "timeout": 60,
    }
    return i.BeginStart(**(asked | other))


def requested(ident: str = ID, *, run: int = 1, port: int = 18100, **other: Any) -> u.StartRequested:
    asked = begin(ident).model_dump(exclude={"free_ports", "port_range", "wait", "port"}) | other
    return u.StartRequested(**asked, port=port, deadline=NOON + 60, run=run)


def progress(phase: u.Phase, message: str, percent: float, run: int = 1) -> u.StartProgress:
    return u.StartProgress(process_id=ID, service_id="svc-a", phase=phase, message=message, progress=percent, run=run)


def started(run: int = 1, ident: str = ID, port: int = 18100) -> u.EngineStarted:
    return u.EngineStarted(
        process_id=ident,
        name="toy",
        type="llm",
        runtime="process",
        endpoint=f"http://127.0.0.1:{port}",
        model_id="m",
        node="test",
        service_id="svc-a",
        served_model="M",
        dialect="openai",
        pid=42,
        pid_started_at=7.5,
        run=run,
    )


def failed(run: int = 1, ident: str = ID) -> u.EngineError:
    return u.EngineError(process_id=ident, name="toy", error="it broke", error_code="DIED", service_id="svc-a", run=run)


def late() -> u.EngineError:
    error = "the process still runs 60 s after its stop was requested; AIMA keeps trying to end it"
    return u.EngineError(process_id=ID, name="toy", error=error, error_code="STOP_TIMEOUT", service_id="svc-a", run=1)


def stop(
    *, restart: bool = False, force: bool = False, timeout: float = 30, patience: float = 60, run: int = 1
) -> u.StopRequested:
    return u.StopRequested(
        process_id=ID,
        name="toy",
        force=force,
        timeout=timeout,
        restart=restart,
        run=run,
        deadline=NOON + patience,
    )


def stopped(reason: str, exit_code: int | None = 0, run: int = 1) -> u.EngineStopped:
    return u.EngineStopped(process_id=ID, name="toy", reason=reason, exit_code=exit_code, service_id="svc-a", run=run)


def health(old: str, new: u.Health) -> u.HealthChanged:
    return u.HealthChanged(process_id=ID, name="toy", old_status=old, new_status=new, service_id="svc-a", run=1)


def ready(run: int) -> i.RecordReady:
    return i.RecordReady(process_id=ID, run=run, served_model="M", dialect="openai", pid=42, pid_started_at=7.5)


def come(run: int) -> i.RecordProgress:
    return i.RecordProgress(process_id=ID, run=run, phase="loading", message="loading", progress=40)


def broke(run: int) -> i.RecordFailed:
    return i.RecordFailed(process_id=ID, run=run, error="it broke", error_code="DIED")


def decided(given: Given[InstanceState], command: Command[Any]) -> list[Event] | type[AimaError]:
    try:
        return given.when(command)
    except AimaError as error:
        return type(error)


# --- an instance, in every status ---------------------------------------------------------------------------------

STATUSES: dict[str, list[Event]] = {
    "nothing": [],
    "starting": [requested()],
    "running": [requested(), started()],
    "error": [requested(), started(), failed()],
    "stopping": [requested(), started(), stop()],
    "to restart": [requested(), started(), stop(restart=True)],
    "late": [requested(), started(), stop(), late()],
    "late to restart": [requested(), started(), stop(restart=True), late()],
}
READY = [progress("ready", "the engine answers", 100), started()]
FAILED = [progress("failed", "it broke", 100), failed()]
TO_RESTART = [stop(restart=True)]
__: list[Event] = []
_8: tuple[Any, ...] = (__, __, __, __, __, __, __, __)
FORCED = [stop(force=True, timeout=1, patience=30)]
DECIDED: dict[str, tuple[Command[Any], tuple[Any, ...]]] = {
    # what it comes to when the instance is: nothing, starting, running, error, stopping, to restart, late twice
    "start": (begin(), ([requested()], __, __, *([Conflict] * 5))),
    "start, other model": (begin(model_id="n"), ([requested(model_id="n")], *([Conflict] * 7))),
    "start on a gpu": (begin(gpu_fraction=0.5), ([requested(gpu_fraction=0.5)], __, __, *([Conflict] * 5))),
    "stop": (u.StopEngine(name=ID), (__, [stop()], [stop()], __, __, [stop()], __, __)),
    "stop by engine": (u.StopEngine(name="toy"), (__, [stop()], [stop()], __, __, [stop()], __, __)),
    "stop by force": (
        u.StopEngine(name=ID, force=True, timeout=1),
        (__, FORCED, FORCED, __, FORCED, FORCED, __, __),
    ),
    "stop another": (u.StopEngine(name="eng-2"), _8),
    "restart": (u.RestartEngine(name=ID), (NotFound, *([TO_RESTART] * 4), __, TO_RESTART, TO_RESTART)),
    "restart by engine": (u.RestartEngine(name="toy"), (NotFound, *([TO_RESTART] * 4), __, TO_RESTART, TO_RESTART)),
    "progress": (come(1), (__, [progress("loading", "loading", 40)], __, __, __, __, __, __)),
    "progress, other run": (come(2), _8),
    "ready": (ready(1), (__, READY, __, __, __, __, __, __)),
    "ready, other run": (ready(2), _8),
    "unhealthy": (
        i.RecordHealth(process_id=ID, run=1, status="unhealthy"),
        (__, __, [health("healthy", "unhealthy")], __, __, __, __, __),
    ),
    "healthy": (i.RecordHealth(process_id=ID, run=1, status="healthy"), _8),
    "unhealthy, other run": (i.RecordHealth(process_id=ID, run=0, status="unhealthy"), _8),
    "failed": (broke(1), (__, FAILED, [failed()], __, __, __, __, __)),
    "failed, other run": (broke(2), _8),
    "overdue": (i.RecordOverdue(process_id=ID, run=1), (__, __, __, __, [late()], [late()], __, __)),
    "overdue, other run": (i.RecordOverdue(process_id=ID, run=2), _8),
    "gone": (
        i.RecordGone(process_id=ID, run=1, exit_code=0),
        (
            *(__, __, __, [stopped("DIED")], [stopped("requested")], [stopped("restart"), requested(run=2)]),
            *([stopped("STOP_TIMEOUT")], [stopped("STOP_TIMEOUT")]),
        ),
    ),
    "gone, other run": (i.RecordGone(process_id=ID, run=2), _8),
    "orphan": (
        i.RecordOrphan(process_id=ID, name="toy", service_id="svc-a", run=1),
        ([stopped("orphan", None)], __, __, __, __, __, __, __),
    ),
}

# --- the package of an engine, in every status --------------------------------------------------------------------

TO_INSTALL = u.InstallRequested(name="toy", version="", deadline=NOON + 900)
INSTALLED = u.EngineInstalled(name="toy", version="1.0", path="/p")
NOT_INSTALLED = u.InstallFailed(name="toy", error="no such package", error_code="INSTALL_FAILED")
PACKAGES: dict[str, list[Event]] = {
    "none": [],
    "installing": [TO_INSTALL],
    "installed": [TO_INSTALL, INSTALLED],
    "failed": [TO_INSTALL, NOT_INSTALLED],
}


def install(version: str = "", *, have: str = "", present: bool = False) -> i.BeginInstall:
    return i.BeginInstall(name="toy", version=version, present=present, path="/p" if have else "", have=have)


NEWER = [u.InstallRequested(name="toy", version="2.0", deadline=NOON + 900)]
OTHER = [u.EngineInstalled(name="toy", version="1.1", path="/p")]
PACKAGE_DECIDED: dict[str, tuple[Command[Any], tuple[Any, ...]]] = {
    #                                          none      installing  installed  failed
    "install": (install(), ([TO_INSTALL], __, [TO_INSTALL], [TO_INSTALL])),
    "install another": (install("2.0", have="1.0"), (NEWER, __, NEWER, NEWER)),
    "install, it is there": (install(have="1.0", present=True), ([INSTALLED], __, __, [INSTALLED])),
    "install, another is there": (install(have="1.1", present=True), (OTHER, __, OTHER, OTHER)),
    "it is there": (i.RecordInstalled(name="toy", version="1.0", path="/p"), (__, [INSTALLED], __, __)),
    "it cannot be had": (
        i.RecordInstallFailed(name="toy", error="no such package", error_code="INSTALL_FAILED"),
        (__, [NOT_INSTALLED], __, __),
    ),
}


def cases(table: dict[str, Any], statuses: dict[str, list[Event]]) -> list[Any]:
    return [
        pytest.param(command, statuses[status], outcome, id=f"{name}, {status}")
        for name, (command, outcomes) in table.items()
        for status, outcome in zip(statuses, outcomes, strict=True)
    ]


@pytest.mark.parametrize(("command", "events", "expected"), cases(DECIDED, STATUSES) + cases(PACKAGE_DECIDED, PACKAGES))
def test_a_command_in_a_status_comes_to(command: Command[Any], events: list[Event], expected: Any) -> None:
    assert decided(Given(ENGINE, events), command) == expected


def test_no_status_and_no_command_is_missing_in_the_tables() -> None:
    def statuses(table: dict[str, list[Event]]) -> set[str]:
        return {found.status for events in table.values() for found in Given(ENGINE, events).world.values()}

    assert statuses(STATUSES) == {"starting", "running", "error", "stopping"}
    assert statuses(PACKAGES) == {"installing", "installed", "error"}
    assert statuses(STATUSES) | statuses(PACKAGES) == set(get_args(state.Status))
    tried = {type(command) for command, _ in (*DECIDED.values(), *PACKAGE_DECIDED.values())}
    prepared = {u.InstallEngine, u.StartEngine}  # these reach the decider as BeginInstall and BeginStart
    assert tried | prepared == {*ENGINE.commands, *ENGINE.internal}


CALLED_FOR: dict[str, list[Any]] = {
    "nothing": [],
    "starting": [state.Launch(ID, 1), state.Expire(ID, 1, NOON + 60)],
    "running": [state.Watch(ID, 1), state.Settle(ID, 1)],
    "error": [state.End(ID, 1, force=False, timeout=5)],
    "stopping": [state.End(ID, 1, force=False, timeout=30), state.ExpireStop(ID, 1, NOON + 60)],
    "to restart": [state.End(ID, 1, force=False, timeout=30), state.ExpireStop(ID, 1, NOON + 60)],
    "late": [state.End(ID, 1, force=False, timeout=30)],
    "late to restart": [state.End(ID, 1, force=False, timeout=30)],
    "none": [],
    "installing": [state.Install("toy", ""), state.ExpireInstall("toy", NOON + 900)],
    "installed": [],
    "failed": [],
}


@pytest.mark.parametrize(("status", "events"), [*STATUSES.items(), *PACKAGES.items()])
def test_what_a_status_calls_for_is(status: str, events: list[Event]) -> None:
    assert [effect for found in Given(ENGINE, events).world.values() for effect in todo(found)] == CALLED_FOR[status]


def test_a_forced_stop_calls_for_force() -> None:
    given = Given(ENGINE, [*STATUSES["running"], *FORCED])
    assert list(todo(given.world[f"engine/{ID}"])) == [
        state.End(ID, 1, force=True, timeout=1),
        state.ExpireStop(ID, 1, NOON + 30),
    ]
    (error,) = given.when(i.RecordOverdue(process_id=ID, run=1))
    assert isinstance(error, u.EngineError)
    assert error.error == "the process still runs 30 s after its stop was requested; AIMA keeps trying to end it"


def test_what_an_older_release_began_without_a_deadline_has_none() -> None:
    old = [msgspec.structs.replace(event, deadline=0.0) for event in (stop(), TO_INSTALL)]
    given = Given(ENGINE, [requested(), started(), *old])
    assert list(todo(given.world[f"engine/{ID}"])) == [state.End(ID, 1, force=False, timeout=30)]
    assert list(todo(given.world["engine/toy"])) == [state.Install("toy", "")]


def test_an_instance_that_was_late_to_end_may_be_restarted_and_has_another_deadline() -> None:
    given = Given(ENGINE, STATUSES["late to restart"])
    given.then(u.RestartEngine(name=ID), at=NOON + 100)
    assert state.ExpireStop(ID, 1, NOON + 160) in todo(given.world[f"engine/{ID}"])
    gone, again = given.then(i.RecordGone(process_id=ID, run=1))
    assert (gone.unit, again) == ("engine.stopped", requested(run=2))


def test_a_start_that_is_tried_again_tells_only_how_much_further_it_has_come() -> None:
    given = Given(ENGINE, STATUSES["starting"])

    def tell(message: str, percent: float, run: int = 1) -> list[Event]:
        told = {"phase": "loading", "message": message, "progress": percent}
        return given.then(i.RecordProgress.model_validate({"process_id": ID, "run": run} | told))

    assert tell("reserved", 10) == [progress("loading", "reserved", 10)]
    assert tell("reserved", 10) == []
    assert tell("process 42", 40) == [progress("loading", "process 42", 40)]
    assert (tell("reserved", 10), tell("process 42", 40)) == ([], [])
    assert tell("process 43", 40) == [progress("loading", "process 43", 40)]
    given.then(u.RestartEngine(name=ID))
    given.then(i.RecordGone(process_id=ID, run=1))
    assert tell("reserved", 10, run=2) == [progress("loading", "reserved", 10, run=2)]


def test_the_boot_that_an_instance_was_ready_in_is_kept() -> None:
    *_, event = Given(ENGINE, STATUSES["starting"]).when(ready(1).model_copy(update={"boot": "b/1"}))
    assert event == msgspec.structs.replace(started(), boot="b/1")


def test_an_instance_that_has_been_restarted_is_in_its_second_run_on_the_same_port() -> None:
    given = Given(ENGINE, STATUSES["to restart"])
    gone, again = given.then(i.RecordGone(process_id=ID, run=1, exit_code=None), at=NOON + 100)
    assert gone == stopped("restart", None)
    assert again == msgspec.structs.replace(requested(run=2), deadline=NOON + 160)
    assert given.when(ready(1)) == []
    assert given.when(ready(2))[-1] == started(run=2)
    assert given.when(i.RecordGone(process_id=ID, run=1)) == []


def test_a_stop_during_a_restart_makes_it_a_stop() -> None:
    given = Given(ENGINE, STATUSES["to restart"])
    given.then(u.StopEngine(name=ID))
    assert given.then(i.RecordGone(process_id=ID, run=1)) == [stopped("requested", None)]
    assert given.world == {}


def test_what_an_instance_was_before_does_not_stick_to_its_next_run() -> None:
    given = Given(ENGINE, [requested(), started(), failed(), stop(restart=True)])
    given.then(i.RecordGone(process_id=ID, run=1))
    assert given.world[f"engine/{ID}"] == InstanceState(ID, "starting", start=requested(run=2))


def test_health_that_is_back_is_news_once() -> None:
    given = Given(ENGINE, [*STATUSES["running"], health("healthy", "unhealthy")])
    back = i.RecordHealth(process_id=ID, run=1, status="healthy")
    assert given.then(back) == [health("unhealthy", "healthy")]
    assert given.then(back) == []


def test_an_engine_of_two_instances_is_stopped_whole_and_not_restarted_by_its_name() -> None:
    given = Given(ENGINE, [requested(), requested("eng-2", port=18101), requested("eng-3", port=18102, name="other")])
    assert [event.stream for event in given.when(u.StopEngine(name="toy"))] == ["engine/eng-1", "engine/eng-2"]
    with pytest.raises(Conflict) as refused:
        given.when(u.RestartEngine(name="toy"))
    assert refused.value.details == {"reason": "AMBIGUOUS", "instances": ["eng-1", "eng-2"]}
    assert [event.stream for event in given.when(u.RestartEngine(name="other"))] == ["engine/eng-3"]


# --- ports --------------------------------------------------------------------------------------------------------


def port_of(given: Given[InstanceState], command: i.BeginStart) -> int:
    (event,) = given.when(command)
    assert isinstance(event, u.StartRequested)
    return event.port


def test_a_port_is_the_first_free_one_that_no_instance_holds() -> None:
    given = Given(ENGINE, [requested(port=18100), requested("eng-2", port=18102)])
    assert port_of(given, begin("eng-3")) == 18101
    assert port_of(given, begin("eng-3", free_ports=(18102, 18105))) == 18105


@pytest.mark.parametrize("status", [status for status in STATUSES if status != "nothing"])
def test_an_instance_holds_its_port_until_it_is_gone(status: str) -> None:
    given = Given(ENGINE, STATUSES[status])
    with pytest.raises(Conflict) as refused:
        given.when(begin("eng-2", port=18100, free_ports=(18100,)))
    assert refused.value.message == "port 18100 is held by instance eng-1; choose another port or stop eng-1"
    assert refused.value.details == {"reason": "PORT_IN_USE", "port": 18100, "holder": "eng-1"}


def test_a_port_that_was_asked_for_is_taken_when_it_is_free_or_refused_when_a_stranger_has_it() -> None:
    given = Given[InstanceState](ENGINE)
    assert port_of(given, begin(port=20000, free_ports=(20000,))) == 20000
    with pytest.raises(Conflict) as refused:
        given.when(begin(port=20000, free_ports=()))
    assert refused.value.message == "port 20000 is in use by another program; choose another port"
    assert refused.value.details == {"reason": "PORT_IN_USE", "port": 20000}


@pytest.mark.parametrize("free", [(), (18100,)])
def test_no_free_port_is_told_at_once(free: tuple[int, ...]) -> None:
    with pytest.raises(Unavailable) as refused:
        Given(ENGINE, [requested(port=18100)]).when(begin("eng-2", free_ports=free, port_range=(18100, 18109)))
    assert refused.value.reason == "NO_FREE_PORT"
    assert refused.value.message == (
        "ports 18100-18109 are all in use (1 by AIMA, 9 by other programs); stop an instance, or widen the range with "
        "the settings engine.port_min and engine.port_max"
    )


def test_an_empty_port_range_is_told_as_such() -> None:
    with pytest.raises(Unavailable) as refused:
        Given(ENGINE, []).when(begin("eng-1", free_ports=(), port_range=(18200, 18100)))
    assert refused.value.message == (
        "the port range 18200-18100 is empty; set engine.port_max to at least engine.port_min"
    )


# --- what holds of anything ---------------------------------------------------------------------------------------

ids = st.sampled_from(["eng-1", "eng-2", "eng-3"])
names = st.sampled_from(["eng-1", "eng-2", "eng-3", "toy", "other"])
runs = st.integers(1, 3)
commands = st.one_of(
    st.builds(
        begin,
        ids,
        name=st.sampled_from(["toy", "other"]),
        port=st.sampled_from([None, None, *PORTS]),
        free_ports=st.sampled_from([PORTS, PORTS[1:], ()]),
    ),
    st.builds(u.StopEngine, name=names, force=st.booleans()),
    st.builds(u.RestartEngine, name=names),
    st.builds(
        i.RecordReady,
        process_id=ids,
        run=runs,
        served_model=st.just("M"),
        dialect=st.just("openai"),
        pid=st.just(1),
        pid_started_at=st.just(0.5),
    ),
    st.builds(
        i.RecordProgress,
        process_id=ids,
        run=runs,
        phase=st.just("loading"),
        message=st.sampled_from(["m", "n"]),
        progress=st.sampled_from([10, 40]),
    ),
    st.builds(i.RecordHealth, process_id=ids, run=runs, status=st.sampled_from(["healthy", "unhealthy"])),
    st.builds(i.RecordFailed, process_id=ids, run=runs, error=st.just("e"), error_code=st.just("DIED")),
    st.builds(i.RecordOverdue, process_id=ids, run=runs),
    st.builds(i.RecordGone, process_id=ids, run=runs, exit_code=st.none()),
    st.builds(
        i.BeginInstall,
        name=st.just("toy"),
        version=st.sampled_from(["", "2"]),
        present=st.booleans(),
        path=st.just("/p"),
        have=st.just("1"),
    ),
    st.builds(i.RecordInstalled, name=st.just("toy"), version=st.just("1"), path=st.just("/p")),
    st.builds(i.RecordInstallFailed, name=st.just("toy"), error=st.just("e"), error_code=st.just("X")),
)
DECLARED: dict[type[Command[Any]], type[Command[Any]]] = {i.BeginStart: u.StartEngine, i.BeginInstall: u.InstallEngine}


@given(st.lists(commands, max_size=30))
def test_any_commands_are_decided_or_refused_as_declared_and_asking_again_changes_nothing(
    asked: list[Command[Any]],
) -> None:
    given = Given[InstanceState](ENGINE)
    for command in asked:
        outcome = decided(given, command)
        if isinstance(outcome, type):
            assert issubclass(outcome, DECLARED.get(type(command), type(command)).spec.errors)
            continue
        given.then(command)
        assert given.when(command) == []


@given(st.lists(commands, max_size=40))
def test_no_two_instances_ever_share_a_port_and_at_rest_nothing_is_to_be_done(asked: list[Command[Any]]) -> None:
    given = Given[InstanceState](ENGINE)
    for command in asked:
        if not isinstance(decided(given, command), type):
            given.then(command)
        present = [found.start for found in given.world.values() if found.start]
        assert len({start.port for start in present}) == len(present)
        for found in given.world.values():
            resting = found.start is None and found.status != "installing"
            assert bool(list(todo(found))) is not resting


@given(st.lists(commands, max_size=30), st.integers(0, 60))
def test_folding_a_prefix_and_then_the_rest_is_folding_the_whole(asked: list[Command[Any]], cut: int) -> None:
    given, events = Given[InstanceState](ENGINE), list[Event]()
    for command in asked:
        if not isinstance(decided(given, command), type):
            events += given.then(command)
    half = Given(ENGINE, events[:cut])
    for event in events[cut:]:
        half.fold(event)
    assert half.world == Given(ENGINE, events).world == given.world


events_of_all_kinds = st.sampled_from(
    [event for events in (*STATUSES.values(), *PACKAGES.values()) for event in events]
    + [progress("loading", "m", 1), health("healthy", "unhealthy"), stopped("requested")]
)


@given(st.lists(events_of_all_kinds, max_size=20))
def test_no_order_of_events_breaks_the_fold(events: list[Event]) -> None:
    for found in Given(ENGINE, events).world.values():
        list(todo(found))
