"""Reads the memory and disk that are available now: those of the machine, or of its container if that has less.

The numbers are for the whole machine or container, never for this process alone.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from aima_core.system import cgroup
from services.resource.rules.capacity import Facts


def read(folder: Path, root: Path = Path("/")) -> Facts:
    """Return the facts. Storage is that of the disk that holds the folder; /proc and /sys are read below `root`."""
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage(str(next(path for path in (folder, *folder.parents) if path.exists())))
    total, available = memory.total, memory.available
    container = cgroup.memory(root)  # (limit, used) bytes
    if container and container[0] < total:
        total, available = container[0], min(available, container[0] - container[1])
    return Facts(total, max(0, available), disk.total, disk.free)


def reserve(memory: int, fraction: float, least: int) -> int:
    """Return the bytes kept for the system: a fraction of memory, but at least `least` bytes."""
    return min(memory, max(int(memory * fraction), least))
