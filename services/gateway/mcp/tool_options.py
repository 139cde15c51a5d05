"""The options of a tool call: in the argument `_aima`, which a model can write, or in `_meta`, which a program can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aima_core.bus.call_options import OPTIONS, looks_like_option, unknown_option
from aima_core.bus.directory import UnitInfo
from aima_core.call import TRACEPARENT
from services.gateway.entrance import bodies
from services.gateway.entrance.dispatch import Caller, caller_from
from services.gateway.entrance.options import Beside, with_headers, with_options
from services.gateway.mcp.tools import OPTIONS_FIELD

_META = "aima"  # the field of `_meta` with the options
_PARAMS = ("name", "arguments", "_meta", "task")
_HEADERS = frozenset(name.lower() for name in (*OPTIONS, TRACEPARENT))


def from_arguments(caller: Caller, unit: UnitInfo, arguments: dict[str, Any]) -> Caller:
    """Remove the options from a tool's arguments; return the caller with these options.

    Raises ValidationFailed for an invalid option, and InvalidRequest for an argument that looks like an option, if the
    unit has no such field.
    """
    fields = unit.input.get("properties", {})
    for name in arguments:
        if name not in fields and name != OPTIONS_FIELD and looks_like_option(name):
            raise unknown_option(f"the argument {name}", name, Beside.__struct_fields__, f"{OPTIONS_FIELD}.")
    if OPTIONS_FIELD in fields:
        return caller
    options = arguments.pop(OPTIONS_FIELD, {})
    return with_options(caller, bodies.convert(options, Beside, OPTIONS_FIELD))


def check_params(params: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for an option beside the arguments of a call, where the SDK would drop it."""
    for name in params:
        if name not in _PARAMS and looks_like_option(name):
            raise unknown_option(f"params.{name}", name, Beside.__struct_fields__, f"{OPTIONS_FIELD}.")


def from_meta(caller: Caller, meta: Mapping[str, Any] | None) -> Caller:
    """Return the caller with the options in a call's `_meta`.

    `_meta` has the options under `aima`, or under the names of the bus's headers. Raises ValidationFailed or
    InvalidRequest for an invalid option, for a field that looks like an option and is none, and for an option that the
    HTTP request sets to another value.
    """
    fields = meta or {}
    for name in fields:
        if name != _META and name.lower() not in _HEADERS and looks_like_option(name):
            raise unknown_option(f"_meta.{name}", name, Beside.__struct_fields__, "_meta.aima.")
    given = [(name.lower(), str(value)) for name, value in fields.items() if name.lower() in _HEADERS]
    from_meta = caller_from(caller.principal, caller.address, given)
    merged = with_headers(caller, from_meta.headers, from_meta.timeout)
    return with_options(merged, bodies.convert(fields.get(_META, {}), Beside, f"_meta.{_META}"))
