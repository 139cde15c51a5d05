"""Where a benchmark runs: a temporary folder, its own nats-servers, its own processes. All of it ends with it."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from aima_core.bus import nats_server
from aima_core.bus.nats_server import NatsServer
from aima_core.system.child_processes import end_with_parent

ROOT = Path(__file__).parents[1]
_MARK = "AIMA_BENCH"  # environment of every process of ours, and of all that they start
_PATIENCE = 60.0  # seconds until a process has to be ready
_KIND = 10.0  # seconds that a process gets to end by itself


@dataclass(frozen=True)
class Options:
    """How much is measured. `seconds`: of one measurement; `rounds`: measurements of each side, in turns."""

    quick: bool = False
    rounds: int = 5
    seconds: float = 0.8
    model: Path | None = None
    before: Path | None = None

    def scaled(self, full: int, quick: int) -> int:
        """Return how many of something there shall be."""
        return quick if self.quick else full


class Scratch:
    """Made by `scratch()`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mark = secrets.token_hex(8)
        self.servers: list[NatsServer] = []
        self._children: list[subprocess.Popen[bytes]] = []

    def nats(self, name: str = "nats") -> NatsServer:
        """Start a nats-server as the product does, on a free port."""
        folder = self.folder / name
        port = nats_server.free_port()
        server = nats_server.start(folder / "store", port, folder / "server.log", die_with_parent=True)
        self.servers.append(server)
        return server

    def python(self, *arguments: str, env: dict[str, str] | None = None, ready: bool = True) -> subprocess.Popen[bytes]:
        """Start `python -m ...`; with `ready`, return once it has printed a line."""
        return self.program(sys.executable, "-m", *arguments, env=env, ready=ready)

    def program(self, *command: str, env: dict[str, str] | None = None, ready: bool = True) -> subprocess.Popen[bytes]:
        """Start a program; with `ready`, return once it has printed a line."""
        number = len(self._children)
        with (self.folder / f"process-{number}.log").open("wb") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if ready else log,
                stderr=log,
                cwd=ROOT,
                env={**_environment(), _MARK: self._mark, **(env or {})},
                start_new_session=True,  # a Ctrl-C is for us: we end them in order
                preexec_fn=functools.partial(end_with_parent, os.getpid(), signal.SIGTERM),  # noqa: PLW1509
            )
        self._children.append(child)
        if ready:
            assert child.stdout
            if not child.stdout.readline():
                raise RuntimeError(f"{command} did not come up:\n{nats_server.log_tail(Path(log.name))}")
        return child

    def end(self, child: subprocess.Popen[bytes]) -> None:
        """End one process, kindly if possible."""
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(_KIND)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if child.stdout:
            child.stdout.close()
        if child in self._children:
            self._children.remove(child)

    def close(self) -> None:
        """End everything that was started here, and all that it has started in turn."""
        for child in self._children:
            if child.poll() is None:
                child.terminate()
        for child in list(self._children):
            self.end(child)
        for process in self.marked():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for server in self.servers:
            server.stop()

    def marked(self) -> list[psutil.Process]:
        """Return every process that descends from one of ours, even when its parent has gone."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == self._mark:
                    found.append(process)
        return found


@contextlib.contextmanager
def scratch() -> Iterator[Scratch]:
    """Give a folder and the right to start processes; take both back whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="aima-bench-"))
    made = Scratch(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the processor time that the processes have used so far."""
    ran = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it has just ended
                ran += int((thread / "schedstat").read_text().split()[0])  # ns; cpu_times counts in steps of 10 ms
    return ran / 1e9


def pss_mib(pids: Sequence[int]) -> float:
    """Return the processes' proportional set size: what is shared counts once in all."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def wait_until(deadline: float = _PATIENCE) -> Iterator[None]:
    """Yield every few milliseconds; raise TimeoutError when the time is over."""
    until = time.monotonic() + deadline
    while time.monotonic() < until:
        yield
        time.sleep(0.005)
    raise TimeoutError(f"not so within {deadline:g} s")


def _environment() -> dict[str, str]:
    """Return our environment without the user's settings of AIMA, which are none of a benchmark's business."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AIMA_")}
