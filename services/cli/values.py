"""Turns `key=value` words into a unit's input, by the types that its schema names. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from aima_core.errors import ValidationFailed


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
        where[last] = _value(text, {} if path else found, schema)
    return built


def _property(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = schema.get("properties", {}).get(key, {})
    return found


def _value(text: str, found: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """Return the text as what the schema asks for: as it is where it may be a text, else as JSON, else as it is."""
    types = _types(found, schema)
    if "string" in types and not (text.startswith(("[", "{")) and types & {"array", "object"}):
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text  # the unit says what it expected


def _types(found: Mapping[str, Any], schema: Mapping[str, Any]) -> set[str]:
    if reference := found.get("$ref"):
        found = schema.get("$defs", {}).get(str(reference).rpartition("/")[2], {})
    types = {found["type"]} if isinstance(found.get("type"), str) else set(found.get("type", ()))
    for other in found.get("anyOf", ()):
        types |= _types(other, schema)
    if "enum" in found or "const" in found:
        types.add("string")
    return types
