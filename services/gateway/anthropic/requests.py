"""Converts a request of Anthropic's API to a chat completion. Pure.

Source: the Anthropic API reference, Messages. This module ignores fields about serving and billing at Anthropic, such
as `metadata`, `cache_control` and `service_tier`. It refuses an input that no engine accepts, such as a tool that runs
at Anthropic.
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
    """An image inside the request, as base64 text."""

    media_type: str
    data: str


class UrlSource(msgspec.Struct, tag_field="type", tag="url"):
    """An image that the engine fetches."""

    url: str


class Text(msgspec.Struct, tag_field="type", tag="text"):
    """A block of text."""

    text: str


class Image(msgspec.Struct, tag_field="type", tag="image"):
    """An image."""

    source: Base64Source | UrlSource


class ToolUse(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A tool call of the model."""

    id: str
    name: str
    input: Json


class ToolResult(msgspec.Struct, tag_field="type", tag="tool_result"):
    """The result of a tool call."""

    tool_use_id: str
    content: str | list[Text | Image] | None = None


class Thinking(msgspec.Struct, tag_field="type", tag="thinking"):
    """The model's earlier reasoning. The gateway accepts this block, but does not send it to the model."""


class RedactedThinking(msgspec.Struct, tag_field="type", tag="redacted_thinking"):
    """The model's earlier reasoning in encrypted form. The gateway accepts this block, but does not send it."""


Block = Text | Image | ToolUse | ToolResult | Thinking | RedactedThinking


class Turn(msgspec.Struct):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(msgspec.Struct):
    """A tool that the client runs."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    input_schema: Json | None = None
    description: str | None = None
    type: str | None = None


class ToolChoice(msgspec.Struct):
    """Says whether the model must call a tool, and which tool."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class ThinkingConfig(msgspec.Struct):
    """Says whether the model should think before it answers. Only some models support this choice."""

    type: Literal["enabled", "disabled", "adaptive"]


class Format(msgspec.Struct):
    """The JSON Schema that the answer must match."""

    type: Literal["json_schema"]
    schema: Json


class OutputConfig(msgspec.Struct):
    """The format of the answer."""

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


def prompt(request: CountRequest) -> Json:
    """Return the fields of the chat completion that form the prompt. Raises ValidationFailed for an invalid field."""
    body: Json = {"messages": _messages(request)}
    if request.tools:
        body["tools"] = [_function(number, tool) for number, tool in enumerate(request.tools)]
    if request.tools and request.tool_choice:
        body["tool_choice"] = _choice(request.tool_choice)
        if request.tool_choice.disable_parallel_tool_use:
            body["parallel_tool_calls"] = False
    if request.thinking:
        body["chat_template_kwargs"] = {"enable_thinking": request.thinking.type != "disabled"}
    if request.output_config and (format_ := request.output_config.format):
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": format_.schema}}
    return body


def completion(request: MessagesRequest) -> Json:
    """Return the body of the chat completion without the model's name. Raises ValidationFailed for an invalid field."""
    fields = {
        "max_tokens": request.max_tokens,
        "stop": request.stop_sequences or None,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
    }
    return prompt(request) | {name: value for name, value in fields.items() if value is not None}


def _messages(request: CountRequest) -> list[Json]:
    system = _text(request.system) if isinstance(request.system, list) else request.system
    messages: list[Json] = [{"role": "system", "content": system}] if system else []
    for role, blocks in _turns(request.messages):
        if role == "assistant":
            messages.append(_assistant(blocks))
        elif role == "system":
            messages.append({"role": "system", "content": _text(blocks)})
        else:
            messages.extend(_user(blocks))
    return messages


def _turns(messages: Iterable[Turn]) -> list[tuple[str, list[Block]]]:
    """Merge successive messages of the same role, because chat templates expect the roles to alternate."""
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
    """Return a message for each tool result, then the user's message. All images are in the user's message."""
    results = [block for block in blocks if isinstance(block, ToolResult)]
    tool_messages = [
        {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block)} for block in results
    ]
    result_items = [item for block in results if isinstance(block.content, list) for item in block.content]
    images = [_image(block) for block in (*result_items, *blocks) if isinstance(block, Image)]
    texts = [block.text for block in blocks if isinstance(block, Text)]
    if images:
        parts = [*({"type": "text", "text": text} for text in texts), *images]
        return [*tool_messages, {"role": "user", "content": parts}]
    if tool_messages and not texts:
        return tool_messages
    return [*tool_messages, {"role": "user", "content": "\n".join(texts)}]


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
        expected = "a tool that the client runs, with an input_schema"
        kind = f" of type {tool.type}" if tool.type else ""
        field = {"field": f"tools[{number}]", "expected": expected}
        raise ValidationFailed(
            f"tools[{number}]: {tool.name}{kind} is not supported; expected {expected}", fields=[field]
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
