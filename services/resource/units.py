"""The public contract of the resource domain: budgets, slots, pressure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from aima_core.errors import Conflict, InsufficientResources, NotFound
from aima_core.units import LARGEST, Command, Event, Query, Ref, StreamVersion, Success, View

SlotType = Literal["inference_native", "docker_container", "system_service"]
SlotStatus = Literal["active", "idle", "preempted"]
Pressure = Literal["low", "medium", "high", "critical"]
Lack = Literal["memory", "system", "accelerator"]

REFUSALS = ("INSUFFICIENT_MEMORY", "SYSTEM_MEMORY_LOW", "NO_ACCELERATOR", "INSUFFICIENT_ACCELERATORS")
"""The reasons for which an allocation can be refused."""

SlotId = Annotated[
    str,
    Ref("resource"),
    Field(pattern=r"^slot-[a-z0-9][a-z0-9-]{0,119}$", description="Id of a slot.", examples=["slot-eng-1-1"]),
]


def slot_of(name: str) -> str:
    """Return the id of the slot with this name. So a caller can release a slot even if the reply was lost."""
    return f"slot-{name}"


# --- events -------------------------------------------------------------------------------------------------------


class CapacityChanged(Event, unit="resource.capacity_changed", stream="node", frozen=True, kw_only=True):
    """The capacity of a machine has changed. `memory`, `system_reserve` and `storage` are in bytes.

    `accelerators` is the number of GPUs, and `accelerator_ids` has their ids.
    """

    node: str
    memory: int
    system_reserve: int
    storage: int
    accelerators: int
    accelerator_ids: tuple[str, ...] = ()


class Allocated(Event, unit="resource.allocated", stream="slot_id", frozen=True, kw_only=True):
    """Memory (in bytes) and a fraction of an accelerator were reserved. `at` is the time in Unix seconds."""

    slot_id: str
    name: str
    type: str
    memory: int
    gpu_fraction: float
    priority: int
    owner: str
    at: float = 0.0


class Released(Event, unit="resource.released", stream="slot_id", frozen=True, kw_only=True):
    """A slot was released."""

    slot_id: str


class SlotUpdated(Event, unit="resource.slot_updated", stream="slot_id", frozen=True, kw_only=True):
    """The limit (bytes) or the status of a slot has changed."""

    slot_id: str
    memory_limit: int
    status: SlotStatus


class Preempted(Event, unit="resource.preemption", stream="slot_id", frozen=True, kw_only=True):
    """A slot has lost its memory to the slot `by_slot_id`, which has a higher priority.

    If `by_slot_id` is empty, a caller has requested the preemption.
    """

    slot_id: str
    reason: str
    by_slot_id: str


class PressureWarning(Event, unit="resource.pressure_warning", stream="node", frozen=True, kw_only=True):
    """The memory pressure has risen or fallen to another level. `threshold` is the crossed threshold, in percent."""

    node: str
    pressure: Pressure
    threshold: float


Events = CapacityChanged | Allocated | Released | SlotUpdated | Preempted | PressureWarning
EVENTS: tuple[type[Event], ...] = Events.__args__


# --- views --------------------------------------------------------------------------------------------------------


class Slot(View, stream="slot_id"):
    """A slot: memory and a fraction of an accelerator that are reserved for one holder. Memory is in bytes."""

    slot_id: str
    name: str
    type: SlotType
    memory: int
    gpu_fraction: float
    priority: int
    status: SlotStatus
    owner: str = Field(description="The principal that requested the slot, or the id of the event that caused it.")
    since: str
    stream_version: StreamVersion = None


class MemoryView(View):
    """The memory of the machine, in bytes."""

    total: int
    used: int = Field(description="Memory that all programs on the machine use.")
    available: int = Field(description="Memory that the system has available now.")
    reserved: int = Field(description="Sum of all slots except preempted ones.")
    budget: int = Field(description="Maximum memory that all slots together may hold.")


class StorageView(View):
    """The disk that holds the data folder, in bytes."""

    total: int
    used: int
    available: int


class Status(View):
    """The machine's memory, disk, slots and memory pressure."""

    memory: MemoryView
    storage: StorageView
    slots: list[Slot]
    pressure: Pressure


class Pool(View):
    """The budget of one resource. Memory is in bytes. Accelerators are a number of GPUs."""

    total: float
    reserved: float
    available: float


class Budget(View):
    """The memory that may be reserved, in bytes."""

    total: int
    reserved: int
    pools: dict[str, Pool] = Field(
        description="The budget of each resource: `memory`, and `accelerator` if the machine has a GPU."
    )


class Allocations(View):
    """A page of slots."""

    allocations: list[Slot]
    total: int


class SlotRef(View, stream="slot_id"):
    """The id of a reserved slot."""

    slot_id: str
    stream_version: StreamVersion = None


class Holder(View):
    """A slot that holds memory, in bytes."""

    slot_id: str
    name: str
    memory: int
    priority: int
    status: SlotStatus


class CanAllocate(View):
    """Whether memory can be reserved, and which slots hold memory. Memory is in bytes."""

    can_allocate: bool
    reason: str | None = Field(
        None,
        description="The missing memory, the slots that hold memory, and the next step; null if the memory is free.",
    )
    requested: int = Field(description="Bytes of all requested reservations together.")
    available: int = Field(
        description="Bytes that are free without preemption: in the budget or in the system, whichever is less."
    )
    missing: int | None = Field(description="Missing bytes; null if no memory is missing.")
    lacking: Lack | None = Field(
        description="The missing resource; null if none. memory: the budget is too small; system: the system has too"
        " little memory available; accelerator: too little of the GPUs is free."
    )
    holders: list[Holder] = Field(description="The slots that count against the budget, with the largest slot first.")
    would_preempt: list[str] = Field(description="Ids of the slots with a lower priority that would lose their memory.")


# --- commands -----------------------------------------------------------------------------------------------------


class Allocate(
    Command[SlotRef],
    unit="resource.allocate",
    destructive=True,
    idempotent=True,
    stream="slot_id",
    errors=(InsufficientResources, Conflict),
    events=(Allocated, Preempted, PressureWarning),
    examples=({"name": "eng-llamacpp-7f3a09c1-1", "type": "inference_native", "memory_bytes": 400_000_000},),
):
    """Reserve memory and a fraction of an accelerator under a name. Idempotent for the same name and size."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,119}$", description="Name of the holder. Each holder has one slot."
    )
    type: SlotType = Field(description="Kind of the holder.")
    memory_bytes: int = Field(ge=0, description="Bytes of memory to reserve.")
    gpu_fraction: float = Field(0, ge=0, le=1, description="Fraction of one accelerator, 0 to 1.")
    priority: int = Field(
        5, ge=0, le=100, description="Priority. If memory is short, slots with a lower priority lose their memory."
    )

    @property
    def slot_id(self) -> str:
        """The slot's id, derived from the name."""
        return slot_of(self.name)


class Release(
    Command[Success],
    unit="resource.release",
    destructive=True,
    idempotent=True,
    stream="slot_id",
    errors=(),
    events=(Released,),
    examples=({"slot_id": "slot-eng-llamacpp-7f3a09c1-1"},),
):
    """Release a slot. Does nothing if there is no such slot."""

    slot_id: SlotId


class UpdateSlot(
    Command[Success],
    unit="resource.update_slot",
    destructive=True,
    idempotent=True,
    stream="slot_id",
    errors=(NotFound, InsufficientResources),
    events=(SlotUpdated, Preempted),
    examples=({"slot_id": "slot-eng-llamacpp-7f3a09c1-1", "memory_limit": 380_000_000},),
):
    """Change the memory limit or the status of a slot."""

    slot_id: SlotId
    memory_limit: int | None = Field(None, ge=0, description="New limit in bytes; default: unchanged.")
    status: SlotStatus | None = Field(
        None, description="New status; default: unchanged. Idle slots are preempted before active slots."
    )


class GetStatus(Query[Status], unit="resource.status"):
    """Return the machine's memory and storage, the slots, and the memory pressure."""


class GetBudget(Query[Budget], unit="resource.budget"):
    """Return how much memory and how many accelerators may be reserved, are reserved, and are free."""


class ListAllocations(Query[Allocations], unit="resource.allocations", examples=({}, {"type": "inference_native"})):
    """List the slots, with the holder and the memory of each."""

    slot_id: SlotId | None = Field(None, description="Return only this slot.")
    type: SlotType | None = Field(None, description="Return only slots of this type.")
    limit: int = Field(100, ge=1, le=1000, description="Maximum number of slots to return.")
    offset: int = Field(0, ge=0, le=LARGEST, description="Number of slots to skip.")


class AskCanAllocate(Query[CanAllocate], unit="resource.can_allocate", examples=({"memory_bytes": 400_000_000},)):
    """Return whether memory can be reserved now. If not, says what is missing, which slots hold it, and what to do."""

    memory_bytes: int = Field(ge=0, description="Bytes of each reservation.")
    gpu_fraction: float = Field(0, ge=0, le=1, description="Fraction of one accelerator, for each reservation.")
    count: int = Field(1, ge=1, le=100, description="Number of reservations. All of them must fit.")
    priority: int = Field(5, ge=0, le=100, description="Priority of the reservations.")
    freeing: list[SlotId] = Field([], max_length=100, description="Ids of slots to treat as already released.")


Commands = Allocate | Release | UpdateSlot
COMMANDS: tuple[type[Command[Any]], ...] = Commands.__args__
Queries = GetStatus | GetBudget | ListAllocations | AskCanAllocate
QUERIES: tuple[type[Query[Any]], ...] = Queries.__args__
