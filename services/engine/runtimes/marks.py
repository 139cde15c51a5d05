"""Finds the processes of this AIMA by their marks. This module must not start or end processes.

The marks of a process are the environment variables AIMA_INSTANCE and AIMA_OWNER. A process gets its environment at its
start, and its children inherit the environment. So the marks survive a crash of AIMA.
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
"""Tolerance in seconds for start times. A start time counts from the boot time, which shifts when the clock is set."""


def environment(process: psutil.Process) -> dict[str, str]:
    """Return the process's environment at its start; empty if the process is dead or belongs to another user."""
    try:
        for _ in range(5):
            variables = dict(process.environ())
            # During an exec the kernel shows an empty environment, so read it again. Only session leaders, as engines
            # are, are read again: the many kernel threads never have an environment and would take time.
            if variables or os.getsid(process.pid) != process.pid or process.status() == psutil.STATUS_ZOMBIE:
                return variables
            time.sleep(0.001)
    except (psutil.Error, OSError):
        pass
    return {}


def marked(owner: str) -> dict[str, list[psutil.Process]]:
    """Return the processes with the owner's mark, by instance: the program and the processes that it has started."""
    instances: dict[str, list[psutil.Process]] = {}
    for pid in psutil.pids():
        try:
            process = psutil.Process(pid)
        except (psutil.Error, OSError):
            continue
        marks = environment(process)
        if marks.get(OWNER) == owner and (instance := marks.get(INSTANCE)):
            instances.setdefault(instance, []).append(process)
    return instances


def noted(notes: dict[str, str]) -> dict[str, str]:
    """Return the environment variables that store the notes of a program."""
    return {f"{NOTE}{name.upper()}": value for name, value in notes.items()}


def notes(process: psutil.Process) -> dict[str, str]:
    """Return the notes that the process was started with."""
    variables = environment(process).items()
    return {name.removeprefix(NOTE).lower(): value for name, value in variables if name.startswith(NOTE)}


def head(processes: list[psutil.Process], recorded: int | None) -> psutil.Process | None:
    """Return the program of an instance from all living processes of the instance; None if the program has ended.

    The program is the process with the recorded pid. If AIMA crashed before it recorded the pid, the program is the
    oldest session leader, because any session that the program starts is younger.
    """
    if recorded is not None:
        return next((process for process in processes if process.pid == recorded), None)
    heads = [process for process in processes if leads_session(process)]
    return min(heads, key=lambda process: process.create_time(), default=None)


def leads_session(process: psutil.Process) -> bool:
    """Return whether the process leads a session, as every program that AIMA starts does."""
    try:
        return os.getsid(process.pid) == process.pid
    except OSError:
        return False


def living(handle: Handle, owner: str) -> psutil.Process | None:
    """Return the program of a handle if it lives, else None. Its pid, start time and marks must match the handle."""
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
    """Return the process, its descendants and the rest of its process group, also processes without marks."""
    members = {process}
    try:
        members.update(process.children(recursive=True))
        group = os.getpgid(process.pid)
    except (psutil.Error, OSError):
        return list(members)
    for pid in psutil.pids():
        try:
            if group == process.pid == os.getpgid(pid):
                members.add(psutil.Process(pid))
        except (psutil.Error, OSError):
            continue
    return sorted(members, key=lambda member: member != process)
