"""What the commands of the engine domain answer, and when."""

from __future__ import annotations

from typing import Any

import pytest

from aima_core.domain import World
from aima_core.errors import AimaError, ExecutionFailed, InsufficientResources, Timeout
from aima_core.testing import Given
from aima_core.units import Command, Event, Success
from services.engine import units as u
from services.engine.domain import ENGINE
from services.engine.rules.replies import reply
from services.engine.rules.state import InstanceState
from tests.engine.test_decider import (
    ID,
    INSTALLED,
    NOT_INSTALLED,
    STATUSES,
    TO_INSTALL,
    begin,
    failed,
    install,
    late,
    progress,
    requested,
    started,
    stop,
    stopped,
)

STARTED = u.Started(process_id=ID, status="running", endpoint="http://127.0.0.1:18100")
STARTING = u.Started(process_id=ID, status="starting", endpoint="http://127.0.0.1:18100")
THERE = u.Installed(success=True, path="/p", version="1.0")
WAITS = None


def broken(code: str) -> u.EngineError:
    return u.EngineError(process_id=ID, name="toy", error="it broke", error_code=code, service_id="svc-a", run=1)


def of_another(event: Event) -> Any:
    """Return the event as it would be of another instance."""
    return type(event)(**{f: getattr(event, f) for f in event.__struct_fields__} | {"process_id": "eng-2", "name": "x"})


RESTARTED = [stopped("restart"), requested(run=2)]
ANSWERS: dict[str, tuple[Command[Any], list[Event], list[Event], Any]] = {
    # command, what had happened before, what has happened since it was decided, the answer
    "start": (begin(), [], [requested()], WAITS),
    "start, further": (begin(), [], [requested(), progress("loading", "x", 40)], WAITS),
    "start, up": (begin(), [], [requested(), started()], STARTED),
    "start, not waiting": (begin(wait=False), [], [requested()], STARTING),
    "start, under way": (begin(), [requested()], [], WAITS),
    "start, under way, not waiting": (begin(wait=False), [requested()], [], STARTING),
    "start, up already": (begin(), STATUSES["running"], [], STARTED),
    "start, failed": (begin(), [], [requested(), broken("BOOM")], "ExecutionFailed BOOM"),
    "start, not waiting, failed": (begin(wait=False), [], [requested(), broken("BOOM")], "ExecutionFailed BOOM"),
    "start, late": (begin(), [], [requested(), broken("TIMEOUT")], "Timeout TIMEOUT"),
    "start, no memory": (begin(), [], [requested(), broken("OUT_OF_MEMORY")], "InsufficientResources OUT_OF_MEMORY"),
    "start, no slot": (
        begin(),
        [],
        [requested(), broken("INSUFFICIENT_MEMORY")],
        "InsufficientResources INSUFFICIENT_MEMORY",
    ),
    "start, failed and gone": (
        begin(),
        [],
        [requested(), broken("BOOM"), stopped("BOOM")],
        "ExecutionFailed BOOM",
    ),
    "start, failed before we looked": (begin(), STATUSES["error"], [], "ExecutionFailed DIED"),
    "start, gone before we looked": (begin(), [], [], "ExecutionFailed STOPPED"),
    "start, stopping before we looked": (begin(), STATUSES["stopping"], [], "ExecutionFailed STOPPED"),
    "start, stopped": (begin(), [], [requested(), stop()], "ExecutionFailed STOPPED"),
    "stop": (u.StopEngine(name=ID), STATUSES["running"], [stop()], WAITS),
    "stop, gone": (u.StopEngine(name=ID), STATUSES["running"], [stop(), stopped("requested")], Success()),
    "stop, under way": (u.StopEngine(name=ID), STATUSES["stopping"], [], WAITS),
    "stop, nothing there": (u.StopEngine(name=ID), [], [], Success()),
    "stop, being cleared away": (u.StopEngine(name=ID), STATUSES["error"], [], WAITS),
    "stop, started anew by another": (
        u.StopEngine(name=ID),
        STATUSES["running"],
        [stop(), stopped("requested"), requested()],
        Success(),
    ),
    "stop, late": (u.StopEngine(name=ID), STATUSES["running"], [stop(), late()], WAITS),
    "stop, late, gone": (u.StopEngine(name=ID), STATUSES["running"], [stop(), late(), stopped("x")], Success()),
    "stop all, one gone": (
        u.StopEngine(name="toy"),
        [requested(), requested("eng-2", port=18101)],
        [stop(), stopped("requested")],
        Success(),
    ),
    "restart": (u.RestartEngine(name=ID), STATUSES["running"], [stop(restart=True)], WAITS),
    "restart, starting": (u.RestartEngine(name=ID), STATUSES["running"], [stop(restart=True), *RESTARTED], WAITS),
    "restart, up": (
        u.RestartEngine(name="toy"),
        STATUSES["running"],
        [stop(restart=True), *RESTARTED, started(run=2)],
        STARTED,
    ),
    "restart, failed": (
        u.RestartEngine(name=ID),
        STATUSES["running"],
        [stop(restart=True), *RESTARTED, failed(run=2)],
        "ExecutionFailed DIED",
    ),
    "restart, stopped for good": (
        u.RestartEngine(name=ID),
        STATUSES["running"],
        [stop(restart=True), stop(), stopped("requested")],
        "ExecutionFailed STOPPED",
    ),
    "restart, late to end": (
        u.RestartEngine(name=ID),
        STATUSES["running"],
        [stop(restart=True), late()],
        "ExecutionFailed STOP_TIMEOUT",
    ),
    "restart, another starts and fails": (
        u.RestartEngine(name=ID),
        STATUSES["to restart"],
        [of_another(requested()), of_another(failed()), of_another(stopped("DIED"))],
        WAITS,
    ),
    "install": (install(), [], [TO_INSTALL], WAITS),
    "install, there": (install(), [], [TO_INSTALL, INSTALLED], THERE),
    "install, there already": (install(have="1.0", present=True), [TO_INSTALL, INSTALLED], [], THERE),
    "install, under way": (install(), [TO_INSTALL], [], WAITS),
    "install, failed": (install(), [], [TO_INSTALL, NOT_INSTALLED], "ExecutionFailed INSTALL_FAILED"),
    "install, late": (
        install(),
        [],
        [TO_INSTALL, u.InstallFailed(name="toy", error="late", error_code="TIMEOUT")],
        "Timeout TIMEOUT",
    ),
    "install, failed before we looked": (
        install(),
        [TO_INSTALL, NOT_INSTALLED],
        [],
        "ExecutionFailed INSTALL_FAILED",
    ),
}


def answer(world: World[InstanceState], command: Command[Any], since: list[Event]) -> Any:
    try:
        return reply(world, command, since)
    except AimaError as error:
        return f"{type(error).__name__} {error.reason}"


@pytest.mark.parametrize(("command", "before", "since", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_the_answer_is(command: Command[Any], before: list[Event], since: list[Event], expected: Any) -> None:
    world = Given(ENGINE, [*before, *since]).world
    assert answer(world, command, since) == expected


@pytest.mark.parametrize("error", [ExecutionFailed, InsufficientResources, Timeout])
def test_what_a_start_can_come_to_is_declared(error: type[AimaError]) -> None:
    assert error in u.StartEngine.spec.errors
    assert error in u.RestartEngine.spec.errors
