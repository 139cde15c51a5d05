"""The supervisor with real processes, which tests/cli/driver.py forks. Every wait is for an event, never for a time."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.cli.supervisor.restarts import Backoff, reason

DRIVER = Path(__file__).with_name("driver.py")
SECONDS = 15.0  # for a fact to become true on a busy machine

Fact = dict[str, Any]


class Up:
    """One run of the driver, and its output."""

    def __init__(self, data: Path, *children: str, drain: float = 10.0, **environment: str) -> None:
        self.data = data
        self.parent = subprocess.Popen(
            [sys.executable, str(DRIVER), str(data), str(drain), *children],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | environment,
            text=True,
            process_group=0,
        )

    def read(self, file: str) -> list[Fact]:
        path = self.data / file
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def facts(self, **wanted: object) -> list[Fact]:
        return [fact for fact in self.read("facts.jsonl") if wanted.items() <= fact.items()]

    def states(self, name: str) -> list[Fact]:
        return [state for state in self.read("states.jsonl") if state["name"] == name]

    def await_state(self, name: str, state: str, restarts: int = 0) -> int:
        """Wait until a process is in a state after a number of restarts; return its pid."""
        wanted = {"state": state, "restarts": restarts}
        until(lambda: any(wanted.items() <= seen.items() for seen in self.states(name)), self)
        return int(next(seen["pid"] or 0 for seen in self.states(name) if wanted.items() <= seen.items()))

    def pids(self) -> dict[str, int]:
        return dict(json.loads((self.data / "up.json").read_bytes())["children"])

    def end(self) -> tuple[int, str]:
        """Wait for the driver's end; return its exit code and stderr."""
        _, err = self.parent.communicate(timeout=SECONDS)
        return self.parent.returncode, err


def until(fact: Callable[[], object], up: Up | None = None) -> None:
    deadline = time.monotonic() + SECONDS
    while not fact():
        if up is not None and up.parent.poll() is not None and not fact():
            pytest.fail(f"the supervisor ended with {up.parent.returncode}: {up.parent.communicate()}")
        assert time.monotonic() < deadline, up and (up.read("states.jsonl"), up.read("facts.jsonl"))
        time.sleep(0.01)


def gone(*pids: int) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def up(data: Path) -> Iterator[Callable[..., Up]]:
    """Start drivers; check after the test that no process uses the folder."""
    started: list[Up] = []

    def run(*children: str, drain: float = 10.0, **environment: str) -> Up:
        started.append(Up(data, *children, drain=drain, **environment))
        return started[-1]

    yield run
    ours = {fact["pid"] for one in started for file in ("facts.jsonl", "states.jsonl") for fact in one.read(file)}
    for one in started:
        one.parent.kill()
        one.parent.communicate()
    ours.discard(None)
    try:
        until(lambda: gone(*ours))
    finally:  # a failed test leaves nothing either
        for pid in ours:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


def test_every_process_gets_ready_and_is_published(up: Callable[..., Up], data: Path) -> None:
    one = up("a=good", "b=good")
    pids = {name: one.await_state(name, "ready") for name in ("nats-server", "a", "b")}
    url = (data / "nats.url").read_text()
    published = json.loads((data / "up.json").read_bytes())
    assert url.startswith("nats://127.0.0.1:")
    assert published["pid"] == one.parent.pid
    assert published["url"] == url.strip()
    assert published["children"] == pids
    assert "a says hello" in (data / "a" / "process.log").read_text()
    one.parent.send_signal(signal.SIGTERM)
    assert one.end() == (0, "")
    assert {path.name for path in data.iterdir()} == {
        *("a", "b", "nats", "nats.log", "up.lock", "facts.jsonl", "states.jsonl"),
    }


def test_a_child_shares_nothing_that_is_open_but_the_lock_and_its_two_pipes(up: Callable[..., Up], data: Path) -> None:
    one = up("a=good", "b=good")
    one.await_state("b", "ready")
    for began in one.facts(did="began"):
        assert began["group"] == began["pid"]
        assert began["sigint_ignored"] is True
        assert began["wakeup"] == -1
        kinds = ["pipe" if name.split("/")[-1].startswith("pipe") else name for name in began["descriptors"]]
        log = str((data / began["name"] / "process.log").resolve())
        assert sorted(kinds) == sorted(["/dev/null", log, log, "pipe", "pipe", str(data / "up.lock")])


@pytest.mark.parametrize("victim", ["a", "nats-server"])
def test_what_is_killed_is_back_within_seconds(up: Callable[..., Up], victim: str) -> None:
    one = up("a=good", "b=good")
    first = one.await_state(victim, "ready")
    one.await_state("b", "ready")
    os.kill(first, signal.SIGKILL)
    second = one.await_state(victim, "ready", restarts=1)
    assert second != first
    died = next(s for s in one.states(victim) if s["state"].startswith("restarting"))
    assert died["state"] == "restarting in 0.2 s"
    assert died["why"] == "ended by signal 9"
    assert one.states(victim)[-1]["why"] is None
    assert one.pids()[victim] == second
    assert {state["restarts"] for state in one.states("b")} == {0}
    one.parent.send_signal(signal.SIGINT)
    assert one.end() == (0, "")
    assert one.facts(name="a", did="drained", bus=True)


def test_a_child_that_always_dies_is_tried_ever_more_slowly(up: Callable[..., Up], data: Path) -> None:
    one = up("a=fails", "b=exit0")
    one.await_state("a", "restarting in 0.8 s", restarts=2)
    one.await_state("b", "restarting in 0.8 s", restarts=2)
    waits = list(dict.fromkeys(s["state"] for s in one.states("a") if s["state"].startswith("restarting")))
    assert waits[:3] == ["restarting in 0.2 s", "restarting in 0.4 s", "restarting in 0.8 s"]
    assert "RuntimeError: broken on purpose" in (data / "a" / "process.log").read_text()
    assert one.states("a")[-1]["why"] == "ended with code 1: RuntimeError: broken on purpose"
    assert one.states("b")[-1]["why"] == "ended with code 0"
    one.parent.send_signal(signal.SIGTERM)
    assert one.end() == (0, "")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", ""),
        ("a: the port is in use\n\n", "the port is in use"),
        ('a: the port is in use\n{"level": "info", "message": "stopped"}\n', "the port is in use"),
        ('{"level": "error", "message": "it broke", "error": "no room"}\n', "no room"),
        (
            '{"level": "error", "message": "it broke", "traceback": "Traceback:\\n  x()\\nOSError: full"}',
            "OSError: full",
        ),
        ("  | ValueError: x\n    +--------------------\n", "ValueError: x"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_why_a_process_ended_is_the_last_thing_that_it_wrote_of_trouble(text: str, why: str) -> None:
    assert reason(text, "a") == why


def test_the_backoff_doubles_to_ten_seconds_and_forgets_after_five_seconds() -> None:
    backoff = Backoff()
    assert [backoff.after(lived=1) for _ in range(8)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    assert backoff.after(lived=4.9) == 10
    assert backoff.after(lived=5) == 0.2
    assert backoff.after(lived=0) == 0.4


def test_the_bus_goes_last(up: Callable[..., Up]) -> None:
    one = up("a=good", "b=good")
    for name in ("a", "b"):
        one.await_state(name, "ready")
    one.parent.send_signal(signal.SIGINT)
    assert one.end() == (0, "")
    assert {(fact["name"], fact["bus"]) for fact in one.facts(did="drained")} == {("a", True), ("b", True)}
    assert {fact["by"] for fact in one.facts(did="told")} == {"SIGTERM"}
    ends = [s["name"] for s in one.read("states.jsonl") if s["state"] == "stopped"]
    assert ends.index("nats-server") > max(ends.index("a"), ends.index("b"))


def test_a_ctrl_c_at_the_terminal_reaches_the_parent_alone(up: Callable[..., Up]) -> None:
    one = up("a=good", "b=loop")
    for name in ("a", "b"):
        one.await_state(name, "ready")
    os.killpg(one.parent.pid, signal.SIGINT)  # what a terminal does: the whole foreground group gets it
    assert one.end() == (0, "")
    assert {(fact["name"], fact["bus"]) for fact in one.facts(did="drained")} == {("a", True), ("b", True)}


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_child_with_a_loop_a_connection_and_a_thread_is_a_child_like_any(up: Callable[..., Up], end: int) -> None:
    one = up("a=loop")
    first = one.await_state("a", "ready")
    os.kill(first, signal.SIGKILL)
    second = one.await_state("a", "ready", restarts=1)
    one.parent.send_signal(end)
    one.end()
    until(lambda: gone(second))
    assert [fact["pid"] for fact in one.facts(did="drained")] == [second]


def test_a_second_signal_kills_at_once_and_all_that_the_child_has_started(up: Callable[..., Up]) -> None:
    one = up("a=helped", drain=60)
    pid = one.await_state("a", "ready")
    one.parent.send_signal(signal.SIGINT)
    one.await_state("a", "stopping")
    one.parent.send_signal(signal.SIGINT)
    assert one.end() == (0, "")
    assert gone(pid)
    helper = int(one.facts(did="helped")[0]["helper"])
    until(lambda: gone(helper))  # not ours to reap
    assert not one.facts(did="drained")


def test_a_hang_up_is_a_first_signal_and_never_a_second(up: Callable[..., Up]) -> None:
    one = up("a=stubborn", drain=1)
    one.await_state("a", "ready")
    begin = time.monotonic()
    one.parent.send_signal(signal.SIGHUP)
    one.await_state("a", "stopping")
    one.parent.send_signal(signal.SIGHUP)
    assert one.end() == (0, "")
    assert time.monotonic() - begin >= 1


def test_what_does_not_end_in_time_is_killed(up: Callable[..., Up]) -> None:
    one = up("a=stubborn", "b=good", drain=0.3)
    pid = one.await_state("a", "ready")
    one.await_state("b", "ready")
    one.parent.send_signal(signal.SIGTERM)
    assert one.end() == (0, "")
    assert gone(pid)
    assert [fact["name"] for fact in one.facts(did="drained")] == ["b"]


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death signal is Linux's")
def test_nothing_survives_a_killed_supervisor_and_the_next_one_starts(up: Callable[..., Up]) -> None:
    one = up("a=good", "b=signal only")
    pids = [one.await_state(name, "ready") for name in ("a", "b", "nats-server")]
    one.parent.kill()
    until(lambda: gone(*pids))
    assert {fact["name"] for fact in one.facts(did="drained")} == {"a", "b"}
    before = len(one.facts(did="began"))
    two = up("a=good", "b=good")
    until(lambda: len(two.facts(did="began")) == before + 2, two)
    two.parent.send_signal(signal.SIGTERM)
    assert two.end() == (0, "")


def test_the_lifeline_alone_tells_a_child_that_the_parent_is_gone(up: Callable[..., Up]) -> None:
    one = up("a=lifeline only", FOREIGN_NATS="nats://192.0.2.1:4222")
    pid = one.await_state("a", "ready")
    one.parent.kill()
    until(lambda: gone(pid))
    assert one.facts(name="a", did="told", by="lifeline")
    assert one.facts(name="a", did="drained")


def test_a_stopped_child_drains_when_it_goes_on_after_its_parent(up: Callable[..., Up]) -> None:
    one = up("a=good", FOREIGN_NATS="nats://192.0.2.1:4222")
    pid = one.await_state("a", "ready")
    os.kill(pid, signal.SIGSTOP)
    one.parent.kill()
    one.parent.wait()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGHUP)  # what the kernel sends, with SIGCONT, when the group is left without a parent
        os.kill(pid, signal.SIGCONT)
    until(lambda: gone(pid))
    assert one.facts(name="a", did="drained")


def test_the_folder_is_taken_until_the_last_child_is_gone(up: Callable[..., Up]) -> None:
    one = up("a=stubborn", FOREIGN_NATS="nats://192.0.2.1:4222")
    pid = one.await_state("a", "ready")
    one.parent.kill()
    one.parent.wait()
    code, err = up("b=good", GRACE="0.1").end()
    assert code == 1
    assert f"children of an ended aima up (pid {one.parent.pid}) still run" in json.loads(err)["message"]
    assert f"a (pid {pid})" in json.loads(err)["message"]
    os.kill(pid, signal.SIGKILL)
    two = up("b=good")
    two.await_state("b", "ready")
    two.parent.send_signal(signal.SIGTERM)
    assert two.end() == (0, "")


def test_two_supervisors_on_one_folder_are_refused(up: Callable[..., Up]) -> None:
    one = up("a=good")
    one.await_state("a", "ready")
    code, err = up("a=good").end()
    assert code == 1
    error = json.loads(err)
    assert error["code"] == "CONFLICT"
    assert error["details"] == {"reason": "ALREADY_RUNNING", "pid": one.parent.pid}
    assert f"pid {one.parent.pid}" in error["message"]
    assert one.pids()["a"] == one.await_state("a", "ready")
    one.parent.send_signal(signal.SIGTERM)
    assert one.end() == (0, "")


@pytest.mark.parametrize("code", [75, 78])
def test_a_child_that_can_never_run_stops_everything(up: Callable[..., Up], code: int) -> None:
    one = up("a=good", f"b=exit{code}")
    ended, err = one.end()
    assert ended == code
    assert err == f"b cannot run (exit code {code}):\nb says hello\nb cannot go on\n"
    assert len(one.facts(name="b", did="began")) == 1
    assert [s["state"] for s in one.read("states.jsonl")[-3:]] == ["stopped"] * 3


def test_a_foreign_bus_is_neither_watched_nor_stopped(up: Callable[..., Up], data: Path) -> None:
    one = up("a=good", FOREIGN_NATS="nats://192.0.2.1:4222")
    one.await_state("a", "ready")
    assert (data / "nats.url").read_text() == "nats://192.0.2.1:4222\n"
    assert one.pids().keys() == {"a"}
    one.parent.send_signal(signal.SIGTERM)
    assert one.end() == (0, "")


def test_a_view_that_breaks_still_drains_the_processes(up: Callable[..., Up], data: Path) -> None:
    one = up("a=good", BROKEN_VIEW="yes")
    code, err = one.end()
    assert code == 1
    assert "BrokenPipeError: nobody looks" in err
    assert one.facts(name="a", did="drained", bus=True)
    assert not (data / "up.json").exists()


def test_nohup_is_respected(up: Callable[..., Up]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        one = up("a=good")
    finally:
        signal.signal(signal.SIGHUP, before)
    pid = one.await_state("a", "ready")
    one.parent.send_signal(signal.SIGHUP)
    os.kill(pid, signal.SIGKILL)
    one.await_state("a", "ready", restarts=1)
    one.parent.send_signal(signal.SIGTERM)
    assert one.end() == (0, "")
