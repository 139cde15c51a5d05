"""Makes the replies to the engine domain's commands, from the world and the events since the decision. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from aima_core.domain import World
from aima_core.errors import ExecutionFailed
from aima_core.units import Event, Success, View
from services.engine import internal as i
from services.engine import units as u
from services.engine.rules.decider import Prepared
from services.engine.rules.state import InstanceState


def reply(world: World[InstanceState], command: Prepared, events: Sequence[Event]) -> View | None:
    """Return the reply; None until the outcome is known. Raises the error of a failed start, restart or install."""
    match command:
        case i.BeginInstall(name=name):
            return _installed(world.get(f"engine/{name}"), events)
        case i.BeginStart(process_id=process_id, wait=wait):
            return _started(world.get(f"engine/{process_id}"), process_id, wait, events)
        case u.RestartEngine():
            return _restarted(world, command.name, events)
        case u.StopEngine(name=name):
            requested = {event.process_id for event in events if isinstance(event, u.StopRequested)}
            stopped = {event.process_id for event in events if isinstance(event, u.EngineStopped)}
            # the stop does not apply to instances that were started after the command
            states = [state for state in world.values() if state.start and state.status in ("stopping", "error")]
            ending = {state.id for state in states if state.start and name in (state.id, state.start.name)}
            return None if (requested or ending) & ending - stopped else Success()
        case _:
            assert_never(command)


def _installed(state: InstanceState | None, events: Sequence[Event]) -> u.Installed | None:
    failure = next((event for event in events if isinstance(event, u.InstallFailed)), None)
    if failure:
        raise u.refusal(failure.error, failure.error_code)
    if state and state.status == "error":  # an installation that was already running has failed
        raise u.refusal(state.error, state.error_code)
    if state is None or state.status != "installed":
        return None
    return u.Installed(success=True, path=state.path, version=state.version)


def _started(state: InstanceState | None, process_id: str, wait: bool, events: Sequence[Event]) -> u.Started | None:
    stopped = ExecutionFailed(f"{process_id} was stopped before it was ready", reason="STOPPED", process_id=process_id)
    for event in events:
        match event:
            case u.EngineError(error=error, error_code=code):
                raise u.refusal(error, code, process_id=process_id)
            case u.StopRequested() | u.EngineStopped():
                raise stopped
    if state is None or state.start is None or state.status == "stopping":  # the instance ended before this reply
        raise stopped
    if state.status == "error":
        raise u.refusal(state.error, state.error_code, process_id=process_id)
    if wait and state.status == "starting":
        return None
    endpoint = state.start.endpoint
    return u.Started(
        process_id=process_id, status="running" if state.status == "running" else "starting", endpoint=endpoint
    )


def _restarted(world: World[InstanceState], name: str, events: Sequence[Event]) -> u.Started | None:
    """Return the reply of the start that follows the stop. `events` may contain events of other instances."""
    own = [event for event in events if name in (getattr(event, "process_id", ""), getattr(event, "name", ""))]
    again = next((event for event in reversed(own) if isinstance(event, u.StartRequested)), None)
    if again is None:
        for event in own:
            if isinstance(event, u.EngineError) and event.error_code == u.STOP_TIMEOUT:
                raise u.refusal(event.error, event.error_code, process_id=event.process_id)
        if any(isinstance(event, u.EngineStopped) for event in own):
            raise ExecutionFailed(
                f"{name} was stopped by another request during its restart and is not started again", reason="STOPPED"
            )
        return None
    later = [event for event in events if event.stream == again.stream]
    return _started(world.get(again.stream), again.process_id, wait=True, events=later[later.index(again) :])
