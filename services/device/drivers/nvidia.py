"""Probes NVIDIA GPUs through NVML, the library of NVIDIA's driver. Without a driver, there are no GPUs and no error.

NVIDIA's NVML API Reference Guide lists the calls and their errors.
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

NOT_AVAILABLE = 2**63  # NVML's value for "not available": -1 as an unsigned number
# numbers of architectures: NVML_DEVICE_ARCH_KEPLER is 2; missing numbers are products without NVML
GENERATIONS = ("kepler", "maxwell", "pascal", "volta", "turing", "ampere", "ada", "hopper", "blackwell")
ARCHITECTURES = dict(enumerate(GENERATIONS, start=2)) | {13: "rubin"}


class Code(IntEnum):
    """The NVML_ERROR_... codes that are handled here."""

    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16


LOST = (Code.GPU_IS_LOST, Code.RESET_REQUIRED)  # the GPU is no longer on the PCI bus, or does nothing until it is reset


class NvidiaProbe:
    """Probes the GPUs `<node>-gpu-0`, `<node>-gpu-1` and so on, in the order of the driver."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._lock = threading.Lock()  # detect and sample may come from different threads
        self._nvml: Any = None  # the library has no types
        self._error: type[Exception] = Exception
        self._opened = False
        self._handles: dict[str, Any] = {}
        self._devices: dict[str, ProbedDevice] = {}

    def detect(self) -> list[ProbedDevice]:
        """Return the GPUs, including GPUs that were detected before and are lost now."""
        with self._lock:
            self._handles = {}  # a GPU that is detected again gets a new handle; a GPU without a handle is lost
            if self._open():
                try:
                    for index in range(int(self._nvml.nvmlDeviceGetCount())):
                        self._probe(index)
                except self._error:  # the driver was unloaded; the next call opens the driver again
                    self._opened = False
            return list(self._devices.values())

    def sample(self, device_id: str) -> Sample:
        """Return the readings of a GPU. `lost` is set if the GPU no longer answers. Raises NotFound."""
        device, handle = self._device(device_id)
        lost = Sample(time.time(), None, None, None, None, device.memory, lost=True)
        nvml = self._nvml
        if handle is None:
            return lost
        try:
            load = self._read(nvml.nvmlDeviceGetUtilizationRates, handle)
            temperature = self._read(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
            milliwatts = self._read(nvml.nvmlDeviceGetPowerUsage, handle)
            used, total = self._memory(handle, device)
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
        """Set the power limit and return the previous one, in watts. Needs root. Loading the driver resets it."""
        _, handle = self._device(device_id)
        nvml = self._nvml
        if handle is None:
            raise _lost(device_id)
        try:
            lowest, highest = (mw / 1000 for mw in nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle))
            if not lowest <= watts <= highest:
                raise ValidationFailed(
                    f"the power limit of {device_id} must be between {lowest:g} and {highest:g} W, not {watts:g} W",
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
        """Load the driver's library. Returns False if there is no library."""
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

    def _probe(self, index: int) -> None:
        device_id, nvml = f"{self._node}-gpu-{index}", self._nvml
        try:
            handle = self._read(nvml.nvmlDeviceGetHandleByIndex, index)
            if handle is None:  # a control group hides this GPU from the process
                return
            self._handles[device_id] = handle
            uuid, device = self._read(nvml.nvmlDeviceGetUUID, handle), self._devices.get(device_id)
            # a known GPU is not described again, because a failed reading would lose a field
            if device is None or not device.memory or device.uuid != uuid:
                self._devices[device_id] = self._describe(device_id, handle, uuid)
        except _Lost:
            if device_id not in self._devices:
                self._devices[device_id] = ProbedDevice(device_id, "NVIDIA GPU", "NVIDIA", "gpu", "unknown", 0)

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
        """Return the memory bandwidth in bytes per second: bus width times clock times two (double data rate)."""
        bits = self._read(self._nvml.nvmlDeviceGetMemoryBusWidth, handle)
        megahertz = self._read(self._nvml.nvmlDeviceGetMaxClockInfo, handle, self._nvml.NVML_CLOCK_MEM)
        return bits // 8 * megahertz * 1_000_000 * 2 if bits and megahertz else None

    def _memory(self, handle: Any, device: ProbedDevice) -> tuple[int | None, int]:
        """Return the used and total bytes of the GPU's own memory, or of the memory that it shares with the machine."""
        if "unified-memory" in device.capabilities:
            memory = psutil.virtual_memory()
            return memory.total - memory.available, memory.total
        used, total = self._own_memory(handle)
        return used, total or device.memory

    def _shares_memory(self, handle: Any) -> bool:
        """Whether the GPU has no memory of its own (GB10, Jetson). NVML then refuses the query or reports none."""
        try:
            total = int(self._nvml.nvmlDeviceGetMemoryInfo(handle).total)
        except self._error as error:
            return _code(error) == Code.NOT_SUPPORTED  # any other error has a different cause
        return not 0 < total < NOT_AVAILABLE

    def _own_memory(self, handle: Any) -> tuple[int | None, int]:
        """Return the used and total bytes, or None and 0 if the GPU does not report them now."""
        memory = self._read(self._nvml.nvmlDeviceGetMemoryInfo, handle)
        if memory is None:
            return None, 0
        return int(memory.used) if memory.used < NOT_AVAILABLE else None, int(memory.total)

    def _device(self, device_id: str) -> tuple[ProbedDevice, Any]:
        """Return the GPU and its handle. The handle is None if the GPU is lost. Raises NotFound."""
        with self._lock:
            if device_id not in self._devices:
                raise NotFound(f"there is no device {device_id}", device_id=device_id)
            return self._devices[device_id], self._handles.get(device_id)

    def _read(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return a value from NVML, or None if the value is not available. Raises _Lost if the GPU is lost."""
        try:
            return call(*arguments)
        except self._error as error:
            if _code(error) in LOST:
                raise _Lost from error
            return None


class _Lost(Exception):
    """The GPU no longer answers."""


def _code(error: Exception) -> int:
    return int(getattr(error, "value", 0))


def _lost(device_id: str) -> ExecutionFailed:
    message = f"{device_id} is lost: it no longer answers the driver; reset it or restart the machine"
    return ExecutionFailed(message, reason="DEVICE_LOST", device_id=device_id)


def _refusal(device_id: str, code: int, text: str) -> Conflict | Forbidden | ExecutionFailed:
    match code:
        case Code.NOT_SUPPORTED:
            return Conflict(f"{device_id} has no power limit that can be set", reason="POWER_LIMIT_NOT_SUPPORTED")
        case Code.NO_PERMISSION:
            return Forbidden(
                f"setting the power limit of {device_id} needs root: run the device domain as root", reason="NEEDS_ROOT"
            )
        case Code.GPU_IS_LOST | Code.RESET_REQUIRED:
            return _lost(device_id)
        case _:
            message = f"the driver refused the power limit of {device_id}: {text}"
            return ExecutionFailed(message, reason="DRIVER_REFUSED", device_id=device_id)
