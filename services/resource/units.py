"""The public contract of the resource domain: budgets, slots, pressure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from aima_core.errors import Conflict, InsufficientResources, NotFound
from aima_core.units import LARGEST, Command, Event, Query, Success, View

SlotType = Literal["inference_native", "docker_container", "system_service"]
SlotStatus = Literal["active", "idle", "preempted"]
Pressure = Literal["low", "medium", "high", "critical"]
Lack = Literal["memory", "system", "accelerator"]

REFUSALS = ("INSUFFICIENT_MEMORY", "SYSTEM_MEMORY_LOW", "NO_ACCELERATOR", "INSUFFICIENT_ACCELERATORS")
"""The reasons for which something is not allocated."""

SlotId = Annotated[
    str, Field(pattern=r"^slot-[a-z0-9][a-z0-9-]{0,119}$", description="Id of a slot.", examples=["slot-eng-1-1"])
]


def slot_of(name: str) -> str:
    """Return the id of the slot with that name: known before it is asked for, so that it can always be released."""
    return f"slot-{name}"


# --- events -------------------------------------------------------------------------------------------------------


class CapacityChanged(Event, unit="resource.capacity_changed", stream="node", frozen=True, kw_only=True):
    """The machine has so much. `memory`, `system_reserve` and `storage` in bytes, `accelerators` in number of GPUs.

    `accelerator_ids` names these GPUs, so that hearing of one again counts it once.
    """

    node: str
    memory: int
    system_reserve: int
    storage: int
    accelerators: int
    accelerator_ids: tuple[str, ...] = ()


class Allocated(Event, unit="resource.allocated", stream="slot_id", frozen=True, kw_only=True):
    """Memory (bytes) and a fraction of an accelerator are somebody's.

    `at` in Unix seconds: of two that could make room, the older one does.
    """

    slot_id: str
    name: str
    type: str
    memory: int
    gpu_fraction: float
    priority: int
    owner: str
    at: float = 0.0


class Released(Event, unit="resource.released", stream="slot_id", frozen=True, kw_only=True):
    """They are free again."""

    slot_id: str


class SlotUpdated(Event, unit="resource.slot_updated", stream="slot_id", frozen=True, kw_only=True):
    """A slot has another limit (bytes) or status."""

    slot_id: str
    memory_limit: int
    status: SlotStatus


class Preempted(Event, unit="resource.preemption", stream="slot_id", frozen=True, kw_only=True):
    """A slot has lost its memory to one of higher priority."""

    slot_id: str
    reason: str
    by_slot_id: str


class PressureWarning(Event, unit="resource.pressure_warning", stream="node", frozen=True, kw_only=True):
    """Memory pressure has crossed a threshold (percent); once per crossing, either way."""

    node: str
    pressure: Pressure
    threshold: float


Events = CapacityChanged | Allocated | Released | SlotUpdated | Preempted | PressureWarning
EVENTS: tuple[type[Event], ...] = Events.__args__


# --- views --------------------------------------------------------------------------------------------------------


class Slot(View):
    """A reservation. Memory in bytes."""

    slot_id: str
    name: str
    type: SlotType
    memory: int
    gpu_fraction: float
    priority: int
    status: SlotStatus
    owner: str = Field(description="Who asked for it.")
    since: str


class MemoryView(View):
    """Memory of the machine, in bytes."""

    total: int
    used: int = Field(description="In use on the machine, by whomever.")
    available: int = Field(description="What can still be had from the system.")
    reserved: int = Field(description="Sum of the active slots.")
    budget: int = Field(description="What slots may have in all.")


class StorageView(View):
    """The disk that holds the data folder, in bytes."""

    total: int
    used: int
    available: int


class Status(View):
    """The machine's resources at a glance."""

    memory: MemoryView
    storage: StorageView
    slots: list[Slot]
    pressure: Pressure


class Pool(View):
    """A part of the budget. Memory in bytes, accelerators in number of GPUs."""

    total: float
    reserved: float
    available: float


class Budget(View):
    """What may be reserved, in bytes."""

    total: int
    reserved: int
    pools: dict[str, Pool] = Field(description="memory, and accelerator where there is one.")


class Allocations(View):
    """Slots."""

    allocations: list[Slot]
    total: int


class SlotRef(View):
    """A slot that is now held."""

    slot_id: str


class Holder(View):
    """Who holds memory, in bytes."""

    slot_id: str
    name: str
    memory: int
    priority: int
    status: SlotStatus


class CanAllocate(View):
    """Whether memory could be had, and who holds it. Memory in bytes."""

    can_allocate: bool
    reason: str | None = Field(None, description="Why not: how much is missing, and who holds it.")
    requested: int = Field(description="Of all the reservations together.")
    available: int = Field(description="What could be had with nobody making room: of the budget and of the system.")
    missing: int | None = Field(description="Null when nothing is, and when what is missing is an accelerator.")
    lacking: Lack | None = Field(description="What there is not enough of: memory of the budget, or of the system now.")
    holders: list[Holder] = Field(description="The slots that count against the budget, the largest first.")
    would_preempt: list[str] = Field(description="Ids of the slots of lower priority that would make room.")


# --- commands -----------------------------------------------------------------------------------------------------


class Allocate(
    Command[SlotRef],
    unit="resource.allocate",
    stream="slot_id",
    errors=(InsufficientResources, Conflict),
    events=(Allocated, Preempted, PressureWarning),
    examples=({"name": "eng-llamacpp-7f3a09c1-1", "type": "inference_native", "memory_bytes": 400_000_000},),
):
    """Reserve memory and a fraction of an accelerator under a name. Asking again for the same is the same slot."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,119}$", description="Whose it is; unique among the slots.")
    type: SlotType = Field(description="What kind of thing holds it.")
    memory_bytes: int = Field(ge=0, description="Bytes.")
    gpu_fraction: float = Field(0, ge=0, le=1, description="Of one accelerator.")
    priority: int = Field(5, ge=0, le=100, description="Slots of lower priority make room when there is none left.")

    @property
    def slot_id(self) -> str:
        """The slot's id, which follows from the name."""
        return slot_of(self.name)


class Release(
    Command[Success],
    unit="resource.release",
    stream="slot_id",
    errors=(),
    events=(Released,),
    examples=({"slot_id": "slot-eng-llamacpp-7f3a09c1-1"},),
):
    """Give a slot back. Nothing happens when it is free already."""

    slot_id: SlotId


class UpdateSlot(
    Command[Success],
    unit="resource.update_slot",
    stream="slot_id",
    errors=(NotFound, InsufficientResources),
    events=(SlotUpdated, Preempted),
    examples=({"slot_id": "slot-eng-llamacpp-7f3a09c1-1", "memory_limit": 380_000_000},),
):
    """Change a slot's limit, for example to what is really used, or its status."""

    slot_id: SlotId
    memory_limit: int | None = Field(None, ge=0, description="Bytes.")
    status: SlotStatus | None = Field(None, description="Of the slots of lower priority, an idle one makes room first.")


class GetStatus(Query[Status], unit="resource.status"):
    """Return memory, storage, slots and pressure."""


class GetBudget(Query[Budget], unit="resource.budget"):
    """Return what may be reserved, and how much of it is."""


class ListAllocations(Query[Allocations], unit="resource.allocations", examples=({}, {"type": "inference_native"})):
    """List the slots."""

    slot_id: SlotId | None = Field(None, description="Only this one.")
    type: SlotType | None = Field(None, description="Only of this type.")
    limit: int = Field(100, ge=1, le=1000, description="At most so many.")
    offset: int = Field(0, ge=0, le=LARGEST, description="Skip so many.")


class AskCanAllocate(Query[CanAllocate], unit="resource.can_allocate", examples=({"memory_bytes": 400_000_000},)):
    """Tell whether so much memory could be reserved now, and if not, what is missing and who holds it."""

    memory_bytes: int = Field(ge=0, description="Bytes of each reservation.")
    gpu_fraction: float = Field(0, ge=0, le=1, description="Of one accelerator, of each reservation.")
    count: int = Field(1, ge=1, le=100, description="So many reservations: all of them or none.")
    priority: int = Field(5, ge=0, le=100, description="With this priority.")
    freeing: list[SlotId] = Field(
        [], max_length=100, description="Slots that are about to be released: the answer is as if they were."
    )
