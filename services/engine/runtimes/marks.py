"""Finding our processes among all that run on the machine, by the marks in their environment.

The environment of a process is fixed when it starts and is inherited by what it starts, so the marks survive any
crash of ours. This file only looks; it starts and ends nothing.
"""

from __future__ import annotations

import os
import time

import psutil

from services.engine.runtimes import Handle

INSTANCE = "AIMA_INSTANCE"
OWNER = "AIMA_OWNER"
NOTE = "AIMA_NOTE_"

CLOCK_STEP = 2.0
"""Seconds. Start times are counted from the boot time, which the kernel rounds and shifts when the clock is set."""


def environment(process: psutil.Process) -> dict[str, str]:
    """Return the environment that the process was started with; empty when it is dead or another user's."""
    try:
        for _ in range(5):
            found = dict(process.environ())
            # In the middle of an exec the kernel shows an empty one. Only the head of a session can be an engine of
            # ours, so that the many processes that really have none (kernel threads) cost no waiting.
            if found or os.getsid(process.pid) != process.pid or process.status() == psutil.STATUS_ZOMBIE:
                return found
            time.sleep(0.001)
    except (psutil.Error, OSError):
        pass
    return {}


def marked(owner: str) -> dict[str, list[psutil.Process]]:
    """Return the living processes that carry the owner's mark, by instance: the programs and what they started."""
    found: dict[str, list[psutil.Process]] = {}
    for pid in psutil.pids():
        try:
            process = psutil.Process(pid)
        except (psutil.Error, OSError):
            continue
        marks = environment(process)
        if marks.get(OWNER) == owner and (instance := marks.get(INSTANCE)):
            found.setdefault(instance, []).append(process)
    return found


def noted(notes: dict[str, str]) -> dict[str, str]:
    """Return notes as they stand in an environment."""
    return {f"{NOTE}{name.upper()}": value for name, value in notes.items()}


def notes(process: psutil.Process) -> dict[str, str]:
    """Return the notes that the process was started with."""
    found = environment(process).items()
    return {name.removeprefix(NOTE).lower(): value for name, value in found if name.startswith(NOTE)}


def head(processes: list[psutil.Process], recorded: int | None) -> psutil.Process | None:
    """Return the program itself among the processes of one instance; None when only its leftovers live.

    With a recorded pid it is that one or none. Without (we died between start and record) it is the oldest head
    of a session: what a program starts in a session of its own is younger.
    """
    if recorded is not None:
        return next((process for process in processes if process.pid == recorded), None)
    heads = [process for process in processes if leads_session(process)]
    return min(heads, key=lambda process: process.create_time(), default=None)


def leads_session(process: psutil.Process) -> bool:
    """Return whether the process was started in a session of its own, as every program of ours is."""
    try:
        return os.getsid(process.pid) == process.pid
    except OSError:
        return False


def living(handle: Handle, owner: str) -> psutil.Process | None:
    """Return the very process of the handle: same pid, same start, same marks, and no zombie; None otherwise."""
    try:
        process = psutil.Process(handle.pid)
        same = abs(process.create_time() - handle.started_at) <= CLOCK_STEP
        if not same or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except (psutil.Error, OSError):
        return None
    marks = environment(process)
    return process if (marks.get(OWNER), marks.get(INSTANCE)) == (owner, handle.instance) else None


def family(process: psutil.Process) -> list[psutil.Process]:
    """Return the process, what it started, and the rest of its process group: also those without our marks."""
    found = {process}
    try:
        found.update(process.children(recursive=True))
        group = os.getpgid(process.pid)
    except (psutil.Error, OSError):
        return list(found)
    for pid in psutil.pids():
        try:
            if group == process.pid == os.getpgid(pid):
                found.add(psutil.Process(pid))
        except (psutil.Error, OSError):
            continue
    return sorted(found, key=lambda member: member != process)
