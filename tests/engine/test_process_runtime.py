from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from aima_core.call import unix
from aima_core.errors import ExecutionFailed
from aima_core.testing import until
from services.engine.runtimes import START_LINE, Handle, LaunchSpec, Runtime, ending, marks
from services.engine.runtimes.log_files import KEPT, of_runs_since
from services.engine.runtimes.process import ProcessRuntime
from tests.engine import programs
from tests.engine.runtime_contract import RuntimeContract, gone, ready

ROOT = Path(__file__).parents[2]


@pytest.fixture
def owner() -> Iterator[str]:
    """An owner of its own for each test, of which nothing may remain alive."""
    name = f"test-{uuid.uuid4().hex}"
    yield name
    # Instances may run on when a test ends, as they do when AIMA ends. Here they are ended, and must be.
    left = [process for processes in marks.marked(name).values() for process in processes]
    ending.kill("what the test left", lambda: left)
    # Our own children turn into zombies when they are killed, until somebody asks for their exit code.
    for process in left:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, 0)
    assert marks.marked(name) == {}


@pytest.fixture
def runtime(tmp_path: Path, owner: str) -> ProcessRuntime:
    return ProcessRuntime(tmp_path, owner)


class TestProcessRuntime(RuntimeContract):
    """The contract, by real processes."""


PARENT_OF_AN_ENGINE = """
import asyncio, sys, pathlib, threading, os, signal, time
from services.engine.runtimes import LaunchSpec
from services.engine.runtimes.log_files import KEPT, of_runs_since
from services.engine.runtimes.process import ProcessRuntime
from tests.engine import programs
def die_after(seconds):
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)
async def main():
    if len(sys.argv) > 3:
        print("go", flush=True)
        threading.Thread(target=die_after, args=(float(sys.argv[3]),), daemon=True).start()
    runtime = ProcessRuntime(pathlib.Path(sys.argv[1]), sys.argv[2])
    handle = await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT))
    print(handle.pid, handle.started_at, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def another(tmp_path: Path, owner: str, *arguments: str) -> asyncio.subprocess.Process:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "libs")])}
    command = [sys.executable, "-c", PARENT_OF_AN_ENGINE, str(tmp_path), owner, *arguments]
    return await asyncio.create_subprocess_exec(*command, env=env, stdout=subprocess.PIPE)


async def started_by_another(tmp_path: Path, owner: str) -> Handle:
    """Start an engine from a process of its own, which is then killed."""
    parent = await another(tmp_path, owner)
    assert parent.stdout is not None
    pid, started_at = (await parent.stdout.readline()).split()
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    return Handle("eng-a", int(pid), float(started_at))


async def test_an_engine_outlives_the_death_of_its_parent_and_is_adopted(
    tmp_path: Path, owner: str, runtime: ProcessRuntime
) -> None:
    handle = await started_by_another(tmp_path, owner)
    assert await runtime.find("eng-a") == handle
    assert await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT)) == handle
    assert await runtime.list() == [handle]
    await ready(runtime, "eng-a")
    waiting = asyncio.create_task(runtime.wait(handle))
    # Its exit code is told to its parent only, which is no longer us.
    assert await runtime.stop(handle, timeout=20, force=False) is None
    assert await asyncio.wait_for(waiting, 2) is None
    assert await runtime.list() == []


@pytest.mark.parametrize("record", [None, b"", b"{"])
async def test_a_death_between_start_and_record_loses_nothing(
    tmp_path: Path, owner: str, runtime: ProcessRuntime, record: bytes | None
) -> None:
    handle = await started_by_another(tmp_path, owner)
    file = tmp_path / "run" / "eng-a.json"
    file.unlink()
    if record is not None:
        file.write_bytes(record)
    assert await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT)) == handle


async def test_the_record_of_an_earlier_run_does_not_hide_a_later_one(
    tmp_path: Path, owner: str, runtime: ProcessRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await runtime.wait(await runtime.start(LaunchSpec("eng-a", programs.ends_with(0))))
    monkeypatch.setattr(runtime, "_write_record", lambda _: None)  # as if we died before it
    handle = await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT))
    assert await ProcessRuntime(tmp_path, owner).find("eng-a") == handle


@pytest.mark.parametrize("milliseconds", [0, 4, 8, 12, 16, 24, 40])
async def test_whenever_the_parent_is_killed_in_a_start_there_is_one_program(
    tmp_path: Path, owner: str, runtime: ProcessRuntime, milliseconds: int
) -> None:
    parent = await another(tmp_path, owner, str(milliseconds / 1000))
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"go\n"
    # The next AIMA does not wait for the one before it to be dead.
    handle = await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT))
    await parent.communicate()
    assert parent.returncode == -signal.SIGKILL
    assert await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT)) == handle
    assert [process.pid for process in marks.marked(owner)["eng-a"]] == [handle.pid]


async def test_two_runtimes_on_one_folder_start_one_program(tmp_path: Path, owner: str) -> None:
    both = [ProcessRuntime(tmp_path, owner), ProcessRuntime(tmp_path, owner)]
    spec = LaunchSpec("eng-a", programs.OBEDIENT)
    handles = await asyncio.gather(*(one.start(spec) for one in both * 3))
    assert len(set(handles)) == 1
    # Only the one that started it can ask for its exit code; both notice the end.
    await ready(both[0], "eng-a")
    codes = {await one.stop(handles[0], timeout=20, force=False) for one in both}
    assert codes == {7, None}


async def test_without_word_from_the_kernel_a_death_is_noticed_within_a_second(
    runtime: ProcessRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "_pidfd", lambda _: None)
    handle = await runtime.start(LaunchSpec("eng-a", programs.STUBBORN))
    waiting = asyncio.create_task(runtime.wait(handle))
    psutil.Process(handle.pid).kill()
    assert await asyncio.wait_for(waiting, 2) == -9


async def test_the_same_instance_of_another_aima_is_untouched(tmp_path: Path, owner: str, runtime: Runtime) -> None:
    theirs = ProcessRuntime(tmp_path / "theirs", f"{owner}-2")
    their_handle = await theirs.start(LaunchSpec("eng-a", programs.OBEDIENT))
    try:
        assert await runtime.list() == []
        our_handle = await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT))
        assert our_handle.pid != their_handle.pid
        await runtime.stop(our_handle, timeout=0, force=True)
        await runtime.stop(their_handle, timeout=0, force=True)
        assert await theirs.find("eng-a") == their_handle
    finally:
        await theirs.stop(their_handle, timeout=0, force=True)


async def test_a_handle_whose_pid_is_now_another_process_touches_nothing(runtime: ProcessRuntime) -> None:
    other = await runtime.start(LaunchSpec("eng-b", programs.OBEDIENT))
    bystander = psutil.Process(os.getpid())
    for stale in (
        Handle("eng-a", other.pid, other.started_at),
        Handle("eng-b", other.pid, other.started_at - 3600),
        Handle("eng-a", bystander.pid, bystander.create_time()),
    ):
        assert await asyncio.wait_for(runtime.wait(stale), 2) is None
        assert await runtime.stop(stale, timeout=0, force=True) is None
    assert await runtime.find("eng-b") == other


async def test_no_zombie_remains_though_nobody_waits(runtime: ProcessRuntime) -> None:
    handle = await runtime.start(LaunchSpec("eng-a", programs.ends_with(0)))

    async def reaped() -> bool:
        await runtime.rotate()
        return not psutil.pid_exists(handle.pid)

    await until(reaped)
    assert await runtime.wait(handle) == 0


async def test_a_program_gets_no_setting_and_no_secret_of_ours(
    runtime: ProcessRuntime, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AIMA_DATA", "OPENAI_API_KEY", "HF_TOKEN", "DB_PASSWORD"):
        monkeypatch.setenv(name, "hidden")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    handle = await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT, {"HF_TOKEN": "given", "MONKEY": "x"}))
    env = psutil.Process(handle.pid).environ()
    assert (env["AIMA_INSTANCE"], env["AIMA_OWNER"], env["PATH"]) == ("eng-a", owner, os.environ["PATH"])
    assert (env["HF_TOKEN"], env["CUDA_VISIBLE_DEVICES"], env["MONKEY"]) == ("given", "0", "x")
    assert "hidden" not in env.values()


async def test_it_has_a_session_of_its_own_and_no_input(runtime: ProcessRuntime, tmp_path: Path) -> None:
    handle = await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT))
    assert os.getsid(handle.pid) == os.getpgid(handle.pid) == handle.pid
    assert Path(f"/proc/{handle.pid}/fd/0").readlink() == Path("/dev/null")
    assert Path(f"/proc/{handle.pid}/cwd").readlink() == tmp_path


def test_a_spec_does_not_show_the_values_of_its_environment() -> None:
    assert "s3cret" not in repr(LaunchSpec("eng-a", ("x",), {"HF_TOKEN": "s3cret"}))


@pytest.mark.parametrize("case", ["not executable", "a folder", "no command", "zero byte", "no such cwd", "read-only"])
async def test_what_cannot_be_started_says_why(runtime: ProcessRuntime, tmp_path: Path, case: str) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    specs = {
        "not executable": LaunchSpec("eng-a", (str(plain),)),
        "a folder": LaunchSpec("eng-a", (str(tmp_path),)),
        "no command": LaunchSpec("eng-a", ()),
        "zero byte": LaunchSpec("eng-a", (sys.executable, "a\0b")),
        "no such cwd": LaunchSpec("eng-a", (sys.executable,), cwd=str(tmp_path / "nowhere")),
        "read-only": LaunchSpec("eng-a", (sys.executable,)),
    }
    if case == "read-only":
        (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(ExecutionFailed) as refused:
        await runtime.start(specs[case])
    assert refused.value.reason == "LAUNCH_FAILED"
    assert refused.value.details["instance"] == "eng-a"
    assert await runtime.list() == []


async def test_a_program_whose_record_cannot_be_written_does_not_run(runtime: ProcessRuntime, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "lock").touch()
    folder.chmod(0o500)
    if os.geteuid() == 0:  # root may write anywhere; a dangling link to nowhere stops root as well
        (folder / "eng-a.json").symlink_to(tmp_path / "nowhere" / "x")
        monkey = pytest.MonkeyPatch()
        monkey.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    try:
        with pytest.raises(ExecutionFailed):
            await runtime.start(LaunchSpec("eng-a", programs.STUBBORN))
    finally:
        folder.chmod(0o700)
        if os.geteuid() == 0:
            monkey.undo()
    assert await runtime.list() == []


async def test_a_log_is_rotated_while_the_program_writes(tmp_path: Path, owner: str) -> None:
    runtime = ProcessRuntime(tmp_path, owner, log_bytes=20_000, log_files=2)
    # It writes on while it is rotated, but does not run away from a slow machine: only up to three times the size.
    writer = programs.python(
        "import os, time\nfor number in range(9000):\n print(f'line {number:05}', flush=True)\n"
        " while os.fstat(1).st_size > 60_000: time.sleep(0.001)\nprint('ready', flush=True)\ntime.sleep(600)"
    )
    await runtime.start(LaunchSpec("eng-a", writer))

    async def written() -> bool:
        await runtime.rotate()
        return runtime.logs("eng-a", 1) == ["ready"]

    await until(written)
    await runtime.rotate()  # much may have been written between the last rotation and the look that found the end
    files = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert files == ["eng-a.log", "eng-a.log.1", "eng-a.log.2"]
    # A line written in the microseconds of a truncation may be lost; none is doubled, cut, or out of order.
    lines = [line for line in runtime.logs("eng-a", 10_000) if line.startswith("line ")]
    assert lines[-1] == "line 08999"
    assert lines == sorted(set(lines))
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "logs").iterdir())


async def test_the_tail_reaches_into_the_older_file(tmp_path: Path, owner: str) -> None:
    runtime = ProcessRuntime(tmp_path, owner, log_bytes=100, log_files=2)
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "eng-a.log.2").write_text("one\ntwo\n")
    (logs / "eng-a.log.1").write_text("three\nfo")
    (logs / "eng-a.log").write_text("ur\nfive\r\n\nsix")
    assert runtime.logs("eng-a", 4) == ["four", "five", "", "six"]
    assert runtime.logs("eng-a", 5) == ["three", "four", "five", "", "six"]
    assert runtime.logs("eng-a", 50) == ["one", "two", "three", "four", "five", "", "six"]


async def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, owner: str) -> None:
    runtime = ProcessRuntime(tmp_path, owner)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "eng-a.log").write_bytes(b"x" * 20_000_000)
    assert [len(line) for line in runtime.logs("eng-a", 5)] == [8 * 1024 * 1024]


async def test_the_log_of_what_is_long_gone_is_removed(runtime: ProcessRuntime, tmp_path: Path) -> None:
    await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT))
    logs = tmp_path / "logs"
    for name in ("eng-b.log", "eng-b.log.1", "eng-c.log"):
        (logs / name).write_text("x\n")
    for name in ("eng-a.log", "eng-b.log"):
        os.utime(logs / name, (0, 0))
    await runtime.rotate()
    assert sorted(path.name for path in logs.iterdir()) == ["eng-a.log", "eng-c.log"]


async def test_of_what_has_ended_the_newest_logs_and_records_are_kept(runtime: ProcessRuntime, tmp_path: Path) -> None:
    living = await runtime.start(LaunchSpec("eng-a", programs.OBEDIENT))
    for number in range(KEPT + 2):
        log, record = tmp_path / "logs" / f"eng-b{number}.log", tmp_path / "run" / f"eng-b{number}.json"
        log.write_text("x\n")
        record.write_bytes(msgspec.json.encode(Handle(f"eng-b{number}", 1, 1.0)))
        os.utime(log, (time.time() - 1000 + number,) * 2)
    os.utime(tmp_path / "logs" / "eng-a.log", (0, 0))
    (tmp_path / "logs" / "eng-b0.log.1").write_text("older\n")
    await runtime.rotate()
    kept = {"eng-a", *(f"eng-b{number}" for number in range(2, KEPT + 2))}
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {f"{name}.log" for name in kept}
    assert {path.name for path in (tmp_path / "run").glob("*.json")} == {f"{name}.json" for name in kept}
    assert await runtime.find("eng-a") == living


async def test_two_who_look_at_the_cpu_do_not_disturb_each_other(runtime: ProcessRuntime) -> None:
    handle = await runtime.start(LaunchSpec("eng-a", programs.python("while True: pass")))
    first = await runtime.stats(handle)
    assert (await runtime.stats(handle)).cpu_percent == first.cpu_percent  # a second has not passed

    async def later() -> bool:
        return (await runtime.stats(handle)).cpu_percent not in (0, first.cpu_percent)

    await until(later)


async def test_each_run_begins_with_a_line_of_ours(runtime: ProcessRuntime) -> None:
    for code in (1, 2):
        handle = await runtime.start(LaunchSpec("eng-a", programs.ends_with(code)))
        assert await runtime.wait(handle) == code
    lines = runtime.logs("eng-a", 10)
    assert [line.startswith(START_LINE + "eng-a") for line in lines] == [True, False, True, False]


async def test_the_lines_of_earlier_runs_are_left_out_where_that_is_asked_for(runtime: ProcessRuntime) -> None:
    between = []
    for code in (1, 2, 3):
        between.append(time.time())
        assert await runtime.wait(await runtime.start(LaunchSpec("eng-a", programs.ends_with(code)))) == code
    lines = runtime.logs("eng-a", 10)
    assert [of_runs_since(lines, at) for at in (0, *between)] == [lines, lines, lines[2:], lines[4:]]
    assert of_runs_since(lines, time.time() + 60) == lines[4:]  # another's clock
    assert of_runs_since(["only", "words"], time.time()) == ["only", "words"]
    earlier = f"{START_LINE}eng-a at 2026-01-01T12:00:07Z"  # as earlier releases wrote it
    noise = [f"{START_LINE}eng-a at noon", "said"]
    assert of_runs_since([*noise, earlier, "more"], unix("2026-01-01T12:00:07.9Z")) == [earlier, "more"]
    later = [earlier, "more", earlier, "most"]
    assert of_runs_since([*noise, *later], unix("2026-01-01T12:00:08.1Z")) == later[2:]


def test_gone_means_dead_or_zombie() -> None:
    child = subprocess.Popen(["true"])
    process = psutil.Process(child.pid)
    child.wait()
    assert gone(process)
