"""The internal commands of the resource domain: measurements of the machine, and a prepared allocation."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from aima_core.units import Command, Success
from services.resource.units import Allocate


class DecideAllocation(Allocate, unit="resource.decide_allocation", stream="slot_id"):
    """Decide an `Allocate`. The command also has the memory that the system has available."""

    available: int = Field(ge=0, description="Bytes that the system has available now.")


class RecordCapacity(Command[Success], unit="resource.record_capacity"):
    """Record the capacity of the machine, in bytes."""

    memory: int = Field(ge=0)
    system_reserve: int = Field(ge=0)
    storage: int = Field(ge=0)


class RecordAccelerator(Command[Success], unit="resource.record_accelerator"):
    """Record that a GPU was detected or removed. GPUs of other nodes are ignored."""

    node: str
    device_id: str
    present: bool


class RecordPressure(Command[Success], unit="resource.record_pressure"):
    """Record the used memory, in percent of the machine's memory."""

    used_percent: float = Field(ge=0, le=100)


Commands = DecideAllocation | RecordCapacity | RecordAccelerator | RecordPressure
COMMANDS: tuple[type[Command[Any]], ...] = Commands.__args__
