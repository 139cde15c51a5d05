"""Reads the memory limit of this process's container from control groups of version 2 and 1.

The files are described in the Linux kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Version:
    """The file names of one version of control groups."""

    mount: str
    limit: str
    used: str
    cache: str
    """The line of memory.stat for the cache. The kernel frees the cache before it refuses memory."""


V2 = Version("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
V1 = Version("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def memory(root: Path = Path("/")) -> tuple[int, int] | None:
    """Return the smallest memory limit of this process's groups, and the memory that this group uses, in bytes.

    Returns None if no group has a limit.
    The limit may exceed the machine's memory, because version 1 writes "no limit" as a number near 2^63.
    """
    usages = [usage for group, version in _groups(root) if (usage := _read(group, version)) is not None]
    return min(usages, default=None)


def _groups(root: Path) -> Iterator[tuple[Path, Version]]:
    """Yield every group that limits this process, from its own group up to the mounted group.

    Inside a container, /proc may show a path of the host, which does not exist in the container. Then only the mounted
    group counts.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        version = V1 if controllers else V2
        mount = root / version.mount
        group = mount / path.strip("/")
        while group != mount and ".." not in group.parts:
            yield group, version
            group = group.parent
        yield mount, version


def _read(group: Path, version: Version) -> tuple[int, int] | None:
    try:
        limit = int((group / version.limit).read_text())  # version 2 writes "max" for no limit
        used = int((group / version.used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return limit, max(0, used - int(stat.get(version.cache, 0)))
