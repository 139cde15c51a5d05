"""Turns a unit's schema into flags, and typed flags into the unit's input. Pure.

The form depends on the type of the field:

    --replicas 2                    a number, a text, one of several values
    --wait / --no-wait              a boolean
    --stop a --stop b               a list; also --stop '["a", "b"]'
    --config.slots 2                a field of an object; also --config slots=2, --config '{"slots": 2}'
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from aima_core.bus.directory import UnitInfo
from aima_core.errors import ValidationFailed
from aima_core.text_input import typed
from services.cli.show import schema as schemas

RESERVED = frozenset({"--url", "--api-key", "--help"})  # parsed before AIMA knows the unit
Kind = Literal["value", "switch", "list", "object"]

_DOTTED = re.compile(r"(--[A-Za-z0-9_-]+)\.([^=]+)(?:=(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Flag:
    """A field of a unit as a flag. `schema`: the schema of the field. `root`: the schema of the whole input."""

    field: str
    name: str
    kind: Kind
    required: bool
    schema: schemas.Schema
    root: schemas.Schema

    @property
    def is_base64(self) -> bool:
        """Whether the field holds a file as base64 text."""
        return self.schema.get("contentEncoding") == "base64"

    @property
    def takes(self) -> str:
        """The accepted values in short, such as `integer 1..100`."""
        if self.is_base64:
            return "base64 text, or @file"
        each = schemas.items(self.schema, self.root) if self.kind == "list" else self.schema
        return schemas.short(each or self.schema, self.root)

    @property
    def description(self) -> str:
        return str(self.schema.get("description", "")).rstrip()

    @property
    def default(self) -> str:
        """The default as text; empty if there is none."""
        default = self.schema.get("default")
        return "" if default in (None, "", [], {}) else _text(default)


def flags_of(unit: UnitInfo) -> list[Flag]:
    """Return a flag for each field of a unit, required ones first."""
    required = unit.input.get("required", ())
    flags = [
        Flag(field, _name(field), _kind(each, unit.input), field in required, each, unit.input)
        for field, each_schema in unit.input.get("properties", {}).items()
        for each in (each_schema if isinstance(each_schema, Mapping) else {},)  # `true` is a valid schema
    ]
    return sorted(flags, key=lambda flag: not flag.required)


def inner(flag: Flag) -> list[Flag]:
    """Return a flag such as `--config.slots` for each declared field of an object. `undotted` parses these flags."""
    if flag.kind != "object":
        return []
    known = schemas.properties(flag.schema, flag.root)
    return [
        Flag(f"{flag.field}.{key}", f"{flag.name}.{key.replace('_', '-')}", "value", False, each, flag.root)
        for key, each in known.items()
    ]


def undotted(words: Sequence[str], flags: Iterable[Flag]) -> list[str]:
    """Rewrite `--config.slots 2` as `--config slots=2`. A dotted flag without a value stays unchanged."""
    objects = {flag.name: flag for flag in flags if flag.kind == "object"}
    rewritten: list[str] = []
    rest = iter(words)
    for word in rest:
        dotted = _DOTTED.fullmatch(word)
        name = dotted[1].replace("_", "-") if dotted else ""
        if word == "--":
            return [*rewritten, word, *rest]
        if not dotted or name not in objects:
            rewritten.append(word)
            continue
        value = dotted[3] if dotted[3] is not None else next(rest, None)
        rewritten += [word] if value is None else [name, f"{_path(objects[name], dotted[2])}={value}"]
    return rewritten


def read(flags: Iterable[Flag], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the unit's input. Raises ValidationFailed; the error names every invalid flag."""
    data: dict[str, Any] = {}
    wrong: list[tuple[Flag, str, str]] = []
    for flag in flags:
        value = given.get(flag.field)
        if value is None or (flag.kind in ("list", "object") and not value):
            if flag.required:
                wrong.append((flag, flag.field, "required"))
            continue
        try:
            data[flag.field] = _READ[flag.kind](flag, value)
        except ValueError as error:
            wrong.append((flag, flag.field, str(error)))
            continue
        faults = schemas.faults(data[flag.field], flag.schema, flag.root, flag.field)
        wrong += [(flag, where, expected) for where, expected in faults]
    if wrong:
        raise _refusal(wrong, given)
    return data


def named(error: ValidationFailed, flags: Iterable[Flag]) -> ValidationFailed:
    """Return a unit's ValidationFailed, with names of flags in place of names of fields."""
    names = {flag.field: flag.name for flag in flags}
    typed: dict[str, str] = {}
    for fault in error.details.get("fields", ()):
        field = str(fault.get("field"))
        known = field if field in names else field.partition(".")[0]
        if known in names:
            typed[field] = names[known] + field[len(known) :]
    if not typed:
        return error
    fields = [{**each, "field": typed[each["field"]]} for each in error.details["fields"] if each.get("field") in typed]
    message = "; ".join(f"{fault['field']}: {fault['expected']}" for fault in fields)
    if error.message.startswith(
        tuple(f"{field}: " for field in typed)
    ):  # keep a message with more detail than the fields
        each = "|".join(map(re.escape, typed))
        message = re.sub(rf"(^|; )({each})(?=: )", lambda match: match[1] + typed[match[2]], error.message)
    return ValidationFailed(message, **{**error.details, "fields": fields})


def _refusal(wrong: Sequence[tuple[Flag, str, str]], given: Mapping[str, Any]) -> ValidationFailed:
    messages = [_message(flag, where, expected, given.get(flag.field)) for flag, where, expected in wrong]
    fields = [{"field": where, "expected": expected} for _, where, expected in wrong]
    return ValidationFailed("; ".join(messages), fields=fields)


def _message(flag: Flag, where: str, expected: str, value: Any) -> str:
    if expected == "required":
        return f"{flag.name} is required: {flag.description or flag.takes}".rstrip(".")
    # the message does not repeat a free text, which may be secret or long
    free = "string" in schemas.types(flag.schema, flag.root) and not schemas.choices(flag.schema, flag.root)
    got = "" if free or where != flag.field or not isinstance(value, str) else f", not {value}"
    return f"{flag.name}{where[len(flag.field) :]}: expected {expected}{got}"


def _name(field: str) -> str:
    name = "--" + field.replace("_", "-")
    return f"--field-{name[2:]}" if name in RESERVED else name


def _kind(schema: schemas.Schema, root: schemas.Schema) -> Kind:
    kinds = schemas.types(schema, root) - {"null"}
    if "array" in kinds:
        return "list"
    if kinds == {"boolean"}:
        return "switch"
    return "object" if kinds == {"object"} else "value"


def _value(flag: Flag, text: str) -> Any:
    return typed(text, flag.schema, flag.root)


def _list(flag: Flag, texts: Sequence[str]) -> Any:
    each = schemas.items(flag.schema, flag.root)
    if len(texts) == 1 and not texts[0].startswith("[") and "string" in schemas.types(flag.schema, flag.root):
        return texts[0]  # the field accepts a single text as well
    values: list[Any] = []
    for text in texts:
        values += _json(text, list) if text.startswith("[") else [typed(text, each, flag.root)]
    return values


def _object(flag: Flag, texts: Sequence[str]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for text in texts:
        if text.startswith("{"):
            more = _json(text, dict)
            _refuse_repeats(data.keys() & more.keys())
            data |= more
            continue
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise ValueError(f"{schemas.expected(flag.schema, flag.root)}, or key=value")
        _put(data, path.split("."), value, flag)
    return data


def _path(flag: Flag, dotted: str) -> str:
    """Return a dotted path with the declared spelling of its first name: the user may type dashes for underscores."""
    first, dot, rest = dotted.partition(".")
    known = {key.replace("_", "-"): key for key in schemas.properties(flag.schema, flag.root)}
    return known.get(first.replace("_", "-"), first) + dot + rest


def _put(data: dict[str, Any], path: Sequence[str], text: str, flag: Flag) -> None:
    """Set the value at a path in an object. Converts the text to the type that the object's schema declares, if any."""
    schema = flag.schema
    for part in path[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise ValueError(f"{part} to be an object; it already has a value")
        schema = schemas.properties(schema, flag.root).get(part, {})
    _refuse_repeats(data.keys() & {path[-1]})
    data[path[-1]] = typed(text, schemas.properties(schema, flag.root).get(path[-1], {}), flag.root)


def _refuse_repeats(keys: Iterable[str]) -> None:
    """Raise ValueError for a key of an object that is given more than once."""
    for key in keys:
        raise ValueError(f"{key} only once")


def _json(text: str, shape: type) -> Any:
    try:
        return msgspec.json.decode(text, type=shape)
    except msgspec.MsgspecError as error:
        raise ValueError(f"JSON ({error})") from None


def _switch(_: Flag, value: bool) -> bool:
    return value


_READ: Mapping[Kind, Callable[[Flag, Any], Any]] = {
    "value": _value,
    "switch": _switch,
    "list": _list,
    "object": _object,
}


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return value if isinstance(value, str) else json.dumps(value)
