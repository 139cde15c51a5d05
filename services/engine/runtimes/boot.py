"""Which boot of the machine, or of the container that we are in, this is: after another one no process is left."""

from __future__ import annotations

from pathlib import Path

_STARTED = 22 - 3  # field 22 of proc_pid_stat(5), counted from field 3, the first behind the name


def identity(root: Path = Path("/")) -> str:
    """Return what no other boot has; empty where nothing of it can be read. `root` is where /proc is read.

    The kernel's own id changes with the machine, the start time of process 1 (clock ticks) with the container too.
    """
    boot = _read(root / "proc/sys/kernel/random/boot_id").strip()
    fields = _read(root / "proc/1/stat").rpartition(")")[2].split()  # the name may hold blanks and brackets itself
    started = fields[_STARTED] if len(fields) > _STARTED else ""
    return f"{boot}/{started}" if boot or started else ""


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
