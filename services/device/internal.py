"""Commands of the device domain to itself: what only its drivers know."""

from __future__ import annotations

from aima_core.units import Command, Success, View
from services.device.units import Devices, DeviceType, Metric, Status


class DetectedDevice(View):
    """A device that a driver has found; the fields are those of `Device`."""

    id: str
    name: str
    vendor: str
    type: DeviceType
    architecture: str
    memory: int
    capabilities: tuple[str, ...] = ()
    cores: int | None = None
    uuid: str | None = None
    memory_bandwidth: int | None = None


class RecordDevices(Command[Devices], unit="device.record_devices"):
    """These are all the devices that are there."""

    found: tuple[DetectedDevice, ...]


class RecordHealth(Command[Success], unit="device.record_health", stream="device_id"):
    """A device does so."""

    device_id: str
    status: Status
    issues: tuple[str, ...] = ()


class RecordAlert(Command[Success], unit="device.record_alert", stream="device_id"):
    """A reading has just gone above a threshold."""

    device_id: str
    metric: Metric
    value: float
    threshold: float


class RecordPowerLimit(Command[Success], unit="device.record_power_limit", stream="device_id"):
    """The driver has set a limit; watts."""

    device_id: str
    limit_watts: float
    previous_watts: float
