"""Builds the answers of commands from the world and from the events since the command's decision. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from aima_core.domain import World
from aima_core.errors import ExecutionFailed
from aima_core.units import Event, Success, View
from services.engine import units as engine
from services.service import internal as i
from services.service import units as u
from services.service.rules.decider import Prepared, id_of
from services.service.rules.state import Service


def reply(world: World[Service], command: Prepared, events: Sequence[Event]) -> View | None:
    """Return the answer of a command, or None while its result is open. Raises the error of a failed start."""
    match command:
        case i.Register(name=name):
            created = next((event for event in events if isinstance(event, u.ServiceCreated)), None)
            return u.ServiceRef(service_id=created.service_id if created else id_of(name))
        case i.BeginStart(service_id=ident, wait=wait):
            own = [event for event in events if event.stream == f"service/{ident}"]  # ignores services that made room
            return _started(ident, world.get(f"service/{ident}"), wait, own)
        case i.BeginScale(service_id=ident):
            return _scaled(ident, world.get(f"service/{ident}"), command.replicas)
        case u.StopService(service_id=ident):
            service = world.get(f"service/{ident}")
            down = service is None or (service.status != "stopping" and not service.present())
            return Success() if down or (service and service.runs) else None
        case u.DeleteService():
            return Success()
        case _:
            assert_never(command)


def _started(ident: str, service: Service | None, wait: bool, events: Sequence[Event]) -> u.StartOutcome | None:
    stopped = ExecutionFailed(f"{ident} was stopped while it was starting", reason="STOPPED")
    for event in events:
        match event:
            case u.ServiceFailed(error=error, error_code=code):
                raise engine.refusal(error, code)
            case u.StopRequested():
                raise stopped
    if service is None:
        raise ExecutionFailed(f"{ident} was deleted while it was starting", reason="DELETED")
    if service.status == "failed":  # the service had failed before this command was decided
        raise engine.refusal(service.error, service.error_code)
    if service.status not in ("starting", "running", "degraded"):
        raise stopped
    if service.status == "starting" and wait:
        return None
    if any(isinstance(event, u.StartRequested) for event in events):
        message = service.start.reason if service.start else ""
    elif restarted := sum(isinstance(event, u.ReplicaRequested) for event in events):
        message = f"starting {restarted} of {len(service.replica_set)} replicas again"
    else:
        message = f"already {service.status}"
    return u.StartOutcome(success=True, status=service.status, message=message)


def _scaled(ident: str, service: Service | None, requested: int) -> u.ScaleOutcome:
    if service is None:
        raise ExecutionFailed(f"{ident} was deleted while it was being scaled", reason="DELETED")
    replicas = service.desired_replicas
    bounds = f"; the autoscale bounds do not allow {requested}" if replicas != requested else ""
    match service.status:
        case "created" | "failed" | "stopped" if replicas and not service.asleep:
            message = f"{replicas} replicas from the next start on{bounds}"
        case "created" | "failed" | "stopped" if not service.asleep:
            message = f"{service.status}: its next start begins with one replica"
        case _ if not replicas:
            message = "asleep: the next request wakes it, with one replica"
        case _:
            message = f"{replicas} replicas{bounds}"
    return u.ScaleOutcome(success=True, replicas=replicas, message=message)
