"""The read table of the service domain, and the views made of states. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aima_core.call import timestamp
from aima_core.store.records import Recorded, Statement
from services.inference import units as inference
from services.service import units as u
from services.service.rules.scaling import Bounds, bounds_of
from services.service.rules.state import Replica, Service

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
        replicas=service.wanted,
        active_replicas=len(answering),
        asleep=service.asleep,
        resource_class=about.resource_class,
        engine=service.start.engine if service.start else about.engine,
        device=service.start.device if service.start else about.device,
        persistent=about.persistent,
        priority=about.priority,
        idle_timeout=about.idle_timeout,
        autoscale=_autoscale(bounds_of(about)),
        port=about.port,
        config=about.config,
        endpoints=[member.endpoint for member in answering],
        error=service.error or None,
        error_code=service.error_code or None,
        reason=service.start.reason if service.start else "",
        metrics=metrics,
    )


def _autoscale(bounds: Bounds | None) -> u.Autoscale | None:
    return bounds and u.Autoscale(min=bounds.least, max=bounds.most, target_concurrency=bounds.target)


def metrics(found: inference.ServiceMetrics) -> u.Metrics:
    """Return what the inference domain has measured of a service."""
    return u.Metrics.model_validate(found.model_dump(include=set(u.Metrics.model_fields)))


def status_view(service: Service, used: Mapping[str, int], now: float) -> u.StatusView:
    """Return how a service is, with one line that a person can act on. `used`: memory by process, in bytes."""
    return u.StatusView(
        id=service.id,
        status=service.status,
        health=_health(service),
        summary=_summary(service, now),
        error=service.error or _present_error(service),
        replicas=[_replica(member, used.get(member.process_id)) for member in service.members],
    )


def logged(service: Service) -> list[str]:
    """Return the processes whose logs tell how the service fares: those that failed last, then the present ones."""
    found: dict[str, None] = {}
    for member in service.members:
        found |= dict.fromkeys([*(failure.process_id for failure in member.failures), member.process_id])
    return list(found)


def begun(service: Service) -> float:
    """Return when the latest run was asked for, in Unix seconds; 0 before the first."""
    return service.start.deadline - service.start.timeout if service.start else 0.0


def _replica(member: Replica, used: int | None) -> u.Replica:
    failure = member.failure
    return u.Replica(
        replica=member.replica,
        process_id=member.process_id,
        node=member.node,
        endpoint=member.endpoint,
        status=member.status,
        phase=member.phase,
        progress=member.progress,
        message=member.message,
        error=failure.error if failure else None,
        error_code=failure.error_code if failure else None,
        restarts=member.restarts,
        retry_at=timestamp(member.not_before) if member.status == "waiting" else None,
        memory_bytes=used,
        attempts=[
            u.Attempt(process_id=past.process_id, at=timestamp(past.at), error=past.error, error_code=past.error_code)
            for past in member.failures
        ],
    )


def _present_error(service: Service) -> str | None:
    """Return what keeps a replica from answering now."""
    failures = (member.failure for member in service.members if service.runs and not member.answers)
    return next((failure.error for failure in failures if failure), None)


_HEALTH: Mapping[u.ServiceStatus, str] = {
    "created": "none",
    "starting": "starting",
    "running": "healthy",
    "degraded": "degraded",
    "stopping": "stopping",
    "stopped": "none",
    "failed": "unhealthy",
}


def _health(service: Service) -> str:
    return "unhealthy" if service.status == "degraded" and not service.answering() else _HEALTH[service.status]


def _summary(service: Service, now: float) -> str:
    begin = f"aima call service.start service_id={service.id}"
    match service.status:
        case "created":
            return f"not started yet; start it with: {begin}"
        case "starting" | "running" | "degraded":
            return _progress(service, now)
        case "stopping":
            why = f" ({service.stop.reason})" if service.stop else ""
            return f"waiting for {len(service.present())} processes to end{why}"
        case "stopped" if service.asleep:
            return f"asleep ({service.stop.reason if service.stop else ''}); the next request wakes it"
        case "stopped":
            why = f" ({service.stop.reason})" if service.stop and service.stop.reason != "requested" else ""
            return f"stopped{why}; start it with: {begin}"
        case "failed":
            return f"{service.error_code}: {service.error}; when that is mended: {begin}"


def _progress(service: Service, now: float) -> str:
    """Say how many replicas answer, and of the one that is worst off why it does not."""
    answering = f"{len(service.answering())} of {len(service.members)} replicas answer"
    silent = [member for member in service.members if not member.answers]
    if not silent:
        return answering
    worst = min(silent, key=lambda member: (member.hopeful, member.status != "unhealthy", member.progress))
    failure = worst.failure
    why = f"{failure.error_code}: {failure.error}" if failure else ""
    match worst.status:
        case "failed" | "ended":
            told = f"{why}; given up after {worst.restarts + 1} tries; try again: aima call service.start"
            return f"{answering}; {worst.process_id}: {told} service_id={service.id}"
        case "unhealthy":
            silent_for = (
                f" for {now - worst.silent_since:.0f} s and is replaced unless it does" if worst.silent_since else ""
            )
            return f"{answering}; {worst.process_id} does not answer its health check{silent_for}"
        case "waiting":
            wait = max(0.0, worst.not_before - now)
            return (
                f"{answering}; replica {worst.replica} is started again in {wait:.0f} s "
                f"(restart {worst.restarts}), after {why}"
            )
        case _:
            after = f" (before: {why})" if why else ""
            return f"{answering}; {worst.process_id}: {worst.message or 'asked for'}{after}"
