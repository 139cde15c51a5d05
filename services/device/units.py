"""The public contract of the device domain: what there is, how it does, how much it may draw."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from pydantic import Field

from aima_core.errors import Conflict, ExecutionFailed, Forbidden, NotFound, ValidationFailed
from aima_core.units import Command, Event, Page, Query, Success, View

DeviceType = Literal["cpu", "gpu", "disk"]
Status = Literal["healthy", "warning", "critical", "unknown"]
Metric = Literal["temperature", "memory"]

DeviceId = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9-]{1,63}-(cpu|gpu|disk)-[0-9]{1,4}$",
        description="Id of a device: node, type, number.",
        examples=["box-gpu-0"],
    ),
]
Which = Annotated[DeviceId | None, Field(description="Id of a device; default: the first GPU, else the CPU.")]


# --- events -------------------------------------------------------------------------------------------------------


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device as it is found. `memory` in bytes: main memory of a cpu, its own of a gpu, the capacity of a disk.

    `memory_bandwidth` in bytes per second: what can be read of that memory; None where it cannot be told.
    """

    id: str
    name: str
    vendor: str
    type: DeviceType
    architecture: str
    memory: int
    node: str
    capabilities: tuple[str, ...] = ()
    cores: int | None = None
    uuid: str | None = None
    memory_bandwidth: int | None = None


class DeviceDetected(Event, unit="device.detected", stream="device_id", frozen=True, kw_only=True):
    """A device is there that was not before, or it is another than it was."""

    device_id: str
    device: Device


class DeviceRemoved(Event, unit="device.removed", stream="device_id", frozen=True, kw_only=True):
    """A device that was there is not found any more.

    A fact of its own, not a bad health: health is of what exists, and whoever counts devices must stop counting it.
    """

    device_id: str


class HealthChanged(Event, unit="device.health_changed", stream="device_id", frozen=True, kw_only=True):
    """A device does better or worse than before."""

    device_id: str
    old_status: Status
    new_status: Status
    issues: tuple[str, ...]


class MetricsAlert(Event, unit="device.metrics_alert", stream="device_id", frozen=True, kw_only=True):
    """A reading has gone above a threshold; once per crossing. Temperatures in degrees Celsius, memory in percent."""

    device_id: str
    metric: Metric
    value: float
    threshold: float


class PowerLimitSet(Event, unit="device.power_limit_set", stream="device_id", frozen=True, kw_only=True):
    """A device may draw so much from now on. `previous_watts` is None only in a plan: nobody has asked it then."""

    device_id: str
    limit_watts: float
    previous_watts: float | None


Events = DeviceDetected | DeviceRemoved | HealthChanged | MetricsAlert | PowerLimitSet
EVENTS: tuple[type[Event], ...] = Events.__args__


# --- views --------------------------------------------------------------------------------------------------------

_CAPABILITIES = "What software may rely on, such as avx2, cuda, compute_9.0."
_CORES = "Logical processors, or shader cores; null when it does not tell."
_BANDWIDTH = (
    "Bytes per second that can be read of the memory: measured of a cpu, by its data of a gpu; null: not known."
)


class DeviceView(View):
    """A device in a list. `memory` in bytes."""

    id: str
    name: str
    vendor: str
    type: DeviceType
    memory: int


class Devices(View):
    """What there is."""

    devices: list[DeviceView]


class Info(View):
    """A device, as it stays for as long as it is there."""

    id: str
    name: str
    vendor: str
    type: DeviceType
    architecture: str
    capabilities: list[str] = Field(description=_CAPABILITIES)
    memory: int = Field(description="Bytes: main memory of a cpu, its own of a gpu, the capacity of a disk.")
    memory_bandwidth: int | None = Field(description=_BANDWIDTH)
    cores: int | None = Field(description=_CORES)
    node: str
    power_limit: float | None = Field(description="Watts, as set through device.set_power_limit; null when never set.")


class DeviceItem(View):
    """A device, as whoever chooses where something shall run sees it."""

    id: str
    name: str
    vendor: str
    type: DeviceType
    node: str
    memory: int = Field(description="Bytes: main memory of a cpu, its own of a gpu, the capacity of a disk.")
    memory_free: int | None = Field(
        description="Bytes of it that are free by the newest sample; null: it does not tell."
    )
    cores: int | None = Field(description=_CORES)
    capabilities: list[str] = Field(description=_CAPABILITIES)
    memory_bandwidth: int | None = Field(description=_BANDWIDTH)


class DeviceList(View):
    """Devices."""

    items: list[DeviceItem]
    total: int


class SampleView(View):
    """What a device read like at one moment; null: it did not tell."""

    at: str
    utilization: float | None = Field(description="Percent.")
    temperature: float | None = Field(description="Degrees Celsius.")
    power: float | None = Field(description="Watts.")
    memory_used: int | None = Field(description="Bytes.")
    memory_total: int = Field(description="Bytes.")


class Metrics(SampleView):
    """The newest sample, and those before it when asked for."""

    device_id: str
    history: list[SampleView] | None = Field(None, description="Samples, oldest first; only when asked for.")


class Health(View):
    """How a device does."""

    device_id: str
    status: Status
    issues: list[str] = Field(description="What is wrong, in words; empty when nothing is.")


# --- commands -----------------------------------------------------------------------------------------------------


class Detect(Command[Devices], unit="device.detect", events=(DeviceDetected, DeviceRemoved)):
    """Look for devices, and list those that are there. Only what is new, changed or gone is recorded."""


class SetPowerLimit(
    Command[Success],
    unit="device.set_power_limit",
    stream="device_id",
    errors=(NotFound, Conflict, ValidationFailed, Forbidden, ExecutionFailed),
    events=(PowerLimitSet,),
    examples=({"device_id": "box-gpu-0", "limit_watts": 300},),
):
    """Bound what a device draws. Nothing happens when it is bounded so already."""

    device_id: DeviceId
    limit_watts: float = Field(gt=0, le=10_000, description="Watts.")


# --- queries ------------------------------------------------------------------------------------------------------


class GetInfo(Query[Info], unit="device.info", errors=(NotFound,), examples=({}, {"device_id": "box-gpu-0"})):
    """Tell what a device is."""

    device_id: Which = None


class ListDevices(Query[DeviceList], Page, unit="device.list", examples=({}, {"type": "gpu"})):
    """List the devices with what they have free: GPUs first, then CPUs, then disks."""

    type: DeviceType | None = Field(None, description="Only those of this type.")


class GetMetrics(Query[Metrics], unit="device.metrics", errors=(NotFound,), examples=({}, {"history": True})):
    """Tell what a device reads like: load, temperature, power, memory."""

    device_id: Which = None
    history: bool = Field(False, description="Also the samples before, as far as they are kept.")


class GetHealth(Query[Health], unit="device.health", errors=(NotFound,), examples=({}, {"device_id": "box-gpu-0"})):
    """Tell how a device does, and what is wrong with it."""

    device_id: Which = None
