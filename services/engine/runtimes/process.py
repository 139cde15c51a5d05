"""Runs programs as detached processes, which outlive AIMA. Finds them again by marks (environment variables).

The list of living programs always comes from the machine, never from memory. The only state is a file for each
instance, `run/<instance>.json`, with the pid of the program. The pid distinguishes the program from the processes that
it has started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import psutil

from aima_core.call import timestamp
from aima_core.errors import ExecutionFailed, ValidationFailed
from aima_core.system import file_locks
from services.engine.runtimes import START_LINE, Handle, Handles, LaunchSpec, Lines, Stats, ending, marks
from services.engine.runtimes.children import Children, inherited, spawn, why
from services.engine.runtimes.log_files import LogFiles

LEFTOVERS = 2.0
"""Seconds from the end of a program to the SIGKILL for processes that it has started."""
WINDOW = 1.0
"""Minimum seconds between two measurements of CPU use. The kernel counts hundredths of a second, so a shorter time
gives a rough value."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


class ProcessRuntime:
    """The runtime `process`. `folder`: where its files are. `owner`: id of this AIMA among several on the machine."""

    def __init__(self, folder: Path, owner: str, *, log_bytes: int = 10 * 1024 * 1024, log_files: int = 3) -> None:
        self._folder, self._owner = folder, owner
        self._run = folder / "run"
        self._logs = LogFiles(folder / "logs", log_bytes, log_files)
        self._children = Children()
        # the last measurement: time, CPU seconds until then, percent
        self._measured: dict[Handle, tuple[float, float, float]] = {}

    async def start(self, spec: LaunchSpec) -> Handle:
        if not _NAME.fullmatch(spec.instance):
            raise ValidationFailed(
                f"{spec.instance!r} is not an instance id: use at most 120 letters, digits, '.', '_' and '-'",
                fields=[{"field": "instance", "expected": "at most 120 letters, digits, '.', '_' and '-'"}],
            )
        return await asyncio.to_thread(self._start, spec)

    async def find(self, instance: str) -> Handle | None:
        return (await asyncio.to_thread(self._living)).get(instance)

    async def list(self) -> Handles:
        return [handle for _, handle in sorted((await asyncio.to_thread(self._living)).items())]

    async def notes(self, handle: Handle) -> dict[str, str]:
        return await asyncio.to_thread(self._notes, handle)

    async def wait(self, handle: Handle) -> int | None:
        # The watch begins before the check, so that the pid cannot pass to another process between them.
        with ending.watched(handle.pid) as death:
            # A dying process loses its marks slightly before it has an exit code, so a child is checked both ways.
            while self._children.running(handle) or await asyncio.to_thread(self._lives, handle):
                await death.wait_or_poll()
        return self._children.code(handle)

    async def stop(self, handle: Handle, timeout: float, force: bool) -> int | None:
        deadline = time.monotonic() + timeout
        members = await asyncio.to_thread(self._members, handle)
        if not force:
            ending.signal(members, kill=False)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wait(handle), max(0.0, timeout))
            await ending.gone(members, min(deadline - time.monotonic(), LEFTOVERS))
        await asyncio.to_thread(self._kill, handle, members)
        self._measured.pop(handle, None)
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self.wait(handle), ending.KILLED)
        return None

    def logs(self, instance: str, tail: int) -> Lines:
        return self._logs.tail(instance, tail) if _NAME.fullmatch(instance) else []

    async def stats(self, handle: Handle) -> Stats:
        return await asyncio.to_thread(self._stats, handle)

    async def rotate(self) -> None:
        """Keep the logs within their limits, and reap zombies. Callers repeat it every few seconds. Raises OSError."""
        await asyncio.to_thread(self._logs.rotate)
        living = await asyncio.to_thread(self._forget)
        for ended in set(self._measured) - living:
            self._measured.pop(ended, None)

    # The methods below block for milliseconds and run in threads.

    def _lives(self, handle: Handle) -> bool:
        return marks.living(handle, self._owner) is not None

    def _notes(self, handle: Handle) -> dict[str, str]:
        process = marks.living(handle, self._owner)
        return marks.notes(process) if process else {}

    def _living(self) -> dict[str, Handle]:
        self._children.reap()
        heads = {
            instance: marks.head(processes, self._recorded_pid(instance))
            for instance, processes in marks.marked(self._owner).items()
        }
        handles: dict[str, Handle] = {}
        for instance, process in heads.items():
            with contextlib.suppress(psutil.Error):  # the process has just died
                if process is not None:
                    handles[instance] = Handle(instance, process.pid, process.create_time())
        return handles

    def _start(self, spec: LaunchSpec) -> Handle:
        try:
            with self._locked():
                if handle := self._living().get(spec.instance):
                    return handle
                # Processes left from an earlier run have the same marks and use memory that the new program needs.
                ending.kill(spec.instance, lambda: marks.marked(self._owner).get(spec.instance, []))
                # If AIMA crashed before it writes the new record, an old record would hide the new program.
                self._record(spec.instance).unlink(missing_ok=True)
                handle = self._launch(spec)
                self._write_record(handle)
                return handle
        except (OSError, ValueError) as error:
            program = spec.argv[0] if spec.argv else ""
            raise ExecutionFailed(
                f"cannot start the process of {spec.instance}: {why(error)}",
                reason="LAUNCH_FAILED",
                program=program,
                instance=spec.instance,
            ) from error

    def _launch(self, spec: LaunchSpec) -> Handle:
        if not spec.argv:
            raise ValueError("the command is empty")
        output = self._logs.open(spec.instance, f"{START_LINE}{spec.instance} at {timestamp(time.time())}")
        try:
            own = spec.env | marks.noted(spec.notes) | {marks.INSTANCE: spec.instance, marks.OWNER: self._owner}
            pid = spawn(spec.argv, inherited() | own, spec.cwd or self._folder, output)
        finally:
            os.close(output)
        process = psutil.Process(pid)  # cannot fail: even a dead process exists until this process reaps it
        handle = Handle(spec.instance, pid, process.create_time())
        self._children.add(handle)
        # The environment of a new process becomes readable only slightly after its start.
        deadline = time.monotonic() + ending.KILLED
        while not marks.living(handle, self._owner) and ending.lives(process) and time.monotonic() < deadline:
            time.sleep(0.001)
        return handle

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # An earlier AIMA that has not ended yet may start the same instance. If it is killed between fork and exec, its
        # child keeps the lock until just before the child's marks become visible.
        self._run.mkdir(parents=True, exist_ok=True)
        with (self._run / "lock").open("ab") as lock:
            file_locks.lock(lock.fileno(), wait=True)
            yield

    def _forget(self) -> set[Handle]:
        """Remove the files of instances that ended long ago. Return the handles of the living instances."""
        with self._locked():  # so that a concurrent start does not lose its new files
            living = self._living()
            self._logs.forget(living.keys())
            for record in self._run.glob("*.json"):
                if record.stem not in living and not self._logs.has(record.stem):
                    record.unlink(missing_ok=True)
        return set(living.values())

    def _record(self, instance: str) -> Path:
        return self._run / f"{instance}.json"

    def _write_record(self, handle: Handle) -> None:
        try:
            self._record(handle.instance).write_bytes(msgspec.json.encode(handle))
        except OSError:  # a full disk: the start is reported as failed, so the program must not run
            self._kill(handle, [])
            raise

    def _recorded_pid(self, instance: str) -> int | None:
        try:
            return msgspec.json.decode(self._record(instance).read_bytes(), type=Handle).pid
        except (OSError, msgspec.DecodeError):  # missing or incomplete: the marks alone must suffice
            return None

    def _members(self, handle: Handle) -> Sequence[psutil.Process]:
        """Return the processes that a stop of the program ends.

        If the program lives: the program, its descendants, its process group and all other processes of the instance.
        If the program has ended: the processes that it left. If a later run of the instance lives: none.
        """
        if process := marks.living(handle, self._owner):
            members = marks.family(process)
        elif handle.instance in self._living():
            return []
        else:
            members = []
        others = marks.marked(self._owner).get(handle.instance, [])
        return members + [process for process in others if process not in members]

    def _kill(self, handle: Handle, members: Sequence[psutil.Process]) -> None:
        # Processes that fork while they are being killed are found in the next round.
        ending.kill(handle.instance, lambda: {*members, *self._members(handle)})
        if self._recorded_pid(handle.instance) == handle.pid:
            self._record(handle.instance).unlink(missing_ok=True)

    def _stats(self, handle: Handle) -> Stats:
        process = marks.living(handle, self._owner)
        if process is None:
            self._measured.pop(handle, None)
            return Stats(memory_bytes=0, cpu_percent=0.0)
        memory, seconds, now = 0, 0.0, time.time()
        for member in marks.family(process):
            with contextlib.suppress(psutil.Error):
                memory += member.memory_info().rss
                times = member.cpu_times()
                seconds += times.user + times.system
        since, before, percent = self._measured.get(handle, (handle.started_at, 0.0, None))
        if percent is None or now - since >= WINDOW:
            # The CPU seconds of a child vanish with it, which must not become a negative percentage.
            percent = round(max(0.0, 100 * (seconds - before) / max(now - since, 0.01)), 1)
            self._measured[handle] = (now, seconds, percent)
        return Stats(memory, percent)
