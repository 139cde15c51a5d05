"""Turns the tools and the tool choice of a chat into what every engine understands. Pure.

Source: the OpenAI API reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aima_core.errors import ValidationFailed


def with_tools(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a chat with tools and tool choice for the engine. Raises the errors of `choice_of_tool`."""
    if not (fields.get("tools") or fields.get("tool_choice")):
        return dict(fields)
    tools, choice = choice_of_tool(without_nulls(fields.get("tools") or ()), fields.get("tool_choice"))
    return {**fields, "tools": tools, **({"tool_choice": choice} if choice else {})}


def choice_of_tool(tools: Sequence[dict[str, Any]], choice: str | dict[str, Any] | None) -> tuple[Any, Any]:
    """Return the tools and the tool choice for the engine.

    Engines know the choices auto, none and required. For the choice of one function, the engine gets only this function
    and must call it. Raises ValidationFailed if the choice is unknown, or if it needs a tool and there is none.
    """
    names = [name for tool in tools if isinstance(name := (tool.get("function") or {}).get("name"), str)]
    match choice:
        case None | "auto" | "none":
            return tools, choice
        case "required" if tools:
            return tools, choice
        case {"type": "function", "function": {"name": str(name)}} if name in names:
            return [tool for tool in tools if tool["function"]["name"] == name], "required"
        case {"type": "function"}:
            raise _refusal("tool_choice", f"a function of tools: {', '.join(names) or 'there is none'}")
        case "required":
            raise _refusal("tool_choice", "auto or none, because there are no tools")
    raise _refusal("tool_choice", "none, auto, required, or a function of tools")


def without_nulls(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tools without fields that are null. Some chat templates fail on a description that is null."""
    return [{name: _without_null(value) for name, value in tool.items() if value is not None} for tool in tools]


def _without_null(value: Any) -> Any:
    return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else value


def _refusal(field: str, expected: str) -> ValidationFailed:
    return ValidationFailed(f"{field}: expected {expected}", fields=[{"field": field, "expected": expected}])
