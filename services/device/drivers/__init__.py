"""The interface between the device domain and the hardware. One implementation per file: host, nvidia."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

Kind = Literal["cpu", "gpu", "disk"]


class ProbedDevice(msgspec.Struct, frozen=True):
    """The description of a device: everything about it that does not change while it is present."""

    id: str
    name: str
    vendor: str
    type: Kind
    architecture: str
    memory: int
    """Bytes: main memory of a cpu; a gpu's own memory, or the machine's if they share it; the capacity of a disk."""
    capabilities: list[str] = []
    """Features that software may rely on: avx2, fma; cuda, compute_9.0, unified-memory."""
    cores: int | None = None
    """Logical processors that this process may use, or shader cores."""
    uuid: str | None = None
    memory_bandwidth: int | None = None
    """Bytes per second at which the memory can be read; None if unknown."""


class Sample(msgspec.Struct, frozen=True):
    """The readings of a device at one moment. None: the device does not report the value, or not now."""

    at: float
    """Unix seconds."""
    utilization: float | None
    """Percent, 0 to 100: time busy since the previous sample; for a disk, space in use."""
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
    """Access to one kind of devices. Synchronous and fast (milliseconds); call it in a thread from an event loop."""

    def detect(self) -> list[ProbedDevice]:
        """Return the devices that are present; an empty list is normal. Never raises.

        The first call may take some tenths of a second for a measurement.
        """

    def sample(self, device_id: str) -> Sample:
        """Return the readings of a device that `detect` has returned. Raises NotFound for any other id."""

    def set_power_limit(self, device_id: str, watts: float) -> float:
        """Limit the power of a device and return the previous limit, in watts. Idempotent.

        Raises NotFound, Conflict (POWER_LIMIT_NOT_SUPPORTED), ValidationFailed (outside the device's range, which the
        details name), Forbidden (this process lacks the rights), ExecutionFailed.
        """
