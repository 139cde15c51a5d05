"""Identifies the boot of the machine or container. No process survives the next boot."""

from __future__ import annotations

from pathlib import Path

_STARTED = 22 - 3  # field 22 of proc_pid_stat(5), counted from field 3, the first after the name


def identity(root: Path = Path("/")) -> str:
    """Return the identity of this boot, empty if it cannot be read. `root` is where /proc is read.

    The kernel's boot id changes when the machine boots, the start time of process 1 (clock ticks) also when the
    container does.
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
