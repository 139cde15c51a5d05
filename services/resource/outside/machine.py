"""How much memory and disk there is right now: the machine's, or its container's where that is less.

Never the process's own share.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from aima_core.system import cgroup
from services.resource.rules.capacity import Facts


def read(folder: Path, root: Path = Path("/")) -> Facts:
    """Return the facts; storage is that of the disk with the folder. `root` is where /proc and /sys are read."""
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage(str(next(path for path in (folder, *folder.parents) if path.exists())))
    total, available = memory.total, memory.available
    bound = cgroup.memory(root)
    if bound and bound[0] < total:
        total, available = bound[0], min(available, bound[0] - bound[1])
    return Facts(total, max(0, available), disk.total, disk.free)


def reserve(memory: int, fraction: float, least: int) -> int:
    """Return the bytes that the system keeps for itself: a fraction of memory, and no less than `least`."""
    return min(memory, max(int(memory * fraction), least))
