"""Lets typer take values that need no conversion as they are.

Typer converts every value of every option with pydantic, also those that are not given, and importing pydantic takes
longer than most commands. A value that is plainly right is taken here; all others go to typer, which converts them or
says what is wrong. A test compares both.
"""

from __future__ import annotations

import enum
import re
from typing import Any

from typer.core import TyperGroup

_NUMBERS = {int: re.compile("0|[1-9][0-9]{0,14}"), float: re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?")}
_TYPERS = object()  # the value is for typer


class _PlainParam:
    """What typer keeps for a parameter to convert its values."""

    def __init__(self, descriptor: Any) -> None:
        self._descriptor = descriptor

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the converted value; raise typer's error for a bad one."""
        taken = self._plain(value, param.multiple or param.nargs == -1)
        if taken is not _TYPERS:
            return taken
        from typer._coercion import build_runtime_param

        return build_runtime_param(self._descriptor).coerce(value, param=param, ctx=ctx)

    def _plain(self, value: Any, several: bool) -> Any:
        """Return the converted value, or _TYPERS if that is not obvious."""
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
    """Return the command, whose parameters now take plain values as they are; also those of its own commands."""
    for param in command.params:
        _take_plain(param)
    made = command.get_help_option
    command.get_help_option = lambda ctx: _take_plain(made(ctx))  # it is made when it is needed
    if isinstance(command, TyperGroup):
        for inner in command.commands.values():
            take_plain(inner)
    return command


def _take_plain(param: Any) -> Any:
    if hasattr(param, "type_descriptor"):  # a typer that converts in another way is left alone
        param._runtime_param = _PlainParam(param.type_descriptor)
    return param
