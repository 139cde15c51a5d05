"""What clients of Anthropic's API ask, and the chat completion that it comes to. Pure.

Source: the Anthropic API reference, Messages. Fields that say how Anthropic serves or bills a request (`metadata`,
`cache_control`, `service_tier`, ...) are taken and mean nothing here; what a model of ours cannot be given, such as
tools that Anthropic runs itself, is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from aima_core.errors import ValidationFailed

Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
ModelName = Annotated[str, Meta(min_length=1, max_length=120)]
Json = dict[str, Any]


class Base64Source(msgspec.Struct, tag_field="type", tag="base64"):
    """An image that is in the request."""

    media_type: str
    data: str


class UrlSource(msgspec.Struct, tag_field="type", tag="url"):
    """An image that the engine fetches."""

    url: str


class Text(msgspec.Struct, tag_field="type", tag="text"):
    """A piece of text."""

    text: str


class Image(msgspec.Struct, tag_field="type", tag="image"):
    """An image."""

    source: Base64Source | UrlSource


class ToolUse(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A tool that the model called."""

    id: str
    name: str
    input: Json


class ToolResult(msgspec.Struct, tag_field="type", tag="tool_result"):
    """What came of it."""

    tool_use_id: str
    content: str | list[Text | Image] | None = None


class Thinking(msgspec.Struct, tag_field="type", tag="thinking"):
    """What the model thought; models are not given their earlier thoughts again."""


class RedactedThinking(msgspec.Struct, tag_field="type", tag="redacted_thinking"):
    """The same, unreadable."""


Block = Text | Image | ToolUse | ToolResult | Thinking | RedactedThinking


class Turn(msgspec.Struct):
    """A turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(msgspec.Struct):
    """A tool that the client runs."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    input_schema: Json | None = None
    description: str | None = None
    type: str | None = None


class ToolChoice(msgspec.Struct):
    """Whether a tool is to be called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class ThinkingConfig(msgspec.Struct):
    """Whether the model is to think first, where it can be told."""

    type: Literal["enabled", "disabled", "adaptive"]


class Format(msgspec.Struct):
    """The schema that the answer has to fit."""

    type: Literal["json_schema"]
    schema: Json


class OutputConfig(msgspec.Struct):
    """How the answer has to look."""

    format: Format | None = None


class CountRequest(msgspec.Struct, kw_only=True):
    """The body of `/v1/messages/count_tokens`."""

    model: ModelName
    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: str | list[Text] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """The body of `/v1/messages`."""

    max_tokens: Positive
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None


def prompt(asked: CountRequest) -> Json:
    """Return of a chat completion what makes its prompt. Raises ValidationFailed."""
    body: Json = {"messages": _messages(asked)}
    if asked.tools:
        body["tools"] = [_function(number, tool) for number, tool in enumerate(asked.tools)]
    if asked.tools and asked.tool_choice:
        body["tool_choice"] = _choice(asked.tool_choice)
        if asked.tool_choice.disable_parallel_tool_use:
            body["parallel_tool_calls"] = False
    if asked.thinking:
        body["chat_template_kwargs"] = {"enable_thinking": asked.thinking.type != "disabled"}
    if asked.output_config and (form := asked.output_config.format):
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.schema}}
    return body


def completion(asked: MessagesRequest) -> Json:
    """Return the body of the chat completion, but for the model's name. Raises ValidationFailed."""
    given = {
        "max_tokens": asked.max_tokens,
        "stop": asked.stop_sequences or None,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
    }
    return prompt(asked) | {name: value for name, value in given.items() if value is not None}


def _messages(asked: CountRequest) -> list[Json]:
    system = _text(asked.system) if isinstance(asked.system, list) else asked.system
    messages: list[Json] = [{"role": "system", "content": system}] if system else []
    for role, blocks in _turns(asked.messages):
        if role == "assistant":
            messages.append(_assistant(blocks))
        elif role == "system":
            messages.append({"role": "system", "content": _text(blocks)})
        else:
            messages.extend(_user(blocks))
    return messages


def _turns(messages: Iterable[Turn]) -> list[tuple[str, list[Block]]]:
    """Return roles with all that each says in a row: templates take turns, Anthropic's clients need not."""
    turns: list[tuple[str, list[Block]]] = []
    for message in messages:
        blocks: list[Block] = [Text(message.content)] if isinstance(message.content, str) else message.content
        if turns and turns[-1][0] == message.role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((message.role, list(blocks)))
    return turns


def _assistant(blocks: Sequence[Block]) -> Json:
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": _json(block.input)}}
        for block in blocks
        if isinstance(block, ToolUse)
    ]
    text = _text(blocks)
    if calls:
        return {"role": "assistant", "content": text or None, "tool_calls": calls}
    return {"role": "assistant", "content": text}


def _user(blocks: Sequence[Block]) -> list[Json]:
    """Return what tools have said, each a turn of its own, and then the user's turn."""
    results = [block for block in blocks if isinstance(block, ToolResult)]
    said = [{"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block)} for block in results]
    shown = [item for block in results if isinstance(block.content, list) for item in block.content]
    images = [_image(block) for block in (*shown, *blocks) if isinstance(block, Image)]
    texts = [block.text for block in blocks if isinstance(block, Text)]
    if images:
        parts = [*({"type": "text", "text": text} for text in texts), *images]
        return [*said, {"role": "user", "content": parts}]
    return [*said, {"role": "user", "content": "\n".join(texts)}] if texts or not said else said


def _result(block: ToolResult) -> str:
    return block.content if isinstance(block.content, str) else _text(block.content or ())


def _text(blocks: Iterable[Any]) -> str:
    return "\n".join(block.text for block in blocks if isinstance(block, Text))


def _image(block: Image) -> Json:
    match block.source:
        case Base64Source(media_type=kind, data=data):
            url = f"data:{kind};base64,{data}"
        case UrlSource(url=url):
            pass
    return {"type": "image_url", "image_url": {"url": url}}


def _function(number: int, tool: Tool) -> Json:
    if tool.type not in (None, "custom") or tool.input_schema is None:
        expected = "a tool of the client's own, with its input_schema"
        kind = f" of type {tool.type}" if tool.type else ""
        fault = {"field": f"tools[{number}]", "expected": expected}
        raise ValidationFailed(
            f"tools[{number}]: {tool.name}{kind} is not known here; expected {expected}", fields=[fault]
        )
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _choice(choice: ToolChoice) -> str | Json:
    if choice.type != "tool":
        return "required" if choice.type == "any" else choice.type
    if not choice.name:
        raise ValidationFailed(
            "tool_choice.name: expected the name of a tool",
            fields=[{"field": "tool_choice.name", "expected": "the name of a tool"}],
        )
    return {"type": "function", "function": {"name": choice.name}}


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
