"""A command imports only what it needs, and connects once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.conftest import Shell

pytestmark = pytest.mark.timeout(300)

HEAVY = {"aiosqlite", "anyio", "httpx2", "mcp", "nats", "numpy", "pydantic", "starlette", "yaml"}
DRAWING = {"rich.console", "rich.table", "rich.progress"}
PROGRAM = """
import json, sys
from services.cli.entry import main
try:
    main()
finally:
    sys.stderr.write("\\n" + json.dumps(sorted(sys.modules)))
"""


def imported(environ: dict[str, str], *words: str) -> set[str]:
    """Return the modules that a command has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], env=environ, capture_output=True, text=True, timeout=60
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("words", [["--version"], ["version"]], ids=" ".join)
def test_the_version_needs_next_to_no_module(tmp_path: Path, words: list[str]) -> None:
    found = imported(os.environ | {"AIMA_DATA": str(tmp_path)}, *words)
    ours = {name for name in found if name.startswith(("aima_core", "services"))}
    assert ours == {"aima_core", "services", "services.cli", "services.cli.entry"}
    assert found & (HEAVY | DRAWING | {"asyncio", "logging", "msgspec", "rich", "typer"}) == set()


@pytest.mark.parametrize("module", ["services.cli.entry", "services.cli.main"])
def test_a_closed_stdout_is_refused_before_anything_runs(tmp_path: Path, module: str) -> None:
    command = f"'{sys.executable}' -m {module} version >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "stdout is closed; to discard the answer, redirect it: >/dev/null\n")


def test_what_asks_nobody_imports_no_client(tmp_path: Path) -> None:
    found = imported(os.environ | {"AIMA_DATA": str(tmp_path)}, "version", "-o", "json")
    assert found & (HEAVY | DRAWING | {"asyncio", "msgspec"}) == set()


@pytest.mark.parametrize("form", ["table", "json"])
@pytest.mark.parametrize(
    "words", [["service", "list"], ["exec", "model.list"], ["status"], ["units"], ["keys", "list"]], ids=" ".join
)
def test_a_request_over_the_bus_needs_the_bus_client_and_no_more(shell: Shell, words: list[str], form: str) -> None:
    found = imported(shell.environ, *words, "-o", form)
    assert found & (HEAVY | DRAWING) == {"nats"}
    assert not {name for name in found if name.startswith("services.") and name.endswith((".units", ".domain"))} - {
        "services.cli.units", "services.cli.commands.units"
    }  # fmt: skip


@dataclass
class Counter:
    """A proxy to the bus that counts the connections."""

    url: str
    connections: int = 0


@contextlib.asynccontextmanager
async def counting(bus: str) -> AsyncIterator[Counter]:
    host, _, port = bus.removeprefix("nats://").partition(":")
    counter = Counter("")

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        sink.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        counter.connections += 1
        bus_reader, bus_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(copy(reader, bus_writer), copy(bus_reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        counter.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield counter


@pytest.mark.parametrize(
    "words",
    [
        ["service", "list"], ["service", "get", "svc-none"], ["service", "--help"], ["call", "model.list"], ["status"],
        ["units"], ["units", "service.create"], ["units", "nonsense"], ["keys", "list"], ["--help"], ["servce"],
        ["keys", "revoke", "key-none", "--yes"], ["chat", "hello"], ["events", "--type", "service"], ["help", "model"],
    ],
    ids=" ".join,
)  # fmt: skip
async def test_a_command_connects_once(shell: Shell, words: list[str]) -> None:
    bus = (shell.one.data / "nats.url").read_text().strip()
    async with counting(bus) as counter:
        await asyncio.to_thread(shell.run, *words, AIMA_NATS_URL=counter.url)
    assert counter.connections == 1


@pytest.mark.parametrize("line", ["aima ser", "aima service st", "aima service start ", "aima call service."])
async def test_a_completion_connects_once(shell: Shell, line: str) -> None:
    bus = (shell.one.data / "nats.url").read_text().strip()
    environ = {"_AIMA_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    async with counting(bus) as counter:
        await asyncio.to_thread(shell.run, AIMA_NATS_URL=counter.url, **environ)
    assert counter.connections == 1
