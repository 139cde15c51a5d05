"""What a service is, what an event makes of it, and what it calls for outside. Pure.

created --start--> starting --all settled--> running <--> degraded
   ^                  |  \\                      |           |
   |                  |   +--none runs, late--> failed <----+ the last replica died
(create)              |                         |
                      +--------stop--------> stopping --all gone--> stopped
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

import msgspec

from aima_core.domain import Effect
from services.service import units as u


class Member(msgspec.Struct, frozen=True):
    """A replica of the current run."""

    replica: int
    process_id: str
    status: u.ReplicaStatus = "asked"
    endpoint: str = ""
    node: str = ""
    phase: str = ""
    progress: float = 0
    message: str = ""
    error: str = ""

    @property
    def answers(self) -> bool:
        """Whether requests may go to it."""
        return self.status == "running"


class Service(msgspec.Struct, frozen=True):
    """A service. `leaving` are processes of earlier runs, and strays, that are not gone yet."""

    id: str
    about: u.ServiceCreated
    status: u.ServiceStatus = "created"
    run: int = 0
    start: u.StartRequested | None = None
    force: bool = False
    members: tuple[Member, ...] = ()
    leaving: tuple[str, ...] = ()
    error: str = ""
    error_code: str = ""

    def member(self, process_id: str) -> Member | None:
        """Return the replica of the current run with that process."""
        return next((member for member in self.members if member.process_id == process_id), None)

    def present(self) -> tuple[str, ...]:
        """Return every process that is, or may be, there."""
        return (*(m.process_id for m in self.members if m.status != "ended"), *self.leaving)

    def over(self) -> tuple[str, ...]:
        """Return the processes that have to go while the service runs."""
        return (*(m.process_id for m in self.members if m.status == "failed"), *self.leaving)

    def answering(self) -> tuple[Member, ...]:
        """Return the replicas that requests may go to."""
        return tuple(member for member in self.members if member.answers)


def process_of(service_id: str, run: int, replica: int) -> str:
    """Return the id of a replica's process: known before it exists, and another one in every run."""
    return f"{service_id}-r{replica}-{run}"


# --- effects ------------------------------------------------------------------------------------------------------


class RunReplica(Effect, frozen=True):
    """Ask the engine domain for the instance."""

    service_id: str
    process_id: str
    replica: int
    run: int


class EndReplica(Effect, frozen=True):
    """See that the instance is gone."""

    service_id: str
    process_id: str
    force: bool


class Expire(Effect, frozen=True):
    """Fail the start when its deadline (Unix seconds) has come."""

    service_id: str
    run: int
    at: float


def todo(service: Service) -> Iterable[Effect]:
    """Return what must be asked of the engine domain. Empty at rest."""
    ending = service.present() if service.status in ("stopping", "failed") else service.over()
    effects: list[Effect] = [EndReplica(service.id, process_id, service.force) for process_id in ending]
    if service.status == "starting":
        assert service.start
        effects.append(Expire(service.id, service.run, service.start.deadline))
        effects += [
            RunReplica(service.id, member.process_id, member.replica, service.run)
            for member in service.members
            if member.status == "asked"
        ]
    return effects


# --- evolve -------------------------------------------------------------------------------------------------------


def evolve(service: Service | None, event: u.Events) -> Service | None:
    """Return the service after the event. Never raises."""
    if isinstance(event, u.ServiceCreated):
        return Service(event.service_id, event)
    if service is None or isinstance(event, u.ServiceDeleted):
        return None
    replace = msgspec.structs.replace
    match event:
        case u.StartRequested(run=run, replicas=replicas):
            members = tuple(Member(n, process_of(service.id, run, n)) for n in range(replicas))
            # who runs under one of these ids already is taken for the replica it would be
            ours = {member.process_id for member in members}
            leaving = tuple(process_id for process_id in service.present() if process_id not in ours)
            return Service(service.id, service.about, "starting", run, event, members=members, leaving=leaving)
        case u.ReplicaProgress(phase=phase, message=message, progress=progress):
            return _change(
                service, event.process_id, status="starting", phase=phase, message=message, progress=progress
            )
        case u.ReplicaStarted(endpoint=endpoint, node=node):
            changed = _change(
                service, event.process_id, status="running", phase="ready", progress=100.0, endpoint=endpoint, node=node
            )
            return _settled(changed)
        case u.ReplicaHealthChanged(status=status):
            changed = _change(service, event.process_id, status="running" if status == "healthy" else "unhealthy")
            return _settled(changed)
        case u.ReplicaFailed(error=error):
            changed = _change(service, event.process_id, status="failed", phase="failed", error=error)
            return _settled(changed)
        case u.ReplicaEnded(process_id=process_id):
            left = tuple(other for other in service.leaving if other != process_id)
            return _change(replace(service, leaving=left), process_id, status="ended")
        case u.StrayFound(process_id=process_id):
            return replace(service, leaving=(*service.leaving, process_id))
        case u.ServiceStarted(status=status):
            return replace(service, status=status)
        case u.ServiceFailed(error=error, error_code=code):
            return replace(service, status="failed", error=error, error_code=code)
        case u.StopRequested(force=force):
            return replace(service, status="stopping", force=force)
        case u.ServiceStopped():
            return replace(service, status="stopped", members=(), force=False)
        case _:
            assert_never(event)


def _change(service: Service, process_id: str, **changes: str | float) -> Service:
    members = tuple(
        msgspec.structs.replace(member, **changes) if member.process_id == process_id else member
        for member in service.members
    )
    return msgspec.structs.replace(service, members=members)


def _settled(service: Service) -> Service:
    """Tell running from degraded by the replicas that answer."""
    if service.status not in ("running", "degraded"):
        return service
    status: u.ServiceStatus = "running" if len(service.answering()) == len(service.members) else "degraded"
    return msgspec.structs.replace(service, status=status)
