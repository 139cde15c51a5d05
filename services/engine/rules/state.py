"""The state of an instance or package, the changes that events make, and the effects that a state needs. Pure.

    (nothing) --start--> starting --ready--> running --died--> error --gone--> (nothing)
                          |   |                 |                               ^
                          |   +--failed, late---|----------> error -------------+
                          +--stop--> stopping <-+--stop      stopping --gone----+   (with restart: starting again)
                                        |                                       |
                                        +-----------late---> error -------------+

The stream of an engine's package is `engine/<name>`. The stream of an instance is `engine/<process_id>`. Starts, stops
and installations fail at a deadline. AIMA keeps trying to end an instance whose stop is overdue.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, assert_never

import msgspec

from aima_core.domain import Effect
from services.engine import units as u

Status = Literal["installing", "installed", "starting", "running", "error", "stopping"]


class InstanceState(msgspec.Struct, frozen=True):
    """The state of an instance or, if `start` is None, of an engine's package."""

    id: str
    status: Status
    start: u.StartRequested | None = None
    progress: u.StartProgress | None = None
    started: u.EngineStarted | None = None
    stop: u.StopRequested | None = None
    health: str = ""
    error: str = ""
    error_code: str = ""
    path: str = ""
    version: str = ""
    deadline: float = 0.0

    @property
    def run(self) -> int:
        """Number of the instance's current start, from 1; 0 for a package."""
        return self.start.run if self.start else 0


class Install(Effect, frozen=True):
    """Install the package."""

    name: str
    version: str


class ExpireInstall(Effect, frozen=True):
    """Fail the installation at its deadline (Unix seconds)."""

    name: str
    at: float


class Launch(Effect, frozen=True):
    """Reserve memory, start the process unless it exists, wait until it is healthy."""

    process_id: str
    run: int


class Expire(Effect, frozen=True):
    """Fail the start at its deadline (Unix seconds)."""

    process_id: str
    run: int
    at: float


class Watch(Effect, frozen=True):
    """Report the death of the process and changes of its health."""

    process_id: str
    run: int


class Settle(Effect, frozen=True):
    """Adjust the limit of the instance's memory slot to the memory that the instance uses."""

    process_id: str
    run: int


class End(Effect, frozen=True):
    """End the process."""

    process_id: str
    run: int
    force: bool
    timeout: float


class ExpireStop(Effect, frozen=True):
    """Report the stop as overdue at its deadline (Unix seconds)."""

    process_id: str
    run: int
    at: float


_CLEAR_AWAY = 5.0  # seconds from SIGTERM to SIGKILL for processes of a failed instance


def evolve(state: InstanceState | None, event: u.Events) -> InstanceState | None:
    """Return the instance or package after the event. Never raises."""
    match event:
        case u.InstallRequested():
            return InstanceState(event.name, "installing", version=event.version, deadline=event.deadline)
        case u.EngineInstalled():
            return InstanceState(event.name, "installed", path=event.path, version=event.version)
        case u.InstallFailed():
            return InstanceState(event.name, "error", error=event.error, error_code=event.error_code)
        case u.StartRequested():
            return InstanceState(event.process_id, "starting", start=event)
        case u.EngineStopped():
            return None
    if state is None:
        return None
    match event:
        case u.StartProgress():
            return msgspec.structs.replace(state, progress=event)
        case u.EngineStarted():
            return msgspec.structs.replace(state, status="running", started=event, health="healthy")
        case u.HealthChanged():
            return msgspec.structs.replace(state, health=event.new_status)
        case u.EngineError():
            return msgspec.structs.replace(state, status="error", error=event.error, error_code=event.error_code)
        case u.StopRequested():
            return msgspec.structs.replace(state, status="stopping", stop=event)
        case _:
            assert_never(event)


def todo(state: InstanceState) -> Iterable[Effect]:
    """Return the effects that the state needs."""
    match state.status:
        case "installing":
            expiry = [ExpireInstall(state.id, state.deadline)] if state.deadline else []
            return [Install(state.id, state.version), *expiry]
        case "starting":
            assert state.start
            return [Launch(state.id, state.run), Expire(state.id, state.run, state.start.deadline)]
        case "running":
            return [Watch(state.id, state.run), Settle(state.id, state.run)]
        case "stopping" | "error" if state.stop:
            end = End(state.id, state.run, state.stop.force, state.stop.timeout)  # also needed after the deadline
            at = state.stop.deadline if state.status == "stopping" else 0
            return [end, ExpireStop(state.id, state.run, at)] if at else [end]
        case "error" if state.start:
            return [End(state.id, state.run, force=False, timeout=_CLEAR_AWAY)]
        case _:
            return []
