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
from aima_core.units import Command, Event, Options, Page, Query, Success, View
from services.resource import units as resource

_REFUSALS: Mapping[str, type[AimaError]] = {
    "TIMEOUT": Timeout,
    "OUT_OF_MEMORY": InsufficientResources,
    **dict.fromkeys(resource.REFUSALS, InsufficientResources),
}
REBOOTED = "REBOOTED"
"""Error code of an instance that went with the machine."""
STOP_TIMEOUT = "STOP_TIMEOUT"
"""The error code of an instance that does not end."""
ORPHAN = "orphan"
"""The reason of the end of a program of ours that the log did not know: we end it when we begin."""


def refusal(error: str, error_code: str, **details: Any) -> AimaError:
    """Return what a failure that was recorded means to somebody who waits."""
    return _REFUSALS.get(error_code, ExecutionFailed)(error, reason=error_code, **details)


InstanceStatus = Literal["starting", "running", "stopping", "error", "stopped"]
EngineStatus = Literal["stopped", "starting", "running", "stopping", "error", "installing"]
Phase = Literal["pulling", "creating", "starting", "loading", "ready", "failed"]
Health = Literal["healthy", "unhealthy"]

EngineName = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9_]{0,59}$", description="Name of the engine.", examples=["llamacpp"])
]
ProcessId = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9]+-[a-z0-9-]+$",  # with a dash, which no engine's name has: both name streams and instances
        max_length=100,
        description="Id of one instance; has a dash.",
        examples=["eng-llamacpp-7f3a09c1"],
    ),
]
Named = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,99}$",
        description="Name of an engine, or the process_id of one instance.",
        examples=["llamacpp", "eng-llamacpp-7f3a09c1"],
    ),
]


# --- events -------------------------------------------------------------------------------------------------------


class InstallRequested(Event, unit="engine.install_requested", stream="name", frozen=True, kw_only=True):
    """The engine's package shall be there, by `deadline` (Unix seconds; 0 in what older releases wrote: whenever)."""

    name: str
    version: str
    deadline: float = 0.0


class EngineInstalled(Event, unit="engine.installed", stream="name", frozen=True, kw_only=True):
    """The engine's package is there."""

    name: str
    version: str
    path: str


class InstallFailed(Event, unit="engine.install_failed", stream="name", frozen=True, kw_only=True):
    """The engine's package could not be had."""

    name: str
    error: str
    error_code: str


class StartRequested(Event, unit="engine.start_requested", stream="process_id", frozen=True, kw_only=True):
    """An instance shall run. Recorded before its process exists: that is what makes orphans findable.

    `memory` in bytes, `gpu_fraction` of one accelerator; `timeout` in seconds; `deadline` in Unix seconds; `run` counts
    the starts of one instance.
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
        """URL of the instance's API, by the name under which others reach it."""
        return f"http://{self.address or self.host}:{self.port}"


class StartProgress(Event, unit="engine.start_progress", stream="process_id", frozen=True, kw_only=True):
    """A start has come further. `progress` in percent."""

    process_id: str
    service_id: str
    phase: Phase
    message: str
    progress: float
    run: int


class EngineStarted(Event, unit="engine.started", stream="process_id", frozen=True, kw_only=True):
    """The instance's health endpoint has answered. `served_model` is the model's name as the engine knows it.

    `boot` tells one boot of the machine or container from another; empty where it cannot be told.
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
    """A running instance has begun or ceased to answer its health endpoint."""

    process_id: str
    name: str
    old_status: str
    new_status: Health
    service_id: str
    run: int


class EngineError(Event, unit="engine.error", stream="process_id", frozen=True, kw_only=True):
    """A start has failed, a running instance has died, or one does not end; what is left is being cleared away."""

    process_id: str
    name: str
    error: str
    error_code: str
    service_id: str
    run: int


class StopRequested(Event, unit="engine.stop_requested", stream="process_id", frozen=True, kw_only=True):
    """The instance shall end; with `restart` it shall then run again. `timeout` in seconds until it is killed.

    By `deadline` (Unix seconds; 0 in what older releases wrote: whenever) it must be gone.
    """

    process_id: str
    name: str
    force: bool
    timeout: float
    restart: bool
    run: int
    deadline: float = 0.0


class EngineStopped(Event, unit="engine.stopped", stream="process_id", frozen=True, kw_only=True):
    """The instance's process is gone, and nothing of it is left. `reason`: requested, restart, orphan, or an error."""

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
    """Where an engine's package is."""

    success: bool
    path: str = Field(description="Folder of the package.")
    version: str = Field("", description="Version of the package.")


class Started(View):
    """An instance that has been asked to run."""

    process_id: str
    status: InstanceStatus
    endpoint: str = Field(description="URL of its API.")


class Instance(View):
    """One instance of an engine."""

    process_id: str
    name: str = Field(description="The engine.")
    status: InstanceStatus
    health: str = Field(description="healthy or unhealthy while it runs, otherwise empty.")
    endpoint: str
    port: int
    model_id: str
    model_name: str
    service_id: str = Field(description="The service that it belongs to; empty when it was started by itself.")
    pid: int | None
    run: int = Field(description="How many times it has been started.")
    phase: str = Field(description="How far a start has come.")
    error: str | None
    error_code: str | None
    exit_code: int | None
    started_at: str | None
    changed_at: str
    memory_bytes: int | None = Field(
        None, description="Bytes of main memory that it uses now. Only engine.get looks, at instances that live."
    )
    cpu_percent: float | None = Field(
        None,
        description="Percent of one processor that it uses now: 200 is two. Only engine.get looks, like memory_bytes.",
    )


class EngineView(View):
    """An engine, and what runs of it."""

    name: str
    about: str
    type: str
    status: EngineStatus
    version: str
    installed: bool = Field(description="Whether its package is there.")
    capabilities: list[str] = Field(description="What it can do, such as streaming, tools, embedding.")
    model_types: list[str]
    formats: list[str] = Field(description="Weight formats that it reads.")
    devices: list[str]
    options: list[str] = Field(description="What the config of a start may set.")
    preference: dict[str, int] = Field(description="Per device: the higher, the sooner it is chosen.")
    models: list[str] = Field(description="Ids of the models that its instances serve.")
    instances: list[Instance]


class EngineList(View):
    """Engines."""

    items: list[EngineView]
    total: int


class Features(View):
    """What an engine can do."""

    supports_streaming: bool
    supports_batch: bool
    max_concurrent: int = Field(description="Requests at once.")
    supports_tools: bool
    supports_embedding: bool
    supports_multimodal: bool
    supports_quantization: bool
    max_context_length: int = Field(description="Tokens.")
    cancels_whole: bool = Field(
        True, description="Stops working for a client who leaves, also where the answer is not streamed."
    )


class Logs(View):
    """The end of a log."""

    logs: list[str] = Field(description="Lines, oldest first.")


# --- commands -----------------------------------------------------------------------------------------------------


class InstallEngine(
    Command[Installed],
    unit="engine.install",
    stream="name",
    timeout=900,
    errors=(NotFound, ExecutionFailed, Timeout, Unavailable),
    events=(EngineInstalled, InstallFailed, EngineError),
    examples=({"name": "llamacpp"},),
):
    """Make an engine's package available. Nothing happens when it already is."""

    name: EngineName
    version: str | None = Field(
        None, pattern=r"^[0-9][0-9A-Za-z.+!-]{0,40}$", description="Version; default: the one the manifest names."
    )


class StartEngine(
    Command[Started],
    unit="engine.start",
    timeout=300,
    errors=(NotFound, Conflict, ValidationFailed, InsufficientResources, ExecutionFailed, Timeout, Unavailable),
    events=(StartProgress, EngineStarted, EngineError),
    examples=({"name": "llamacpp", "model_id": "smollm2-135m-instruct", "config": {"context_length": 2048}},),
):
    """Start one instance of an engine for a model. Answers when it is healthy, or at once with `wait` false."""

    name: EngineName
    model_id: str | None = Field(None, max_length=120, description="A model of the registry; or give model_path.")
    model_path: str | None = Field(None, max_length=4096, description="Absolute path of a file of weights.")
    config: Options = Field({}, description="Options of the engine, such as context_length, slots, threads.")
    process_id: ProcessId | None = Field(
        None, description="Id for the instance; asking twice starts one. Default: new."
    )
    service_id: str = Field("", max_length=100, description="The service that it belongs to.")
    port: int | None = Field(None, ge=1024, le=65535, description="Port to listen on; default: a free one.")
    memory_bytes: int | None = Field(None, ge=0, description="Bytes to reserve; default: estimated from the model.")
    gpu_fraction: float = Field(0, ge=0, le=1, description="Of one accelerator, to reserve beside the memory.")
    priority: int = Field(5, ge=0, le=100, description="Of the memory it reserves.")
    wait: bool = Field(True, description="Whether to answer only when it is healthy or has failed.")
    timeout: float = Field(300, ge=1, le=3600, description="Seconds until the start counts as failed.")


class StopEngine(
    Command[Success],
    unit="engine.stop",
    timeout=60,
    errors=(NotFound,),
    events=(EngineStopped, EngineError),
    examples=({"name": "eng-llamacpp-7f3a09c1"}, {"name": "llamacpp", "timeout": 5}),
):
    """Stop one instance, or all of an engine. Answers when they are gone; nothing happens when there are none."""

    name: Named
    force: bool = Field(False, description="Kill at once instead of asking first.")
    timeout: float = Field(30, ge=0, le=600, description="Seconds that it gets to end by itself.")


class RestartEngine(
    Command[Started],
    unit="engine.restart",
    timeout=360,
    errors=(NotFound, Conflict, InsufficientResources, ExecutionFailed, Timeout),
    events=(EngineStopped, EngineStarted),
    examples=({"name": "eng-llamacpp-7f3a09c1"},),
):
    """Stop an instance and start it again as it was. An engine's name will do when one instance of it runs."""

    name: Named


# --- queries ------------------------------------------------------------------------------------------------------


class GetEngine(Query[EngineView], unit="engine.get", errors=(NotFound,), examples=({"name": "llamacpp"},)):
    """Return an engine and its instances, with what they use of the machine now."""

    name: EngineName


class ListEngines(Query[EngineList], Page, unit="engine.list", examples=({"type": "llm"},)):
    """List the engines. What their instances use of the machine is left out; engine.get tells it."""

    type: str | None = Field(None, description="Only those that serve models of this type.")
    status: EngineStatus | None = Field(None, description="Only those in this status.")


class GetFeatures(Query[Features], unit="engine.features", errors=(NotFound,), examples=({"name": "llamacpp"},)):
    """Tell what an engine can do."""

    name: EngineName


class CheckConfig(
    Query[Success],
    unit="engine.check_config",
    errors=(NotFound, ValidationFailed),
    examples=({"name": "llamacpp", "config": {"slots": 2}},),
):
    """Tell whether an engine would take a config; the refusal names each field that it would not."""

    name: EngineName
    config: Options = Field(description="Options of the engine, as engine.start takes them.")


class GetLogs(
    Query[Logs],
    unit="engine.logs",
    errors=(NotFound,),
    examples=({"process_id": "eng-llamacpp-7f3a09c1", "tail": 20},),
):
    """Return the last lines that an instance wrote; also when it has ended."""

    process_id: ProcessId
    tail: int = Field(100, ge=1, le=10_000, description="So many lines.")
    since: float | None = Field(None, ge=0, description="Unix seconds: only of runs that began then or later.")
