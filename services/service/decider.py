"""What may happen to a service. Pure; the picture stands in state.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from aima_core.call import Call
from aima_core.domain import World
from aima_core.errors import Conflict, NotFound
from aima_core.units import Command, Event
from services.service import units as u
from services.service.state import Member, Service

_ABOUT = (
    *("model_id", "engine", "device", "resource_class", "replicas", "persistent", "port", "config"),
    *("idle_timeout", "autoscale"),
)
_LONGEST = 50  # characters of a name, and of what its id keeps of it


def id_of(name: str) -> str:
    """Return the id of the service with that name: one name, one service."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST].strip("-")
    return f"svc-{slug}"


def decide(world: World[Service], command: Command[Any], call: Call) -> list[Event]:
    """Return what happens; nothing when it already is as asked, or when the news is of an earlier run."""
    if isinstance(command, u.Register):
        return _register(world, command, call)
    service = world.get(f"service/{command.service_id}")  # type: ignore[attr-defined]  # every other command has one
    match command:
        case u.BeginStart() | u.StopService() | u.DeleteService() if service is None:
            raise NotFound(f"there is no service {command.service_id}", reason="SERVICE_NOT_FOUND")
        case _ if service is None:
            return []
        case u.BeginStart():
            return _start(service, command, call)
        case u.StopService(force=force):
            return _stop(service, force)
        case u.DeleteService():
            if service.status not in ("created", "stopped", "failed") or service.present():
                hint = "it is being cleared away; ask again" if service.status == "failed" else "stop it first"
                raise Conflict(f"{service.id} is {service.status}; {hint}", reason="RUNNING", status=service.status)
            return [u.ServiceDeleted(service_id=service.id)]
        case u.RecordTimedOut(run=run):
            return _timed_out(service, run, call)
        case _:
            return _replica_news(service, command, call)


def _register(world: World[Service], command: u.Register, call: Call) -> list[Event]:
    name, known = command.name, world.get(f"service/{id_of(command.name)}")
    if known and command.named:
        other = [field for field in _ABOUT if getattr(known.about, field) != getattr(command, field)]
        if not other:
            return []
        raise Conflict(
            f"{known.id} exists with another {', '.join(other)}", reason="ALREADY_EXISTS", service_id=known.id
        )
    salt = 0
    while f"service/{id_of(name)}" in world:
        # cut first: an id that lost what tells the two apart would be the other service's
        name = call.new_id(command.name[: _LONGEST - len(call.new_id(""))], str(salt) if salt else "")
        salt += 1
    about = {field: getattr(command, field) for field in (*_ABOUT, "model_name", "model_type")}
    return [u.ServiceCreated(service_id=id_of(name), name=name, **about)]


def _start(service: Service, command: u.BeginStart, call: Call) -> list[Event]:
    match service.status:
        case "created" | "stopped" | "failed":
            if not command.engine:  # it has come to rest only since the engine would have been chosen
                raise Conflict(f"{service.id} was just stopping; start it again", reason="STOPPING")
            return [
                u.StartRequested(
                    service_id=service.id,
                    replicas=service.about.replicas,
                    run=service.run + 1,
                    engine=command.engine,
                    config=command.config,
                    reason=command.reason,
                    timeout=command.timeout,
                    deadline=call.at + command.timeout,
                    tools=command.tools,
                )
            ]
        case "stopping":
            raise Conflict(f"{service.id} is stopping; start it when it has stopped", reason="STOPPING")
        case _:
            return []


def _stop(service: Service, force: bool) -> list[Event]:
    match service.status:
        case "starting" | "running" | "degraded":
            stopping: list[Event] = [u.StopRequested(service_id=service.id, force=force)]
            return stopping if service.present() else [*stopping, _stopped(service)]
        case "stopping" if force and not service.force:
            return [u.StopRequested(service_id=service.id, force=True)]
        case _:
            return []


def _timed_out(service: Service, run: int, call: Call) -> list[Event]:
    if service.status != "starting" or service.run != run:
        return []
    waiting = [member for member in service.members if not member.answers]
    last = next((member.message for member in waiting if member.message), "the engine domain has not answered")
    error = f"{len(waiting)} of {len(service.members)} replicas were not ready in time; last heard: {last}"
    answering = service.answering()
    if not answering:
        return [u.ServiceFailed(service_id=service.id, error=error, error_code="TIMEOUT")]
    failed: list[Event] = [
        u.ReplicaFailed(**_of(service, member), error=error, error_code="TIMEOUT", attempt=run)
        for member in waiting
        if member.status not in ("failed", "ended")
    ]
    return [*failed, *_settle(service, [], [member.endpoint for member in answering], call)]


def _replica_news(service: Service, command: Command[Any], call: Call) -> list[Event]:
    """Decide what the engine domain says of one process of ours."""
    process_id = command.process_id  # type: ignore[attr-defined]  # every command that is left has one
    member = service.member(process_id)
    if member is None or member.status == "ended" or service.status in ("stopping", "failed", "stopped"):
        return _late_news(service, member, command, process_id)
    match command:
        case u.RecordReplicaProgress(phase=phase, message=message, progress=progress):
            if service.status != "starting" or (phase, message) == (member.phase, member.message):
                return []
            return [u.ReplicaProgress(**_of(service, member), phase=phase, message=message, progress=progress)]
        case u.RecordReplicaReady() if member.status in ("asked", "starting"):
            return _ready(service, member, command, call)
        case u.RecordReplicaReady():  # somebody has restarted it: at the same port, as it was
            return _health(service, member, "healthy", call)
        case u.RecordReplicaHealth(status=status):
            return _health(service, member, status, call)
        case u.RecordReplicaFailed(error=error, error_code=code, ended=ended):
            return _failed(service, member, error, code, call, ended=ended)
        case u.RecordReplicaEnded(reason="restart") if member.status in ("running", "unhealthy"):
            return _health(service, member, "unhealthy", call)
        case u.RecordReplicaEnded(reason=reason):
            return _failed(service, member, f"the engine was stopped ({reason})", "STOPPED", call, ended=True)
        case _:
            return []


def _health(service: Service, member: Member, status: u.Health, call: Call) -> list[Event]:
    if member.status != {"healthy": "unhealthy", "unhealthy": "running"}[status]:
        return []
    changed = u.ReplicaHealthChanged(**_of(service, member), status=status)
    others = [m for m in service.members if m.process_id != member.process_id]
    answering = [m for m in others if m.answers] + ([member] if status == "healthy" else [])
    return [changed, *_settle(service, others, [m.endpoint for m in answering], call)]


def _late_news(service: Service, member: Member | None, command: Command[Any], process_id: str) -> list[Event]:
    """A service that is on its way down only hears who is gone; a process it does not know is sent away."""
    match command:
        case u.RecordReplicaEnded() | u.RecordReplicaFailed(ended=True) if process_id in service.present():
            replica = member.replica if member else -1
            ended: list[Event] = [u.ReplicaEnded(service_id=service.id, replica=replica, process_id=process_id)]
            last = service.status == "stopping" and service.present() == (process_id,)
            return [*ended, _stopped(service)] if last else ended
        case u.RecordReplicaProgress(phase="failed"):
            return []
        case u.RecordReplicaProgress() | u.RecordReplicaReady() if process_id not in service.present():
            return [u.StrayFound(service_id=service.id, process_id=process_id)]
        case _:
            return []


def _ready(service: Service, member: Member, command: u.RecordReplicaReady, call: Call) -> list[Event]:
    assert service.start
    about = service.about
    ready = u.ReplicaStarted(
        **_of(service, member),
        endpoint=command.endpoint,
        node=command.node,
        service_name=about.name,
        model_id=about.model_id,
        model_name=about.model_name,
        model_type=about.model_type,
        served_model=command.served_model,
        dialect=command.dialect,
        tools=service.start.tools,
    )
    endpoints = [*(m.endpoint for m in service.answering()), command.endpoint]
    others = [m for m in service.members if m.process_id != member.process_id]
    return [ready, *_settle(service, others, endpoints, call)]


def _failed(service: Service, member: Member, error: str, code: str, call: Call, *, ended: bool) -> list[Event]:
    events: list[Event] = []
    if member.status not in ("failed", "ended"):
        events.append(u.ReplicaFailed(**_of(service, member), error=error, error_code=code, attempt=service.run))
    if ended and member.status != "ended":
        events.append(u.ReplicaEnded(**_of(service, member)))
    if not any(isinstance(event, u.ReplicaFailed) for event in events):
        return events
    others = [m for m in service.members if m.process_id != member.process_id]
    if not any(m.status in ("asked", "starting", "running", "unhealthy") for m in others):
        return [*events, u.ServiceFailed(service_id=service.id, error=error, error_code=code)]
    return [*events, *_settle(service, others, [m.endpoint for m in others if m.answers], call)]


def _settle(service: Service, others: Sequence[Member], endpoints: list[str], call: Call) -> list[Event]:
    """A start has come to its end when the last replica is up or has failed."""
    if service.status != "starting" or any(m.status in ("asked", "starting") for m in others) or not endpoints:
        return []
    assert service.start
    return [
        u.ServiceStarted(
            service_id=service.id,
            replicas=len(endpoints),
            endpoints=endpoints,
            duration=round(call.at - (service.start.deadline - service.start.timeout), 3),
            status="running" if len(endpoints) == len(service.members) else "degraded",
        )
    ]


def _stopped(service: Service) -> u.ServiceStopped:
    return u.ServiceStopped(service_id=service.id, reason="requested")


def _of(service: Service, member: Member) -> dict[str, Any]:
    return {"service_id": service.id, "replica": member.replica, "process_id": member.process_id}
