"""Converts a request of OpenAI's Responses API to a chat completion. Pure.

Source: the OpenAI API reference, Responses. Fields about how OpenAI serves, caches or bills a request are ignored. A
field that refers to stored data is refused, because AIMA stores nothing. A tool that OpenAI runs is also refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from aima_core.errors import ValidationFailed
from services.gateway.openai.requests import ModelName, Positive, Share, Temperature

Json = dict[str, Any]
_STORED = ("previous_response_id", "conversation", "prompt")
_NOTHING_STORED = "AIMA stores no conversation; send the whole conversation as input"


class Part(msgspec.Struct):
    """A part of a message, or of a function's output."""

    type: Literal["input_text", "output_text", "input_image", "refusal"]
    text: str = ""
    refusal: str = ""
    image_url: str | None = None
    detail: str | None = None


class Item(msgspec.Struct):
    """A message, a function call, or a function's output. An item of type `reasoning` is not sent to the model."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str | list[Part] = ""


class Tool(msgspec.Struct):
    """A function that the client runs."""

    type: Literal["function"]
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct):
    """The function that the model must call."""

    type: Literal["function"]
    name: str


class Format(msgspec.Struct):
    """The format of the text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "answer"
    schema: Json | None = None
    description: str | None = None
    strict: bool | None = None


class Text(msgspec.Struct):
    """Options for the text."""

    format: Format = msgspec.field(default_factory=Format)


class Reasoning(msgspec.Struct):
    """Says how much the model should think. Only some models support this choice."""

    effort: str | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The body of `/v1/responses`."""

    model: ModelName
    input: str | Annotated[list[Item], Meta(min_length=1)]
    instructions: str | None = None
    stream: bool | None = None
    tools: list[Tool] = []
    tool_choice: Literal["auto", "none", "required"] | ToolChoice = "auto"
    parallel_tool_calls: bool | None = None
    text: Text = msgspec.field(default_factory=Text)
    reasoning: Reasoning | None = None
    max_output_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None


def check(request: ResponsesRequest) -> None:
    """Raise ValidationFailed if the request needs stored data or lacks a required field. The error names the field."""
    for field in _STORED:
        if getattr(request, field) is not None:
            raise _refused(field, "null", _NOTHING_STORED)
    if request.background:
        raise _refused("background", "false", "AIMA stores no response; use stream, or wait for the response")
    if request.text.format.type == "json_schema" and request.text.format.schema is None:
        raise _refused("text.format.schema", "a JSON Schema", "the format json_schema needs a schema")
    if isinstance(request.tool_choice, ToolChoice) and not _offered_tools(request):
        raise _refused("tool_choice.name", "one of the tools", f"tools has no function {request.tool_choice.name}")
    for number, item in enumerate(() if isinstance(request.input, str) else request.input):
        _check_item(item, f"input[{number}]")


def completion(request: ResponsesRequest) -> Json:
    """Return the body of the chat completion, without the model's name."""
    fields: Json = {
        "messages": _messages(request),
        "max_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "response_format": _format(request.text.format),
        "reasoning_effort": request.reasoning.effort if request.reasoning else None,
    }
    if tools := _offered_tools(request):
        # some engines cannot force one of several tools, but every engine can force a single tool
        choice = "required" if isinstance(request.tool_choice, ToolChoice) else request.tool_choice
        fields |= {"tools": [_tool(tool) for tool in tools], "tool_choice": choice}
        fields["parallel_tool_calls"] = request.parallel_tool_calls
    return {name: value for name, value in fields.items() if value is not None}


def _messages(request: ResponsesRequest) -> list[Json]:
    """Return the conversation. A function call is added to the assistant's message that comes right before it."""
    messages: list[Json] = [{"role": "system", "content": request.instructions}] if request.instructions else []
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    for item in request.input:
        match item.type:
            case "message":
                role = "system" if item.role == "developer" else item.role
                messages.append({"role": role, "content": _content(item.content or "")})
            case "function_call":
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": None})
                function = {"name": item.name, "arguments": item.arguments or "{}"}
                call = {"id": item.call_id, "type": "function", "function": function}
                messages[-1].setdefault("tool_calls", []).append(call)
            case "function_call_output":
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)})
            case "reasoning":
                pass
    return messages


def _content(content: str | Sequence[Part]) -> str | list[Json]:
    if isinstance(content, str):
        return content
    if all(part.type != "input_image" for part in content):
        return "\n".join(part.text or part.refusal for part in content)
    return [_part(part) for part in content]


def _part(part: Part) -> Json:
    if part.type != "input_image":
        return {"type": "text", "text": part.text or part.refusal}
    detail = {"detail": part.detail} if part.detail else {}
    return {"type": "image_url", "image_url": {"url": part.image_url, **detail}}


def _offered_tools(request: ResponsesRequest) -> list[Tool]:
    choice = request.tool_choice
    return [tool for tool in request.tools if not isinstance(choice, ToolChoice) or tool.name == choice.name]


def _tool(tool: Tool) -> Json:
    optional = {"description": tool.description, "parameters": tool.parameters, "strict": tool.strict}
    return {
        "type": "function",
        "function": {"name": tool.name, **{name: value for name, value in optional.items() if value is not None}},
    }


def _format(format_: Format) -> Json | None:
    match format_.type:
        case "text":
            return None
        case "json_object":
            return {"type": "json_object"}
        case "json_schema":
            optional = {"description": format_.description, "strict": format_.strict}
            present = {name: value for name, value in optional.items() if value is not None}
            return {"type": "json_schema", "json_schema": {"name": format_.name, "schema": format_.schema, **present}}


def _check_item(item: Item, path: str) -> None:
    match item.type:
        case "message" if item.role is None:
            raise _refused(f"{path}.role", "user, assistant, system or developer", "a message needs a role")
        case "message" if item.content is None:
            raise _refused(f"{path}.content", "a text or a list of parts", "a message needs content")
        case "function_call" if not (item.call_id and item.name):
            raise _refused(f"{path}.call_id", "call_id and name", "a function call needs both")
        case "function_call_output" if not item.call_id:
            raise _refused(f"{path}.call_id", "the id of a call", "an output needs the id of its call")
    for content, field in ((item.content, "content"), (item.output, "output")):
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if part.type == "input_image" and not part.image_url:
                path = f"{path}.{field}[{number}].image_url"
                raise _refused(path, "a URL, or the image as a data: URL", "AIMA stores no files; send the image")


def _refused(field: str, expected: str, problem: str) -> ValidationFailed:
    return ValidationFailed(f"{field}: {problem}", fields=[{"field": field, "expected": expected}])
