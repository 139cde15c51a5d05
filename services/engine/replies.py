"""What the engine domain's commands answer, on the world and on the events since they were decided. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aima_core.domain import World
from aima_core.errors import AimaError, ExecutionFailed, InsufficientResources, Timeout
from aima_core.units import Command, Event, Success, View
from services.engine import units as u
from services.engine.state import State

_REFUSALS: Mapping[str, type[AimaError]] = {
    "TIMEOUT": Timeout,
    "INSUFFICIENT_MEMORY": InsufficientResources,
    "OUT_OF_MEMORY": InsufficientResources,
}


def reply(world: World[State], command: Command[Any], events: Sequence[Event]) -> View | None:
    """Return the command's answer; None while it is not settled. Raises what a start or an install came to instead."""
    match command:
        case u.BeginInstall(name=name):
            return _installed(world.get(f"engine/{name}"), events)
        case u.BeginStart(process_id=process_id, wait=wait):
            return _started(world.get(f"engine/{process_id}"), process_id, wait, events)
        case u.RestartEngine():
            return _restarted(world, events)
        case u.StopEngine(name=name):
            asked = {event.process_id for event in events if isinstance(event, u.StopRequested)}
            gone = {event.process_id for event in events if isinstance(event, u.EngineStopped)}
            present = {state.id for state in world.values() if state.start and name in (state.id, state.start.name)}
            return None if (asked or present) & present - gone else Success()
        case _:
            return Success()


def _installed(state: State | None, events: Sequence[Event]) -> View | None:
    failure = next((event for event in events if isinstance(event, u.InstallFailed)), None)
    if failure:
        raise ExecutionFailed(failure.error, reason=failure.error_code)
    if state is None or state.status != "installed":
        return None
    return u.Installed(success=True, path=state.path, version=state.version)


def _started(state: State | None, process_id: str, wait: bool, events: Sequence[Event]) -> View | None:
    for event in events:
        match event:
            case u.EngineError(error=error, error_code=code):
                raise _REFUSALS.get(code, ExecutionFailed)(error, reason=code, process_id=process_id)
            case u.StopRequested() | u.EngineStopped():
                raise ExecutionFailed(f"{process_id} was stopped while it started", reason="STOPPED")
    if state is None or state.start is None:
        return None
    if wait and state.status == "starting":
        return None
    endpoint = f"http://{state.start.host}:{state.start.port}"
    return u.Started(
        process_id=process_id, status="running" if state.status == "running" else "starting", endpoint=endpoint
    )


def _restarted(world: World[State], events: Sequence[Event]) -> View | None:
    again = [number for number, event in enumerate(events) if isinstance(event, u.StartRequested)]
    if not again:
        return None
    start = events[again[-1]]
    assert isinstance(start, u.StartRequested)
    return _started(world.get(start.stream), start.process_id, wait=True, events=events[again[-1] :])
