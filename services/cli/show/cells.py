"""Formats a value for a table cell: shortens long values, and shows bytes with a unit. Pure.

`-o json` shows full values. A field's name determines whether its value is a number of bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_BYTES = re.compile(
    r"size|weights|overhead|kv_bytes_per_token|(\w+_)?(bytes|memory|storage)"
    r"|memory_(total|used|free|min|max|recommended|limit)|available|reserved|requested|missing|budget"
)
_SHARES = ("total", "used", "free")  # fields in bytes, if a field in bytes contains them or is beside them
_UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_NOTHING: tuple[Any, ...] = (None, "", [], {})
_PART = 60  # characters; a longer nested value is cut


def column(item: Mapping[str, Any], name: str, within: str = "") -> str:
    """Return the text of an item's column. The column `config.slots` is the field `slots` of the object `config`."""
    head, dot, rest = name.partition(".")
    inner = item.get(head)
    if name not in item and dot and isinstance(inner, Mapping):
        return column(inner, rest, head)
    return cell(item.get(name), name, _shared(item, within))


def cell(value: Any, name: str = "", shares: bool = False) -> str:
    """Return the text of a value. If `shares` is true, the fields total, used and free are in bytes."""
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return str(value).lower()
        case int() | float() if name.endswith("_bandwidth"):
            return f"{amount(value)}/s"
        case int() | float() if is_bytes(name) or (shares and name in _SHARES):
            return amount(value)
        case int() | float():
            return figure(value)
        case Mapping():
            inside = _shared(value, name)
            parts = [f"{key} {_part(item, key, inside)}" for key, item in value.items() if item not in _NOTHING]
            return "  ".join(parts)
        case list() if value and all(isinstance(item, Mapping) for item in value):
            return _counted(value, name)
        case list() if any(isinstance(item, int | float) for item in value):
            return _cut(", ".join(map(cell, value)))
        case list() if not any(isinstance(item, Mapping | list) for item in value):
            return ", ".join(map(cell, value))
    return _cut(json.dumps(value, ensure_ascii=False))


def is_bytes(name: str) -> bool:
    """Whether fields of this name are in bytes."""
    return _BYTES.fullmatch(name) is not None


def amount(value: float) -> str:
    """Return a number of bytes with a unit, such as `1.5 GiB`; a number below 1024 has no unit."""
    for unit, worth in _UNITS:
        if value >= worth:
            return f"{value / worth:.1f} {unit}"
    return figure(value)


def figure(value: float) -> str:
    """Return an integer in full. Round any other number to four digits; from 1000 on, to a whole number."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def _shared(item: Mapping[str, Any], within: str) -> bool:
    return is_bytes(within) or {"total", "reserved"} <= item.keys()


def _part(value: Any, name: str, shares: bool) -> str:
    text = cell(value, name, shares)
    return f"({_cut(text)})" if isinstance(value, Mapping) else text


def _counted(items: Sequence[Any], name: str) -> str:
    return f"1 {name.removesuffix('s') or 'item'}" if len(items) == 1 else f"{len(items)} {name or 'items'}"


def _cut(text: str) -> str:
    return text if len(text) <= _PART else text[: _PART - 1] + "…"
