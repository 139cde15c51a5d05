"""What a service calls for outside, given what it is. Pure; outside/replica_effects.py does it."""

from __future__ import annotations

from collections.abc import Iterable

from aima_core.domain import Effect
from services.service.rules import lifecycle
from services.service.rules.state import Replica, Service


class RunReplica(Effect, frozen=True):
    """Ask the engine domain for the instance, not before and to answer until (Unix seconds)."""

    service_id: str
    process_id: str
    replica: int
    not_before: float
    deadline: float


class EndReplica(Effect, frozen=True):
    """See that the instance is gone, and with `drain` that its requests are answered before."""

    service_id: str
    process_id: str
    drain: bool
    force: bool


class ReplaceSilent(Effect, frozen=True):
    """Give a replica up that does not begin to answer again; silent since (Unix seconds)."""

    service_id: str
    process_id: str
    since: float


class ExpireReplica(Effect, frozen=True):
    """Fail a replica that does not answer by its deadline (Unix seconds)."""

    service_id: str
    process_id: str
    at: float


class Expire(Effect, frozen=True):
    """Fail the start, or the stop, when its deadline (Unix seconds) has come."""

    service_id: str
    run: int
    at: float
    stopping: bool


def todo(service: Service) -> Iterable[Effect]:
    """Return what must be asked of the engine domain, and what must not take longer than it may. Empty at rest."""
    force = service.stop is not None and service.stop.force
    effects: list[Effect] = [
        EndReplica(service.id, process.process_id, process.drain and not force, process.force or force)
        for process in service.over()
    ]
    if service.status == "stopping" and service.stop and service.stop.deadline:
        effects.append(Expire(service.id, service.run, service.stop.deadline, stopping=True))
    if service.status == "starting" and service.start:
        effects.append(Expire(service.id, service.run, service.start.deadline, stopping=False))
    if service.runs:
        # its port and its memory are free only when the process before it is gone
        taken = {process.replica for process in service.leaving}
        for member in service.members:
            effects += _for_member(service, member, free=member.replica not in taken)
    return effects


def _for_member(service: Service, member: Replica, *, free: bool) -> Iterable[Effect]:
    ident, process_id = service.id, member.process_id
    if member.status == "unhealthy" and member.silent_since:
        yield ReplaceSilent(ident, process_id, member.silent_since)
    if member.status not in lifecycle.ON_THE_WAY:
        return
    if service.status != "starting":
        yield ExpireReplica(ident, process_id, member.deadline)
    if free and member.status != "starting":
        yield RunReplica(ident, process_id, member.replica, member.not_before, member.deadline)
