"""Decides how the replicas of a service start, fail, are replaced and leave. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

from aima_core.call import Call
from aima_core.units import Command, Event
from services.engine import units as engine
from services.service import internal as i
from services.service import units as u
from services.service.rules import lifecycle, restart_policy
from services.service.rules.scaling import sleeps_after
from services.service.rules.state import UNRESPONSIVE, Replica, Service, process_of

STOP_TIMEOUT = "STOP_TIMEOUT"
"""Error code of a service whose processes have not ended in time. After they have ended, the service is stopped."""
LONGEST_DRAIN = 30.0
"""The maximum seconds that a leaving replica may get to finish its requests."""
_ATTEMPT = 300.0  # minimum seconds that a replacement gets to answer, even if the start's timeout is shorter
_STOPPED_BY, _KILLED_BY = (
    LONGEST_DRAIN + 30,
    30.0,
)  # seconds until a stop fails; the second is for a forced stop


def decide(service: Service, command: i.ReplicaReports, call: Call) -> list[Event]:
    """Return the events for a report about one process of the service."""
    process_id = command.process_id
    replica = service.replica_of(process_id)
    if replica is None or replica.status == "ended" or not service.runs:
        return _late_report(service, replica, command, process_id)
    match command:
        case i.RecordReplicaProgress(phase=phase, message=message, progress=progress):
            if replica.status not in lifecycle.ON_THE_WAY or (phase, message) == (replica.phase, replica.message):
                return []
            return [u.ReplicaProgress(**_of(service, replica), phase=phase, message=message, progress=progress)]
        case i.RecordReplicaReady() if replica.status in lifecycle.ON_THE_WAY:
            return _ready(service, replica, command, call)
        case i.RecordReplicaReady():  # the instance was restarted through the engine domain, on the same port
            return _health(service, replica, "healthy", call)
        case i.RecordReplicaHealth(status=status):
            return _health(service, replica, status, call)
        case i.RecordReplicaFailed(error=error, error_code=code):
            if code == UNRESPONSIVE and replica.status != "unhealthy":
                return []  # the replica has answered again in the meantime
            if code == "TIMEOUT" and replica.answers:
                return []  # the replica became ready just before its deadline
            return _failed(service, replica, error, code, call, ended=command.ended, exit_code=command.exit_code)
        case i.RecordReplicaEnded(reason="restart") if replica.hopeful:
            return _health(service, replica, "unhealthy", call, restarting=True)
        case i.RecordReplicaEnded(reason=reason):
            return _failed(service, replica, f"its engine instance was stopped ({reason})", "STOPPED", call, ended=True)
        case _:
            assert_never(command)


def requested(
    service: Service, replicas: Sequence[tuple[int, int]], reason: str, call: Call, not_before: float = 0.0
) -> list[Event]:
    """Return the events that request processes for these replicas, not before `not_before` (Unix seconds).

    Each item of `replicas` is a pair: the number of the replica, and the number of its restarts.
    """
    assert service.start
    begin, start = max(not_before, call.at), service.start
    by_start = service.status == "starting" and begin < start.deadline
    return [
        u.ReplicaRequested(
            service_id=service.id,
            replica=number,
            process_id=process_of(service.id, service.run, number, service.launches + nth),
            restarts=restarts,
            not_before=not_before,
            deadline=start.deadline if by_start else begin + max(start.timeout, _ATTEMPT),
            reason=reason,
        )
        for nth, (number, restarts) in enumerate(replicas, 1)
    ]


def resized(service: Service, target: int, reason: str, call: Call) -> list[Event]:
    """Return the events that change the number of replicas of a running service to `target`.

    Replicas that were given up leave first, then replicas that still start, then replicas that answer. Within each
    group, the highest number leaves first.
    """
    numbers = {replica.number for replica in service.replica_set}
    if target >= len(numbers):
        new = [number for number in range(target) if number not in numbers][: target - len(numbers)]
        return requested(service, [(number, 0) for number in new], reason, call)
    surplus = sorted(service.replica_set, key=lambda r: (r.answers, r.hopeful, -r.number))[: len(numbers) - target]
    leaving: list[Event] = [u.ReplicaLeaving(**_of(service, replica), reason=reason) for replica in surplus]
    kept = [replica for replica in service.replica_set if replica not in surplus]
    return [*leaving, *_start_completed(service, kept, call, of=target)]


def end(service: Service, call: Call, *, reason: str, force: bool = False, **more: Any) -> list[Event]:
    """Return the events that stop the service. A service without processes is stopped at once."""
    deadline = call.at + (_KILLED_BY if force else _STOPPED_BY)
    stopping = u.StopRequested(service_id=service.id, force=force, reason=reason, deadline=deadline, **more)
    return [stopping] if service.present() else [stopping, _stopped(service.id, stopping)]


def _stopped(service_id: str, stop: u.StopRequested | None) -> u.ServiceStopped:
    if stop is None:
        return u.ServiceStopped(service_id=service_id, reason="requested")
    return u.ServiceStopped(service_id=service_id, reason=stop.reason, asleep=stop.asleep)


def late(service: Service, waiting: Sequence[Replica], error: str, call: Call) -> list[Event]:
    """Return the events of a start that timed out while some replicas answer. The `waiting` replicas start again."""
    overdue = [replica for replica in waiting if replica.hopeful]
    failed: list[Event] = [
        u.ReplicaFailed(
            **_of(service, replica), error=error, error_code="TIMEOUT", attempt=replica.streak + 1, at=call.at
        )
        for replica in overdue
    ]
    to_restart = [
        (replica.number, replica.restarts + 1)
        for replica in overdue
        if not restart_policy.given_up("TIMEOUT", replica.unanswered_after("TIMEOUT"), proven=replica.proven)
    ]
    at = call.at + restart_policy.delay(1, call.request_id)
    return [
        *failed,
        *requested(service, to_restart, f"TIMEOUT: {error}", call, at),
        *_start_completed(service, service.answering(), call),
    ]


def _ready(service: Service, replica: Replica, command: i.RecordReplicaReady, call: Call) -> list[Event]:
    assert service.start
    about, start = service.about, service.start
    ready = u.ReplicaStarted(
        **_of(service, replica),
        endpoint=command.endpoint,
        node=command.node,
        service_name=about.name,
        model_id=about.model_id,
        model_name=about.model_name,
        model_type=about.model_type,
        served_model=command.served_model,
        dialect=command.dialect,
        tools=start.tools,
        slots=start.slots,
        engine=start.engine,
        device=start.device,
        at=call.at,
        cancels_whole=start.cancels_whole,
    )
    return [ready, *_start_completed(service, _others(service, replica), call, new_endpoint=command.endpoint)]


def _health(
    service: Service, replica: Replica, status: u.Health, call: Call, *, restarting: bool = False
) -> list[Event]:
    if replica.status != {"healthy": "unhealthy", "unhealthy": "running"}[status]:
        return []  # no change, or the replica is still starting
    # a restarting instance does not count as silent (at=0), because the engine domain limits the time of its restart
    changed = u.ReplicaHealthChanged(**_of(service, replica), status=status, at=0.0 if restarting else call.at)
    endpoint = replica.endpoint if status == "healthy" else ""
    return [changed, *_start_completed(service, _others(service, replica), call, new_endpoint=endpoint)]


def _failed(
    service: Service,
    replica: Replica,
    error: str,
    code: str,
    call: Call,
    *,
    ended: bool,
    exit_code: int | None = None,
) -> list[Event]:
    process_ended: list[Event] = [u.ReplicaEnded(**_of(service, replica))] if ended else []
    if not replica.hopeful:
        return process_ended
    streak = restart_policy.streak(replica.streak, replica.answered_at, replica.silent_since or call.at)
    failed = u.ReplicaFailed(
        **_of(service, replica), error=error, error_code=code, attempt=streak, at=call.at, exit_code=exit_code
    )
    events = [failed, *process_ended]
    if code == engine.REBOOTED and not service.about.persistent:
        last = ended and set(service.present()) == {replica.process_id}
        (stop,) = end(
            service, call, reason="the machine was restarted", force=True, asleep=sleeps_after(service.about) > 0
        )
        assert isinstance(stop, u.StopRequested)
        return [*events, stop, _stopped(service.id, stop)] if last else [*events, stop]
    return [*events, *_after_failure(service, replica, error, code, streak, call)]


def _after_failure(
    service: Service, replica: Replica, error: str, code: str, streak: int, call: Call
) -> Sequence[Event]:
    """Restart the replica, or give it up. If no replica can answer any more, the service fails. Returns the events."""
    others = _others(service, replica)
    unanswered = replica.unanswered_after(code)
    wait = 0.0 if code == engine.REBOOTED else restart_policy.delay(streak, f"{call.request_id}/{replica.process_id}")
    start = service.start
    too_late = service.status == "starting" and start is not None and call.at + wait >= start.deadline
    if not too_late and not restart_policy.given_up(code, unanswered, proven=replica.proven):
        return requested(service, [(replica.number, replica.restarts + 1)], f"{code}: {error}", call, call.at + wait)
    if any(other.hopeful for other in others):
        return _start_completed(service, others, call)
    times = f" ({unanswered} times in a row)" if unanswered >= restart_policy.ATTEMPTS else ""
    return [u.ServiceFailed(service_id=service.id, error=f"{error}{times}", error_code=code)]


def _late_report(service: Service, replica: Replica | None, command: Command[Any], process_id: str) -> list[Event]:
    """Return the events for a report about a process of an earlier run, or of a service that is down.

    Records only the end of a process. If the service does not know the process, the process must end.
    """
    match command:
        case i.RecordReplicaEnded() | i.RecordReplicaFailed(ended=True) if process_id in service.present():
            leaving = next((process.replica for process in service.leaving if process.process_id == process_id), -1)
            number = replica.number if replica else leaving
            ended: list[Event] = [u.ReplicaEnded(service_id=service.id, replica=number, process_id=process_id)]
            going_down = service.status == "stopping" or service.error_code == STOP_TIMEOUT
            last = going_down and service.present() == (process_id,)
            return [*ended, _stopped(service.id, service.stop)] if last else ended
        case i.RecordReplicaProgress(phase="failed"):
            return []
        case i.RecordReplicaProgress() | i.RecordReplicaReady() if process_id not in service.present():
            return [u.StrayFound(service_id=service.id, process_id=process_id)]
        case _:
            return []


def _start_completed(
    service: Service, others: Sequence[Replica], call: Call, *, new_endpoint: str = "", of: int | None = None
) -> list[Event]:
    """Return `service.started` if the report completes a start.

    A start is complete if every replica answers or was given up, and at least one replica answers. `others` are the
    replicas that the report is not about. `new_endpoint` is the endpoint of the replica that the report is about, if
    this replica answers. `of` is the target number of replicas; default: the current number.
    """
    endpoints = [
        *(replica.endpoint for replica in others if replica.answers),
        *([new_endpoint] if new_endpoint else []),
    ]
    if service.status != "starting" or not endpoints or any(r.status in lifecycle.ON_THE_WAY for r in others):
        return []
    assert service.start
    return [
        u.ServiceStarted(
            service_id=service.id,
            replicas=len(endpoints),
            endpoints=endpoints,
            duration=round(call.at - (service.start.deadline - service.start.timeout), 3),
            status="running" if len(endpoints) == (of or len(service.replica_set)) else "degraded",
        )
    ]


def _others(service: Service, replica: Replica) -> list[Replica]:
    return [other for other in service.replica_set if other.process_id != replica.process_id]


def _of(service: Service, replica: Replica) -> dict[str, Any]:
    return {"service_id": service.id, "replica": replica.number, "process_id": replica.process_id}
