"""NVIDIA GPUs through NVML, the library of their driver. Without a driver there are none, which is no error.

What a call means, and which of its errors a part may answer with: NVIDIA's NVML API Reference Guide.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import psutil

from aima_core.errors import Conflict, ExecutionFailed, Forbidden, NotFound, ValidationFailed
from services.device.drivers import ProbedDevice, Sample

NOT_AVAILABLE = 2**63  # bytes; NVML writes "not available" as -1 in an unsigned number
# NVML_DEVICE_ARCH_KEPLER is 2, and so on; numbers that are missing belong to other products
GENERATIONS = ("kepler", "maxwell", "pascal", "volta", "turing", "ampere", "ada", "hopper", "blackwell")
ARCHITECTURES = dict(enumerate(GENERATIONS, start=2)) | {13: "rubin"}


class Code(IntEnum):
    """The NVML_ERROR_... that mean something to us."""

    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16


LOST = (Code.GPU_IS_LOST, Code.RESET_REQUIRED)  # it fell off the bus, or does nothing until it is reset


class NvidiaProbe:
    """Sees `<node>-gpu-0` and so on, in the order of the driver."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._lock = threading.Lock()  # detect and sample may come from different threads
        self._nvml: Any = None  # ships no types
        self._error: type[Exception] = Exception
        self._opened = False
        self._handles: dict[str, Any] = {}
        self._found: dict[str, ProbedDevice] = {}

    def detect(self) -> list[ProbedDevice]:
        """Return the GPUs; one that was seen before and is lost now is still among them."""
        with self._lock:
            self._handles = {}  # what is found again gets a new one; what has none is lost
            if self._open():
                try:
                    for index in range(int(self._nvml.nvmlDeviceGetCount())):
                        self._find(index)
                except self._error:  # the driver went away; it is opened anew the next time
                    self._opened = False
            return list(self._found.values())

    def sample(self, device_id: str) -> Sample:
        """Return the readings of a GPU; `lost` when it does not answer any more. Raises NotFound."""
        found, handle = self._known(device_id)
        lost = Sample(time.time(), None, None, None, None, found.memory, lost=True)
        nvml = self._nvml
        if handle is None:
            return lost
        try:
            load = self._read(nvml.nvmlDeviceGetUtilizationRates, handle)
            temperature = self._read(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
            milliwatts = self._read(nvml.nvmlDeviceGetPowerUsage, handle)
            used, total = self._memory(handle, found)
        except _Lost:
            return lost
        return Sample(
            at=time.time(),
            utilization=None if load is None else float(load.gpu),
            temperature=None if temperature is None else float(temperature),
            power=None if milliwatts is None else milliwatts / 1000,
            memory_used=used,
            memory_total=total,
        )

    def set_power_limit(self, device_id: str, watts: float) -> float:
        """Set the limit until the driver is loaded anew, and return the one before, in watts. Needs root."""
        _, handle = self._known(device_id)
        nvml = self._nvml
        if handle is None:
            raise ExecutionFailed(f"{device_id} does not answer", reason="DEVICE_LOST", device_id=device_id)
        try:
            lowest, highest = (mw / 1000 for mw in nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle))
            if not lowest <= watts <= highest:
                raise ValidationFailed(
                    f"the limit of {device_id} must be from {lowest:g} to {highest:g} W",
                    reason="POWER_LIMIT_OUT_OF_RANGE",
                    min_watts=lowest,
                    max_watts=highest,
                )
            before = float(nvml.nvmlDeviceGetPowerManagementLimit(handle)) / 1000
            nvml.nvmlDeviceSetPowerManagementLimit(handle, round(watts * 1000))
        except self._error as error:
            raise _refusal(device_id, _code(error), str(error)) from error
        return before

    def _open(self) -> bool:
        """Load the driver's library; false when there is none."""
        if not self._opened:
            try:
                import pynvml
            except ImportError:
                return False
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError:
                return False
            self._nvml, self._error, self._opened = pynvml, pynvml.NVMLError, True
        return True

    def _find(self, index: int) -> None:
        device_id, nvml = f"{self._node}-gpu-{index}", self._nvml
        try:
            handle = self._read(nvml.nvmlDeviceGetHandleByIndex, index)
            if handle is None:  # not ours to see: cgroups hide the GPUs of others this way
                return
            self._handles[device_id] = handle
            uuid, known = self._read(nvml.nvmlDeviceGetUUID, handle), self._found.get(device_id)
            # The same one as before is not described anew: a reading that fails now would only take something away.
            if known is None or not known.memory or known.uuid != uuid:
                self._found[device_id] = self._describe(device_id, handle, uuid)
        except _Lost:
            if device_id not in self._found:
                self._found[device_id] = ProbedDevice(device_id, "NVIDIA GPU", "NVIDIA", "gpu", "unknown", 0)

    def _describe(self, device_id: str, handle: Any, uuid: str | None) -> ProbedDevice:
        nvml = self._nvml
        compute = self._read(nvml.nvmlDeviceGetCudaComputeCapability, handle)
        shared = self._shares_memory(handle)
        return ProbedDevice(
            id=device_id,
            name=self._read(nvml.nvmlDeviceGetName, handle) or "NVIDIA GPU",
            vendor="NVIDIA",
            type="gpu",
            architecture=ARCHITECTURES.get(self._read(nvml.nvmlDeviceGetArchitecture, handle), "unknown"),
            memory=psutil.virtual_memory().total if shared else self._own_memory(handle)[1],
            capabilities=[
                "cuda",
                *([f"compute_{compute[0]}.{compute[1]}"] if compute else []),
                *(["unified-memory"] if shared else []),
            ],
            cores=self._read(nvml.nvmlDeviceGetNumGpuCores, handle),
            uuid=uuid,
            memory_bandwidth=self._bandwidth(handle),
        )

    def _bandwidth(self, handle: Any) -> int | None:
        """Return the bytes per second of its memory: the width of the bus, twice per clock (double data rate)."""
        bits = self._read(self._nvml.nvmlDeviceGetMemoryBusWidth, handle)
        megahertz = self._read(self._nvml.nvmlDeviceGetMaxClockInfo, handle, self._nvml.NVML_CLOCK_MEM)
        return bits // 8 * megahertz * 1_000_000 * 2 if bits and megahertz else None

    def _memory(self, handle: Any, found: ProbedDevice) -> tuple[int | None, int]:
        """Return (used, total) bytes: of its own, or the machine's where cpu and gpu share it."""
        if "unified-memory" in found.capabilities:
            memory = psutil.virtual_memory()
            return memory.total - memory.available, memory.total
        used, total = self._own_memory(handle)
        return used, total or found.memory

    def _shares_memory(self, handle: Any) -> bool:
        """Tell whether the part has no memory of its own (GB10, Jetson): the query is refused or reads as nothing."""
        try:
            total = int(self._nvml.nvmlDeviceGetMemoryInfo(handle).total)
        except self._error as error:
            return _code(error) == Code.NOT_SUPPORTED  # any other failure says nothing about the part
        return not 0 < total < NOT_AVAILABLE

    def _own_memory(self, handle: Any) -> tuple[int | None, int]:
        """Return (used, total) bytes; None and 0 for what it does not tell now."""
        memory = self._read(self._nvml.nvmlDeviceGetMemoryInfo, handle)
        if memory is None:
            return None, 0
        return int(memory.used) if memory.used < NOT_AVAILABLE else None, int(memory.total)

    def _known(self, device_id: str) -> tuple[ProbedDevice, Any]:
        """Return the GPU and its handle; None when NVML gave none."""
        with self._lock:
            if device_id not in self._found:
                raise NotFound(f"no device {device_id}", device_id=device_id)
            return self._found[device_id], self._handles.get(device_id)

    def _read(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return what NVML answers, None when it cannot tell. Raises _Lost."""
        try:
            return call(*arguments)
        except self._error as error:
            if _code(error) in LOST:
                raise _Lost from error
            return None


class _Lost(Exception):
    """The GPU does not answer any more."""


def _code(error: Exception) -> int:
    return int(getattr(error, "value", 0))


def _refusal(device_id: str, code: int, said: str) -> Conflict | Forbidden | ExecutionFailed:
    match code:
        case Code.NOT_SUPPORTED:
            return Conflict(f"{device_id} has no power limit that can be set", reason="POWER_LIMIT_NOT_SUPPORTED")
        case Code.NO_PERMISSION:
            return Forbidden(f"setting the power limit of {device_id} needs root", reason="NEEDS_ROOT")
        case Code.GPU_IS_LOST | Code.RESET_REQUIRED:
            return ExecutionFailed(f"{device_id} does not answer", reason="DEVICE_LOST", device_id=device_id)
        case _:
            return ExecutionFailed(f"the driver refused: {said}", reason="DRIVER_REFUSED", device_id=device_id)
