"""The interface between the device domain and the hardware. Each driver has its own file: host, nvidia."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

Kind = Literal["cpu", "gpu", "disk"]


class ProbedDevice(msgspec.Struct, frozen=True):
    """The description of a device: all values that do not change while the device is present."""

    id: str
    name: str
    vendor: str
    type: Kind
    architecture: str
    memory: int
    """Bytes of a cpu's main memory, of a gpu's own or shared memory, or of a disk's capacity."""
    capabilities: list[str] = []
    """Features that software may rely on: avx2, fma; cuda, compute_9.0, unified-memory."""
    cores: int | None = None
    """Logical processors that this process may use, or shader cores."""
    uuid: str | None = None
    memory_bandwidth: int | None = None
    """Bytes per second at which the memory can be read; None if unknown."""


class Sample(msgspec.Struct, frozen=True):
    """The readings of a device at one moment. None means that the device does not report the value now."""

    at: float
    """Unix seconds."""
    utilization: float | None
    """Percent of time busy since the previous sample, 0 to 100. For a disk, percent of space in use."""
    temperature: float | None
    """Degrees Celsius."""
    power: float | None
    """Watts."""
    memory_used: int | None
    """Bytes."""
    memory_total: int
    """Bytes."""
    lost: bool = False
    """The device was detected before and no longer answers."""


class Probe(Protocol):
    """Gives access to one kind of device. Its calls block for milliseconds, so call them in a thread."""

    def detect(self) -> list[ProbedDevice]:
        """Return the devices that are present. An empty list is normal. Never raises.

        The first call may take a few tenths of a second, because it measures the memory bandwidth.
        """

    def sample(self, device_id: str) -> Sample:
        """Return the readings of a device that `detect` has returned. Raises NotFound for any other id."""

    def set_power_limit(self, device_id: str, watts: float) -> float:
        """Limit the power of a device and return the previous limit, in watts. Idempotent.

        Raises NotFound; Conflict (POWER_LIMIT_NOT_SUPPORTED); ValidationFailed if the limit is outside the device's
        range, which is in the details; Forbidden if this process has no right to set the limit; ExecutionFailed.
        """
