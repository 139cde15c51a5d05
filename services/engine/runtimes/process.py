"""Programs as plain processes: detached children that outlive us and are found again by the marks they carry.

What lives is read from the machine, never remembered. The one thing kept in files, `run/<instance>.json`, is the
pid of the program itself, to tell it from what it started.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import psutil

from aima_core.call import timestamp
from aima_core.errors import ExecutionFailed, ValidationFailed
from services.engine.runtimes import START_LINE, Handle, Handles, LaunchSpec, Lines, Stats, ending, marks
from services.engine.runtimes.children import Children, inherited, spawn, why
from services.engine.runtimes.log_files import LogFiles

LEFTOVERS = 2.0
"""Seconds that what a program started may outlive it before it is killed."""
WINDOW = 1.0
"""Seconds at least over which CPU is measured: in a shorter time the kernel's hundredths tell nothing."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


class ProcessRuntime:
    """The runtime `process`. Files lie under `folder`; `owner` names this AIMA among others on the machine."""

    def __init__(self, folder: Path, owner: str, *, log_bytes: int = 10 * 1024 * 1024, log_files: int = 3) -> None:
        self._folder, self._owner = folder, owner
        self._run = folder / "run"
        self._logs = LogFiles(folder / "logs", log_bytes, log_files)
        self._children = Children()
        self._used: dict[
            Handle, tuple[float, float, float]
        ] = {}  # the last look: when, CPU seconds until then, percent

    async def start(self, spec: LaunchSpec) -> Handle:
        """Return the instance's living program; start it only when there is none."""
        if not _NAME.fullmatch(spec.instance):
            raise ValidationFailed(
                f"{spec.instance!r} is no instance id",
                fields=[{"field": "instance", "expected": "letters, digits, '.', '_', '-', at most 120"}],
            )
        return await asyncio.to_thread(self._start, spec)

    async def find(self, instance: str) -> Handle | None:
        """Return the instance's living program, whoever started it; None when there is none."""
        return (await asyncio.to_thread(self._living)).get(instance)

    async def list(self) -> Handles:
        """Return every living instance of this AIMA, ordered by instance."""
        return [handle for _, handle in sorted((await asyncio.to_thread(self._living)).items())]

    async def notes(self, handle: Handle) -> dict[str, str]:
        """Return the notes that the program was started with; empty when it is gone."""
        return await asyncio.to_thread(self._notes, handle)

    async def wait(self, handle: Handle) -> int | None:
        """Return when the program has died: its exit code, None when it is no child of this process."""
        # Watched before the look, so that the pid cannot pass to another process unseen.
        with ending.watched(handle.pid) as died:
            # A process loses its marks slightly before it is dead and has an exit code.
            while self._children.running(handle) or await asyncio.to_thread(self._lives, handle):
                await died.maybe()
        return self._children.code(handle)

    async def stop(self, handle: Handle, timeout: float, force: bool) -> int | None:
        """End the program and everything it started: asked first, made to after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        members = await asyncio.to_thread(self._members, handle)
        if not force:
            ending.signal(members, kill=False)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wait(handle), max(0.0, timeout))
            await ending.gone(members, min(deadline - time.monotonic(), LEFTOVERS))
        await asyncio.to_thread(self._kill, handle, members)
        self._used.pop(handle, None)
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self.wait(handle), ending.KILLED)
        return None

    def logs(self, instance: str, tail: int) -> Lines:
        """Return the last `tail` lines that the instance wrote, oldest first."""
        return self._logs.tail(instance, tail) if _NAME.fullmatch(instance) else []

    async def stats(self, handle: Handle) -> Stats:
        """Return what the program and its children use now."""
        return await asyncio.to_thread(self._stats, handle)

    async def rotate(self) -> None:
        """Keep the logs within their size and number and leave no zombie. Call it every few seconds. Raises OSError."""
        await asyncio.to_thread(self._logs.rotate)
        living = await asyncio.to_thread(self._forget)
        for gone in set(self._used) - living:
            self._used.pop(gone, None)

    # What follows blocks, for milliseconds, and runs in threads.

    def _lives(self, handle: Handle) -> bool:
        return marks.living(handle, self._owner) is not None

    def _notes(self, handle: Handle) -> dict[str, str]:
        process = marks.living(handle, self._owner)
        return marks.notes(process) if process else {}

    def _living(self) -> dict[str, Handle]:
        self._children.reap()
        heads = {
            instance: marks.head(processes, self._recorded(instance))
            for instance, processes in marks.marked(self._owner).items()
        }
        found: dict[str, Handle] = {}
        for instance, process in heads.items():
            with contextlib.suppress(psutil.Error):  # it died meanwhile
                if process is not None:
                    found[instance] = Handle(instance, process.pid, process.create_time())
        return found

    def _start(self, spec: LaunchSpec) -> Handle:
        try:
            with self._one_at_a_time():
                if found := self._living().get(spec.instance):
                    return found
                # What is left of an earlier run would share the marks and the memory with the new one.
                ending.kill(spec.instance, lambda: marks.marked(self._owner).get(spec.instance, []))
                # A record of an earlier run would hide the new program, should we die before the next one is written.
                self._record(spec.instance).unlink(missing_ok=True)
                handle = self._launch(spec)
                self._write_record(handle)
                return handle
        except (OSError, ValueError) as error:
            program = spec.argv[0] if spec.argv else "nothing"
            raise ExecutionFailed(
                f"cannot start {program}: {why(error)}",
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
        process = psutil.Process(pid)  # there even when it has died already: nobody else can reap it
        handle = Handle(spec.instance, pid, process.create_time())
        self._children.add(handle)
        # The kernel tells us that the program is there slightly before its environment can be read.
        deadline = time.monotonic() + ending.KILLED
        while not marks.living(handle, self._owner) and ending.lives(process) and time.monotonic() < deadline:
            time.sleep(0.001)
        return handle

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        # Another process of this AIMA may be starting the same instance: the one before us, not quite dead. Should it
        # be killed between fork and exec, its child holds the lock on, until just before its marks can be seen.
        self._run.mkdir(parents=True, exist_ok=True)
        with (self._run / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _forget(self) -> set[Handle]:
        """Remove the files of what has ended long ago; return what lives."""
        with self._one_at_a_time():  # a start must not lose the files that it has just made
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
        except OSError:  # a full disk: what is reported as not started must not run
            self._kill(handle, [])
            raise

    def _recorded(self, instance: str) -> int | None:
        try:
            return msgspec.json.decode(self._record(instance).read_bytes(), type=Handle).pid
        except (OSError, msgspec.DecodeError):  # never written, or not to the end: the marks alone must do
            return None

    def _members(self, handle: Handle) -> Sequence[psutil.Process]:
        """Return what a stop has to end: the program and its family, or what it left; never a later run's."""
        if process := marks.living(handle, self._owner):
            found = marks.family(process)
        elif handle.instance in self._living():
            return []
        else:
            found = []
        return found + [one for one in marks.marked(self._owner).get(handle.instance, []) if one not in found]

    def _kill(self, handle: Handle, members: Sequence[psutil.Process]) -> None:
        # What forks while it is being killed is found in the next round.
        ending.kill(handle.instance, lambda: {*members, *self._members(handle)})
        if self._recorded(handle.instance) == handle.pid:
            self._record(handle.instance).unlink(missing_ok=True)

    def _stats(self, handle: Handle) -> Stats:
        process = marks.living(handle, self._owner)
        if process is None:
            self._used.pop(handle, None)
            return Stats(memory_bytes=0, cpu_percent=0.0)
        memory, seconds, now = 0, 0.0, time.time()
        for one in marks.family(process):
            with contextlib.suppress(psutil.Error):
                memory += one.memory_info().rss
                times = one.cpu_times()
                seconds += times.user + times.system
        since, before, percent = self._used.get(handle, (handle.started_at, 0.0, None))
        if percent is None or now - since >= WINDOW:
            # A child that ended takes its seconds along, which must not look like negative work.
            percent = round(max(0.0, 100 * (seconds - before) / max(now - since, 0.01)), 1)
            self._used[handle] = (now, seconds, percent)
        return Stats(memory, percent)
