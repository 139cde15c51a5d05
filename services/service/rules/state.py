"""What a service is, and what an event makes of it. Pure; the statuses stand in lifecycle.py."""

from __future__ import annotations

from typing import Any, assert_never

import msgspec

from services.service import units as u
from services.service.rules import lifecycle, restart_policy

_REMEMBERED = 5  # failures of a replica that are shown; the log has all
UNRESPONSIVE = "UNRESPONSIVE"
"""Error code of a replica that lives and does not answer: it is not asked to end, it is made to."""


class Failure(msgspec.Struct, frozen=True):
    """A process of a replica that has failed, at `at` in Unix seconds."""

    process_id: str
    at: float
    error: str
    error_code: str


class Replica(msgspec.Struct, frozen=True):
    """A replica of the current run, in its present process. Times in Unix seconds, 0 for never.

    `streak` counts its failures in a row, `unanswered` the last processes of it that never answered; `proven` once one
    has.
    """

    replica: int
    process_id: str
    status: u.ReplicaStatus = "asked"
    endpoint: str = ""
    node: str = ""
    phase: str = ""
    progress: float = 0
    message: str = ""
    not_before: float = 0
    deadline: float = 0
    answered_at: float = 0
    silent_since: float = 0
    restarts: int = 0
    streak: int = 0
    unanswered: int = 0
    proven: bool = False
    failures: tuple[Failure, ...] = ()

    @property
    def answers(self) -> bool:
        """Whether requests may go to it."""
        return self.status == "running"

    @property
    def hopeful(self) -> bool:
        """Whether it answers, or may yet without anybody's help."""
        return self.status not in ("failed", "ended")

    @property
    def failure(self) -> Failure | None:
        """Its last failure, of whichever of its processes."""
        return self.failures[-1] if self.failures else None

    def unanswered_after(self, code: str) -> int:
        """Return how many processes in a row have never answered when this one fails so; want of room is no fault."""
        return self.unanswered + (not self.answered_at and code not in restart_policy.NO_ROOM)


class Leaving(msgspec.Struct, frozen=True):
    """A process that shall be gone. With `drain` it finishes its requests first; `replica` is -1 for a stray."""

    process_id: str
    replica: int = -1
    drain: bool = False
    force: bool = False


class Service(msgspec.Struct, frozen=True):
    """A service. `leaving` are processes that it does not count on any more and that are not gone yet.

    `wanted` is how many replicas it shall have; `launches` counts the processes of a run beyond the first ones.
    """

    id: str
    about: u.ServiceCreated
    status: u.ServiceStatus = "created"
    wanted: int = 1
    run: int = 0
    launches: int = 0
    start: u.StartRequested | None = None
    stop: u.StopRequested | None = None
    members: tuple[Replica, ...] = ()
    leaving: tuple[Leaving, ...] = ()
    error: str = ""
    error_code: str = ""

    def member(self, process_id: str) -> Replica | None:
        """Return the replica of the current run with that process."""
        return next((member for member in self.members if member.process_id == process_id), None)

    def present(self) -> tuple[str, ...]:
        """Return every process that is, or may be, there."""
        return (
            *(member.process_id for member in self.members if member.status != "ended"),
            *(process.process_id for process in self.leaving),
        )

    def over(self) -> tuple[Leaving, ...]:
        """Return the processes that have to go."""
        going = self.status in ("stopping", "failed")
        members = tuple(
            _leaving(member, drain=self.status == "stopping")
            for member in self.members
            if member.status == "failed" or (going and member.status != "ended")
        )
        return (*members, *self.leaving)

    def answering(self) -> tuple[Replica, ...]:
        """Return the replicas that requests may go to."""
        return tuple(member for member in self.members if member.answers)

    @property
    def runs(self) -> bool:
        """Whether it shall run, and is seen to."""
        return self.status in ("starting", "running", "degraded")

    @property
    def asleep(self) -> bool:
        """Whether the next request starts it."""
        return self.status == "stopped" and self.stop is not None and self.stop.asleep


def process_of(service_id: str, run: int, replica: int, launch: int = 0) -> str:
    """Return the id of a replica's process: known before it exists, and another one in every run and every launch."""
    return f"{service_id}-r{replica}-{run}{f'-{launch}' if launch else ''}"


def evolve(service: Service | None, event: u.Events) -> Service | None:
    """Return the service after the event. Never raises; what its status does not allow changes nothing."""
    if isinstance(event, u.ServiceCreated):
        return Service(event.service_id, event, wanted=event.replicas)
    if service is None or isinstance(event, u.ServiceDeleted):
        return None
    if (table := lifecycle.SERVICE.get(type(event))) is not None:
        if service.status not in table:
            return service
        service = msgspec.structs.replace(service, status=table[service.status])
    return _settled(_after(service, event), event)


def _after(service: Service, event: u.Events) -> Service:
    replace = msgspec.structs.replace
    match event:
        case u.StartRequested():
            return _requested(service, event)
        case u.ReplicaRequested():
            return _replaced(service, event)
        case u.ReplicaLeaving(process_id=process_id):
            member = service.member(process_id)
            members = tuple(other for other in service.members if other is not member)
            going = (_leaving(member, drain=True),) if member and member.status != "ended" else ()
            return replace(service, members=members, leaving=(*service.leaving, *going))
        case u.StrayFound(process_id=process_id):
            return replace(service, leaving=(*service.leaving, Leaving(process_id)))
        case u.ReplicaProgress(phase=phase, message=message, progress=progress):
            return _change(service, event, phase=phase, message=message, progress=progress)
        case u.ReplicaStarted(endpoint=endpoint, node=node, at=at):
            ready: dict[str, Any] = {"phase": "ready", "progress": 100.0, "message": "", "proven": True}
            return _change(service, event, endpoint=endpoint, node=node, answered_at=at, unanswered=0, **ready)
        case u.ReplicaHealthChanged(status=status, at=at):
            return _change(service, event, status=status, silent_since=at if status == "unhealthy" else 0.0)
        case u.ReplicaFailed():
            return _failed(service, event)
        case u.ReplicaEnded(process_id=process_id):
            left = tuple(process for process in service.leaving if process.process_id != process_id)
            return _change(replace(service, leaving=left), event)
        case u.ServiceScaled(replicas=replicas):
            return replace(service, wanted=replicas)
        case u.ServiceFailed(error=error, error_code=code):
            return replace(service, error=error, error_code=code)
        case u.StopRequested():
            return replace(service, stop=event)
        case u.ServiceStopped():  # who was there stays readable: why it failed, where its log is
            return replace(service, error="", error_code="")
        case u.ServiceStarted() | u.ServiceCreated() | u.ServiceDeleted():
            return service
        case _:
            assert_never(event)


def _requested(service: Service, event: u.StartRequested) -> Service:
    members = tuple(
        Replica(n, process_of(service.id, event.run, n), deadline=event.deadline) for n in range(event.replicas)
    )
    # who runs under one of these ids already is taken for the replica it would be
    ours = {member.process_id for member in members}
    left = [_leaving(member, drain=False) for member in service.members if member.status != "ended"]
    leaving = tuple(process for process in (*left, *service.leaving) if process.process_id not in ours)
    return Service(
        service.id, service.about, "starting", event.replicas, event.run, start=event, members=members, leaving=leaving
    )


def _replaced(service: Service, event: u.ReplicaRequested) -> Service:
    """Put a process in the place of the replica's last one, which may not be gone yet."""
    before = next((member for member in service.members if member.replica == event.replica), None)
    again = before is not None and event.restarts > 0
    after = Replica(
        event.replica,
        event.process_id,
        "waiting" if again else "asked",
        not_before=event.not_before,
        deadline=event.deadline,
        restarts=event.restarts,
        streak=before.streak if before and again else 0,
        unanswered=before.unanswered if before and again else 0,
        proven=before is not None and before.proven,
        failures=before.failures if before else (),
    )
    # a stray under that id is taken for the replica it would be
    leaving = tuple(process for process in service.leaving if process.process_id != event.process_id)
    if before is None:
        members = (*service.members, after)
    else:
        members = tuple(after if member is before else member for member in service.members)
        leaving = leaving if before.status == "ended" else (*leaving, _leaving(before, drain=False))
    return msgspec.structs.replace(service, members=members, leaving=leaving, launches=service.launches + 1)


def _failed(service: Service, event: u.ReplicaFailed) -> Service:
    member = service.member(event.process_id)
    if member is None:
        return service
    failure = Failure(event.process_id, event.at, event.error, event.error_code)
    return _change(
        service,
        event,
        phase="failed",
        streak=event.attempt,
        unanswered=member.unanswered_after(event.error_code),
        failures=(*member.failures, failure)[-_REMEMBERED:],
    )


def _leaving(member: Replica, *, drain: bool) -> Leaving:
    silent = member.failure is not None and member.failure.error_code == UNRESPONSIVE and member.status == "failed"
    return Leaving(member.process_id, member.replica, drain=drain and member.answers, force=silent)


def _change(service: Service, event: Any, *, status: str = "", **changes: Any) -> Service:
    """Change the replica that the event is about, if its status allows it; `status` is what the event says of it."""
    table = lifecycle.REPLICA[type(event)]

    def after(member: Replica) -> Replica:
        to = table.get(member.status)
        if member.process_id != event.process_id or to is None:
            return member
        if status and (to == "running") != (status == "healthy"):
            return member
        return msgspec.structs.replace(member, status=to, **changes)

    return msgspec.structs.replace(service, members=tuple(after(member) for member in service.members))


def _settled(service: Service, event: u.Events) -> Service:
    """Tell running from degraded by the replicas that answer."""
    if service.status not in ("running", "degraded") or not isinstance(event, (*lifecycle.SETTLES, u.ServiceStarted)):
        return service
    status: u.ServiceStatus = "running" if len(service.answering()) == len(service.members) else "degraded"
    return msgspec.structs.replace(service, status=status)
