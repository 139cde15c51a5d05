"""How much memory the container leaves to its processes: control groups, version 2 and 1.

Files and their meaning: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the Linux kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Version:
    """Where a version keeps what."""

    mount: str
    limit: str
    used: str
    cache: str
    """The part of `used` that the kernel gives back before anything is refused, as a line of memory.stat."""


V2 = Version("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
V1 = Version("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def memory(root: Path = Path("/")) -> tuple[int, int] | None:
    """Return (limit, used) in bytes of the tightest group that this process is in; None when none has a limit.

    A limit may be larger than the machine: version 1 writes "no limit" as a number near 2^63.
    """
    limits = [found for group, version in _groups(root) if (found := _read(group, version)) is not None]
    return min(limits, default=None)


def _groups(root: Path) -> Iterator[tuple[Path, Version]]:
    """Yield every group that bounds this process, from its own up to the one that is mounted.

    Inside a container its own path may be that of the host, which is not there: then only the mount itself counts.
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
        limit = int((group / version.limit).read_text())  # "max" in version 2 is no number: no limit
        used = int((group / version.used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return limit, max(0, used - int(stat.get(version.cache, 0)))
