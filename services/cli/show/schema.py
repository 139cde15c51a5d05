"""Describes the values that a field accepts, and checks a value before it is sent. Pure.

The check never rejects a value that the unit accepts. It ignores unknown keywords of a schema; the unit checks them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

_ANY_SIZE = 2**53  # a larger bound is not shown: it only excludes infinite numbers
_NAMES = {"string": "text", "integer": "integer", "number": "number", "boolean": "true|false", "object": "object"}


def alternatives(schema: Schema | bool, root: Schema) -> list[Schema]:
    """Return the alternatives of a schema, with references resolved; a value must match one of them."""
    if isinstance(schema, bool):
        return [{}]  # `true` is a valid schema
    if reference := schema.get("$ref"):
        return alternatives(root.get("$defs", {}).get(str(reference).rpartition("/")[2], {}), root)
    options = schema.get("anyOf") or schema.get("oneOf")
    return [each for option in options for each in alternatives(option, root)] if options else [schema]


def types(schema: Schema, root: Schema) -> set[str]:
    """Return the JSON types that a schema accepts. An enumeration without a type counts as string."""
    kinds: set[str] = set()
    for each in alternatives(schema, root):
        kind = each.get("type", "string" if "enum" in each or "const" in each else ())
        kinds |= {kind} if isinstance(kind, str) else set(kind)
    return kinds


def choices(schema: Schema, root: Schema) -> list[Any]:
    """Return the enumerated values; empty if the schema has none."""
    return [value for each in alternatives(schema, root) for value in _values(each)]


def items(schema: Schema, root: Schema) -> Schema:
    """Return the schema of a list's items, also if the field accepts other types besides a list."""
    each: Schema = next((each["items"] for each in alternatives(schema, root) if "items" in each), {})
    return each


def properties(schema: Schema, root: Schema) -> Mapping[str, Schema]:
    """Return the schemas of an object's fields; empty if they are not declared."""
    known: Mapping[str, Schema] = next(
        (each["properties"] for each in alternatives(schema, root) if "properties" in each), {}
    )
    return known


def short(schema: Schema, root: Schema) -> str:
    """Return a type in short: `integer 1..100`, `cpu|gpu`, `list of text`."""
    descriptions = [_short(each, root) for each in alternatives(schema, root) if each.get("type") != "null"]
    return " or ".join(dict.fromkeys(descriptions)) or "anything"


def expected(schema: Schema, root: Schema) -> str:
    """Return the accepted values for an error message after "expected", such as `a whole number from 1 to 100`."""
    descriptions = [_expected(each, root) for each in alternatives(schema, root) if each.get("type") != "null"]
    return ", or ".join(dict.fromkeys(descriptions)) or "anything"


def faults(value: Any, schema: Schema, root: Schema, path: str) -> Iterator[tuple[str, str]]:
    """Yield each mismatch between a value and a schema: its path, and a description of the expected value."""
    descriptions: list[tuple[str, str]] = []
    for each in alternatives(schema, root):
        mismatches = list(_faults(value, each, root, path))
        if not mismatches:
            return
        if _is(value, each.get("type")) and not descriptions:
            descriptions = mismatches  # report the alternative whose type the value has
    yield from descriptions or [(path, expected(schema, root))]


def _values(each: Schema) -> list[Any]:
    return [each["const"]] if "const" in each else list(each.get("enum", ()))


def _short(each: Schema, root: Schema) -> str:
    if values := _values(each):
        return "|".join(map(str, values))
    kind = each.get("type")
    if kind == "array":
        return f"list of {short(each.get('items', {}), root)}"
    bounds = _bounds(each)
    return " ".join(filter(None, (_NAMES.get(str(kind), "anything"), bounds)))


def _bounds(each: Schema) -> str:
    least, most = each.get("minimum"), _most(each)
    if least is not None and most is not None:
        return f"{least}..{most}"
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    return " ".join(f"{sign} {each[key]}" for key, sign in signs.items() if key in each and _is_real_bound(each[key]))


def _most(each: Schema) -> Any:
    most = each.get("maximum")
    return most if most is not None and _is_real_bound(most) else None


def _is_real_bound(bound: Any) -> bool:
    return bool(abs(bound) < _ANY_SIZE)


def _expected(each: Schema, root: Schema) -> str:
    if values := _values(each):
        return f"one of {', '.join(map(str, values))}" if len(values) > 1 else str(values[0])
    match each.get("type"):
        case "integer":
            return f"a whole number{_range(each)}"
        case "number":
            return f"a number{_range(each)}"
        case "boolean":
            return "true or false"
        case "string":
            return f"a text{_form(each)}"
        case "array":
            most = f" of at most {each['maxItems']}" if "maxItems" in each else ""
            return f"a list{most}, each {expected(each.get('items', {}), root)}"
        case "object":
            known = each.get("properties")
            return f"a JSON object with {', '.join(known)}" if known else "a JSON object"
    return "anything"


def _range(each: Schema) -> str:
    least, most = each.get("minimum"), _most(each)
    if least is not None and most is not None:
        return f" from {least} to {most}"
    words = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
    descriptions = [f"{word} {each[key]}" for key, word in words.items() if key in each and _is_real_bound(each[key])]
    return f", {' and '.join(descriptions)}" if descriptions else ""


def _form(each: Schema) -> str:
    if pattern := each.get("pattern"):
        such = f" such as {each['examples'][0]}" if each.get("examples") else ""
        return f"{such} ({pattern})" if such else f" that matches {pattern}"
    least, most = each.get("minLength"), each.get("maxLength")
    if most is not None:
        return f" of {least or 0} to {most} characters"
    return f" of at least {least} characters" if least else ""


def _is(value: Any, kind: Any) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, Mapping)
    return True


def _faults(value: Any, each: Schema, root: Schema, path: str) -> Iterator[tuple[str, str]]:
    values = _values(each)
    if not _is(value, each.get("type")) or (values and value not in values):
        yield path, expected(each, root)
    elif isinstance(value, str):
        if not _well_formed(value, each):
            yield path, expected(each, root)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not _within(value, each):
            yield path, expected(each, root)
    elif isinstance(value, list):
        if not each.get("minItems", 0) <= len(value) <= each.get("maxItems", len(value)):
            yield path, _expected(each, root)
        for index, item in enumerate(value):
            yield from faults(item, each.get("items", {}), root, f"{path}.{index}")
    elif isinstance(value, Mapping):
        yield from _object(value, each, root, path)


def _within(value: float, each: Schema) -> bool:
    return (
        value >= each.get("minimum", value)
        and value <= each.get("maximum", value)
        and ("exclusiveMinimum" not in each or value > each["exclusiveMinimum"])
        and ("exclusiveMaximum" not in each or value < each["exclusiveMaximum"])
    )


def _well_formed(value: str, each: Schema) -> bool:
    if not each.get("minLength", 0) <= len(value) <= each.get("maxLength", len(value)):
        return False
    with contextlib.suppress(re.error):  # Python cannot read every pattern of JSON Schema
        return "pattern" not in each or re.search(each["pattern"], value) is not None
    return True


def _object(value: Mapping[str, Any], each: Schema, root: Schema, path: str) -> Iterator[tuple[str, str]]:
    known: Mapping[str, Schema] = each.get("properties", {})
    for name in _missing(value, each):
        yield f"{path}.{name}", f"{expected(known.get(name, {}), root)}, which is required"
    for name, inner in value.items():
        if name in known:
            yield from faults(inner, known[name], root, f"{path}.{name}")
        elif each.get("additionalProperties") is False:
            yield f"{path}.{name}", f"one of {', '.join(known)}"


def _missing(value: Mapping[str, Any], each: Schema) -> Sequence[str]:
    return [name for name in each.get("required", ()) if name not in value]
