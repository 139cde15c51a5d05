"""Probes the machine itself: its processors with the main memory, and the disk of the data folder."""

from __future__ import annotations

import os
import platform
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from aima_core.errors import Conflict, NotFound
from aima_core.system import cgroup
from services.device.drivers import ProbedDevice, Sample, bandwidth

VENDORS = {
    "GenuineIntel": "Intel",
    "AuthenticAMD": "AMD",
    "HygonGenuine": "Hygon",
    # arm, "CPU implementer": MIDR_EL1 of the architecture manual
    "0x41": "ARM",
    "0x48": "HiSilicon",
    "0x4e": "NVIDIA",
    "0x51": "Qualcomm",
    "0x61": "Apple",
    "0xc0": "Ampere",
}
# These instruction sets decide whether and how fast an engine runs on a cpu. The names are the kernel's.
CAPABILITIES = (
    *("sse4_2", "f16c", "fma", "avx", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal")  # the kernel's drivers of cpus


class HostProbe:
    """Probes `<node>-cpu-0` and `<node>-disk-0`."""

    def __init__(self, node: str, data: Path, root: Path = Path("/")) -> None:
        """`data` is a folder on the probed disk. `root` is the folder that contains /proc and /sys."""
        self._cpu, self._disk = f"{node}-cpu-0", f"{node}-disk-0"
        self._data, self._root = data, root
        self._lock = threading.Lock()  # samples may come from different threads
        self._busy, self._passed = _cpu_seconds()
        self._load = 0.0
        self._bandwidth: int | None = None

    def detect(self) -> list[ProbedDevice]:
        """Return the cpu and the disk. Measures the bandwidth only in the first call, before engines use the memory."""
        if self._bandwidth is None:
            total, used = self._memory()
            self._bandwidth = bandwidth.measure(_usable_cores() or 1, total - used)
        return [self._probe_cpu(), self._probe_disk()]

    def sample(self, device_id: str) -> Sample:
        if device_id == self._cpu:
            total, used = self._memory()
            return Sample(time.time(), self._cpu_load(), _cpu_temperature(), None, used, total)
        if device_id == self._disk:
            space = psutil.disk_usage(str(_existing(self._data)))
            used = space.total - space.free  # blocks reserved for root count as used
            return Sample(time.time(), round(100 * used / space.total, 1), None, None, used, space.total)
        raise NotFound(f"there is no device {device_id}", device_id=device_id)

    def set_power_limit(self, device_id: str, watts: float) -> float:  # noqa: ARG002 - the port's
        """Raise Conflict, because a cpu or disk has no settable power limit. Raises NotFound for other devices."""
        if device_id not in (self._cpu, self._disk):
            raise NotFound(f"there is no device {device_id}", device_id=device_id)
        raise Conflict(f"{device_id} has no power limit that can be set", reason="POWER_LIMIT_NOT_SUPPORTED")

    def _probe_cpu(self) -> ProbedDevice:
        info = self._cpu_info()
        flags = set((info.get("flags") or info.get("Features") or "").split())
        maker = info.get("vendor_id") or info.get("CPU implementer") or ""
        return ProbedDevice(
            id=self._cpu,
            name=info.get("model name") or info.get("Model") or platform.processor() or platform.machine(),
            vendor=VENDORS.get(maker, maker) or "unknown",
            type="cpu",
            architecture=platform.machine(),
            memory=self._memory()[0],
            capabilities=[name for name in CAPABILITIES if name in flags],
            cores=_usable_cores(),
            memory_bandwidth=self._bandwidth,
        )

    def _probe_disk(self) -> ProbedDevice:
        folder = _existing(self._data)
        above = [p for p in psutil.disk_partitions(all=True) if folder.is_relative_to(p.mountpoint)]
        mount = max(above, key=lambda p: len(p.mountpoint), default=None)
        return ProbedDevice(
            id=self._disk,
            name=mount.device if mount else str(folder),
            vendor="unknown",
            type="disk",
            architecture=mount.fstype if mount else "unknown",
            memory=psutil.disk_usage(str(folder)).total,
        )

    def _cpu_load(self) -> float:
        """Return the percent of time that the cpu was busy since the previous call.

        psutil's cpu_percent compares only calls of the same thread, but different threads call this method.
        """
        with self._lock:
            busy, passed = _cpu_seconds()
            if passed > self._passed:  # the kernel counts hundredths of a second, so two calls may see the same count
                self._load = 100 * (busy - self._busy) / (passed - self._passed)
                self._busy, self._passed = busy, passed
            return round(min(100.0, max(0.0, self._load)), 1)

    def _cpu_info(self) -> dict[str, str]:
        """Return the fields in /proc/cpuinfo of the first processor and of the whole machine.

        Returns an empty dict if the file cannot be read.
        """
        try:
            text = (self._root / "proc/cpuinfo").read_text(errors="replace")
        except OSError:
            return {}
        pairs = [line.split(":", 1) for line in text.splitlines() if ":" in line]
        return {key.strip(): value.strip() for key, value in reversed(pairs)}  # reversed, so the first processor wins

    def _memory(self) -> tuple[int, int]:
        """Return (total, used) bytes of the machine, or of the container if its limit is lower."""
        memory = psutil.virtual_memory()
        container = cgroup.memory(self._root)
        if container is not None and container[0] < memory.total:
            return container
        return memory.total, memory.total - memory.available


def _cpu_seconds() -> tuple[float, float]:
    """Return the busy seconds and the total seconds of all processors together since the machine started."""
    times = psutil.cpu_times()
    passed = sum(times) - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0)  # `user` includes both
    return passed - times.idle - getattr(times, "iowait", 0), passed


def _usable_cores() -> int | None:
    """Return the number of logical processors that this process may use. The machine may have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count()


def _cpu_temperature() -> float | None:
    """Return the highest temperature of the cpu's sensors. None without sensors, as in most virtual machines."""
    read: Any = getattr(psutil, "sensors_temperatures", dict)  # psutil lacks the function on some systems
    try:
        sensors = read()
    except (OSError, ValueError, RuntimeError):  # the driver of a sensor returned an unreadable value
        return None
    readings = [entry.current for name in CPU_SENSORS for entry in sensors.get(name, ()) if entry.current is not None]
    return max(readings, default=None)


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())
