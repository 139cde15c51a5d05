"""For the service domain's tests: its commands and events with their usual values, and what may have happened before.

What has happened is of `BEFORE`, what is decided of `NOON`, twenty seconds later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from aima_core.errors import AimaError
from aima_core.testing import NOON, Given
from aima_core.units import Command, Event
from services.service import internal as i
from services.service import units as u
from services.service.rules.decider import id_of
from services.service.rules.state import Service

SVC, OTHER = "svc-a", "svc-b"
R0, R1, R2 = f"{SVC}-r0-1", f"{SVC}-r1-1", f"{SVC}-r2-1"
STRAY = f"{SVC}-r0-9"
ENDPOINT = {R0: "http://n:1", R1: "http://n:2", R2: "http://n:3"}
BEFORE = NOON - 20.0
TIMEOUT = 60.0  # seconds, of every start here
ATTEMPT = 300.0  # seconds that a process gets outside of a start
REBOOT = "the machine was restarted"

# --- commands -----------------------------------------------------------------------------------------------------


def register(name: str = "a", *, named: bool = True, **other: Any) -> i.Register:
    asked: dict[str, Any] = {
        "name": name,
        "named": named,
        "model_id": "m",
        "model_name": "M",
        "model_type": "llm",
        "engine": "",
        "device": "auto",
        "resource_class": "medium",
        "replicas": 1,
        "persistent": False,
        "port": None,
        "config": {},
        "idle_timeout": 0,
        "autoscale": None,
    }
    return i.Register(**(asked | other))


def begin(engine: str = "toy", *, wait: bool = True, makes_room: tuple[str, ...] = ()) -> i.BeginStart:
    return i.BeginStart(
        service_id=SVC,
        wait=wait,
        timeout=TIMEOUT,
        engine=engine,
        device="cpu",
        config={"slots": 4},
        reason="it fits",
        tools=True,
        memory=1000,
        slots=4,
        cancels_whole=False,
        makes_room=makes_room,
    )


def scale(
    replicas: int, *, start: i.BeginStart | None = None, makes_room: tuple[str, ...] = (), by_load: bool = False
) -> i.BeginScale:
    return i.BeginScale(
        service_id=SVC, replicas=replicas, reason="requested", by_load=by_load, start=start, makes_room=makes_room
    )


def ask_stop(force: bool = False) -> u.StopService:
    return u.StopService(service_id=SVC, force=force)


ASK_SLEEP = i.PutToSleep(service_id=SVC, reason="no request for 60 s")
ASK_DELETE = u.DeleteService(service_id=SVC)


def late(run: int = 1, *, stopping: bool = False) -> i.RecordTimedOut:
    return i.RecordTimedOut(service_id=SVC, run=run, stopping=stopping)


def came(process_id: str = R0, phase: str = "loading", message: str = "loading") -> i.RecordReplicaProgress:
    return i.RecordReplicaProgress(service_id=SVC, process_id=process_id, phase=phase, message=message, progress=40)


def ready(process_id: str = R0) -> i.RecordReplicaReady:
    return i.RecordReplicaReady(
        service_id=SVC,
        process_id=process_id,
        endpoint=ENDPOINT.get(process_id, "http://n:9"),
        node="n",
        served_model="served",
        dialect="openai",
    )


def sick(process_id: str = R0) -> i.RecordReplicaHealth:
    return i.RecordReplicaHealth(service_id=SVC, process_id=process_id, status="unhealthy")


def well(process_id: str = R0) -> i.RecordReplicaHealth:
    return i.RecordReplicaHealth(service_id=SVC, process_id=process_id, status="healthy")


def broke(process_id: str = R0, code: str = "DIED", *, gone: bool = False) -> i.RecordReplicaFailed:
    return i.RecordReplicaFailed(service_id=SVC, process_id=process_id, error="it broke", error_code=code, ended=gone)


def ended(process_id: str = R0, reason: str = "requested") -> i.RecordReplicaEnded:
    return i.RecordReplicaEnded(service_id=SVC, process_id=process_id, reason=reason)


# --- events -------------------------------------------------------------------------------------------------------


def created(name: str = "a", *, ident: str = "", **other: Any) -> u.ServiceCreated:
    fields = register(name, **other).model_dump(exclude={"named"})
    return u.ServiceCreated(service_id=ident or id_of(name), **fields)


def requested(replicas: int = 1, run: int = 1, *, at: float = NOON) -> u.StartRequested:
    return u.StartRequested(
        service_id=SVC,
        replicas=replicas,
        run=run,
        engine="toy",
        config={"slots": 4},
        reason="it fits",
        timeout=TIMEOUT,
        deadline=at + TIMEOUT,
        tools=True,
        device="cpu",
        memory=1000,
        gpu_fraction=0.0,
        slots=4,
        cancels_whole=False,
    )


def replica_of(process_id: str) -> int:
    return int(process_id.removeprefix(f"{SVC}-r").split("-")[0])


def of(process_id: str) -> dict[str, Any]:
    return {"service_id": SVC, "replica": replica_of(process_id), "process_id": process_id}


def another(
    process_id: str, reason: str, *, restarts: int = 0, not_before: float = 0.0, deadline: float = NOON + ATTEMPT
) -> u.ReplicaRequested:
    return u.ReplicaRequested(
        **of(process_id), restarts=restarts, not_before=not_before, deadline=deadline, reason=reason
    )


def again(
    process_id: str, restarts: int, wait: float, reason: str = "DIED: it broke", *, at: float = NOON, by: float = 0.0
) -> u.ReplicaRequested:
    """A process in place of one that failed at that time; it has five minutes, or until `by`."""
    return another(process_id, reason, restarts=restarts, not_before=at + wait, deadline=by or at + wait + ATTEMPT)


def leaving(process_id: str, reason: str = "requested") -> u.ReplicaLeaving:
    return u.ReplicaLeaving(**of(process_id), reason=reason)


def progress(process_id: str = R0, phase: str = "loading", message: str = "loading") -> u.ReplicaProgress:
    return u.ReplicaProgress(**of(process_id), phase=phase, message=message, progress=40)


def up(process_id: str = R0, *, at: float = NOON) -> u.ReplicaStarted:
    return u.ReplicaStarted(
        **of(process_id),
        endpoint=ENDPOINT.get(process_id, "http://n:9"),
        node="n",
        service_name="a",
        model_id="m",
        model_name="M",
        model_type="llm",
        served_model="served",
        dialect="openai",
        tools=True,
        slots=4,
        cancels_whole=False,
        engine="toy",
        device="cpu",
        at=at,
    )


def health(status: u.Health, process_id: str = R0, *, at: float = NOON) -> u.ReplicaHealthChanged:
    return u.ReplicaHealthChanged(**of(process_id), status=status, at=at)


def down(
    process_id: str = R0, error: str = "it broke", code: str = "DIED", attempt: int = 1, *, at: float = NOON
) -> u.ReplicaFailed:
    return u.ReplicaFailed(**of(process_id), error=error, error_code=code, attempt=attempt, at=at)


def gone(process_id: str = R0, replica: int | None = None) -> u.ReplicaEnded:
    return u.ReplicaEnded(**(of(process_id) if replica is None else of(process_id) | {"replica": replica}))


def started(*endpoints: str, status: Any = "running", duration: float = 20.0) -> u.ServiceStarted:
    return u.ServiceStarted(
        service_id=SVC, replicas=len(endpoints), endpoints=list(endpoints), duration=duration, status=status
    )


def failed(error: str = "it broke", code: str = "DIED") -> u.ServiceFailed:
    return u.ServiceFailed(service_id=SVC, error=error, error_code=code)


def scaled(old: int, new: int) -> u.ServiceScaled:
    return u.ServiceScaled(service_id=SVC, old_replicas=old, replicas=new, reason="requested")


def stop(force: bool = False, *, reason: str = "requested", at: float = NOON, **more: Any) -> u.StopRequested:
    return u.StopRequested(service_id=SVC, force=force, reason=reason, deadline=at + (30 if force else 60), **more)


def sleep(reason: str = "no request for 60 s", *, at: float = NOON) -> u.StopRequested:
    return stop(reason=reason, asleep=True, at=at)


def stopped(reason: str = "requested", *, asleep: bool = False) -> u.ServiceStopped:
    return u.ServiceStopped(service_id=SVC, reason=reason, asleep=asleep)


def stray(process_id: str = STRAY) -> u.StrayFound:
    return u.StrayFound(service_id=SVC, process_id=process_id)


STOPPED = stopped()
DELETED = u.ServiceDeleted(service_id=SVC)

# --- what may have happened ---------------------------------------------------------------------------------------

ONE: list[Event] = [created(), requested(at=BEFORE)]
UP: list[Event] = [*ONE, up(at=BEFORE), started(ENDPOINT[R0], duration=0)]
TWO: list[Event] = [created(replicas=2), requested(2, at=BEFORE)]
BOTH: list[Event] = [*TWO, up(R0, at=BEFORE), up(R1, at=BEFORE), started(ENDPOINT[R0], ENDPOINT[R1], duration=0)]
GIVEN_UP: list[Event] = [*BOTH, down(R1, code="MODEL_INVALID", at=BEFORE), gone(R1)]
WAITING: list[Event] = [*BOTH, down(R1, at=BEFORE), gone(R1), again(f"{R1}-1", 1, 0.5, at=BEFORE)]
BROKEN: list[Event] = [
    *BOTH,
    *(down(process, code="MODEL_INVALID", at=BEFORE) for process in (R0, R1)),
    failed(code="MODEL_INVALID"),
]

Decided = list[Event] | type[AimaError]


def decided(given: Given[Service], command: Command[Any], *, at: float = NOON) -> Decided:
    """Return the events, or what kind of refusal it is."""
    try:
        return given.when(command, at=at)
    except AimaError as error:
        return type(error)


def of_another(events: Iterable[Event], ident: str = OTHER) -> list[Event]:
    """Return the same events as they would be of another service."""
    return [
        msgspec.json.decode(msgspec.json.encode(event).replace(SVC.encode(), ident.encode()), type=type(event))
        for event in events
    ]
