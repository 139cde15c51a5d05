"""The public contract of the device domain: devices, their readings, health and power limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from aima_core.errors import Conflict, ExecutionFailed, Forbidden, NotFound, ValidationFailed
from aima_core.units import Command, Event, Page, Query, Ref, StreamVersion, Success, View

DeviceType = Literal["cpu", "gpu", "disk"]
Status = Literal["healthy", "warning", "critical", "unknown"]
Metric = Literal["temperature", "memory"]

DeviceId = Annotated[
    str,
    Ref("device"),
    Field(
        pattern=r"^[A-Za-z0-9-]{1,63}-(cpu|gpu|disk)-[0-9]{1,4}$",
        description="Id of a device, which consists of node, type and number.",
        examples=["box-gpu-0"],
    ),
]
Which = Annotated[
    DeviceId | None, Field(description="Id of a device; default: the first GPU, or the CPU if there is no GPU.")
]


# --- events -------------------------------------------------------------------------------------------------------


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A detected device. `memory` is in bytes: main memory of a cpu, own memory of a gpu, or capacity of a disk.

    `memory_bandwidth` is the bytes per second at which the memory can be read; None if unknown.
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
    """A device was detected for the first time, or its description has changed."""

    device_id: str
    device: Device


class DeviceRemoved(Event, unit="device.removed", stream="device_id", frozen=True, kw_only=True):
    """A device is no longer detected. After this event, the device no longer exists."""

    device_id: str


class HealthChanged(Event, unit="device.health_changed", stream="device_id", frozen=True, kw_only=True):
    """The health status of a device has changed."""

    device_id: str
    old_status: Status
    new_status: Status
    issues: tuple[str, ...]


class MetricsAlert(Event, unit="device.metrics_alert", stream="device_id", frozen=True, kw_only=True):
    """A reading has gone above a threshold. Each crossing is one event. Temperatures are in °C, memory in %."""

    device_id: str
    metric: Metric
    value: float
    threshold: float


class PowerLimitSet(Event, unit="device.power_limit_set", stream="device_id", frozen=True, kw_only=True):
    """The power limit of a device was set. `previous_watts` is None only in a dry run, which calls no driver."""

    device_id: str
    limit_watts: float
    previous_watts: float | None


Events = DeviceDetected | DeviceRemoved | HealthChanged | MetricsAlert | PowerLimitSet
EVENTS: tuple[type[Event], ...] = Events.__args__


# --- views --------------------------------------------------------------------------------------------------------

_MEMORY = "Bytes of a cpu's main memory, a gpu's own memory, or a disk's capacity."
_CAPABILITIES = "Features that software may rely on, such as avx2, cuda, compute_9.0."
_CORES = "Logical processors of a cpu, or shader cores of a gpu; null if unknown."
_BANDWIDTH = (
    "Bytes per second at which the memory can be read; null if unknown. AIMA measures this for a cpu, and computes it "
    "from the clock and the bus width for a gpu."
)


class DeviceView(View, stream="id"):
    """A device in a list. `memory` is in bytes."""

    id: str
    name: str
    vendor: str
    type: DeviceType
    memory: int
    stream_version: StreamVersion = None


class Devices(View):
    """All devices."""

    devices: list[DeviceView]


class Info(View, stream="id"):
    """The description of a device."""

    id: str
    name: str
    vendor: str
    type: DeviceType
    architecture: str
    capabilities: list[str] = Field(description=_CAPABILITIES)
    memory: int = Field(description=_MEMORY)
    memory_bandwidth: int | None = Field(description=_BANDWIDTH)
    cores: int | None = Field(description=_CORES)
    node: str
    power_limit: float | None = Field(
        description="Power limit in watts that device.set_power_limit has set; null if it never set one."
    )
    stream_version: StreamVersion = None


class DeviceItem(View, stream="id"):
    """A device with its free memory."""

    id: str
    name: str
    vendor: str
    type: DeviceType
    node: str
    memory: int = Field(description=_MEMORY)
    memory_free: int | None = Field(description="Bytes of memory that are free in the latest sample; null if unknown.")
    cores: int | None = Field(description=_CORES)
    capabilities: list[str] = Field(description=_CAPABILITIES)
    memory_bandwidth: int | None = Field(description=_BANDWIDTH)
    stream_version: StreamVersion = None


class DeviceList(View):
    """A page of devices."""

    items: list[DeviceItem]
    total: int


class SampleView(View):
    """The readings of a device at one moment. null means that the device did not report the value."""

    at: str
    utilization: float | None = Field(description="Percent of time busy; for a disk, percent of space in use.")
    temperature: float | None = Field(description="Degrees Celsius.")
    power: float | None = Field(description="Watts.")
    memory_used: int | None = Field(description="Bytes.")
    memory_total: int = Field(description="Bytes.")


class Metrics(SampleView, stream="device_id"):
    """The latest readings of a device. With `history`, also earlier readings."""

    device_id: str
    history: list[SampleView] | None = Field(
        None, description="All samples in memory, oldest first; null without history=true."
    )
    stream_version: StreamVersion = None


class Health(View, stream="device_id"):
    """The health of a device."""

    device_id: str
    status: Status
    issues: list[str] = Field(description="The device's problems in words; empty without problems.")
    stream_version: StreamVersion = None


# --- commands -----------------------------------------------------------------------------------------------------


class Detect(Command[Devices], unit="device.detect", idempotent=True, events=(DeviceDetected, DeviceRemoved)):
    """Detect the devices of the node and return them. Records new, changed and removed devices."""


class SetPowerLimit(
    Command[Success],
    unit="device.set_power_limit",
    idempotent=True,
    stream="device_id",
    errors=(NotFound, Conflict, ValidationFailed, Forbidden, ExecutionFailed),
    events=(PowerLimitSet,),
    examples=({"device_id": "box-gpu-0", "limit_watts": 300},),
):
    """Limit the power of a device. Does nothing if the limit is already set."""

    device_id: DeviceId
    limit_watts: float = Field(gt=0, le=10_000, description="Maximum power that the device may draw, in watts.")


# --- queries ------------------------------------------------------------------------------------------------------


class GetInfo(Query[Info], unit="device.info", errors=(NotFound,), examples=({}, {"device_id": "box-gpu-0"})):
    """Return the description of a device."""

    device_id: Which = None


class ListDevices(Query[DeviceList], Page, unit="device.list", examples=({}, {"type": "gpu"})):
    """List the devices with their free memory: GPUs first, then CPUs, then disks."""

    type: DeviceType | None = Field(None, description="Return only devices of this type.")


class GetMetrics(Query[Metrics], unit="device.metrics", errors=(NotFound,), examples=({}, {"history": True})):
    """Return the latest readings of a device: load, temperature, power, memory."""

    device_id: Which = None
    history: bool = Field(False, description="Also return the earlier samples that are in memory.")


class GetHealth(Query[Health], unit="device.health", errors=(NotFound,), examples=({}, {"device_id": "box-gpu-0"})):
    """Return a device's health and its problems."""

    device_id: Which = None


Commands = Detect | SetPowerLimit
COMMANDS: tuple[type[Command[Any]], ...] = Commands.__args__
Queries = GetInfo | ListDevices | GetMetrics | GetHealth
QUERIES: tuple[type[Query[Any]], ...] = Queries.__args__
