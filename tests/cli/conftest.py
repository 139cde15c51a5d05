"""Fixtures for the tests of the command line: a whole system, and programs that run in a terminal."""

from __future__ import annotations

import codecs
import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.system.harness import System, system

AIMA = [sys.executable, "-m", "services.cli.entry"]
KEY = "sesame"
_SIGNS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]")


@dataclass
class Shell:
    """A shell whose environment points to a running system."""

    one: System
    environ: dict[str, str]

    @property
    def url(self) -> str:
        """The URL of the gateway."""
        return (self.one.data / "gateway.url").read_text().strip()

    def run(self, *words: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `aima` with these words and wait for its end."""
        env = self.environ | environ
        return subprocess.run([*AIMA, *words], env=env, input=stdin, capture_output=True, text=True, timeout=60)

    @contextlib.contextmanager
    def terminal(self, *words: str, **environ: str) -> Iterator[Terminal]:
        """Run `aima` in a terminal."""
        outer, inner = pty.openpty()
        env = self.environ | {"TERM": "xterm", "COLUMNS": "200"} | environ
        process = subprocess.Popen(
            [*AIMA, *words], env=env, stdin=inner, stdout=inner, stderr=inner, start_new_session=True
        )
        os.close(inner)
        try:
            yield Terminal(process, outer)
        finally:
            process.kill()
            process.wait()
            os.close(outer)


class Terminal:
    """A program in a pseudo-terminal, with the test as its user."""

    def __init__(self, process: subprocess.Popen[bytes], outer: int) -> None:
        self.process = process
        self._outer = outer
        self._seen = ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode

    def type(self, text: str) -> None:
        """Type a text."""
        os.write(self._outer, text.encode())

    def until(self, text: str, within: float = 30) -> str:
        """Wait for a text on the screen; return the output before it."""
        deadline = time.monotonic() + within
        while text not in self._seen:
            ready, _, _ = select.select([self._outer], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{text!r} did not come after {self._seen!r}"
            try:
                self._seen += _SIGNS.sub("", self._decode(os.read(self._outer, 65536)))
            except OSError:
                raise AssertionError(f"it ended before {text!r}: {self._seen!r}") from None
        before, _, self._seen = self._seen.partition(text)
        return before

    def interrupt(self, text: str) -> None:
        """Press Ctrl-C until a text appears: Python can miss one Ctrl-C between a prompt and the read after it."""
        for _ in range(20):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                self.until(text, within=2)
                return
        raise AssertionError(f"{text!r} did not come after {self._seen!r}")

    def ended(self, within: float = 30) -> int:
        """Return the exit code; read all output, so that the program does not block on a full terminal."""
        with contextlib.suppress(OSError):
            deadline = time.monotonic() + within
            while time.monotonic() < deadline and select.select([self._outer], [], [], 1)[0]:
                self._seen += _SIGNS.sub("", self._decode(os.read(self._outer, 65536)))
        return self.process.wait(within)

    @property
    def rest(self) -> str:
        """The output that no `until` has returned yet."""
        return self._seen


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shell(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shell]:
    """A whole system with the toy domain `garden`, for all tests of a file."""
    folder = tmp_path_factory.mktemp("aima")
    async with system(folder / "data", {"AIMA_API_KEYS": f"me:{KEY}"}) as one:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("AIMA_", "COLUMNS"))}
        yield Shell(one, kept | {"AIMA_DATA": str(one.data), "COLUMNS": "200"})


@pytest.fixture
def garden(shell: Shell, tmp_path: Path) -> Iterator[None]:
    """Add the toy domain to the running system, as a process of its own, until the test ends."""
    url = (shell.one.data / "nats.url").read_text().strip()
    code = "from aima_core.process.launch import main; from tests.cli.toy import GARDEN; main(GARDEN, ready=1)"
    env = shell.environ | {"AIMA_DATA": str(tmp_path), "AIMA_NATS_URL": url, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
    assert process.stdout
    try:
        assert process.stdout.read(1) == b"1"
        yield
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
