"""Converts simple values of options without typer, because typer imports pydantic to convert any value.

The import of pydantic takes longer than most commands, and typer converts even the options that the user omits. This
module converts values that are valid beyond doubt, such as a text or a plain number. Typer converts all other values
and reports errors. A test compares both conversions.
"""

from __future__ import annotations

import enum
import re
from typing import Any

from typer.core import TyperGroup

_NUMBERS = {int: re.compile("0|[1-9][0-9]{0,14}"), float: re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?")}
_TYPERS = object()  # the result if typer must convert the value


class _PlainParam:
    """Replaces typer's converter of a parameter."""

    def __init__(self, descriptor: Any) -> None:
        self._descriptor = descriptor

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the converted value; raise typer's error for an invalid value."""
        taken = self._plain(value, param.multiple or param.nargs == -1)
        if taken is not _TYPERS:
            return taken
        from typer._coercion import build_runtime_param

        return build_runtime_param(self._descriptor).coerce(value, param=param, ctx=ctx)

    def _plain(self, value: Any, several: bool) -> Any:
        """Return the converted value, or _TYPERS if typer must convert it."""
        kind = self._descriptor.annotation
        if value is None:
            return () if several else None
        if kind == list[str] and isinstance(value, list | tuple) and all(type(item) is str for item in value):
            return list(value)
        if several or not isinstance(kind, type):
            return _TYPERS
        if type(value) is kind and kind in (str, bool):
            return value
        if issubclass(kind, enum.StrEnum):
            return next((member for member in kind if member == value), _TYPERS)
        if kind in _NUMBERS and isinstance(value, str) and _NUMBERS[kind].fullmatch(value):
            return self._within(int(value) if kind is int else float(value))
        return _TYPERS

    def _within(self, number: float) -> Any:
        info = self._descriptor.parameter_info
        low, high = info.min, info.max
        return number if (low is None or number >= low) and (high is None or number <= high) else _TYPERS


def take_plain(command: Any) -> Any:
    """Replace the converters of a command's parameters, and of its subcommands' parameters; return the command."""
    for param in command.params:
        _take_plain(param)
    made = command.get_help_option
    command.get_help_option = lambda ctx: _take_plain(made(ctx))  # typer makes the option when it needs it
    if isinstance(command, TyperGroup):
        for inner in command.commands.values():
            take_plain(inner)
    return command


def _take_plain(param: Any) -> Any:
    if hasattr(param, "type_descriptor"):  # other versions of typer may have another converter
        param._runtime_param = _PlainParam(param.type_descriptor)
    return param
