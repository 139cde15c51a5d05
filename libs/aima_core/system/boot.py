"""Identifies the boot of the machine or container. No process survives the next boot."""

from __future__ import annotations

from pathlib import Path

_STARTED = 22 - 3  # field 22 of proc_pid_stat(5); the count starts at field 3, the first field after the name


def identity(root: Path = Path("/")) -> str:
    """Return the identity of this boot. Empty if it cannot be read. `root` is the folder that contains /proc.

    The identity has two parts: the kernel's boot id, and the start time of process 1 in clock ticks. The boot id
    changes when the machine boots. The start time also changes when the container starts.
    """
    boot = _read(root / "proc/sys/kernel/random/boot_id").strip()
    fields = _read(root / "proc/1/stat").rpartition(")")[2].split()  # the name may contain blanks and brackets
    started = fields[_STARTED] if len(fields) > _STARTED else ""
    return f"{boot}/{started}" if boot or started else ""


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
