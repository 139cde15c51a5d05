"""The LiteLLM proxy, the peer of our gateway: in a virtual environment of its own, made once and kept in the cache.

What it is made of is in `litellm-requirements.txt`, resolved as `make lock` does from `litellm[proxy]`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from aima_core.bus import nats_server
from benchmarks.scratch import Scratch, wait_until

_REQUIREMENTS = Path(__file__).with_name("litellm-requirements.txt")
_INSTALL = 900.0  # seconds
_START = 120.0  # seconds; it imports for long
_KEEP = ("--keepalive_timeout", "75")  # seconds, as ours
_ALONE = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # the one that it would fetch is of no use here
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # no keys, as with ours on a loopback address
}


class NotHere(Exception):
    """LiteLLM cannot be installed, or does not start; says why."""


def serve(scratch: Scratch, model: str, engine: str) -> tuple[int, list[int]]:
    """Start the proxy with one worker in front of an engine; return its port and its processes. Raises NotHere."""
    home, port = _installed(), nats_server.free_port()
    params = {"model": f"openai/{model}", "api_base": f"{engine}/v1", "api_key": "none"}
    config = scratch.folder / "litellm.yaml"
    config.write_bytes(msgspec.json.encode({"model_list": [{"model_name": model, "litellm_params": params}]}))
    where = ("--config", str(config), "--host", "127.0.0.1", "--port", str(port))
    child = scratch.program(str(home / "bin" / "litellm"), *where, *_KEEP, env=_ALONE, ready=False)
    try:
        for _ in wait_until(_START):
            if child.poll() is not None:
                raise NotHere(f"it ended with {child.returncode}")
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5):
                break
    except TimeoutError as error:
        raise NotHere(f"it does not answer: {error}") from error
    started = psutil.Process(child.pid)
    return port, [started.pid, *(process.pid for process in started.children(recursive=True))]


def _installed() -> Path:
    """Return the virtual environment; a change of the requirements makes another."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = cache / "aima-bench" / f"litellm-{hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:12]}"
    if (home / ".installed").exists():
        return home
    shutil.rmtree(home, ignore_errors=True)
    print(f"installing LiteLLM into {home}", file=sys.stderr)
    pip = (home / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    try:
        subprocess.run((sys.executable, "-m", "venv", home), check=True, capture_output=True, timeout=_INSTALL)
        command = (*pip, "--require-hashes", "-r", _REQUIREMENTS)
        subprocess.run(command, check=True, capture_output=True, timeout=_INSTALL)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().rpartition("\n")[2]
        raise NotHere(said or str(error)) from error
    (home / ".installed").touch()
    return home
