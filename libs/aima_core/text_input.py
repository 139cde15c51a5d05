"""Turns text, such as `key=value` words or a query string, into a unit's input by the types of its schema. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from aima_core.call import unix
from aima_core.errors import ValidationFailed

_AGO = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def moment(text: str, now: float) -> float:
    """Return a time as Unix seconds, 1970 at the earliest: RFC 3339, or how long ago: 90s, 10m, 2h, 1d.

    Raises ValueError for anything else.
    """
    if ago := _AGO.fullmatch(text):
        return max(now - float(ago.group(1)) * _SECONDS[ago.group(2)], 0.0)
    try:
        return max(unix(text), 0.0)
    except OverflowError as error:
        raise ValueError(text) from error


def build(words: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input that the words spell; `config.slots=2` reaches into an object. Raises ValidationFailed."""
    built: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ValidationFailed(
                f"{word!r}: expected key=value", fields=[{"field": word, "expected": "key=value, such as name=chat"}]
            )
        *path, last = key.split(".")
        where, found = built, _property(schema, path[0] if path else last)
        for part in path:
            where = where.setdefault(part, {})
            if not isinstance(where, dict):
                raise ValidationFailed(f"{key}: {part} is a value already", fields=[{"field": key, "expected": "one"}])
        where[last] = typed(text, {} if path else found, schema)
    return built


def read_query(pairs: Sequence[tuple[str, str]], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input that a query string spells: a list is one in JSON, or a key that comes again.

    Raises ValidationFailed for a key that comes again and is no list.
    """
    built: dict[str, Any] = {}
    for key, text in pairs:
        found = _property(schema, key)
        many = "array" in _types(found, schema) and not text.startswith("[")
        if key in built and not (many and isinstance(built[key], list)):
            raise ValidationFailed(
                f"{key[:100]}: given more than once", fields=[{"field": key[:100], "expected": "once"}]
            )
        built[key] = [*built.get(key, ()), typed(text, _items(found), schema)] if many else typed(text, found, schema)
    return built


def _property(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = schema.get("properties", {}).get(key)
    return found if isinstance(found, Mapping) else {}  # `true` is a schema, too


def typed(text: str, found: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """Return the text as what the schema asks for: as it is where it may be a text, else as JSON, else as it is."""
    types = _types(found, schema)
    if "string" in types and not (text.startswith(("[", "{")) and types & {"array", "object"}):
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text  # the unit says what it expected


def _items(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a list is made of, also where the list is one of several types."""
    options = (found, *found.get("anyOf", ()))
    items: Mapping[str, Any] = next((option["items"] for option in options if "items" in option), {})
    return items


def _types(found: Mapping[str, Any], schema: Mapping[str, Any]) -> set[str]:
    if reference := found.get("$ref"):
        found = schema.get("$defs", {}).get(str(reference).rpartition("/")[2], {})
    types = {found["type"]} if isinstance(found.get("type"), str) else set(found.get("type", ()))
    for other in found.get("anyOf", ()):
        types |= _types(other, schema)
    if "enum" in found or "const" in found:
        types.add("string")
    return types
