"""Derives the effects of a service from its state. Pure. outside/replica_effects.py carries the effects out."""

from __future__ import annotations

from collections.abc import Iterable

from aima_core.domain import Effect
from services.service.rules import lifecycle
from services.service.rules.state import Replica, Service


class RunReplica(Effect, frozen=True):
    """Start a replica's instance, but not before `not_before`. It must answer by `deadline` (both in Unix seconds)."""

    service_id: str
    process_id: str
    replica: int
    not_before: float
    deadline: float


class EndReplica(Effect, frozen=True):
    """End an instance. With `drain`, the instance finishes its requests first. With `force`, it is killed."""

    service_id: str
    process_id: str
    drain: bool
    force: bool


class ReplaceSilent(Effect, frozen=True):
    """Fail a replica that does not answer for `service.grace` seconds. `since` is in Unix seconds."""

    service_id: str
    process_id: str
    since: float


class ExpireReplica(Effect, frozen=True):
    """Fail a replica that does not answer by the time `at` (Unix seconds)."""

    service_id: str
    process_id: str
    at: float


class Expire(Effect, frozen=True):
    """Fail a start or a stop at its deadline `at` (Unix seconds)."""

    service_id: str
    run: int
    at: float
    stopping: bool


def todo(service: Service) -> Iterable[Effect]:
    """Return the effects that the service requires: instances to start or end, and deadlines. Empty at rest."""
    force = service.stop is not None and service.stop.force
    effects: list[Effect] = [
        EndReplica(service.id, process.process_id, process.drain and not force, process.force or force)
        for process in service.processes_to_end()
    ]
    if service.status == "stopping" and service.stop and service.stop.deadline:
        effects.append(Expire(service.id, service.run, service.stop.deadline, stopping=True))
    if service.status == "starting" and service.start:
        effects.append(Expire(service.id, service.run, service.start.deadline, stopping=False))
    if service.runs:
        # a replica's port and memory are free only after its previous process has ended
        occupied = {process.replica for process in service.leaving}
        for replica in service.replica_set:
            effects += _for_replica(service, replica, free=replica.number not in occupied)
    return effects


def _for_replica(service: Service, replica: Replica, *, free: bool) -> Iterable[Effect]:
    ident, process_id = service.id, replica.process_id
    if replica.status == "unhealthy" and replica.silent_since:
        yield ReplaceSilent(ident, process_id, replica.silent_since)
    if replica.status not in lifecycle.ON_THE_WAY:
        return
    if service.status != "starting":
        yield ExpireReplica(ident, process_id, replica.deadline)
    if free and replica.status != "starting":
        yield RunReplica(ident, process_id, replica.number, replica.not_before, replica.deadline)
