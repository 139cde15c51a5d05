"""The state of a service, and how events change it. Pure. lifecycle.py has the transitions between statuses."""

from __future__ import annotations

from typing import Any, assert_never

import msgspec

from services.service import units as u
from services.service.rules import lifecycle, restart_policy

_KEPT_FAILURES = 5  # maximum number of each replica's failures in the state; the log has all failures
UNRESPONSIVE = "UNRESPONSIVE"
"""Error code of a replica whose process lives but does not answer. AIMA kills such a process with SIGKILL."""


class Failure(msgspec.Struct, frozen=True):
    """The failure of one process of a replica. `at` is in Unix seconds."""

    process_id: str
    at: float
    error: str
    error_code: str


class Replica(msgspec.Struct, frozen=True):
    """A replica of the current run, with its current process. Times are in Unix seconds; 0 means never.

    `number` counts from 0. `streak` counts the failures in a row. `unanswered` counts the latest processes in a row
    that never answered a health check. `proven` says whether any process of the replica has answered.
    """

    number: int
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
        """Whether the replica may get requests."""
        return self.status == "running"

    @property
    def hopeful(self) -> bool:
        """Whether the replica answers, or may answer later without a new start of the service."""
        return self.status not in ("failed", "ended")

    @property
    def failure(self) -> Failure | None:
        """The last failure of the replica's current or earlier processes."""
        return self.failures[-1] if self.failures else None

    def unanswered_after(self, code: str) -> int:
        """Return the value of `unanswered` after a failure with this code. Failures for lack of memory do not count."""
        return self.unanswered + (not self.answered_at and code not in restart_policy.NO_ROOM)


class Leaving(msgspec.Struct, frozen=True):
    """A process that has to end. With `drain`, it finishes its requests first. `replica` is -1 for a stray process."""

    process_id: str
    replica: int = -1
    drain: bool = False
    force: bool = False


class Service(msgspec.Struct, frozen=True):
    """A service. `replica_set` has the replicas of the current run; `leaving` has the processes that still have to end.

    `desired_replicas` is the target number of replicas. `launches` counts the additional processes of the current run,
    without the first process of each replica.
    """

    id: str
    about: u.ServiceCreated
    status: u.ServiceStatus = "created"
    desired_replicas: int = 1
    run: int = 0
    launches: int = 0
    start: u.StartRequested | None = None
    stop: u.StopRequested | None = None
    replica_set: tuple[Replica, ...] = ()
    leaving: tuple[Leaving, ...] = ()
    error: str = ""
    error_code: str = ""

    def replica_of(self, process_id: str) -> Replica | None:
        """Return the replica with this current process, or None if no replica of the current run has it."""
        return next((replica for replica in self.replica_set if replica.process_id == process_id), None)

    def present(self) -> tuple[str, ...]:
        """Return the ids of all processes that exist or may exist."""
        return (
            *(replica.process_id for replica in self.replica_set if replica.status != "ended"),
            *(process.process_id for process in self.leaving),
        )

    def processes_to_end(self) -> tuple[Leaving, ...]:
        """Return the processes that have to end: failed and leaving processes, or all if the service goes down."""
        going_down = self.status in ("stopping", "failed")
        from_replicas = tuple(
            _leaving(replica, drain=self.status == "stopping")
            for replica in self.replica_set
            if replica.status == "failed" or (going_down and replica.status != "ended")
        )
        return (*from_replicas, *self.leaving)

    def answering(self) -> tuple[Replica, ...]:
        """Return the replicas that may get requests."""
        return tuple(replica for replica in self.replica_set if replica.answers)

    @property
    def runs(self) -> bool:
        """Whether the service is up or starting. Only then are failed replicas replaced."""
        return self.status in ("starting", "running", "degraded")

    @property
    def asleep(self) -> bool:
        """Whether the next request starts the service."""
        return self.status == "stopped" and self.stop is not None and self.stop.asleep


def process_of(service_id: str, run: int, replica: int, launch: int = 0) -> str:
    """Return the id of a replica's process. Each run of the service and each launch of a replica gives another id."""
    return f"{service_id}-r{replica}-{run}{f'-{launch}' if launch else ''}"


def evolve(service: Service | None, event: u.Events) -> Service | None:
    """Return the service after the event. Never raises. If the status does not allow the event, it changes nothing."""
    if isinstance(event, u.ServiceCreated):
        return Service(event.service_id, event, desired_replicas=event.replicas)
    if service is None or isinstance(event, u.ServiceDeleted):
        return None
    if (table := lifecycle.SERVICE.get(type(event))) is not None:
        if service.status not in table:
            return service
        service = msgspec.structs.replace(service, status=table[service.status])
    return _with_health(_applied(service, event), event)


def _applied(service: Service, event: u.Events) -> Service:
    replace = msgspec.structs.replace
    match event:
        case u.StartRequested():
            return _requested(service, event)
        case u.ReplicaRequested():
            return _replaced(service, event)
        case u.ReplicaLeaving(process_id=process_id):
            replica = service.replica_of(process_id)
            staying = tuple(other for other in service.replica_set if other is not replica)
            process = (_leaving(replica, drain=True),) if replica and replica.status != "ended" else ()
            return replace(service, replica_set=staying, leaving=(*service.leaving, *process))
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
            remaining = tuple(process for process in service.leaving if process.process_id != process_id)
            return _change(replace(service, leaving=remaining), event)
        case u.ServiceScaled(replicas=replicas):
            return replace(service, desired_replicas=replicas)
        case u.ServiceFailed(error=error, error_code=code):
            return replace(service, error=error, error_code=code)
        case u.StopRequested():
            return replace(service, stop=event)
        case u.ServiceStopped():  # the replicas stay, because service.status and service.logs show them
            return replace(service, error="", error_code="")
        case u.ServiceStarted() | u.ServiceCreated() | u.ServiceDeleted():
            return service
        case _:
            assert_never(event)


def _requested(service: Service, event: u.StartRequested) -> Service:
    replica_set = tuple(
        Replica(n, process_of(service.id, event.run, n), deadline=event.deadline) for n in range(event.replicas)
    )
    # a process that already runs under a new replica's id counts as that replica
    new_ids = {replica.process_id for replica in replica_set}
    earlier = [_leaving(replica, drain=False) for replica in service.replica_set if replica.status != "ended"]
    leaving = tuple(process for process in (*earlier, *service.leaving) if process.process_id not in new_ids)
    return Service(
        service.id,
        service.about,
        "starting",
        event.replicas,
        event.run,
        start=event,
        replica_set=replica_set,
        leaving=leaving,
    )


def _replaced(service: Service, event: u.ReplicaRequested) -> Service:
    """Give the replica a new process. The replica's last process may not have ended yet."""
    before = next((replica for replica in service.replica_set if replica.number == event.replica), None)
    restarted = before is not None and event.restarts > 0
    after = Replica(
        event.replica,
        event.process_id,
        "waiting" if restarted else "asked",
        not_before=event.not_before,
        deadline=event.deadline,
        restarts=event.restarts,
        streak=before.streak if before and restarted else 0,
        unanswered=before.unanswered if before and restarted else 0,
        proven=before is not None and before.proven,
        failures=before.failures if before else (),
    )
    # a stray process under the new id counts as that replica
    leaving = tuple(process for process in service.leaving if process.process_id != event.process_id)
    if before is None:
        replica_set = (*service.replica_set, after)
    else:
        replica_set = tuple(after if replica is before else replica for replica in service.replica_set)
        leaving = leaving if before.status == "ended" else (*leaving, _leaving(before, drain=False))
    return msgspec.structs.replace(service, replica_set=replica_set, leaving=leaving, launches=service.launches + 1)


def _failed(service: Service, event: u.ReplicaFailed) -> Service:
    replica = service.replica_of(event.process_id)
    if replica is None:
        return service
    failure = Failure(event.process_id, event.at, event.error, event.error_code)
    return _change(
        service,
        event,
        phase="failed",
        streak=event.attempt,
        unanswered=replica.unanswered_after(event.error_code),
        failures=(*replica.failures, failure)[-_KEPT_FAILURES:],
    )


def _leaving(replica: Replica, *, drain: bool) -> Leaving:
    hung = replica.failure is not None and replica.failure.error_code == UNRESPONSIVE and replica.status == "failed"
    return Leaving(replica.process_id, replica.number, drain=drain and replica.answers, force=hung)


def _change(service: Service, event: Any, *, status: str = "", **changes: Any) -> Service:
    """Change the replica that the event is about, if its status allows the event.

    `status` is the health in a health event. The event changes nothing if the replica already has this health.
    """
    table = lifecycle.REPLICA[type(event)]

    def changed(replica: Replica) -> Replica:
        to = table.get(replica.status)
        if replica.process_id != event.process_id or to is None:
            return replica
        if status and (to == "running") != (status == "healthy"):
            return replica
        return msgspec.structs.replace(replica, status=to, **changes)

    return msgspec.structs.replace(service, replica_set=tuple(map(changed, service.replica_set)))


def _with_health(service: Service, event: u.Events) -> Service:
    """Set the status after an event of SETTLES: running if all replicas answer, and otherwise degraded."""
    if service.status not in ("running", "degraded") or not isinstance(event, (*lifecycle.SETTLES, u.ServiceStarted)):
        return service
    status: u.ServiceStatus = "running" if len(service.answering()) == len(service.replica_set) else "degraded"
    return msgspec.structs.replace(service, status=status)
