"""The public contract of the engine domain: commands, queries, events, views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from aima_core.errors import (
    AimaError,
    Conflict,
    ExecutionFailed,
    InsufficientResources,
    NotFound,
    Timeout,
    Unavailable,
    ValidationFailed,
)
from aima_core.units import Command, Event, Options, Page, Query, Ref, StreamVersion, Success, View
from services.resource import units as resource

_REFUSALS: Mapping[str, type[AimaError]] = {
    "TIMEOUT": Timeout,
    "OUT_OF_MEMORY": InsufficientResources,
    **dict.fromkeys(resource.REFUSALS, InsufficientResources),
}
REBOOTED = "REBOOTED"
"""Error code of an instance that ended because the machine or its container was restarted."""
STOP_TIMEOUT = "STOP_TIMEOUT"
"""Error code of an instance whose process still runs after the deadline of its stop."""
ORPHAN = "orphan"
"""Reason of `engine.stopped` for an engine process that the log does not know. The domain ends such processes when the
domain starts."""


def refusal(error: str, error_code: str, **details: Any) -> AimaError:
    """Return the error that a waiting caller gets for a recorded failure. `error_code` becomes the error's reason."""
    return _REFUSALS.get(error_code, ExecutionFailed)(error, reason=error_code, **details)


InstanceStatus = Literal["starting", "running", "stopping", "error", "stopped"]
EngineStatus = Literal["stopped", "starting", "running", "stopping", "error", "installing"]
Phase = Literal["pulling", "creating", "starting", "loading", "ready", "failed"]
Health = Literal["healthy", "unhealthy"]

EngineName = Annotated[
    str,
    Ref("engine"),
    Field(pattern=r"^[a-z][a-z0-9_]{0,59}$", description="Name of the engine.", examples=["llamacpp"]),
]
ProcessId = Annotated[
    str,
    Ref("engine"),
    Field(
        pattern=r"^[a-z0-9]+-[a-z0-9-]+$",  # the dash distinguishes it from an engine name: both are streams
        max_length=100,
        description="Id of one instance; contains a dash.",
        examples=["eng-llamacpp-7f3a09c1"],
    ),
]
Named = Annotated[
    str,
    Ref("engine"),
    Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,99}$",
        description="Name of an engine, or the process_id of one instance.",
        examples=["llamacpp", "eng-llamacpp-7f3a09c1"],
    ),
]


# --- events -------------------------------------------------------------------------------------------------------


class InstallRequested(Event, unit="engine.install_requested", stream="name", frozen=True, kw_only=True):
    """The installation of an engine's package has begun. It fails at `deadline`.

    `deadline`: in Unix seconds. Events of older releases have 0, which means no deadline.
    """

    name: str
    version: str
    deadline: float = 0.0


class EngineInstalled(Event, unit="engine.installed", stream="name", frozen=True, kw_only=True):
    """The package of an engine is installed in the folder `path`."""

    name: str
    version: str
    path: str


class InstallFailed(Event, unit="engine.install_failed", stream="name", frozen=True, kw_only=True):
    """The installation of an engine's package has failed."""

    name: str
    error: str
    error_code: str


class StartRequested(Event, unit="engine.start_requested", stream="process_id", frozen=True, kw_only=True):
    """The start of an instance was requested. AIMA records this event first and then starts the process.

    So a process without this event is an orphan. `memory`: in bytes. `gpu_fraction`: share of one accelerator.
    `timeout`: in seconds. `deadline`: in Unix seconds. `run`: number of this start of the instance, from 1.
    """

    process_id: str
    name: str
    type: str
    runtime: str
    service_id: str
    model_id: str
    model_name: str
    model_path: str
    model_type: str
    config: dict[str, Any]
    host: str
    port: int
    memory: int
    priority: int
    timeout: float
    deadline: float
    run: int
    address: str = ""
    gpu_fraction: float = 0.0

    @property
    def endpoint(self) -> str:
        """URL of the instance's API, with the name or address by which other machines reach it."""
        return f"http://{self.address or self.host}:{self.port}"


class StartProgress(Event, unit="engine.start_progress", stream="process_id", frozen=True, kw_only=True):
    """The start of an instance has reached another phase. `progress` in percent."""

    process_id: str
    service_id: str
    phase: Phase
    message: str
    progress: float
    run: int


class EngineStarted(Event, unit="engine.started", stream="process_id", frozen=True, kw_only=True):
    """The instance's health endpoint has answered. `served_model`: the engine's name for the model.

    `boot` identifies the current boot of the machine or container; empty if unknown.
    """

    process_id: str
    name: str
    type: str
    runtime: str
    endpoint: str
    model_id: str
    node: str
    service_id: str
    served_model: str
    dialect: str
    pid: int
    pid_started_at: float
    run: int
    boot: str = ""


class HealthChanged(Event, unit="engine.health_changed", stream="process_id", frozen=True, kw_only=True):
    """A running instance became healthy or unhealthy: its health endpoint answers again, or has stopped answering."""

    process_id: str
    name: str
    old_status: str
    new_status: Health
    service_id: str
    run: int


class EngineError(Event, unit="engine.error", stream="process_id", frozen=True, kw_only=True):
    """A start has failed, a running instance has died, or a stop is overdue. AIMA ends the instance's processes.

    `exit_code` is that of a process that died, negative for a signal; None if it is unknown or no process died.
    """

    process_id: str
    name: str
    error: str
    error_code: str
    service_id: str
    run: int
    exit_code: int | None = None


class StopRequested(Event, unit="engine.stop_requested", stream="process_id", frozen=True, kw_only=True):
    """A stop was requested. If `restart` is true, a new start follows. `timeout`: seconds from SIGTERM to SIGKILL.

    `deadline`: in Unix seconds; a stop that has not ended by then is an error. Events of older releases have 0, which
    means no deadline.
    """

    process_id: str
    name: str
    force: bool
    timeout: float
    restart: bool
    run: int
    deadline: float = 0.0


class EngineStopped(Event, unit="engine.stopped", stream="process_id", frozen=True, kw_only=True):
    """The instance's process and all its children have ended. `reason`: requested, restart, orphan or an error code."""

    process_id: str
    name: str
    reason: str
    exit_code: int | None
    service_id: str
    run: int


Events = (
    InstallRequested
    | EngineInstalled
    | InstallFailed
    | StartRequested
    | StartProgress
    | EngineStarted
    | HealthChanged
    | EngineError
    | StopRequested
    | EngineStopped
)
EVENTS: tuple[type[Event], ...] = Events.__args__


# --- views --------------------------------------------------------------------------------------------------------


class Installed(View):
    """An installed package of an engine."""

    success: bool
    path: str = Field(description="Folder of the package.")
    version: str = Field("", description="Version of the package.")


class Started(View, stream="process_id"):
    """An instance that runs or is starting."""

    process_id: str
    status: InstanceStatus
    endpoint: str = Field(description="URL of the instance's API.")
    stream_version: StreamVersion = None


class Instance(View, stream="process_id"):
    """One instance of an engine."""

    process_id: str
    name: str = Field(description="Name of the engine.")
    status: InstanceStatus
    health: str = Field(description="healthy or unhealthy while the instance runs, otherwise empty.")
    endpoint: str
    port: int
    model_id: str
    model_name: str
    service_id: str = Field(description="Id of the service that the instance belongs to; empty if there is none.")
    pid: int | None
    run: int = Field(description="Number of the latest start of the instance, from 1.")
    phase: str = Field(description="Phase of the latest start.")
    error: str | None
    error_code: str | None
    exit_code: int | None
    started_at: str | None
    changed_at: str
    memory_bytes: int | None = Field(
        None, description="Bytes of main memory in use now; only in replies to engine.get, for running processes."
    )
    cpu_percent: float | None = Field(
        None,
        description="CPU use now, in percent of one core (200: two cores); only in replies to engine.get.",
    )
    stream_version: StreamVersion = None


class EngineView(View, stream="name"):
    """An engine and its instances."""

    name: str
    about: str
    type: str
    status: EngineStatus
    version: str
    installed: bool = Field(description="Whether the package of the engine is installed.")
    capabilities: list[str] = Field(description="Capabilities, such as streaming, tools, embedding.")
    model_types: list[str]
    formats: list[str] = Field(description="Formats of weights that the engine loads, such as gguf.")
    devices: list[str]
    options: list[str] = Field(description="Options that the config of a start may set.")
    preference: dict[str, int] = Field(description="Rank by device; AIMA chooses the engine with the highest rank.")
    models: list[str] = Field(description="Ids of the models that the engine's instances serve.")
    instances: list[Instance]
    stream_version: StreamVersion = None


class EngineList(View):
    """A page of engines."""

    items: list[EngineView]
    total: int


class Features(View):
    """The features and limits of an engine."""

    supports_streaming: bool
    supports_batch: bool
    max_concurrent: int = Field(description="Maximum number of requests processed at once.")
    supports_tools: bool
    supports_embedding: bool
    supports_multimodal: bool
    supports_quantization: bool
    max_context_length: int = Field(description="Maximum context, in tokens; 0 if the engine has no context.")
    cancels_whole: bool = Field(
        True,
        description="Whether the engine stops generating when the client of a request without streaming disconnects.",
    )


class Logs(View):
    """The last lines of a log."""

    logs: list[str] = Field(description="Lines, oldest first.")


# --- commands -----------------------------------------------------------------------------------------------------


class InstallEngine(
    Command[Installed],
    unit="engine.install",
    idempotent=True,
    stream="name",
    timeout=900,
    errors=(NotFound, ExecutionFailed, Timeout, Unavailable),
    events=(EngineInstalled, InstallFailed, EngineError),
    examples=({"name": "llamacpp"},),
):
    """Install an engine's package. Does nothing if the requested version is already installed."""

    name: EngineName
    version: str | None = Field(
        None,
        pattern=r"^[0-9][0-9A-Za-z.+!-]{0,40}$",
        description="Version of the package; default: the installed version, or else the version in the manifest.",
    )


class StartEngine(
    Command[Started],
    unit="engine.start",
    destructive=True,
    timeout=300,
    errors=(NotFound, Conflict, ValidationFailed, InsufficientResources, ExecutionFailed, Timeout, Unavailable),
    events=(StartProgress, EngineStarted, EngineError),
    examples=({"name": "llamacpp", "model_id": "smollm2-135m-instruct", "config": {"context_length": 2048}},),
):
    """Start one instance of an engine for a model. Answers when it is healthy, or at once if `wait` is false."""

    name: EngineName
    model_id: str | None = Field(
        None, max_length=120, description="Id or name of a registered model; not needed if `model_path` is given."
    )
    model_path: str | None = Field(None, max_length=4096, description="Absolute path of a file or folder of weights.")
    config: Options = Field({}, description="Options of the engine, such as context_length, slots, threads.")
    process_id: ProcessId | None = Field(
        None,
        description="Id of the instance; default: a new id. A start with the id of a running instance has no effect.",
    )
    service_id: str = Field("", max_length=100, description="Id of the service that the instance belongs to.")
    port: int | None = Field(None, ge=1024, le=65535, description="Port to listen on; default: a free one.")
    memory_bytes: int | None = Field(None, ge=0, description="Bytes to reserve; default: estimated from the model.")
    gpu_fraction: float = Field(
        0, ge=0, le=1, description="Share of one accelerator to reserve, in addition to the memory."
    )
    priority: int = Field(
        5, ge=0, le=100, description="Priority of the memory slot, which may preempt slots of lower priority."
    )
    wait: bool = Field(True, description="Whether to wait until the instance is healthy or has failed.")
    timeout: float = Field(300, ge=1, le=3600, description="Seconds after which an unfinished start fails.")


class StopEngine(
    Command[Success],
    unit="engine.stop",
    destructive=True,
    idempotent=True,
    timeout=60,
    errors=(NotFound,),
    events=(EngineStopped, EngineError),
    examples=({"name": "eng-llamacpp-7f3a09c1"}, {"name": "llamacpp", "timeout": 5}),
):
    """Stop one instance, or all instances of an engine. Answers when they have ended, or at once if none runs."""

    name: Named
    force: bool = Field(False, description="Kill (SIGKILL) at once instead of sending SIGTERM first.")
    timeout: float = Field(30, ge=0, le=600, description="Seconds from SIGTERM to SIGKILL.")


class RestartEngine(
    Command[Started],
    unit="engine.restart",
    destructive=True,
    timeout=360,
    errors=(NotFound, Conflict, InsufficientResources, ExecutionFailed, Timeout),
    events=(EngineStopped, EngineStarted),
    examples=({"name": "eng-llamacpp-7f3a09c1"},),
):
    """Stop an instance and start it again with the same settings. `name` may be an engine that has one instance."""

    name: Named


# --- queries ------------------------------------------------------------------------------------------------------


class GetEngine(Query[EngineView], unit="engine.get", errors=(NotFound,), examples=({"name": "llamacpp"},)):
    """Return an engine and its instances, with the current memory and CPU use of each instance."""

    name: EngineName


class ListEngines(Query[EngineList], Page, unit="engine.list", examples=({"type": "llm"},)):
    """List the engines. Only engine.get returns the memory and CPU use of instances."""

    type: str | None = Field(None, description="Only engines that serve models of this type.")
    status: EngineStatus | None = Field(None, description="Only engines in this status.")


class GetFeatures(Query[Features], unit="engine.features", errors=(NotFound,), examples=({"name": "llamacpp"},)):
    """Return the features and limits of an engine."""

    name: EngineName


class CheckConfig(
    Query[Success],
    unit="engine.check_config",
    errors=(NotFound, ValidationFailed),
    examples=({"name": "llamacpp", "config": {"slots": 2}},),
):
    """Check whether an engine accepts a config. The error names each field that the engine does not accept."""

    name: EngineName
    config: Options = Field(description="Options of the engine, as in engine.start.")


class GetLogs(
    Query[Logs],
    unit="engine.logs",
    errors=(NotFound,),
    examples=({"process_id": "eng-llamacpp-7f3a09c1", "tail": 20},),
):
    """Return the last lines of an instance's log, also after the instance has ended."""

    process_id: ProcessId
    tail: int = Field(100, ge=1, le=10_000, description="Number of lines.")
    since: float | None = Field(
        None,
        ge=0,
        description="Only runs that started at this time (Unix seconds) or later, and always the latest run.",
    )


Commands = InstallEngine | StartEngine | StopEngine | RestartEngine
COMMANDS: tuple[type[Command[Any]], ...] = Commands.__args__
Queries = GetEngine | ListEngines | GetFeatures | CheckConfig | GetLogs
QUERIES: tuple[type[Query[Any]], ...] = Queries.__args__
