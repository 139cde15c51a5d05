"""What every test may need: free ports and the real weights."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from tests.stand_ins import weights

for _number in (signal.SIGINT, signal.SIGHUP):  # what is begun in the background, or by nohup, lets its children ignore
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

# without its bytecode every process that a test starts compiles all of AIMA anew, and each worker all tests
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# how long an example takes, and how long it takes to make one, is the machine's affair
hypothesis.settings.register_profile(
    "aima", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("aima")


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
    """The weights of SmolLM2-135M-Instruct, a GGUF file of 98 MB."""
    return weights.smollm2()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, so that no worker is left alone with one of them at the end."""
    items.sort(key=lambda item: "system" not in item.path.parts)
