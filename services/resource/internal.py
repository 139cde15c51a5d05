"""Commands of the resource domain to itself: what only the machine knows, and what an allocation decides on."""

from __future__ import annotations

from pydantic import Field

from aima_core.units import Command, Success
from services.resource.units import Allocate


class DecideAllocation(Allocate, unit="resource.decide_allocation", stream="slot_id"):
    """An Allocate with what deciding needs to know of the machine."""

    available: int = Field(ge=0, description="Bytes that the system could give right now.")


class RecordCapacity(Command[Success], unit="resource.record_capacity"):
    """The machine has so much; bytes."""

    memory: int = Field(ge=0)
    system_reserve: int = Field(ge=0)
    storage: int = Field(ge=0)


class RecordAccelerator(Command[Success], unit="resource.record_accelerator"):
    """A GPU is there, or is there no more. Those of other nodes are none of our business."""

    node: str
    device_id: str
    present: bool


class RecordPressure(Command[Success], unit="resource.record_pressure"):
    """So much memory is in use, percent of the machine's."""

    used_percent: float = Field(ge=0, le=100)
