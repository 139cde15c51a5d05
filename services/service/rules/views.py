"""The read table of the service domain and the views made from states. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from aima_core.call import timestamp
from aima_core.store.records import Recorded, Statement
from services.inference import units as inference
from services.service import units as u
from services.service.rules.replica_decider import STOP_TIMEOUT
from services.service.rules.scaling import Bounds, bounds_of
from services.service.rules.state import Replica, Service

_MOST_NAMED = 5  # the most processes that a summary names
TABLES = {
    "services": """CREATE TABLE services (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, model_id TEXT NOT NULL, status TEXT NOT NULL,
        created_at TEXT NOT NULL, changed_at TEXT NOT NULL)""",
}


def project(recorded: Recorded) -> Iterable[Statement]:
    """Yield the SQL for an event. The table only finds and orders services; the states have all other values."""
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


def service_view(service: Service, metrics: u.Metrics | None = None, *, version: int | None = None) -> u.ServiceView:
    """Return the view of a service. Pass `version` only for an earlier state; the core sets the current version."""
    about, answering = service.about, service.answering()
    return u.ServiceView(
        id=service.id,
        name=about.name,
        model_id=about.model_id,
        model_name=about.model_name,
        model_type=about.model_type,
        status=service.status,
        replicas=service.desired_replicas,
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
        endpoints=[replica.endpoint for replica in answering],
        error=service.error or None,
        error_code=service.error_code or None,
        reason=service.start.reason if service.start else "",
        metrics=metrics,
        stream_version=version,
    )


def _autoscale(bounds: Bounds | None) -> u.Autoscale | None:
    return bounds and u.Autoscale(min=bounds.least, max=bounds.most, target_concurrency=bounds.target)


def metrics(measured: inference.ServiceMetrics) -> u.Metrics:
    """Return the metrics of a service, from the figures of the inference domain."""
    return u.Metrics.model_validate(measured.model_dump(include=set(u.Metrics.model_fields)))


class Now(NamedTuple):
    """The facts that a status needs in addition to the service's state.

    `at` is the time in Unix seconds. AIMA replaces a replica that does not answer for `grace` seconds. `memory` maps a
    process id to the bytes that the process uses. `making_room` has the ids of the services that go to sleep for this
    service. `working` maps a process id to the number of its requests under way.
    """

    at: float
    grace: float
    memory: Mapping[str, int]
    making_room: Sequence[str] = ()
    working: Mapping[str, int] = {}


def status_view(service: Service, now: Now) -> u.StatusView:
    """Return the status of a service. One line states the cause of a problem and the next step."""
    return u.StatusView(
        id=service.id,
        status=service.status,
        health=_health(service, now.working),
        summary=_summary(service, now),
        error=service.error or _current_error(service),
        replicas=[_replica(replica, now.memory.get(replica.process_id)) for replica in service.replica_set],
    )


def logged(service: Service) -> list[str]:
    """Return the processes that service.logs shows: each replica's last failed processes and its current process."""
    processes: dict[str, None] = {}
    for replica in service.replica_set:
        processes |= dict.fromkeys([*(failure.process_id for failure in replica.failures), replica.process_id])
    return list(processes)


def start_requested_at(service: Service) -> float:
    """Return the time of the latest start request in Unix seconds, or 0 if there was no start."""
    return service.start.deadline - service.start.timeout if service.start else 0.0


def _replica(replica: Replica, memory: int | None) -> u.Replica:
    failure = None if replica.answers else replica.failure  # `attempts` has the past failures
    return u.Replica(
        replica=replica.number,
        process_id=replica.process_id,
        node=replica.node,
        endpoint=replica.endpoint,
        status=replica.status,
        phase=replica.phase,
        progress=replica.progress,
        message=replica.message,
        error=failure.error if failure else None,
        error_code=failure.error_code if failure else None,
        restarts=replica.restarts,
        retry_at=timestamp(replica.not_before) if replica.status == "waiting" else None,
        memory_bytes=memory,
        attempts=[
            u.Attempt(process_id=f.process_id, at=timestamp(f.at), error=f.error, error_code=f.error_code)
            for f in replica.failures
        ],
    )


def _current_error(service: Service) -> str | None:
    """Return the last error of the first replica that does not answer. None while the service is down."""
    failures = (replica.failure for replica in service.replica_set if service.runs and not replica.answers)
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


def _health(service: Service, working: Mapping[str, int]) -> str:
    if service.status != "degraded" or service.answering():
        return _HEALTH[service.status]
    return "busy" if any(working.get(replica.process_id) for replica in service.replica_set) else "unhealthy"


def _summary(service: Service, now: Now) -> str:
    start = f"aima call service.start service_id={service.id}"
    stop = service.stop
    match service.status:
        case "created":
            return f"not started yet; start it with: {start}"
        case "starting" | "running" | "degraded":
            return _progress(service, now, start)
        case "stopping":
            why = f" ({stop.reason})" if stop else ""
            kill = f"; to kill the rest: aima call service.stop service_id={service.id} force=true"
            waits = stop is not None and (stop.force or stop.asleep)  # force would cancel the sleep
            return f"waiting for {_names(service.present())} to end{why}{'' if waits else kill}"
        case "stopped" if service.asleep:
            return f"asleep ({stop.reason if stop else ''}); the next request wakes it"
        case "stopped":
            why = f" ({stop.reason})" if stop and stop.reason != "requested" else ""
            return f"stopped{why}; start it with: {start}"
        case "failed" if service.error_code == STOP_TIMEOUT and service.present():
            kill = f"aima call engine.stop name={service.present()[0]} force=true"
            return f"{service.error_code}: {service.error}; to kill it now: {kill}"
        case "failed":
            return f"{service.error_code}: {service.error}; fix the cause, then start it with: {start}"


def _names(process_ids: Sequence[str]) -> str:
    more = f" and {len(process_ids) - _MOST_NAMED} more" if len(process_ids) > _MOST_NAMED else ""
    return f"{', '.join(process_ids[:_MOST_NAMED])}{more}"


def _progress(service: Service, now: Now, start: str) -> str:
    """Say how many replicas answer. If a replica does not answer, also describe the replica in the worst state."""
    answering = f"{len(service.answering())} of {len(service.replica_set)} replicas answer"
    silent = [replica for replica in service.replica_set if not replica.answers]
    if not silent:
        return answering
    worst = min(silent, key=lambda replica: (replica.hopeful, replica.status != "unhealthy", replica.progress))
    return f"{answering}; {_problem(service, worst, now, start)}"


def _problem(service: Service, replica: Replica, now: Now, start: str) -> str:
    """Say why a replica does not answer, and what AIMA does or the caller must do."""
    failure, name = replica.failure, replica.process_id
    why = f"{failure.error_code}: {failure.error}" if failure else ""
    match replica.status:
        case "failed" | "ended":
            attempts = f"{replica.restarts + 1} attempt{'s' if replica.restarts else ''}"
            return f"{name} was given up after {attempts}: {why}; fix the cause, then start it with: {start}"
        case "unhealthy" if replica.silent_since and (number := now.working.get(name)):
            requests = "1 request" if number == 1 else f"{number} requests"
            return f"{name} is busy: no reply to its health check while it works on {requests}"
        case "unhealthy" if replica.silent_since:
            silence = f"no reply to its health check for {now.at - replica.silent_since:.0f} s"
            return f"{name} is unhealthy: {silence}; AIMA replaces it after {now.grace:g} s of silence"
        case "unhealthy":
            return f"{name} is being restarted by the engine domain"
        case "waiting" if replica.not_before > now.at:
            wait = replica.not_before - now.at
            return f"replica {replica.number} restarts in {wait:.0f} s (restart {replica.restarts}) after {why}"
        case "starting":
            message = f"{name} is starting: {replica.message or replica.phase}"
        case _:
            message = f"{name} {_blocker(service, replica, now)}"
    return f"{message} (last failure: {why})" if why else message


def _blocker(service: Service, replica: Replica, now: Now) -> str:
    """Describe what a replica without an instance waits for."""
    earlier = [process.process_id for process in service.leaving if process.replica == replica.number]
    if earlier:
        return f"waits for its previous process to end: {_names(earlier)}"
    if now.making_room:
        return f"waits for memory from services that are going to sleep for it: {', '.join(now.making_room)}"
    return "waits for the engine domain to start it"
