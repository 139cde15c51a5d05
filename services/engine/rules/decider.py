"""What may happen to an engine's package and to an instance. Pure; the picture stands in state.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from aima_core.call import Call
from aima_core.domain import World
from aima_core.errors import Conflict, NotFound, Unavailable
from aima_core.units import Command, Event
from services.engine import internal as i
from services.engine import units as u
from services.engine.rules.state import InstanceState

_INSTALL = 900.0  # seconds until an installation has failed; pip itself gives up somewhat earlier
_STOP = 30.0  # seconds that what was killed, or what it left, gets until it counts as not ending
_ABOUT = ("name", "model_id", "model_path")  # what nobody may get another of than was asked for


def decide(world: World[InstanceState], command: Command[Any], call: Call) -> list[Event]:
    """Return what happens; nothing when it already is as asked, or when the news is of an earlier run."""
    match command:
        case i.BeginInstall():
            return _install(world, command, call)
        case i.RecordInstalled(name=name, version=version, path=path):
            return [u.EngineInstalled(name=name, version=version, path=path)] if _installing(world, name) else []
        case i.RecordInstallFailed(name=name, error=error, error_code=code):
            failed = u.InstallFailed(name=name, error=error, error_code=code)
            return [failed] if _installing(world, name) else []
        case i.BeginStart():
            return _begin(world, command, call)
        case u.StopEngine(name=name, force=force, timeout=timeout):
            return [_stop(state, call, force, timeout) for state in _named(world, name) if _may_stop(state, force)]
        case u.RestartEngine(name=name):
            return _restart(_named(world, name), name, call)
        case i.RecordOrphan():
            return _orphan(world, command)
        case _:
            return _recorded(world.get(f"engine/{getattr(command, 'process_id', '')}"), command, call)


def _install(world: World[InstanceState], command: i.BeginInstall, call: Call) -> list[Event]:
    known = world.get(f"engine/{command.name}")
    if known and known.status == "installing":
        return []
    if command.present:
        there = u.EngineInstalled(name=command.name, version=command.have, path=command.path)
        return (
            []
            if known and (known.status, known.version, known.path) == ("installed", there.version, there.path)
            else [there]
        )
    return [u.InstallRequested(name=command.name, version=command.version, deadline=call.at + _INSTALL)]


def _begin(world: World[InstanceState], command: i.BeginStart, call: Call) -> list[Event]:
    known = world.get(f"engine/{command.process_id}")
    if known and known.start and known.status in ("starting", "running"):
        if other := [field for field in _ABOUT if getattr(known.start, field) != getattr(command, field)]:
            raise Conflict(f"{known.id} runs with another {', '.join(other)}", reason="ALREADY_EXISTS")
        return []
    if known:
        raise Conflict(f"{known.id} is {known.status}; start it when it is gone", reason="BUSY", process_id=known.id)
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
    """Return a port that no instance of ours holds and that was free a moment ago."""
    holders = {state.start.port: state.id for state in world.values() if state.start}
    wanted = command.port
    if wanted is not None:
        if wanted in holders:
            holder = holders[wanted]
            raise Conflict(f"port {wanted} is held by {holder}", reason="PORT_IN_USE", port=wanted, holder=holder)
        if wanted not in command.free_ports:
            raise Conflict(f"port {wanted} is held by a program that is not ours", reason="PORT_IN_USE", port=wanted)
        return wanted
    free = next((port for port in command.free_ports if port not in holders), None)
    if free is None:
        raise Unavailable("no port is free for another instance", reason="NO_FREE_PORT")
    return free


def _restart(found: Sequence[InstanceState], name: str, call: Call) -> list[Event]:
    if len(found) > 1:
        raise Conflict(
            f"{name} has {len(found)} instances; name one of them",
            reason="AMBIGUOUS",
            instances=[state.id for state in found],
        )
    if not found:
        raise NotFound(f"no instance of {name} is running", reason="INSTANCE_NOT_FOUND")
    state = found[0]
    return [] if _restarts(state) else [_stop(state, call, force=False, timeout=30, restart=True)]


def _recorded(state: InstanceState | None, command: Command[Any], call: Call) -> list[Event]:
    """Decide what our own effects report. Each names its run, so that late news is told apart."""
    if state is None or state.start is None or getattr(command, "run", None) != state.run:
        return []
    start = state.start
    ident: dict[str, Any] = {"process_id": state.id, "service_id": start.service_id, "run": state.run}
    match command, state.status:
        case i.RecordProgress(phase=phase, message=message, progress=progress), "starting":
            come = u.StartProgress(**ident, phase=phase, message=message, progress=progress)
            return [come] if _further(come, state.progress) else []
        case i.RecordReady(), "starting":
            ready = u.StartProgress(**ident, phase="ready", message="the engine answers", progress=100)
            return [ready, _started(start, command, call.node)]
        case i.RecordHealth(status=status), "running" if status != state.health:
            return [
                u.HealthChanged(**ident, name=start.name, old_status=state.health, new_status=status),
            ]
        case i.RecordFailed(error=error, error_code=code), "starting" | "running":
            failed: list[Event] = [u.EngineError(**ident, name=start.name, error=error, error_code=code)]
            if state.status == "starting":
                failed.insert(0, u.StartProgress(**ident, phase="failed", message=error, progress=100))
            return failed
        case i.RecordOverdue(), "stopping":
            assert state.stop
            seconds = _patience(state.stop.force, state.stop.timeout)
            late = f"its process has not ended within {seconds:g} s"
            return [u.EngineError(**ident, name=start.name, error=late, error_code=u.STOP_TIMEOUT)]
        case i.RecordGone(exit_code=exit_code), "stopping" | "error":
            again = _restarts(state)
            reason = state.error_code or ("restart" if again else "requested")
            gone = u.EngineStopped(**ident, name=start.name, reason=reason, exit_code=exit_code)
            next_run = msgspec.structs.replace(start, run=state.run + 1, deadline=call.at + start.timeout)
            return [gone, next_run] if again else [gone]
        case _:
            return []


def _further(come: u.StartProgress, known: u.StartProgress | None) -> bool:
    """Return whether it is news: a start that is tried again goes through its first steps again."""
    return known is None or (come != known and come.progress >= known.progress)


def _orphan(world: World[InstanceState], orphan: i.RecordOrphan) -> list[Event]:
    """Let those know who count on it: a service that believes it to run, whoever holds its memory."""
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
        deadline=call.at + _patience(force, timeout),
    )


def _patience(force: bool, timeout: float) -> float:
    """Return the seconds that a stop may take."""
    return _STOP if force else timeout + _STOP


def _restarts(state: InstanceState) -> bool:
    """Return whether it is being stopped to be started again; a stop that was late leaves it at that."""
    return state.status == "stopping" and state.stop is not None and state.stop.restart


def _may_stop(state: InstanceState, force: bool) -> bool:
    """A stop under way may still be made to go without a restart, or by force."""
    if state.status == "stopping":
        assert state.stop
        return state.stop.restart or (force and not state.stop.force)
    return state.status in ("starting", "running")


def _named(world: World[InstanceState], name: str) -> list[InstanceState]:
    """Return the instances that a name means: one by its process_id, or all of an engine."""
    return [state for state in world.values() if state.start and name in (state.id, state.start.name)]


def _installing(world: World[InstanceState], name: str) -> bool:
    state = world.get(f"engine/{name}")
    return state is not None and state.status == "installing"
