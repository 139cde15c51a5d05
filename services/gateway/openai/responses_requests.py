"""What clients of OpenAI's Responses API ask, and the chat completion that it comes to. Pure.

Source: the OpenAI API reference, Responses. Fields that say how OpenAI serves, caches or bills a request mean nothing
here. Nothing is stored, so that whatever refers to something stored is refused, as are tools that OpenAI runs itself.
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
_KEPT_BACK = "nothing is stored here: send all that the model shall know as input"


class Part(msgspec.Struct):
    """A part of a message, or of what a tool returned."""

    type: Literal["input_text", "output_text", "input_image", "refusal"]
    text: str = ""
    refusal: str = ""
    image_url: str | None = None
    detail: str | None = None


class Item(msgspec.Struct):
    """A message, a call of a function, or what came of one; `reasoning` is not given to a model again."""

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
    """The function that has to be called."""

    type: Literal["function"]
    name: str


class Format(msgspec.Struct):
    """How the text has to look."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "answer"
    schema: Json | None = None
    description: str | None = None
    strict: bool | None = None


class Text(msgspec.Struct):
    """What is wanted of the text."""

    format: Format = msgspec.field(default_factory=Format)


class Reasoning(msgspec.Struct):
    """How much a model thinks that can be told."""

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


def check(asked: ResponsesRequest) -> None:
    """Raise ValidationFailed, which names the field, for what needs something stored, or says too little."""
    for field in _STORED:
        if getattr(asked, field) is not None:
            raise _refused(field, "null", _KEPT_BACK)
    if asked.background:
        raise _refused("background", "false", "nothing is stored here: the answer is sent as it comes")
    if asked.text.format.type == "json_schema" and asked.text.format.schema is None:
        raise _refused("text.format.schema", "a JSON Schema", "json_schema needs one")
    if isinstance(asked.tool_choice, ToolChoice) and not _chosen(asked):
        raise _refused("tool_choice.name", "one of the tools", f"there is no tool {asked.tool_choice.name}")
    for number, item in enumerate(() if isinstance(asked.input, str) else asked.input):
        _check_item(item, f"input[{number}]")


def completion(asked: ResponsesRequest) -> Json:
    """Return the body of the chat completion, without the model's name."""
    given: Json = {
        "messages": _messages(asked),
        "max_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "response_format": _format(asked.text.format),
        "reasoning_effort": asked.reasoning.effort if asked.reasoning else None,
    }
    if tools := _chosen(asked):
        # a choice among one is what every engine knows how to force
        choice = "required" if isinstance(asked.tool_choice, ToolChoice) else asked.tool_choice
        given |= {"tools": [_tool(tool) for tool in tools], "tool_choice": choice}
        given["parallel_tool_calls"] = asked.parallel_tool_calls
    return {name: value for name, value in given.items() if value is not None}


def _messages(asked: ResponsesRequest) -> list[Json]:
    """Return the conversation; calls go with what the assistant said right before them."""
    messages: list[Json] = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    if isinstance(asked.input, str):
        return [*messages, {"role": "user", "content": asked.input}]
    for item in asked.input:
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


def _chosen(asked: ResponsesRequest) -> list[Tool]:
    choice = asked.tool_choice
    return [tool for tool in asked.tools if not isinstance(choice, ToolChoice) or tool.name == choice.name]


def _tool(tool: Tool) -> Json:
    given = {"description": tool.description, "parameters": tool.parameters, "strict": tool.strict}
    return {
        "type": "function",
        "function": {"name": tool.name, **{name: value for name, value in given.items() if value is not None}},
    }


def _format(asked: Format) -> Json | None:
    match asked.type:
        case "text":
            return None
        case "json_object":
            return {"type": "json_object"}
        case "json_schema":
            given = {"description": asked.description, "strict": asked.strict}
            more = {name: value for name, value in given.items() if value is not None}
            return {"type": "json_schema", "json_schema": {"name": asked.name, "schema": asked.schema, **more}}


def _check_item(item: Item, where: str) -> None:
    match item.type:
        case "message" if item.role is None:
            raise _refused(f"{where}.role", "user, assistant, system or developer", "a message needs a role")
        case "message" if item.content is None:
            raise _refused(f"{where}.content", "text, or parts", "a message needs content")
        case "function_call" if not (item.call_id and item.name):
            raise _refused(f"{where}.call_id", "call_id and name", "a call needs both")
        case "function_call_output" if not item.call_id:
            raise _refused(f"{where}.call_id", "the id of a call", "an output needs the call that it is of")
    for content, field in ((item.content, "content"), (item.output, "output")):
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if part.type == "input_image" and not part.image_url:
                where = f"{where}.{field}[{number}].image_url"
                raise _refused(where, "a URL, or the image itself as data: URL", "no files are stored here")


def _refused(field: str, expected: str, why: str) -> ValidationFailed:
    return ValidationFailed(f"{field}: {why}", fields=[{"field": field, "expected": expected}])
