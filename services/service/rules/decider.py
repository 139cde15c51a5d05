"""What may happen to a service at somebody's request. Pure; what happens to its replicas: replica_decider.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from aima_core.call import Call
from aima_core.domain import World
from aima_core.errors import Conflict, NotFound
from aima_core.suggestions import nearest
from aima_core.units import Command, Event
from services.service import internal as i
from services.service import units as u
from services.service.rules import replica_decider
from services.service.rules.scaling import within
from services.service.rules.state import Replica, Service

_ABOUT = (
    *("model_id", "engine", "device", "resource_class", "replicas", "persistent", "port", "config"),
    *("idle_timeout", "autoscale", "priority"),
)
_LONGEST = 50  # characters of a name, and of what its id keeps of it
_NAMED = 20  # services that a refusal names


def id_of(name: str) -> str:
    """Return the id of the service with that name: one name, one service."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST].strip("-")
    return f"svc-{slug}"


def unknown(world: World[Service], ident: str) -> NotFound:
    """Return the refusal of an id that no service has, with those that there are, the nearest first."""
    ids = [service.id for service in world.values()]
    known = list(dict.fromkeys([*nearest(ident, ids), *ids]))
    told = ", ".join(known[:_NAMED]) or "none"
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    return NotFound(
        f"there is no service {ident}; there are {told}{more}", reason="SERVICE_NOT_FOUND", known=known[:_NAMED]
    )


def decide(world: World[Service], command: Command[Any], call: Call) -> list[Event]:
    """Return what happens; nothing when it already is as asked, or when the news is of an earlier run."""
    if isinstance(command, i.Register):
        return _register(world, command, call)
    service = world.get(f"service/{command.service_id}")  # type: ignore[attr-defined]  # every other command has one
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
                hint = "it is being cleared away; ask again" if service.status == "failed" else "stop it first"
                raise Conflict(f"{service.id} is {service.status}; {hint}", reason="RUNNING", status=service.status)
            return [u.ServiceDeleted(service_id=service.id)]
        case i.RecordTimedOut(run=run, stopping=stopping):
            return _timed_out(service, run, call, stopping=stopping)
        case _:
            return replica_decider.decide(service, command, call)


def _register(world: World[Service], command: i.Register, call: Call) -> list[Event]:
    name, known = command.name, world.get(f"service/{id_of(command.name)}")
    if known and command.named:
        other = [field for field in _ABOUT if getattr(known.about, field) != getattr(command, field)]
        if not other:
            return []
        raise Conflict(
            f"{known.id} exists already with other values of: {', '.join(other)}",
            reason="ALREADY_EXISTS",
            service_id=known.id,
        )
    salt = 0
    while f"service/{id_of(name)}" in world:
        # cut first: an id that lost what tells the two apart would be the other service's
        name = call.new_id(command.name[: _LONGEST - len(call.new_id(""))], str(salt) if salt else "")
        salt += 1
    about = {field: getattr(command, field) for field in (*_ABOUT, "model_name", "model_type")}
    return [u.ServiceCreated(service_id=id_of(name), name=name, **about)]


def _start(service: Service, command: i.BeginStart, call: Call) -> list[Event]:
    match service.status:
        case "created" | "stopped" | "failed":
            if not command.engine:  # it has come to rest only since the engine would have been chosen
                raise Conflict(f"{service.id} was just stopping; start it again", reason="STOPPING")
            return [_requested(service, command, call, service.wanted)]
        case "stopping":
            raise Conflict(f"{service.id} is stopping; start it when it has stopped", reason="STOPPING")
        case "degraded":
            lost = [member for member in service.members if not member.hopeful or member.status == "waiting"]
            return replica_decider.requested(service, [(member.replica, 0) for member in lost], "started again", call)
        case _:
            return []


def _requested(service: Service, command: i.BeginStart, call: Call, wanted: int) -> u.StartRequested:
    return u.StartRequested(
        service_id=service.id,
        replicas=within(service.about, wanted),
        run=service.run + 1,
        deadline=call.at + command.timeout,
        **command.model_dump(exclude={"service_id", "wait", "makes_room"}),
    )


def _scale(service: Service, command: i.BeginScale, call: Call) -> list[Event]:
    if command.by_load and service.status not in ("running", "degraded"):
        return []  # it has been stopped since somebody looked
    wanted = within(service.about, command.replicas) if command.replicas else 0
    old = service.wanted
    if wanted == old and not (service.asleep and wanted):
        return []
    scaled: list[Event] = [] if wanted == old else [_scaled(service, wanted, command.reason)]
    if service.asleep and wanted:
        if command.start is None:  # it has fallen asleep only since the engine would have been chosen
            raise Conflict(f"{service.id} was just going to sleep; ask again", reason="STOPPING")
        return [*scaled, _requested(service, command.start, call, wanted)]
    if not service.runs:
        return scaled
    if wanted == 0:
        return [*scaled, *_sleep(service, call, "scaled to 0")]
    return [*scaled, *replica_decider.resized(service, wanted, command.reason, call)]


def _scaled(service: Service, wanted: int, reason: str) -> u.ServiceScaled:
    return u.ServiceScaled(service_id=service.id, old_replicas=service.wanted, replicas=wanted, reason=reason)


def _stop(service: Service, call: Call, *, force: bool) -> list[Event]:
    under_way = service.status == "stopping" and service.stop is not None
    if under_way and service.stop and (service.stop.force or not force) and not service.stop.asleep:
        return []
    late = service.error_code == replica_decider.STOP_TIMEOUT and service.stop is not None and service.stop.asleep
    if not (service.runs or under_way or service.asleep or late):
        return []
    if not under_way or service.stop is None:
        return replica_decider.end(service, call, reason="requested", force=force)
    going = service.stop
    return replica_decider.end(
        service, call, reason="requested", force=force or going.force, made_room_for=going.made_room_for
    )


def _sleep(service: Service, call: Call, reason: str, made_room_for: str = "") -> list[Event]:
    return replica_decider.end(service, call, reason=reason, asleep=True, made_room_for=made_room_for)


def _with_room(
    world: World[Service], needy: Service, idle: Sequence[str], events: list[Event], call: Call
) -> list[Event]:
    """Add to what happens to a service that idle ones go to sleep for it, unless they are on their way down by now."""
    if not events:
        return []
    found = (world.get(f"service/{ident}") for ident in idle)
    reason = f"made room for {needy.id}"
    return events + [
        event
        for service in found
        if service and service.status in ("running", "degraded") and not service.about.persistent
        for event in _sleep(service, call, reason, needy.id)
    ]


def _last_heard(member: Replica) -> str:
    return member.message or (f"{member.failure.error_code}: {member.failure.error}" if member.failure else "")


def _timed_out(service: Service, run: int, call: Call, *, stopping: bool) -> list[Event]:
    if service.run != run or service.status != ("stopping" if stopping else "starting"):
        return []
    if stopping:
        error = f"{', '.join(service.present())} did not end in time; still trying"
        return [u.ServiceFailed(service_id=service.id, error=error, error_code=replica_decider.STOP_TIMEOUT)]
    waiting = [member for member in service.members if not member.answers]
    last = next(filter(None, map(_last_heard, waiting)), "the engine domain has not answered")
    given = f"{service.start.timeout:.3g} s" if service.start else "time"
    error = f"{len(waiting)} of {len(service.members)} replicas were not ready within {given}; last heard: {last}"
    if not service.answering():
        return [u.ServiceFailed(service_id=service.id, error=error, error_code="TIMEOUT")]
    return replica_decider.late(service, waiting, error, call)
