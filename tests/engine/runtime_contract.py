"""What every runtime promises. Subclass it with a `runtime` fixture; see test_process_runtime.py."""

from __future__ import annotations

import asyncio
import time

import psutil
import pytest

from aima_core.errors import ExecutionFailed, ValidationFailed
from aima_core.testing import until
from services.engine.runtimes import Handle, LaunchSpec, Runtime, Stats
from tests.engine import programs


async def ready(runtime: Runtime, instance: str) -> None:
    await until(lambda: "ready" in runtime.logs(instance, 50))


def child_of(runtime: Runtime, instance: str) -> psutil.Process:
    line = next(line for line in runtime.logs(instance, 50) if line.startswith("child "))
    return psutil.Process(int(line.split()[1]))


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class RuntimeContract:
    async def test_a_started_program_is_found_and_listed(self, runtime: Runtime) -> None:
        second = await runtime.start(LaunchSpec("eng-b", programs.OBEDIENT))
        first = await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT))
        assert (first.instance, second.instance) == ("eng-a", "eng-b")
        assert first.pid != second.pid
        assert await runtime.find("eng-a") == first
        assert await runtime.list() == [first, second]

    async def test_what_was_never_started_is_not_found(self, runtime: Runtime) -> None:
        assert await runtime.find("eng-a") is None
        assert await runtime.list() == []

    async def test_what_was_noted_with_a_program_is_found_again_for_as_long_as_it_lives(self, runtime: Runtime) -> None:
        notes = {"run": "2", "service": "svc-a", "name": ""}
        handle = await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT, notes=notes))
        plain = await runtime.start(LaunchSpec("eng-b", programs.OBEDIENT))
        assert (await runtime.notes(handle), await runtime.notes(plain)) == (notes, {})
        await runtime.stop(handle, timeout=20, force=True)
        assert await runtime.notes(handle) == {}

    async def test_starting_again_returns_the_one_that_runs(self, runtime: Runtime) -> None:
        first = await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT))
        assert await runtime.start(LaunchSpec("eng-a", programs.STUBBORN)) == first

    async def test_many_starts_at_once_start_one(self, runtime: Runtime) -> None:
        spec = LaunchSpec("eng-a", programs.OBEDIENT)
        handles = await asyncio.gather(*(runtime.start(spec) for _ in range(8)))
        assert set(handles) == {handles[0]}
        assert await runtime.list() == [handles[0]]

    async def test_what_has_died_is_started_anew(self, runtime: Runtime) -> None:
        first = await runtime.start(LaunchSpec("eng-a", programs.ends_with(3)))
        assert await runtime.wait(first) == 3
        assert await runtime.find("eng-a") is None
        second = await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT))
        assert second != first
        assert await runtime.find("eng-a") == second

    async def test_stop_asks_first(self, runtime: Runtime) -> None:
        handle = await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT))
        await ready(runtime, "eng-a")
        assert await runtime.stop(handle, timeout=20, force=False) == 7
        assert await runtime.list() == []

    async def test_stop_kills_at_the_timeout(self, runtime: Runtime) -> None:
        handle = await runtime.start(LaunchSpec("eng-a", programs.STUBBORN))
        await ready(runtime, "eng-a")
        began = time.monotonic()
        assert await runtime.stop(handle, timeout=0.5, force=False) == -9
        assert 0.5 <= time.monotonic() - began < 5
        assert await runtime.find("eng-a") is None

    async def test_a_forced_stop_does_not_ask(self, runtime: Runtime) -> None:
        handle = await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT))
        await ready(runtime, "eng-a")
        assert await runtime.stop(handle, timeout=20, force=True) == -9

    async def test_stopping_again_is_no_error(self, runtime: Runtime) -> None:
        handle = await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT))
        await ready(runtime, "eng-a")
        assert await runtime.stop(handle, timeout=20, force=False) == 7
        assert await runtime.stop(handle, timeout=20, force=False) == 7

    async def test_stopping_an_earlier_run_leaves_the_later_one(self, runtime: Runtime) -> None:
        first = await runtime.start(LaunchSpec("eng-a", programs.ends_with(0)))
        await runtime.wait(first)
        second = await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT))
        await runtime.stop(first, timeout=20, force=True)
        assert await runtime.find("eng-a") == second

    @pytest.mark.parametrize("program", ["PARENT", "DEEP", "BARE_CHILD"])
    async def test_stop_ends_the_whole_tree(self, runtime: Runtime, program: str) -> None:
        handle = await runtime.start(LaunchSpec("eng-a", getattr(programs, program)))
        await ready(runtime, "eng-a")
        child = child_of(runtime, "eng-a")
        assert not gone(child)
        await runtime.stop(handle, timeout=20, force=False)
        assert gone(child)

    @pytest.mark.parametrize("program", ["PARENT", "DEEP"])
    async def test_what_a_dead_program_left_is_no_instance_and_ends_with_the_next_start(
        self, runtime: Runtime, program: str
    ) -> None:
        handle = await runtime.start(LaunchSpec("eng-a", getattr(programs, program)))
        await ready(runtime, "eng-a")
        child = child_of(runtime, "eng-a")
        psutil.Process(handle.pid).kill()
        assert await runtime.wait(handle) == -9
        assert await runtime.find("eng-a") is None
        assert not gone(child)
        second = await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT))
        assert gone(child)
        assert await runtime.find("eng-a") == second

    async def test_stop_ends_what_a_dead_program_left(self, runtime: Runtime) -> None:
        handle = await runtime.start(LaunchSpec("eng-a", programs.PARENT))
        await ready(runtime, "eng-a")
        child = child_of(runtime, "eng-a")
        psutil.Process(handle.pid).kill()
        assert await runtime.wait(handle) == -9
        assert await runtime.stop(handle, timeout=20, force=False) == -9
        assert gone(child)

    async def test_wait_notices_a_death_at_once(self, runtime: Runtime) -> None:
        handle = await runtime.start(LaunchSpec("eng-a", programs.STUBBORN))
        await ready(runtime, "eng-a")
        waiting = [asyncio.create_task(runtime.wait(handle)) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        psutil.Process(handle.pid).kill()
        assert await asyncio.wait_for(asyncio.gather(*waiting), 2) == [-9, -9, -9]

    async def test_logs_are_the_last_lines_also_after_the_end(self, runtime: Runtime) -> None:
        handle = await runtime.start(LaunchSpec("eng-a", programs.prints(100)))
        await ready(runtime, "eng-a")
        assert runtime.logs("eng-a", 3) == ["line 98", "line 99", "ready"]
        await runtime.stop(handle, timeout=20, force=True)
        assert runtime.logs("eng-a", 2) == ["line 99", "ready"]
        assert runtime.logs("eng-a", 0) == []
        assert runtime.logs("eng-never", 10) == []

    async def test_stats_count_the_children(self, runtime: Runtime) -> None:
        busy = programs.python("import subprocess, sys; print('ready', flush=True)\nwhile True: pass")
        handle = await runtime.start(LaunchSpec("eng-a", busy))
        await ready(runtime, "eng-a")
        await until(lambda: _is_busy(runtime, handle))
        assert (await runtime.stats(handle)).memory_bytes > 1_000_000
        await runtime.stop(handle, timeout=20, force=True)
        assert await runtime.stats(handle) == Stats(memory_bytes=0, cpu_percent=0.0)

    async def test_a_program_that_is_not_there_is_named(self, runtime: Runtime) -> None:
        with pytest.raises(ExecutionFailed, match="no-such-program") as refused:
            await runtime.start(LaunchSpec("eng-a", ("no-such-program", "--port", "1")))
        assert refused.value.reason == "LAUNCH_FAILED"
        assert await runtime.list() == []

    @pytest.mark.parametrize("instance", ["", "../eng", "a/b", "-a", "a\n", "x" * 121])
    async def test_an_instance_id_that_is_none_is_refused(self, runtime: Runtime, instance: str) -> None:
        with pytest.raises(ValidationFailed) as refused:
            await runtime.start(LaunchSpec(instance, programs.OBEDIENT))
        assert refused.value.details["fields"][0]["field"] == "instance"
        assert runtime.logs(instance, 10) == []


async def _is_busy(runtime: Runtime, handle: Handle) -> bool:
    return (await runtime.stats(handle)).cpu_percent > 5
