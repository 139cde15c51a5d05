"""Builds the answer of a dry run: the events that a command would record, and the effects that it would start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from aima_core.domain import Domain, S
from aima_core.store.records import Planned
from aima_core.units import Event

PLAN_SCHEMA: Mapping[str, Any] = {
    "title": "Plan",
    "type": "object",
    "description": "The answer of a dry run. Nothing was recorded.",
    "required": ["events", "effects", "version"],
    "properties": {
        "events": {
            "type": "array",
            "description": "The events that the command would record, in order.",
            "items": {
                "type": "object",
                "required": ["type", "stream", "data"],
                "properties": {"type": {"type": "string"}, "stream": {"type": "string"}, "data": {"type": "object"}},
            },
        },
        "effects": {
            "type": "array",
            "description": "The work that the command would start, with the fields of each effect.",
            "items": {"type": "object", "required": ["effect"], "properties": {"effect": {"type": "string"}}},
        },
        "version": {
            "type": "integer",
            "description": "Version of the command's stream. As the expected version, it applies this plan or fails.",
        },
    },
}
"""The JSON Schema of a plan."""


def plan_of(domain: Domain[S], world: Mapping[str, S], events: Sequence[Event], version: int) -> Planned:
    """Return the plan for the decided events of a command. `version` is the current version of the command's stream."""
    effects: list[dict[str, Any]] = []
    for stream in dict.fromkeys(event.stream for event in events):
        state = world.get(stream)
        before = set(domain.todo(state)) if state is not None else set()
        for event in events:
            if event.stream == stream:
                state = domain.evolve(state, event)
        after = domain.todo(state) if state is not None else ()
        effects += [
            {"effect": type(effect).__name__, **msgspec.to_builtins(effect)} for effect in after if effect not in before
        ]
    return Planned(
        [{"type": event.unit, "stream": event.stream, "data": msgspec.to_builtins(event)} for event in events],
        effects,
        version,
    )
