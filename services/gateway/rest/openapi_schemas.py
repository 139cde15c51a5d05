"""Moves the definitions (`$defs`) of the units' JSON Schemas to the components of one OpenAPI document. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from aima_core.bus.directory import UnitInfo

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]")

Json = dict[str, Any]


class Schemas:
    """Collects the document's schemas: `components` by name."""

    def __init__(self) -> None:
        self.components: dict[str, Any] = {}
        self._sources: dict[str, bytes] = {}

    def of(self, unit: UnitInfo, schema: Any) -> Any:
        """Return a part of a unit's input schema. Its references now point to components of the document."""
        return self._moved(schema, self._names(unit, unit.input))

    def root(self, unit: UnitInfo, which: str, schema: Mapping[str, Any]) -> Json:
        """Add a unit's whole schema to the components, and return a reference to it."""
        name = f"{unit.name}.{which}"
        bare = {key: value for key, value in schema.items() if key != "$defs"}
        self.components[name] = self._moved(bare, self._names(unit, schema))
        return {"$ref": f"#/components/schemas/{name}"}

    def _names(self, unit: UnitInfo, schema: Mapping[str, Any]) -> dict[str, str]:
        """Add the definitions of a schema to the components, and return the component name of each."""
        definitions = schema.get("$defs")
        if not isinstance(definitions, dict):
            return {}
        names = {}
        for key in definitions:
            plain = _NOT_IN_A_NAME.sub("_", key)
            shared = f"{unit.domain}.{plain}"
            source = msgspec.json.encode(_reached(key, definitions), order="deterministic")
            names[key] = shared if self._sources.setdefault(shared, source) == source else f"{unit.name}.{plain}"
        for key, name in names.items():
            if name not in self.components:
                # a placeholder while the definition is moved, because it may refer to itself
                self.components[name] = True
                self.components[name] = self._moved(definitions[key], names)
        return names

    def _moved(self, schema: Any, names: Mapping[str, str]) -> Any:
        if isinstance(schema, list):
            return [self._moved(item, names) for item in schema]
        if not isinstance(schema, dict):
            return schema
        moved = {key: self._moved(value, names) for key, value in schema.items()}
        target = schema.get("$ref")
        if isinstance(target, str):
            name = names.get(target.removeprefix("#/$defs/"))
            if name is None:
                del moved["$ref"]  # the definition is missing: allow any value
            else:
                moved["$ref"] = f"#/components/schemas/{name}"
        return moved


def _reached(key: str, definitions: Mapping[str, Any]) -> Json:
    """Return a definition and all definitions that it refers to, directly or indirectly."""
    reached: Json = {}
    names = [key]
    while names:
        name = names.pop()
        if name in reached or name not in definitions:
            continue
        reached[name] = definitions[name]
        names += _targets(definitions[name])
    return reached


def _targets(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for item in schema:
            yield from _targets(item)
    elif isinstance(schema, dict):
        if isinstance(target := schema.get("$ref"), str):
            yield target.removeprefix("#/$defs/")
        for value in schema.values():
            yield from _targets(value)
