"""Decides commands about a whole service. Pure. replica_decider.py decides the reports about single replicas."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import assert_never

from aima_core.call import Call
from aima_core.domain import World
from aima_core.errors import Conflict, NotFound
from aima_core.suggestions import find_named, nearest
from aima_core.units import Event
from services.service import internal as i
from services.service import units as u
from services.service.rules import replica_decider
from services.service.rules.scaling import within
from services.service.rules.state import Replica, Service

_CREATION_FIELDS = (
    *("model_id", "engine", "device", "resource_class", "replicas", "persistent", "port", "config"),
    *("idle_timeout", "autoscale", "priority"),
)
Prepared = i.Register | i.BeginStart | i.BeginScale | u.StopService | u.DeleteService
"""The commands of callers, after their preparation."""
_LONGEST = 50  # characters of a name, and of the part of an id that comes from the name
_MOST_KNOWN = 20  # the most services that a refusal names


def resolve(world: World[Service], text: str) -> str:
    """Return the id of the service with this id or name. Returns an unknown text unchanged. See `find_named`."""
    if f"service/{text}" in world:
        return text
    return find_named(text, {service.id: (service.about.name,) for service in world.values()}, "service_id") or text


def id_of(name: str) -> str:
    """Return the id of the service with this name. Each name has one id."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST].strip("-")
    return f"svc-{slug}"


def unknown(world: World[Service], ident: str) -> NotFound:
    """Return the error for an unknown service id. The error lists existing ids, with the most similar id first."""
    ids = [service.id for service in world.values()]
    known = list(dict.fromkeys([*nearest(ident, ids), *ids]))
    names = ", ".join(known[:_MOST_KNOWN]) or "none"
    more = f" and {len(known) - _MOST_KNOWN} more" if len(known) > _MOST_KNOWN else ""
    return NotFound(
        f"there is no service {ident}; known: {names}{more}", reason="SERVICE_NOT_FOUND", known=known[:_MOST_KNOWN]
    )


def decide(world: World[Service], command: Prepared | i.Reports, call: Call) -> list[Event]:
    """Return the events of a command. Empty if its goal is already reached, or if it reports on an earlier run."""
    if isinstance(command, i.Register):
        return _register(world, command, call)
    service = world.get(f"service/{command.service_id}")
    match command:
        case i.BeginStart() | i.BeginScale() | u.StopService() | u.DeleteService() if service is None:
            raise unknown(world, command.service_id)
        case _ if service is None:
            return []
        case i.BeginStart():
            return _with_room(world, service, command.makes_room, _start(service, command, call), call)
        case i.BeginScale():
            return _with_room(world, service, command.makes_room, _scale(service, command, call), call)
        case u.StopService(force=force):
            return _stop(service, call, force=force)
        case i.PutToSleep(reason=reason):
            return _sleep(service, call, reason) if service.status in ("running", "degraded") else []
        case u.DeleteService():
            if service.status not in ("created", "stopped", "failed") or service.present():
                raise Conflict(_not_deletable(service), reason="RUNNING", status=service.status)
            return [u.ServiceDeleted(service_id=service.id)]
        case i.RecordTimedOut(run=run, stopping=stopping):
            return _timed_out(service, run, call, stopping=stopping)
        case (
            i.RecordReplicaProgress()
            | i.RecordReplicaReady()
            | i.RecordReplicaHealth()
            | i.RecordReplicaFailed()
            | i.RecordReplicaEnded()
        ):
            return replica_decider.decide(service, command, call)
        case _:
            assert_never(command)


def _not_deletable(service: Service) -> str:
    if service.runs:
        return f"{service.id} is {service.status}; stop it first: aima call service.stop service_id={service.id}"
    if service.status == "stopping":
        return f"{service.id} is stopping; delete it when it has stopped"
    processes = ", ".join(service.present())
    still_ending = f"has processes that are still ending: {processes}"
    return f"{service.id} ({service.status}) {still_ending}; delete it when they have ended"


def _register(world: World[Service], command: i.Register, call: Call) -> list[Event]:
    name, existing = command.name, world.get(f"service/{id_of(command.name)}")
    if command.named and (taken := _taken(world, existing, name)):
        raise taken
    if existing and command.named:
        changed = [field for field in _CREATION_FIELDS if getattr(existing.about, field) != getattr(command, field)]
        if not changed:
            return []
        raise Conflict(
            f"{existing.id} already exists with different values of: {', '.join(changed)}; "
            "choose another name, or delete it first",
            reason="ALREADY_EXISTS",
            service_id=existing.id,
        )
    salt = 0
    while f"service/{id_of(name)}" in world:
        # shortened before the suffix is added, because an id without the suffix would be the other service's id
        name = call.new_id(command.name[: _LONGEST - len(call.new_id(""))], str(salt) if salt else "")
        salt += 1
    about = {field: getattr(command, field) for field in (*_CREATION_FIELDS, "model_name", "model_type")}
    return [u.ServiceCreated(service_id=id_of(name), name=name, **about)]


def _taken(world: World[Service], existing: Service | None, name: str) -> Conflict | None:
    """Return the error for a name that would be confused with another service; None if there is no such service."""
    other = world.get(f"service/{name}")
    if other:
        what = f"{name} is the id of another service, {other.about.name}"
    elif existing and existing.about.name != name:
        other, what = existing, f"{name} would get the id {existing.id}, which the service {existing.about.name} has"
    else:
        return None
    return Conflict(f"{what}; choose another name", reason="ALREADY_EXISTS", field="name", service_id=other.id)


def _start(service: Service, command: i.BeginStart, call: Call) -> list[Event]:
    match service.status:
        case "created" | "stopped" | "failed":
            if not command.engine:  # the service went down after the start was prepared, so no engine was chosen
                raise Conflict(
                    f"{service.id} went down while the start was being prepared; start it again", reason="STOPPING"
                )
            return [_requested(service, command, call, service.desired_replicas)]
        case "stopping":
            raise Conflict(f"{service.id} is stopping; start it when it has stopped", reason="STOPPING")
        case "degraded":
            to_start = [
                (replica.number, 0)
                for replica in service.replica_set
                if not replica.hopeful or replica.status == "waiting"
            ]
            return replica_decider.requested(service, to_start, "started again", call)
        case _:
            return []


def _requested(service: Service, command: i.BeginStart, call: Call, replicas: int) -> u.StartRequested:
    return u.StartRequested(
        service_id=service.id,
        replicas=within(service.about, replicas),
        run=service.run + 1,
        deadline=call.at + command.timeout,
        **command.model_dump(exclude={"service_id", "wait", "makes_room"}),
    )


def _scale(service: Service, command: i.BeginScale, call: Call) -> list[Event]:
    if command.by_load and service.status not in ("running", "degraded"):
        return []  # the service was stopped after its load was measured
    replicas = within(service.about, command.replicas) if command.replicas else 0
    old = service.desired_replicas
    if replicas == old and not (service.asleep and replicas):
        return []
    scaled: list[Event] = [] if replicas == old else [_scaled(service, replicas, command.reason)]
    if service.asleep and replicas:
        if command.start is None:  # the service fell asleep after the scale was prepared, so no engine was chosen
            raise Conflict(
                f"{service.id} went to sleep while the scale was being prepared; scale it again", reason="STOPPING"
            )
        return [*scaled, _requested(service, command.start, call, replicas)]
    if not service.runs:
        return scaled
    if replicas == 0:
        return [*scaled, *_sleep(service, call, "scaled to 0")]
    return [*scaled, *replica_decider.resized(service, replicas, command.reason, call)]


def _scaled(service: Service, replicas: int, reason: str) -> u.ServiceScaled:
    old = service.desired_replicas
    return u.ServiceScaled(service_id=service.id, old_replicas=old, replicas=replicas, reason=reason)


def _stop(service: Service, call: Call, *, force: bool) -> list[Event]:
    under_way = service.status == "stopping" and service.stop is not None
    if under_way and service.stop and (service.stop.force or not force) and not service.stop.asleep:
        return []
    overdue = service.error_code == replica_decider.STOP_TIMEOUT and service.stop is not None and service.stop.asleep
    if not (service.runs or under_way or service.asleep or overdue or service.status == "failed"):
        return []
    if not under_way or service.stop is None:
        return replica_decider.end(service, call, reason="requested", force=force)
    current = service.stop
    return replica_decider.end(
        service, call, reason="requested", force=force or current.force, made_room_for=current.made_room_for
    )


def _sleep(service: Service, call: Call, reason: str, made_room_for: str = "") -> list[Event]:
    return replica_decider.end(service, call, reason=reason, asleep=True, made_room_for=made_room_for)


def _with_room(
    world: World[Service], needy: Service, idle: Sequence[str], events: list[Event], call: Call
) -> list[Event]:
    """Return the events, followed by the events that put the idle services to sleep. Omits services that are down."""
    if not events:
        return []
    candidates = (world.get(f"service/{ident}") for ident in idle)
    reason = f"made room for {needy.id}"
    return events + [
        event
        for service in candidates
        if service and service.status in ("running", "degraded") and not service.about.persistent
        for event in _sleep(service, call, reason, needy.id)
    ]


def _last_report(replica: Replica) -> str:
    return replica.message or (f"{replica.failure.error_code}: {replica.failure.error}" if replica.failure else "")


def _timed_out(service: Service, run: int, call: Call, *, stopping: bool) -> list[Event]:
    if service.run != run or service.status != ("stopping" if stopping else "starting"):
        return []
    if stopping:
        error = f"{', '.join(service.present())} did not end in time; AIMA keeps trying"
        return [u.ServiceFailed(service_id=service.id, error=error, error_code=replica_decider.STOP_TIMEOUT)]
    waiting = [replica for replica in service.replica_set if not replica.answers]
    last = next(filter(None, map(_last_report, waiting)), "none from the engine domain")
    limit = f"{service.start.timeout:.3g} s" if service.start else "the timeout"
    error = f"{len(waiting)} of {len(service.replica_set)} replicas were not ready within {limit}; last report: {last}"
    if not service.answering():
        return [u.ServiceFailed(service_id=service.id, error=error, error_code="TIMEOUT")]
    return replica_decider.late(service, waiting, error, call)
