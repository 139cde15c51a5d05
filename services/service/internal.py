"""The internal commands of the service domain: prepared commands of callers, and results of effects."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from aima_core.units import Command, Success
from services.service.units import Device, Health, ResourceClass, ScaleOutcome, ServiceRef, StartOutcome


class Register(Command[ServiceRef], unit="service.register"):
    """Decide a `CreateService`. Also has the facts of the model. `named` says whether the caller chose the name."""

    name: str
    named: bool
    model_id: str
    model_name: str
    model_type: str
    engine: str
    device: Device
    resource_class: ResourceClass
    replicas: int
    persistent: bool
    port: int | None
    config: dict[str, Any]
    idle_timeout: float
    autoscale: dict[str, float] | None
    priority: int = 5


class BeginStart(Command[StartOutcome], unit="service.begin_start", stream="service_id"):
    """Decide a `StartService`. Also has the chosen engine and device, and the reason for the choice.

    `memory` (bytes) and `gpu_fraction` (of one GPU) are per replica. `makes_room` has the ids of the idle services that
    have to go to sleep for this start. `engine` is empty if the service was already up, starting or stopping.
    """

    service_id: str
    wait: bool
    timeout: float
    engine: str = ""
    device: str = ""
    config: dict[str, Any] = Field(default_factory=dict)
    reason: str = ""
    tools: bool = False
    memory: int = 0
    gpu_fraction: float = 0.0
    slots: int = 0
    cancels_whole: bool = True
    makes_room: tuple[str, ...] = ()


class BeginScale(Command[ScaleOutcome], unit="service.begin_scale", stream="service_id"):
    """Decide a `ScaleService`, or with `by_load` a change by autoscaling. `start` is set if the service is asleep."""

    service_id: str
    replicas: int
    reason: str
    by_load: bool = False
    start: BeginStart | None = None
    makes_room: tuple[str, ...] = ()


class PutToSleep(Command[Success], unit="service.put_to_sleep", stream="service_id"):
    """Put an idle service to sleep."""

    service_id: str
    reason: str


class RecordReplicaProgress(Command[Success], unit="service.record_replica_progress", stream="service_id"):
    """Record that a replica has reached another phase of its start. `progress` is in percent."""

    service_id: str
    process_id: str
    phase: str
    message: str
    progress: float


class RecordReplicaReady(Command[Success], unit="service.record_replica_ready", stream="service_id"):
    """Record that a starting replica now answers its health check."""

    service_id: str
    process_id: str
    endpoint: str
    node: str
    served_model: str
    dialect: str


class RecordReplicaHealth(Command[Success], unit="service.record_replica_health", stream="service_id"):
    """Record that a running replica no longer answers its health check, or answers it again."""

    service_id: str
    process_id: str
    status: Health


class RecordReplicaFailed(Command[Success], unit="service.record_replica_failed", stream="service_id"):
    """Record that a replica has failed to start, or has died. With `ended`, its process no longer exists."""

    service_id: str
    process_id: str
    error: str
    error_code: str
    ended: bool = False
    exit_code: int | None = None


class RecordReplicaEnded(Command[Success], unit="service.record_replica_ended", stream="service_id"):
    """Record that a replica's process has ended."""

    service_id: str
    process_id: str
    reason: str = ""


class RecordTimedOut(Command[Success], unit="service.record_timed_out", stream="service_id"):
    """Record that run `run` has not started by its deadline, or with `stopping`, has not stopped by its deadline."""

    service_id: str
    run: int
    stopping: bool = False


ReplicaReports = (
    RecordReplicaProgress | RecordReplicaReady | RecordReplicaHealth | RecordReplicaFailed | RecordReplicaEnded
)
Reports = ReplicaReports | PutToSleep | RecordTimedOut
COMMANDS: tuple[type[Command[Any]], ...] = (Register, BeginStart, BeginScale, *Reports.__args__)
