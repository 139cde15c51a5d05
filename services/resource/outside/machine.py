"""Reads the memory and the disk of the machine. If a container has less memory than its machine, reads the container's.

The figures are of the whole machine or container, never of this process alone.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from aima_core.system import cgroup
from services.resource.rules.capacity import Facts


def read(folder: Path, root: Path = Path("/")) -> Facts:
    """Return the memory of the machine and the space of the disk with `folder`. `root` contains /proc and /sys."""
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage(str(next(path for path in (folder, *folder.parents) if path.exists())))
    total, available = memory.total, memory.available
    container = cgroup.memory(root)  # the limit and the used memory, in bytes
    if container and container[0] < total:
        total, available = container[0], min(available, container[0] - container[1])
    return Facts(total, max(0, available), disk.total, disk.free)


def reserve(memory: int, fraction: float, least: int) -> int:
    """Return the bytes that are kept for the system: a fraction of memory, but at least `least` bytes."""
    return min(memory, max(int(memory * fraction), least))
