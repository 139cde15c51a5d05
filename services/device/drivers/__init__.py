"""The port through which the device domain sees the machine. One implementation per file: host, nvidia."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

Kind = Literal["cpu", "gpu", "disk"]


class ProbedDevice(msgspec.Struct, frozen=True):
    """A device, as it stays for as long as it is there."""

    id: str
    name: str
    vendor: str
    type: Kind
    architecture: str
    memory: int
    """Bytes: main memory for the cpu, of its own for a gpu (the machine's where it has none), capacity of a disk."""
    capabilities: list[str] = []
    """What software may rely on: avx2, fma; cuda, compute_9.0, unified-memory."""
    cores: int | None = None
    """Logical processors that this process may use, or shader cores."""
    uuid: str | None = None
    memory_bandwidth: int | None = None
    """Bytes per second that can be read of the memory; None where it cannot be told."""


class Sample(msgspec.Struct, frozen=True):
    """What a device reads like at one moment. None: it does not tell, or not now."""

    at: float
    """Unix seconds."""
    utilization: float | None
    """Percent, 0 to 100: time busy since the sample before; of a disk, space in use."""
    temperature: float | None
    """Degrees Celsius."""
    power: float | None
    """Watts."""
    memory_used: int | None
    """Bytes."""
    memory_total: int
    """Bytes."""
    lost: bool = False
    """It was found, and now it does not answer any more."""


class Probe(Protocol):
    """One way to look at devices. Synchronous and quick (milliseconds); a caller in an event loop uses a thread."""

    def detect(self) -> list[ProbedDevice]:
        """Return the devices that are there. None is a normal answer; nothing is raised.

        The first look may take some tenths of a second, to measure.
        """

    def sample(self, device_id: str) -> Sample:
        """Return the readings of a device that `detect` has returned. Raises NotFound for any other."""

    def set_power_limit(self, device_id: str, watts: float) -> float:
        """Bound what a device draws and return the limit before, in watts. Asking again changes nothing.

        Raises NotFound, Conflict (POWER_LIMIT_NOT_SUPPORTED), ValidationFailed (out of the device's range, which the
        details name), Forbidden (needs rights that this process has not), ExecutionFailed.
        """
