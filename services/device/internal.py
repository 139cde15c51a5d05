"""The internal commands of the device domain. They record the results of its drivers."""

from __future__ import annotations

from typing import Any

from aima_core.units import Command, Success, View
from services.device.units import Devices, DeviceType, Metric, Status


class DetectedDevice(View):
    """A device that a driver has detected. It has the same fields as `Device`."""

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
    """Record all devices that the drivers have detected. A device that is missing here was removed."""

    found: tuple[DetectedDevice, ...]


class RecordHealth(Command[Success], unit="device.record_health", stream="device_id"):
    """Record the health of a device."""

    device_id: str
    status: Status
    issues: tuple[str, ...] = ()


class RecordAlert(Command[Success], unit="device.record_alert", stream="device_id"):
    """Record that a reading has gone above a threshold."""

    device_id: str
    metric: Metric
    value: float
    threshold: float


class RecordPowerLimit(Command[Success], unit="device.record_power_limit", stream="device_id"):
    """Record the power limit that the driver has set, in watts."""

    device_id: str
    limit_watts: float
    previous_watts: float


Commands = RecordDevices | RecordHealth | RecordAlert | RecordPowerLimit
COMMANDS: tuple[type[Command[Any]], ...] = Commands.__args__
