"""Decides which events a command of the engine domain causes. Pure. `state.py` has the state diagram."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, assert_never

import msgspec

from aima_core.call import Call
from aima_core.domain import World
from aima_core.errors import Conflict, NotFound, Unavailable
from aima_core.units import Event
from services.engine import internal as i
from services.engine import units as u
from services.engine.rules.state import InstanceState

_INSTALL = 900.0  # seconds until an installation fails; pip's own timeout is a minute shorter
_STOP = 30.0  # seconds after SIGKILL until a stop is overdue
_IDENTITY = ("name", "model_id", "model_path")  # fields that are equal in a start and its repetition


Prepared = i.BeginInstall | i.BeginStart | u.StopEngine | u.RestartEngine
"""The commands of callers, as `Outside.prepare` returns them."""


def decide(world: World[InstanceState], command: Prepared | i.Reports, call: Call) -> list[Event]:
    """Return the events; none if the state is already as requested, or if the command reports on an earlier run."""
    match command:
        case i.BeginInstall():
            return _install(world, command, call)
        case i.RecordInstalled(name=name, version=version, path=path):
            return [u.EngineInstalled(name=name, version=version, path=path)] if _installing(world, name) else []
        case i.RecordInstallFailed(name=name, error=error, error_code=code):
            failed = u.InstallFailed(name=name, error=error, error_code=code)
            return [failed] if _installing(world, name) else []
        case i.BeginStart():
            return _start(world, command, call)
        case u.StopEngine(name=name, force=force, timeout=timeout):
            return [
                _stop(state, call, force, timeout)
                for state in _instances_named(world, name)
                if _stop_changes(state, force)
            ]
        case u.RestartEngine(name=name):
            return _restart(_instances_named(world, name), name, call)
        case i.RecordOrphan():
            return _orphan(world, command)
        case (
            i.RecordProgress()
            | i.RecordReady()
            | i.RecordHealth()
            | i.RecordFailed()
            | i.RecordOverdue()
            | i.RecordGone()
        ):
            return _recorded(world.get(f"engine/{command.process_id}"), command, call)
        case _:
            assert_never(command)


def _install(world: World[InstanceState], command: i.BeginInstall, call: Call) -> list[Event]:
    current = world.get(f"engine/{command.name}")
    if current and current.status == "installing":
        return []
    if command.present:
        installed = u.EngineInstalled(name=command.name, version=command.have, path=command.path)
        unchanged = current and (current.status, current.version, current.path) == (
            "installed",
            installed.version,
            installed.path,
        )
        return [] if unchanged else [installed]
    return [u.InstallRequested(name=command.name, version=command.version, deadline=call.at + _INSTALL)]


def _start(world: World[InstanceState], command: i.BeginStart, call: Call) -> list[Event]:
    current = world.get(f"engine/{command.process_id}")
    if current and current.start and current.status in ("starting", "running"):
        if differing := [field for field in _IDENTITY if getattr(current.start, field) != getattr(command, field)]:
            raise Conflict(
                f"{current.id} already runs with another {', '.join(differing)}; stop it, or use another process_id",
                reason="ALREADY_EXISTS",
            )
        return []
    if current:
        raise Conflict(
            f"{current.id} has not ended yet (status: {current.status}); start it again when it has ended",
            reason="BUSY",
            process_id=current.id,
        )
    port = _port(world, command)
    fields = ("process_id", "name", "type", "runtime", "service_id", "model_id", "model_name", "model_path")
    return [
        u.StartRequested(
            **{
                field: getattr(command, field)
                for field in (*fields, "model_type", "config", "host", "address", "memory", "gpu_fraction", "priority")
            },
            port=port,
            timeout=command.timeout,
            deadline=call.at + command.timeout,
            run=1,
        )
    ]


def _port(world: World[InstanceState], command: i.BeginStart) -> int:
    """Return the requested port, or else the first port that no instance and no other program uses."""
    holders = {state.start.port: state.id for state in world.values() if state.start}
    if command.port is not None:
        port = command.port
        if holder := holders.get(port):
            raise Conflict(
                f"port {port} is held by instance {holder}; choose another port or stop {holder}",
                reason="PORT_IN_USE",
                port=port,
                holder=holder,
            )
        if port not in command.free_ports:
            raise Conflict(
                f"port {port} is in use by another program; choose another port", reason="PORT_IN_USE", port=port
            )
        return port
    free = next((port for port in command.free_ports if port not in holders), None)
    if free is None:
        raise _no_free_port(*command.port_range, holders)
    return free


def _no_free_port(first: int, last: int, holders: Collection[int]) -> Unavailable:
    if first > last:
        return Unavailable(
            f"the port range {first}-{last} is empty; set engine.port_max to at least engine.port_min",
            reason="NO_FREE_PORT",
        )
    own = sum(first <= port <= last for port in holders)
    others = last - first + 1 - own
    return Unavailable(
        f"ports {first}-{last} are all in use ({own} by AIMA, {others} by other programs); "
        "stop an instance, or widen the range with the settings engine.port_min and engine.port_max",
        reason="NO_FREE_PORT",
    )


def _restart(instances: Sequence[InstanceState], name: str, call: Call) -> list[Event]:
    if len(instances) > 1:
        ids = [state.id for state in instances]
        raise Conflict(
            f"{name} has {len(ids)} instances; name one of them: {', '.join(ids)}", reason="AMBIGUOUS", instances=ids
        )
    if not instances:
        raise NotFound(
            f"{name} has no running instance to restart; start one with engine.start", reason="INSTANCE_NOT_FOUND"
        )
    state = instances[0]
    return [] if _restarts(state) else [_stop(state, call, force=False, timeout=30, restart=True)]


def _recorded(state: InstanceState | None, command: i.RunReports, call: Call) -> list[Event]:
    """Return the events for a report about a run of an instance; none if the report is about an earlier run."""
    if state is None or state.start is None or command.run != state.run:
        return []
    start = state.start
    ident: dict[str, Any] = {"process_id": state.id, "service_id": start.service_id, "run": state.run}
    match command, state.status:
        case i.RecordProgress(phase=phase, message=message, progress=progress), "starting":
            reached = u.StartProgress(**ident, phase=phase, message=message, progress=progress)
            return [reached] if _advances(reached, state.progress) else []
        case i.RecordReady(), "starting":
            ready = u.StartProgress(**ident, phase="ready", message="the engine answers", progress=100)
            return [ready, _started(start, command, call.node)]
        case i.RecordHealth(status=status), "running" if status != state.health:
            return [
                u.HealthChanged(**ident, name=start.name, old_status=state.health, new_status=status),
            ]
        case i.RecordFailed(error=error, error_code=code, exit_code=exit_code), "starting" | "running":
            failed: list[Event] = [
                u.EngineError(**ident, name=start.name, error=error, error_code=code, exit_code=exit_code)
            ]
            if state.status == "starting":
                failed.insert(0, u.StartProgress(**ident, phase="failed", message=error, progress=100))
            return failed
        case i.RecordOverdue(), "stopping":
            assert state.stop
            seconds = _stop_limit(state.stop.force, state.stop.timeout)
            overdue = f"the process still runs {seconds:g} s after its stop was requested; AIMA keeps trying to end it"
            return [u.EngineError(**ident, name=start.name, error=overdue, error_code=u.STOP_TIMEOUT)]
        case i.RecordGone(exit_code=exit_code), "stopping" | "error":
            again = _restarts(state)
            reason = state.error_code or ("restart" if again else "requested")
            stopped = u.EngineStopped(**ident, name=start.name, reason=reason, exit_code=exit_code)
            next_run = msgspec.structs.replace(start, run=state.run + 1, deadline=call.at + start.timeout)
            return [stopped, next_run] if again else [stopped]
        case _:
            return []


def _advances(reached: u.StartProgress, recorded: u.StartProgress | None) -> bool:
    """Return whether the progress is new. A retried start repeats its first phases, which are recorded only once."""
    return recorded is None or (reached != recorded and reached.progress >= recorded.progress)


def _orphan(world: World[InstanceState], orphan: i.RecordOrphan) -> list[Event]:
    """Return the end of an unknown process as an event. Other domains then drop its replica and release its memory."""
    if f"engine/{orphan.process_id}" in world:
        return []
    return [u.EngineStopped(**orphan.model_dump(), reason=u.ORPHAN, exit_code=None)]


def _started(start: u.StartRequested, ready: i.RecordReady, node: str) -> u.EngineStarted:
    return u.EngineStarted(
        process_id=start.process_id,
        name=start.name,
        type=start.type,
        runtime=start.runtime,
        endpoint=start.endpoint,
        model_id=start.model_id,
        node=node,
        service_id=start.service_id,
        served_model=ready.served_model,
        dialect=ready.dialect,
        pid=ready.pid,
        pid_started_at=ready.pid_started_at,
        run=start.run,
        boot=ready.boot,
    )


def _stop(state: InstanceState, call: Call, force: bool, timeout: float, restart: bool = False) -> u.StopRequested:
    assert state.start
    return u.StopRequested(
        process_id=state.id,
        name=state.start.name,
        force=force,
        timeout=timeout,
        restart=restart,
        run=state.run,
        deadline=call.at + _stop_limit(force, timeout),
    )


def _stop_limit(force: bool, timeout: float) -> float:
    """Return the seconds after which a stop is overdue."""
    return _STOP if force else timeout + _STOP


def _restarts(state: InstanceState) -> bool:
    """Return whether the instance stops in order to restart. After an overdue stop, an instance does not restart."""
    return state.status == "stopping" and state.stop is not None and state.stop.restart


def _stop_changes(state: InstanceState, force: bool) -> bool:
    """Return whether a stop request changes the state. While the instance stops, a request can cancel a restart or
    turn the stop into a forced one.
    """
    if state.status == "stopping":
        assert state.stop
        return state.stop.restart or (force and not state.stop.force)
    return state.status in ("starting", "running")


def _instances_named(world: World[InstanceState], name: str) -> list[InstanceState]:
    """Return the instance whose process_id is `name`, or all instances of the engine `name`."""
    return [state for state in world.values() if state.start and name in (state.id, state.start.name)]


def _installing(world: World[InstanceState], name: str) -> bool:
    state = world.get(f"engine/{name}")
    return state is not None and state.status == "installing"
