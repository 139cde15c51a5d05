"""Turns each unit into a tool of the Model Context Protocol, with the unit's own description. Pure.

A tool has these hints (https://modelcontextprotocol.io/specification, ToolAnnotations):

    readOnlyHint      the unit is a query
    destructiveHint   the unit is a command that is declared destructive
    idempotentHint    the unit is a query, or a command that is declared idempotent
    openWorldHint     the unit's action is `pull`, `search`, `install` or `download`, which use a hub or package index
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from mcp_types import CallToolResult, TextContent, Tool, ToolAnnotations

from aima_core.bus.directory import UnitInfo, unknown
from aima_core.errors import AimaError, Forbidden, InvalidRequest, UnitNotFound
from aima_core.process.dry_run import PLAN_SCHEMA
from services.gateway.entrance.access import Principal

REACHES_OUT = frozenset({"pull", "search", "install", "download"})
OPTIONS_FIELD = "_aima"
"""The field of a tool's input with the options of the call. A model writes a tool's input, but not its `_meta`."""
_OPTIONS = {
    "type": "object",
    "description": "Options of the call. dry_run: return the plan and change nothing. expected_version: fail if the"
    " thing has another stream_version. idempotency_key: a repeat gets the first answer. timeout: seconds.",
    "properties": {
        "dry_run": {"type": "boolean"},
        "expected_version": {"type": "integer", "minimum": 0},
        "idempotency_key": {"type": "string", "minLength": 1, "maxLength": 120},
        "timeout": {"type": "number", "exclusiveMinimum": 0, "maximum": 86400},
    },
    "additionalProperties": False,
}
_PAGE = 200  # tools on a page; most clients read only the first page
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no", "")

Units = Mapping[str, UnitInfo]


@dataclass(frozen=True)
class Mode:
    """Selects the tools that a client gets. A small model chooses badly among a hundred tools.

    With `read_only`, the client gets only queries. `only` names the domains whose tools the client gets; empty means
    all domains.
    """

    read_only: bool = False
    only: tuple[str, ...] = ()

    def offers(self, unit: UnitInfo) -> bool:
        """Whether the mode includes a unit."""
        return (unit.kind == "query" or not self.read_only) and (not self.only or unit.domain in self.only)

    def admit(self, unit: UnitInfo) -> None:
        """Raise Forbidden for a unit that the mode excludes."""
        if self.only and unit.domain not in self.only:
            domains = ", ".join(self.only)
            raise Forbidden(
                f"{unit.name} is not available in this mode, which has only the domains {domains}",
                reason="NOT_OFFERED",
                unit=unit.name,
            )
        if not self.offers(unit):
            raise Forbidden(
                f"{unit.name} is a command, and the read-only mode has only queries",
                reason="READ_ONLY",
                unit=unit.name,
            )


def mode_from(read_only: str, only: str) -> Mode:
    """Return the mode that a query string selects. Raises InvalidRequest if `read_only` is neither true nor false."""
    if read_only.lower() not in (*_TRUE, *_FALSE):
        raise InvalidRequest("read_only must be true or false", reason="NO_SUCH_MODE", field="read_only")
    domains = tuple(word.strip() for word in only.split(",") if word.strip())
    return Mode(read_only.lower() in _TRUE, domains)


# --- the list -----------------------------------------------------------------------------------------------------


def names(units: Units) -> dict[str, str]:
    """Return the names of units by tool name: `service_create` for `service.create`.

    If two units would get the same tool name, the later one keeps its dot.
    """
    by_tool: dict[str, str] = {}
    for name in sorted(units):
        plain = name.replace(".", "_")
        by_tool[name if plain in by_tool else plain] = name
    return by_tool


def find(name: str, units: Units) -> UnitInfo | None:
    """Return the unit with this tool name or unit name, or None if there is no such unit."""
    return units.get(name) or units.get(names(units).get(name, ""))


def no_such_tool(name: str, units: Units) -> UnitNotFound:
    """Return the error for an unknown tool. The error names the most similar tools."""
    error = unknown(name, names(units))
    return UnitNotFound(error.message.replace("no unit", "no tool", 1), **error.details)


def offered(units: Units, principal: Principal, mode: Mode) -> dict[str, UnitInfo]:
    """Return the units that a client may call, by tool name. The client's mode and scopes select the units."""
    return {
        tool: unit
        for tool, name in names(units).items()
        if mode.offers(unit := units[name]) and (not principal.known or principal.reaches(unit.domain, unit.risk))
    }


def page(units: Mapping[str, UnitInfo], cursor: str | None) -> tuple[list[Tool], str | None]:
    """Return the tools after a cursor, and the cursor of the next page, or None after the last page.

    A cursor is the name of the last tool on the previous page.
    """
    following = sorted(name for name in units if name > (cursor or ""))
    page_names = following[:_PAGE]
    return [tool_of(name, units[name]) for name in page_names], page_names[-1] if len(following) > _PAGE else None


def tool_of(name: str, unit: UnitInfo) -> Tool:
    """Return a unit as a tool."""
    return Tool(
        name=name,
        title=title_of(unit),
        description=_description(unit),
        input_schema=_input(unit),
        output_schema=_output(unit) if is_object(unit) else None,
        annotations=hints(unit),
    )


def title_of(unit: UnitInfo) -> str:
    """Return a unit's name for people: `Service: create`."""
    return f"{unit.domain}: {unit.action}".replace("_", " ").capitalize()


def hints(unit: UnitInfo) -> ToolAnnotations:
    """Return the hints about a tool's effects. The rules are at the top of this file."""
    query = unit.kind == "query"
    return ToolAnnotations(
        title=title_of(unit),
        read_only_hint=query,
        destructive_hint=not query and unit.destructive,
        idempotent_hint=query or unit.idempotent,
        open_world_hint=not REACHES_OUT.isdisjoint(unit.action.split("_")),
    )


def is_object(unit: UnitInfo) -> bool:
    """Whether a unit's answer is an object. Only an object can be structured content. AIMA's units all return one."""
    return unit.output.get("type") == "object"


def _input(unit: UnitInfo) -> dict[str, Any]:
    """Return the schema of a tool's input: the unit's input, and for a command the options of the call."""
    if unit.kind == "query":
        return {**unit.input, "type": "object"}
    fields = {**unit.input.get("properties", {}), OPTIONS_FIELD: _OPTIONS}
    return {**unit.input, "type": "object", "properties": fields}


def _output(unit: UnitInfo) -> dict[str, Any]:
    """Return the schema of a tool's answer. A command also has the schema of a plan, which a dry run returns."""
    if unit.kind == "query":
        return unit.output
    answer = {key: value for key, value in unit.output.items() if key != "$defs"}  # references point to the root
    return {"type": "object", "anyOf": [answer, PLAN_SCHEMA], "$defs": unit.output.get("$defs", {})}


def _description(unit: UnitInfo) -> str:
    example = next((each for each in unit.examples if each), None)
    return unit.description + (f"\n\nExample: {_text(example)}" if example else "")


# --- a call -------------------------------------------------------------------------------------------------------


def check(data: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for an input that the SDK accepts and the bus cannot transport.

    Such an input has a lone surrogate, an integer beyond 64 bits, or too deep nesting.
    """
    try:
        msgspec.json.encode(data)
    except (ValueError, OverflowError, RecursionError):
        raise InvalidRequest(
            "the input cannot be encoded as JSON: it has a lone surrogate, an integer beyond 64 bits, or deep nesting",
            reason="NOT_DECODABLE",
        ) from None


def result(unit: UnitInfo, data: Any, meta: Mapping[str, Any]) -> CallToolResult:
    """Return a unit's answer as structured content for programs and as text for models. `meta` is the reply's meta."""
    return CallToolResult(
        content=[TextContent(text=_text(data))],
        structured_content=data if is_object(unit) else None,
        _meta={"aima": meta},
    )


def refusal_of(error: AimaError) -> CallToolResult:
    """Return an error as a tool result, with the same body as at every other door."""
    return CallToolResult(content=[TextContent(text=_text(error.body()))], is_error=True)


def _text(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, default=str)


class Progress:
    """Turns the parts of an answer into progress reports. A report has the part's percentage, or else its text."""

    _LEAST = 0.001  # the least increase of progress, because the protocol requires that each report increases it

    def __init__(self) -> None:
        self._last = 0.0

    def of(self, part: Any) -> tuple[float, float | None, str | None] | None:
        """Return progress, total and message of a part, or None if the part has no progress to report."""
        data = part.get("data", part) if isinstance(part, Mapping) else None
        if not isinstance(data, Mapping):
            return None
        percent = data.get("progress")
        if isinstance(percent, int | float):
            self._last = max(float(percent), self._last + self._LEAST)
            return (
                self._last,
                100.0 if self._last <= 100 else None,
                _first_text(data, ("message", "status", "phase")) or _first_text(part, ("type",)),
            )
        piece = _first_text(data, ("content", "text"))
        self._last += 1.0 if piece else self._LEAST
        message = (
            piece or _first_text(data, ("message", "status", "phase")) or _first_text(part, ("type",)) or _text(data)
        )
        return self._last, None, message


def _first_text(part: Mapping[str, Any], fields: Iterable[str]) -> str | None:
    return next((value for field in fields if isinstance(value := part.get(field), str) and value), None)
