"""How much memory and disk there is right now: the machine's, or its container's where that is less.

Never the process's own share. What control groups write: Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/memory.rst of the Linux kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from services.resource.room import Facts


class _Names(NamedTuple):
    """Where a version of control groups keeps what; `cache` is the part of `used` that the kernel gives back."""

    mount: str
    limit: str
    used: str
    cache: str


_V2 = _Names("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
_V1 = _Names("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def read(folder: Path, root: Path = Path("/")) -> Facts:
    """Return the facts; storage is that of the disk with the folder. `root` is where /proc and /sys are read."""
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage(str(next(path for path in (folder, *folder.parents) if path.exists())))
    total, available = memory.total, memory.available
    for limit, used in _limits(root):
        if limit < total:
            total, available = limit, min(available, limit - used)
    return Facts(total, max(0, available), disk.total, disk.free)


def reserve(memory: int, fraction: float, least: int) -> int:
    """Return the bytes that the system keeps for itself: a fraction of memory, and no less than `least`."""
    return min(memory, max(int(memory * fraction), least))


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, used) of every group with a limit that this process is in; 2^63 or so stands for none."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        names = _V1 if controllers else _V2
        mount = root / names.mount
        group = mount / path.strip("/")  # inside a container this may be the host's path, which is not there
        inner = (group, *group.parents) if ".." not in group.parts else ()
        for folder in dict.fromkeys((*(f for f in inner if f.is_relative_to(mount)), mount)):
            try:
                limit = int((folder / names.limit).read_text())  # version 2 writes "max": no number, no limit
                used = int((folder / names.used).read_text())
                stat = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            yield limit, max(0, used - int(stat.get(names.cache, 0)))
