"""Moving what JSON Schemas define for themselves to the components of one document. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from aima_core.bus.directory import UnitInfo

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]")

Json = dict[str, Any]


class Schemas:
    """The schemas of the document, by name, as they are collected."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self._sources: dict[str, bytes] = {}

    def of(self, unit: UnitInfo, schema: Any) -> Any:
        """Return a part of a unit's input that refers to the components."""
        return self._moved(schema, self._names(unit, unit.input))

    def root(self, unit: UnitInfo, which: str, schema: Mapping[str, Any]) -> Json:
        """Return a reference to a whole schema of a unit."""
        name = f"{unit.name}.{which}"
        bare = {key: value for key, value in schema.items() if key != "$defs"}
        self.found[name] = self._moved(bare, self._names(unit, schema))
        return {"$ref": f"#/components/schemas/{name}"}

    def _names(self, unit: UnitInfo, schema: Mapping[str, Any]) -> dict[str, str]:
        """Return under which name each definition of a schema stands, and see to it that it does."""
        defined = schema.get("$defs")
        if not isinstance(defined, dict):
            return {}
        names = {}
        for key in defined:
            plain = _NOT_IN_A_NAME.sub("_", key)
            shared = f"{unit.domain}.{plain}"
            source = msgspec.json.encode(_reached(key, defined), order="deterministic")
            names[key] = shared if self._sources.setdefault(shared, source) == source else f"{unit.name}.{plain}"
        for key, name in names.items():
            if name not in self.found:
                self.found[name] = True  # while its own definition is moved, which may refer to it
                self.found[name] = self._moved(defined[key], names)
        return names

    def _moved(self, schema: Any, names: Mapping[str, str]) -> Any:
        if isinstance(schema, list):
            return [self._moved(each, names) for each in schema]
        if not isinstance(schema, dict):
            return schema
        moved = {key: self._moved(value, names) for key, value in schema.items()}
        target = schema.get("$ref")
        if isinstance(target, str):
            name = names.get(target.removeprefix("#/$defs/"))
            if name is None:
                del moved["$ref"]  # it leads nowhere: anything goes
            else:
                moved["$ref"] = f"#/components/schemas/{name}"
        return moved


def _reached(key: str, defined: Mapping[str, Any]) -> Json:
    """Return a definition with all others that it leads to."""
    found: Json = {}
    left = [key]
    while left:
        name = left.pop()
        if name in found or name not in defined:
            continue
        found[name] = defined[name]
        left += _targets(defined[name])
    return found


def _targets(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for each in schema:
            yield from _targets(each)
    elif isinstance(schema, dict):
        if isinstance(target := schema.get("$ref"), str):
            yield target.removeprefix("#/$defs/")
        for value in schema.values():
            yield from _targets(value)
