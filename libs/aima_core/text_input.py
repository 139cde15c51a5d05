"""Converts `key=value` words or a query string to a unit's input, by the unit's schema. Pure."""

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
    """Return a time as Unix seconds, at least 0. The text is RFC 3339, or a duration before now: 90s, 10m, 2h, 1d.

    Raises ValueError for any other text.
    """
    if ago := _AGO.fullmatch(text):
        return max(now - float(ago.group(1)) * _SECONDS[ago.group(2)], 0.0)
    try:
        return max(unix(text), 0.0)
    except OverflowError as error:
        raise ValueError(text) from error


def build(words: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input that `key=value` words describe. `config.slots=2` sets the field `slots` of the object `config`.

    Raises ValidationFailed for a word without `=`, for a repeated key, and for a key that is used both as a value and
    as an object.
    """
    built: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ValidationFailed(
                f"{word!r}: expected key=value", fields=[{"field": word, "expected": "key=value, such as name=chat"}]
            )
        *path, last = key.split(".")
        target, field_schema = built, _property(schema, path[0] if path else last)
        for part in path:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                expected = f"either a value or fields for {part}, not both"
                raise ValidationFailed(f"{key}: expected {expected}", fields=[{"field": key, "expected": expected}])
        if last in target:
            raise ValidationFailed(f"{key}: given more than once", fields=[{"field": key, "expected": "once"}])
        target[last] = typed(text, {} if path else field_schema, schema)
    return built


def read_query(pairs: Sequence[tuple[str, str]], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input that a query string describes. A list is written as JSON, or by repeating its key.

    Raises ValidationFailed if a key is repeated and its field is not a list.
    """
    built: dict[str, Any] = {}
    for key, text in pairs:
        field_schema = _property(schema, key)
        is_item = "array" in _types(field_schema, schema) and not text.startswith("[")
        if key in built and not (is_item and isinstance(built[key], list)):
            raise ValidationFailed(
                f"{key[:100]}: given more than once", fields=[{"field": key[:100], "expected": "once"}]
            )
        if is_item:
            built[key] = [*built.get(key, ()), typed(text, _items(field_schema), schema)]
        else:
            built[key] = typed(text, field_schema, schema)
    return built


def _property(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    field_schema = schema.get("properties", {}).get(key)
    return field_schema if isinstance(field_schema, Mapping) else {}  # JSON Schema allows `true` as a schema


def typed(text: str, field_schema: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """Convert a text to the value of a field: the decoded JSON, or the text itself.

    Returns the text itself if the field may be a string, or if the text is not JSON. `schema` is the unit's whole
    schema. It has the definitions to which `field_schema` refers.
    """
    types = _types(field_schema, schema)
    if "string" in types and not (text.startswith(("[", "{")) and types & {"array", "object"}):
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text  # the unit's own validation names the expected type


def _items(field_schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of a list's items. The list may be one of several allowed types."""
    options = (field_schema, *field_schema.get("anyOf", ()))
    items: Mapping[str, Any] = next((option["items"] for option in options if "items" in option), {})
    return items


def _types(field_schema: Mapping[str, Any], schema: Mapping[str, Any]) -> set[str]:
    if reference := field_schema.get("$ref"):
        field_schema = schema.get("$defs", {}).get(str(reference).rpartition("/")[2], {})
    declared = field_schema.get("type", ())
    types = {declared} if isinstance(declared, str) else set(declared)
    for option in field_schema.get("anyOf", ()):
        types |= _types(option, schema)
    if "enum" in field_schema or "const" in field_schema:
        types.add("string")
    return types
