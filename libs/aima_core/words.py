"""Turns text, such as `key=value` words or a query string, into a unit's input by the types of its schema. Pure."""

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
        where[last] = typed(text, {} if path else found, schema)
    return built


def read_query(pairs: Sequence[tuple[str, str]], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input that a query string spells: a key that comes again, or is a list, makes one."""
    built: dict[str, Any] = {}
    for key, text in pairs:
        found = _property(schema, key)
        if "array" in _types(found, schema) and not text.startswith("["):
            value = typed(text, _items(found), schema)
            built[key] = [*built.get(key, ()), value] if isinstance(built.get(key, []), list) else [value]
        else:
            built[key] = typed(text, found, schema)
    return built


def _property(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = schema.get("properties", {}).get(key, {})
    return found


def typed(text: str, found: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """Return the text as what the schema asks for: as it is where it may be a text, else as JSON, else as it is."""
    types = _types(found, schema)
    if "string" in types and not (text.startswith(("[", "{")) and types & {"array", "object"}):
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
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
