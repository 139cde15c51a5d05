"""Units as tools of the Model Context Protocol: one tool for each, made from what the unit says of itself. Pure.

The hints come from two facts and two rules (https://modelcontextprotocol.io/specification, ToolAnnotations):

    readOnlyHint      a query
    destructiveHint   of high risk
    idempotentHint    a query, or a command that says so: "nothing happens when ...", "asking again ... is no error"
    openWorldHint     it reaches for a hub or a package index: `pull`, `search`, `install`, `download`
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from mcp_types import CallToolResult, TextContent, Tool, ToolAnnotations

from aima_core.bus.directory import UnitInfo, unknown
from aima_core.errors import AimaError, Forbidden, InvalidRequest, UnitNotFound
from aima_core.store.records import Planned
from services.gateway.entrance.access import Principal

_SAYS_AGAIN = re.compile(r"\bnothing happens (when|if)\b|\bagain\b[^.]* is (no error|the same)\b", re.IGNORECASE)
REACHES_OUT = frozenset({"pull", "search", "install", "download"})
_PLAN = msgspec.json.schema_components((Planned,))[1]["Planned"]
_PAGE = 200  # tools; most clients ask for the first page only
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no", "")

Units = Mapping[str, UnitInfo]


@dataclass(frozen=True)
class Mode:
    """What of the tools a client is handed, so that a small model need not choose from a hundred.

    `only`: the domains whose tools those are; empty: all.
    """

    read_only: bool = False
    only: tuple[str, ...] = ()

    def offers(self, unit: UnitInfo) -> bool:
        """Whether a unit is handed out."""
        return (unit.kind == "query" or not self.read_only) and (not self.only or unit.domain in self.only)

    def admit(self, unit: UnitInfo) -> None:
        """Raise Forbidden for a unit that is not handed out."""
        if self.only and unit.domain not in self.only:
            shown = ", ".join(self.only)
            raise Forbidden(
                f"{unit.name} is not offered here, only what belongs to {shown}", reason="NOT_OFFERED", unit=unit.name
            )
        if not self.offers(unit):
            raise Forbidden(f"{unit.name} changes things; here one may only look", reason="READ_ONLY", unit=unit.name)


def mode_from(read_only: str, only: str) -> Mode:
    """Return the mode that a query string asks for; raise InvalidRequest for what is neither true nor false."""
    if read_only.lower() not in (*_TRUE, *_FALSE):
        raise InvalidRequest("read_only must be true or false", reason="NO_SUCH_MODE", field="read_only")
    domains = tuple(word.strip() for word in only.split(",") if word.strip())
    return Mode(read_only.lower() in _TRUE, domains)


# --- the list -----------------------------------------------------------------------------------------------------


def names(units: Units) -> dict[str, str]:
    """Return the units' names by those of their tools: `service_create` for `service.create`.

    Where two units would get the same, the later one keeps its dot.
    """
    found: dict[str, str] = {}
    for name in sorted(units):
        plain = name.replace(".", "_")
        found[name if plain in found else plain] = name
    return found


def find(name: str, units: Units) -> UnitInfo | None:
    """Return the unit that a tool stands for; its own name with the dot will do too."""
    return units.get(name) or units.get(names(units).get(name, ""))


def no_such_tool(name: str, units: Units) -> UnitNotFound:
    """Return the refusal of a tool that is not there, with the nearest that are."""
    refusal = unknown(name, names(units))
    return UnitNotFound(refusal.message.replace("no unit", "no tool", 1), **refusal.details)


def offered(units: Units, who: Principal, mode: Mode) -> dict[str, UnitInfo]:
    """Return the units that somebody may be handed, by the names of their tools."""
    return {
        tool: unit
        for tool, name in names(units).items()
        if mode.offers(unit := units[name]) and (not who.known or who.reaches(unit.domain, unit.risk))
    }


def page(found: Mapping[str, UnitInfo], cursor: str | None) -> tuple[list[Tool], str | None]:
    """Return the tools behind a cursor, and the cursor of the next page: the name of the last tool of this one."""
    behind = sorted(name for name in found if name > (cursor or ""))
    shown = behind[:_PAGE]
    return [tool_of(name, found[name]) for name in shown], shown[-1] if len(behind) > _PAGE else None


def tool_of(name: str, unit: UnitInfo) -> Tool:
    """Return a unit as a tool."""
    return Tool(
        name=name,
        title=title_of(unit),
        description=_description(unit),
        input_schema={**unit.input, "type": "object"},
        output_schema=_output(unit) if is_object(unit) else None,
        annotations=hints(unit),
    )


def title_of(unit: UnitInfo) -> str:
    """Return a unit's name for people: `Service: create`."""
    return f"{unit.domain}: {unit.action}".replace("_", " ").capitalize()


def hints(unit: UnitInfo) -> ToolAnnotations:
    """Return what a client may take into account before it calls."""
    query = unit.kind == "query"
    return ToolAnnotations(
        title=title_of(unit),
        read_only_hint=query,
        destructive_hint=not query and unit.risk == "high",
        idempotent_hint=query or bool(_SAYS_AGAIN.search(unit.description)),
        open_world_hint=not REACHES_OUT.isdisjoint(unit.action.split("_")),
    )


def is_object(unit: UnitInfo) -> bool:
    """Whether a unit's answer is an object, as structured content has to be; all of ours are."""
    return unit.output.get("type") == "object"


def _output(unit: UnitInfo) -> dict[str, Any]:
    """Return the schema of what a tool answers: a command that is tried dry answers with a plan."""
    if unit.kind == "query":
        return unit.output
    answer = {key: value for key, value in unit.output.items() if key != "$defs"}  # references go by the root
    return {"type": "object", "anyOf": [answer, _PLAN], "$defs": unit.output.get("$defs", {})}


def _description(unit: UnitInfo) -> str:
    example = next((given for given in unit.examples if given), None)
    return unit.description + (f"\n\nExample: {_text(example)}" if example else "")


# --- a call -------------------------------------------------------------------------------------------------------


def check(data: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for what the SDK has read and the bus cannot carry: half a surrogate, 65 bits, no end."""
    try:
        msgspec.json.encode(data)
    except (ValueError, OverflowError, RecursionError):
        raise InvalidRequest("the input is not JSON that can be passed on", reason="NOT_DECODABLE") from None


def result(unit: UnitInfo, data: Any, meta: Mapping[str, Any]) -> CallToolResult:
    """Return what a unit has answered: as it is for programs, as text for a model; `meta` is the reply's own."""
    return CallToolResult(
        content=[TextContent(text=_text(data))],
        structured_content=data if is_object(unit) else None,
        _meta={"aima": meta},
    )


def refusal_of(error: AimaError) -> CallToolResult:
    """Return a refusal, with the body that it has at every door."""
    return CallToolResult(content=[TextContent(text=_text(error.body()))], is_error=True)


def _text(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, default=str)


class Progress:
    """Makes progress of the parts of an answer: percents where it tells some, else its text piece by piece."""

    _LEAST = 0.001  # the protocol wants every report to be beyond the one before

    def __init__(self) -> None:
        self._last = 0.0

    def of(self, part: Any) -> tuple[float, float | None, str | None] | None:
        """Return how far it is, of how much, and what is said; None for a part that tells nothing."""
        news = part.get("data", part) if isinstance(part, Mapping) else None
        if not isinstance(news, Mapping):
            return None
        percent = news.get("progress")
        if isinstance(percent, int | float):
            self._last = max(float(percent), self._last + self._LEAST)
            return (
                self._last,
                100.0 if self._last <= 100 else None,
                _said(news, ("message", "status", "phase")) or _said(part, ("type",)),
            )
        piece = _said(news, ("content", "text"))
        self._last += 1.0 if piece else self._LEAST
        message = piece or _said(news, ("message", "status", "phase")) or _said(part, ("type",)) or _text(news)
        return self._last, None, message


def _said(part: Mapping[str, Any], fields: Iterable[str]) -> str | None:
    return next((value for field in fields if isinstance(value := part.get(field), str) and value), None)
