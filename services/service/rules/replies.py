"""What the service domain's commands answer, on the world and on the events since they were decided. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aima_core.domain import World
from aima_core.errors import ExecutionFailed
from aima_core.units import Command, Event, Success, View
from services.engine import units as engine
from services.service import internal as i
from services.service import units as u
from services.service.rules.decider import id_of
from services.service.rules.state import Service


def reply(world: World[Service], command: Command[Any], events: Sequence[Event]) -> View | None:
    """Return the command's answer; None while it is not settled. Raises what a start came to instead."""
    match command:
        case i.Register(name=name):
            created = next((event for event in events if isinstance(event, u.ServiceCreated)), None)
            return u.ServiceRef(service_id=created.service_id if created else id_of(name))
        case i.BeginStart(service_id=ident, wait=wait):
            own = [event for event in events if event.stream == f"service/{ident}"]  # others may have made room
            return _started(world.get(f"service/{ident}"), wait, own)
        case i.BeginScale(service_id=ident):
            return _scaled(world.get(f"service/{ident}"), command.replicas)
        case u.StopService(service_id=ident):
            service = world.get(f"service/{ident}")
            down = service is None or (service.status != "stopping" and not service.present())
            return Success() if down or (service and service.runs) else None
        case _:
            return Success()


def _started(service: Service | None, wait: bool, events: Sequence[Event]) -> View | None:
    stopped = ExecutionFailed("the service was stopped while it started", reason="STOPPED")
    for event in events:
        match event:
            case u.ServiceFailed(error=error, error_code=code):
                raise engine.refusal(error, code)
            case u.StopRequested():
                raise stopped
    if service is None:
        raise ExecutionFailed("the service was deleted", reason="DELETED")
    if service.status == "failed":  # it has come to that before we could watch
        raise engine.refusal(service.error, service.error_code)
    if service.status not in ("starting", "running", "degraded"):
        raise stopped
    if service.status == "starting" and wait:
        return None
    if any(isinstance(event, u.StartRequested) for event in events):
        message = service.start.reason if service.start else ""
    elif again := sum(isinstance(event, u.ReplicaRequested) for event in events):
        message = f"{again} of its {len(service.members)} replicas are started again"
    else:
        message = f"it is {service.status} already"
    return u.StartOutcome(success=True, status=service.status, message=message)


def _scaled(service: Service | None, asked: int) -> u.ScaleOutcome:
    if service is None:
        raise ExecutionFailed("the service was deleted", reason="DELETED")
    wanted = service.wanted
    bounds = "; its autoscale bounds allow no other" if wanted != asked else ""
    match service.status:
        case "created" | "failed" | "stopped" if wanted and not service.asleep:
            message = f"{wanted} replicas from its next start on{bounds}"
        case _ if not wanted:
            message = "asleep: the next request wakes it, with one replica"
        case _:
            message = f"{wanted} replicas{bounds}"
    return u.ScaleOutcome(success=True, replicas=wanted, message=message)
