"""What may happen to the replicas of a service: how they come, fail, are replaced and leave. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aima_core.call import Call
from aima_core.units import Command, Event
from services.engine import units as engine
from services.service import internal as i
from services.service import units as u
from services.service.rules import lifecycle, restart_policy
from services.service.rules.scaling import sleeps_after
from services.service.rules.state import UNRESPONSIVE, Replica, Service, process_of

STOP_TIMEOUT = "STOP_TIMEOUT"
"""Error code of a service whose processes have not ended in time; when they have, it is stopped after all."""
LONGEST_DRAIN = 30.0
"""Seconds that a replica may get, at the most, to finish the requests it has."""
_ATTEMPT = 300.0  # seconds that a process gets to answer at the least, however soon the first caller wanted it
_STOPPED_BY, _KILLED_BY = LONGEST_DRAIN + 30, 30.0  # seconds until a stop that has not come to its end counts as failed


def decide(service: Service, command: Command[Any], call: Call) -> list[Event]:
    """Decide what is said of one process of the service's."""
    process_id = command.process_id  # type: ignore[attr-defined]  # every command that comes here has one
    member = service.member(process_id)
    if member is None or member.status == "ended" or not service.runs:
        return _late_news(service, member, command, process_id)
    match command:
        case i.RecordReplicaProgress(phase=phase, message=message, progress=progress):
            if member.status not in lifecycle.ON_THE_WAY or (phase, message) == (member.phase, member.message):
                return []
            return [u.ReplicaProgress(**_of(service, member), phase=phase, message=message, progress=progress)]
        case i.RecordReplicaReady() if member.status in lifecycle.ON_THE_WAY:
            return _ready(service, member, command, call)
        case i.RecordReplicaReady():  # somebody has restarted it: at the same port, as it was
            return _health(service, member, "healthy", call)
        case i.RecordReplicaHealth(status=status):
            return _health(service, member, status, call)
        case i.RecordReplicaFailed(error=error, error_code=code, ended=ended):
            if code == UNRESPONSIVE and member.status != "unhealthy":
                return []  # it has begun to answer again
            if code == "TIMEOUT" and member.answers:
                return []  # in the last moment
            return _failed(service, member, error, code, call, ended=ended)
        case i.RecordReplicaEnded(reason="restart") if member.hopeful:
            return _health(service, member, "unhealthy", call, restarting=True)
        case i.RecordReplicaEnded(reason=reason):
            return _failed(service, member, f"the engine was stopped ({reason})", "STOPPED", call, ended=True)
        case _:
            return []


def requested(
    service: Service, wanted: Sequence[tuple[int, int]], reason: str, call: Call, not_before: float = 0.0
) -> list[Event]:
    """Return the requests for replicas, each given as its number and how many of its processes have just failed."""
    assert service.start
    begin, start = max(not_before, call.at), service.start
    by_start = service.status == "starting" and begin < start.deadline
    return [
        u.ReplicaRequested(
            service_id=service.id,
            replica=replica,
            process_id=process_of(service.id, service.run, replica, service.launches + nth),
            restarts=restarts,
            not_before=not_before,
            deadline=start.deadline if by_start else begin + max(start.timeout, _ATTEMPT),
            reason=reason,
        )
        for nth, (replica, restarts) in enumerate(wanted, 1)
    ]


def resized(service: Service, wanted: int, reason: str, call: Call) -> list[Event]:
    """Return what brings a service that runs to so many replicas: those that do not answer leave first.

    Of them those that were given up first: one that is on its way may yet answer.
    """
    present = {member.replica for member in service.members}
    if wanted >= len(present):
        new = [number for number in range(wanted) if number not in present][: wanted - len(present)]
        return requested(service, [(number, 0) for number in new], reason, call)
    surplus = sorted(service.members, key=lambda m: (m.answers, m.hopeful, -m.replica))[: len(present) - wanted]
    leaving: list[Event] = [u.ReplicaLeaving(**_of(service, member), reason=reason) for member in surplus]
    kept = [member for member in service.members if member not in surplus]
    return [*leaving, *_settle(service, kept, call, of=wanted)]


def end(service: Service, call: Call, *, reason: str, force: bool = False, **more: Any) -> list[Event]:
    """Return what ends the service: at once, when nothing of it is there."""
    deadline = call.at + (_KILLED_BY if force else _STOPPED_BY)
    stopping = u.StopRequested(service_id=service.id, force=force, reason=reason, deadline=deadline, **more)
    return [stopping] if service.present() else [stopping, _stopped(service.id, stopping)]


def _stopped(service_id: str, stop: u.StopRequested | None) -> u.ServiceStopped:
    if stop is None:
        return u.ServiceStopped(service_id=service_id, reason="requested")
    return u.ServiceStopped(service_id=service_id, reason=stop.reason, asleep=stop.asleep)


def late(service: Service, waiting: Sequence[Replica], error: str, call: Call) -> list[Event]:
    """Go on with the replicas that answer when a start has taken as long as it may; the others are started again."""
    lost = [member for member in waiting if member.hopeful]
    failed: list[Event] = [
        u.ReplicaFailed(
            **_of(service, member), error=error, error_code="TIMEOUT", attempt=member.streak + 1, at=call.at
        )
        for member in lost
    ]
    again = [
        (member.replica, member.restarts + 1)
        for member in lost
        if not restart_policy.given_up("TIMEOUT", member.unanswered_after("TIMEOUT"), proven=member.proven)
    ]
    at = call.at + restart_policy.delay(1, call.request_id)
    return [
        *failed,
        *requested(service, again, f"TIMEOUT: {error}", call, at),
        *_settle(service, service.answering(), call),
    ]


def _ready(service: Service, member: Replica, command: i.RecordReplicaReady, call: Call) -> list[Event]:
    assert service.start
    about, start = service.about, service.start
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
        tools=start.tools,
        slots=start.slots,
        engine=start.engine,
        device=start.device,
        at=call.at,
        cancels_whole=start.cancels_whole,
    )
    return [ready, *_settle(service, _others(service, member), call, also=command.endpoint)]


def _health(
    service: Service, member: Replica, status: u.Health, call: Call, *, restarting: bool = False
) -> list[Event]:
    if member.status != {"healthy": "unhealthy", "unhealthy": "running"}[status]:
        return []  # it is so already, or still on its way
    # one that somebody restarts is not silent: the engine domain tells how long it may take
    changed = u.ReplicaHealthChanged(**_of(service, member), status=status, at=0.0 if restarting else call.at)
    also = member.endpoint if status == "healthy" else ""
    return [changed, *_settle(service, _others(service, member), call, also=also)]


def _failed(service: Service, member: Replica, error: str, code: str, call: Call, *, ended: bool) -> list[Event]:
    gone: list[Event] = [u.ReplicaEnded(**_of(service, member))] if ended else []
    if not member.hopeful:
        return gone
    streak = restart_policy.streak(member.streak, member.answered_at, member.silent_since or call.at)
    failed = u.ReplicaFailed(**_of(service, member), error=error, error_code=code, attempt=streak, at=call.at)
    events = [failed, *gone]
    if code == engine.REBOOTED and not service.about.persistent:
        last = ended and set(service.present()) == {member.process_id}
        (stop,) = end(
            service, call, reason="the machine was restarted", force=True, asleep=sleeps_after(service.about) > 0
        )
        assert isinstance(stop, u.StopRequested)
        return [*events, stop, _stopped(service.id, stop)] if last else [*events, stop]
    return [*events, *_after_failure(service, member, error, code, streak, call)]


def _after_failure(
    service: Service, member: Replica, error: str, code: str, streak: int, call: Call
) -> Sequence[Event]:
    """Start the replica again, or give it up; a service without one that may ever answer has failed."""
    others = _others(service, member)
    unanswered = member.unanswered_after(code)
    wait = 0.0 if code == engine.REBOOTED else restart_policy.delay(streak, f"{call.request_id}/{member.process_id}")
    start = service.start
    late = service.status == "starting" and start is not None and call.at + wait >= start.deadline
    if not late and not restart_policy.given_up(code, unanswered, proven=member.proven):
        return requested(service, [(member.replica, member.restarts + 1)], f"{code}: {error}", call, call.at + wait)
    if any(other.hopeful for other in others):
        return _settle(service, others, call)
    times = f" ({unanswered} times in a row)" if unanswered >= restart_policy.ATTEMPTS else ""
    return [u.ServiceFailed(service_id=service.id, error=f"{error}{times}", error_code=code)]


def _late_news(service: Service, member: Replica | None, command: Command[Any], process_id: str) -> list[Event]:
    """A service that is on its way down only hears who is gone; a process it does not know is sent away."""
    match command:
        case i.RecordReplicaEnded() | i.RecordReplicaFailed(ended=True) if process_id in service.present():
            leaving = next((process.replica for process in service.leaving if process.process_id == process_id), -1)
            replica = member.replica if member else leaving
            ended: list[Event] = [u.ReplicaEnded(service_id=service.id, replica=replica, process_id=process_id)]
            going = service.status == "stopping" or service.error_code == STOP_TIMEOUT
            last = going and service.present() == (process_id,)
            return [*ended, _stopped(service.id, service.stop)] if last else ended
        case i.RecordReplicaProgress(phase="failed"):
            return []
        case i.RecordReplicaProgress() | i.RecordReplicaReady() if process_id not in service.present():
            return [u.StrayFound(service_id=service.id, process_id=process_id)]
        case _:
            return []


def _settle(
    service: Service, others: Sequence[Replica], call: Call, *, also: str = "", of: int | None = None
) -> list[Event]:
    """A start has come to its end when the last of its replicas is up or given up; `also` is a new endpoint."""
    endpoints = [*(member.endpoint for member in others if member.answers), *([also] if also else [])]
    if service.status != "starting" or not endpoints or any(m.status in lifecycle.ON_THE_WAY for m in others):
        return []
    assert service.start
    return [
        u.ServiceStarted(
            service_id=service.id,
            replicas=len(endpoints),
            endpoints=endpoints,
            duration=round(call.at - (service.start.deadline - service.start.timeout), 3),
            status="running" if len(endpoints) == (of or len(service.members)) else "degraded",
        )
    ]


def _others(service: Service, member: Replica) -> list[Replica]:
    return [other for other in service.members if other.process_id != member.process_id]


def _of(service: Service, member: Replica) -> dict[str, Any]:
    return {"service_id": service.id, "replica": member.replica, "process_id": member.process_id}
