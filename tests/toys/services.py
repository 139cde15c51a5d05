"""A service domain that says what it is told to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from aima_core.domain import Domain
from aima_core.units import Command, Event, Success
from services.service import units as service
from tests.toys.stateless import Nothing

# what the service domain says of a replica that answers
REPLICA: dict[str, Any] = {
    "service_id": "svc-a",
    "replica": 0,
    "process_id": "p0",
    "endpoint": "http://127.0.0.1:9",
    "node": "n",
    "service_name": "a",
    "model_id": "toy",
    "model_name": "Toy",
    "model_type": "llm",
    "served_model": "served",
    "dialect": "openai",
    "tools": False,
    "engine": "toy",
}


class Say(Command[Success], unit="service.say"):
    """Record one of the service domain's events."""

    type: str
    data: dict[str, Any]


_BY_TYPE: Mapping[str, type[Event]] = {event.unit: event for event in service.EVENTS}

CRIER: Domain[Nothing] = Domain(
    name="service",
    about="A crier.",
    state=Nothing,
    events=service.EVENTS,
    commands=(Say,),
    decide=lambda _, said, __: [msgspec.convert(said.data, _BY_TYPE[said.type])],
    evolve=lambda *_: Nothing(),
    reply=lambda *_: Success(success=True),
)
