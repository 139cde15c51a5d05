"""The read table of the service domain, and the views and answers made of states. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aima_core.call import timestamp
from aima_core.domain import World
from aima_core.errors import ExecutionFailed
from aima_core.records import Recorded, Statement
from aima_core.units import Command, Event, Success, View
from services.engine import units as engine
from services.service import units as u
from services.service.decider import id_of
from services.service.state import Service

TABLES = {
    "services": """CREATE TABLE services (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, model_id TEXT NOT NULL, status TEXT NOT NULL,
        created_at TEXT NOT NULL, changed_at TEXT NOT NULL)""",
}


def project(recorded: Recorded) -> Iterable[Statement]:
    """Yield the SQL that an event means: the table finds and orders services, their states say the rest."""
    event, at = recorded.event, timestamp(recorded.recorded_at)
    match event:
        case u.ServiceCreated(service_id=ident, name=name, model_id=model_id):
            yield ("INSERT INTO services VALUES (?, ?, ?, 'created', ?, ?)", (ident, name, model_id, at, at))
        case u.ServiceDeleted(service_id=ident):
            yield ("DELETE FROM services WHERE id = ?", (ident,))
        case u.StartRequested(service_id=ident):
            yield _status("starting", at, ident)
        case u.ServiceStarted(service_id=ident, status=status):
            yield _status(status, at, ident)
        case u.ServiceFailed(service_id=ident):
            yield _status("failed", at, ident)
        case u.StopRequested(service_id=ident):
            yield _status("stopping", at, ident)
        case u.ServiceStopped(service_id=ident):
            yield _status("stopped", at, ident)


def _status(status: str, at: str, ident: str) -> Statement:
    return ("UPDATE services SET status = ?, changed_at = ? WHERE id = ?", (status, at, ident))


# --- answers of commands ------------------------------------------------------------------------------------------


def reply(world: World[Service], command: Command[Any], events: Sequence[Event]) -> View | None:
    """Return the command's answer; None while it is not settled. Raises what a start came to instead."""
    match command:
        case u.Register(name=name):
            created = next((event for event in events if isinstance(event, u.ServiceCreated)), None)
            return u.ServiceRef(service_id=created.service_id if created else id_of(name))
        case u.BeginStart(service_id=ident, wait=wait):
            return _started(world.get(f"service/{ident}"), wait, events)
        case u.StopService(service_id=ident):
            service = world.get(f"service/{ident}")
            down = service is None or (service.status != "stopping" and not service.present())
            return Success() if down or (service and service.status in ("starting", "running")) else None
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
    asked = any(isinstance(event, u.StartRequested) for event in events)
    message = (service.start.reason if service.start else "") if asked else f"it is {service.status} already"
    return u.StartOutcome(success=True, status=service.status, message=message)


# --- views --------------------------------------------------------------------------------------------------------


def service_view(service: Service, metrics: u.Metrics | None = None) -> u.ServiceView:
    """Return a service as queries show it."""
    about, answering = service.about, service.answering()
    return u.ServiceView(
        id=service.id,
        name=about.name,
        model_id=about.model_id,
        model_name=about.model_name,
        model_type=about.model_type,
        status=service.status,
        replicas=about.replicas,
        active_replicas=len(answering),
        resource_class=about.resource_class,
        engine=service.start.engine if service.start else about.engine,
        device=about.device,
        persistent=about.persistent,
        port=about.port,
        config=about.config,
        endpoints=[member.endpoint for member in answering],
        error=service.error or None,
        error_code=service.error_code or None,
        reason=service.start.reason if service.start else "",
        metrics=metrics,
    )


def status_view(service: Service) -> u.StatusView:
    """Return how a service is, with one line that a person can act on."""
    return u.StatusView(
        id=service.id,
        status=service.status,
        health=_HEALTH[service.status],
        summary=_summary(service),
        error=service.error or None,
        replicas=[
            u.Replica(
                replica=member.replica,
                process_id=member.process_id,
                node=member.node,
                endpoint=member.endpoint,
                status=member.status,
                phase=member.phase,
                progress=member.progress,
                message=member.message,
                error=member.error or None,
                restarts=0,
            )
            for member in service.members
        ],
    )


_HEALTH: Mapping[u.ServiceStatus, str] = {
    "created": "none",
    "starting": "starting",
    "running": "healthy",
    "degraded": "degraded",
    "stopping": "stopping",
    "stopped": "none",
    "failed": "unhealthy",
}


def _summary(service: Service) -> str:
    answering, wanted = len(service.answering()), len(service.members)
    match service.status:
        case "created":
            return f"not started yet; start it with: aima call service.start service_id={service.id}"
        case "starting":
            slowest = min(service.members, key=lambda member: member.progress)
            return f"{answering} of {wanted} replicas answer; {slowest.process_id}: {slowest.message or 'asked for'}"
        case "running":
            return f"{answering} of {wanted} replicas answer"
        case "degraded":
            broken = next((m for m in service.members if not m.answers), service.members[0])
            why = broken.error or "it does not answer its health check"
            return f"{answering} of {wanted} replicas answer; {broken.process_id}: {why}"
        case "stopping":
            return f"waiting for {len(service.present())} processes to end"
        case "stopped":
            return f"stopped; start it with: aima call service.start service_id={service.id}"
        case "failed":
            return f"{service.error_code}: {service.error}"
