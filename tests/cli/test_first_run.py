"""The first run from a fresh data folder: it pulls the small model, serves it, asks it, and stops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from aima_core.bus.nats_server import free_port

ENTRY = [sys.executable, "-m", "services.cli.entry"]


def test_the_first_run_asks_the_small_model_and_leaves_nothing_running(tmp_path: Path, smollm2: Path) -> None:
    environ = os.environ | {
        "AIMA_DATA": str(tmp_path / "data"),
        "AIMA_GATEWAY_ADDR": f"127.0.0.1:{free_port()}",
        "AIMA_NATS_PORT": str(free_port()),
    }
    done = subprocess.run(
        [*ENTRY, "first-run", "--once"], env=environ, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "What is the capital of France?" in done.stdout
    assert "the service is stopped" in done.stdout
