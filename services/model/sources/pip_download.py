"""Runs `pip download` for one wheel: the user's own pip settings say which index, and pip checks the index's hash.

Nothing of the package is built, imported or run: wheels only, no dependencies.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import deque
from pathlib import Path

from aima_core import pip
from aima_core.errors import AimaError, ExecutionFailed, NotFound, Unavailable
from services.model.files.disk import disk_full, writing
from services.model.sources.port import Progress

PROGRESS = re.compile(r"^Progress (\d+) of (\d+)\s*$")
ADDRESS = re.compile(r"\w+://\S+")
VERSIONS = re.compile(r"\(from versions: (.*?)\)")
TIMEOUT = 15  # seconds without a byte from the index
RETRIES = 2
LONGEST_LINE = 1 << 20  # bytes
LINES_KEPT = 200  # of what pip says: the fault stands in the last ones
UNREACHABLE = ("connection broken by", "Could not fetch URL", "Read timed out", "ConnectionError", "NewConnectionError")


async def pip_download(requirement: str, into: Path, progress: Progress, index: str | None) -> Path:
    """Have the wheel of `requirement` ("name" or "name==version") in the folder `into` and return its path.

    A wheel that an earlier run left there is checked and kept. Cancelling ends pip and what it started.

    Raises NotFound (REPO_NOT_FOUND, TAG_NOT_FOUND), Unavailable (HUB_UNREACHABLE) and ExecutionFailed
    (CHECKSUM_MISMATCH, DISK_FULL, PIP_FAILED).
    """
    said: deque[str] = deque(maxlen=LINES_KEPT)
    temporary = into / "tmp"  # pip's own: so that nothing stays behind elsewhere when pip is killed
    with writing(into):
        temporary.mkdir(parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        *_command(requirement, into, index),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"},
        limit=LONGEST_LINE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            text = line.decode("utf-8", "replace").rstrip()
            if step := PROGRESS.match(text):
                await progress(int(step[1]), int(step[2]))
            else:
                said.append(text)
        code = await process.wait()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    wheels = sorted(into.glob("*.whl"), key=lambda wheel: wheel.stat().st_mtime)
    if code != 0 or not wheels:
        raise fault_of("\n".join(said), requirement, into)
    return wheels[-1]


def _command(requirement: str, into: Path, index: str | None) -> list[str]:
    # None of its code runs, so it does not matter for which Python that code was written.
    wheel_only = ("--no-deps", "--only-binary=:all:", "--ignore-requires-python")
    patience = (f"--timeout={TIMEOUT}", f"--retries={RETRIES}", "--progress-bar=raw")
    where = (f"--dest={into}", *(("-i", index) if index else ()))
    return [*pip.command("download", *wheel_only, *patience, *where), "--", requirement]


def fault_of(said: str, requirement: str, folder: Path) -> AimaError:
    """Return what pip's words mean for the caller; addresses, which may hold a password, are taken out."""
    versions = VERSIONS.search(said)
    known = [] if versions is None or versions[1] == "none" else versions[1].split(", ")
    if "DO NOT MATCH THE HASHES" in said:
        return ExecutionFailed(f"{requirement} is not what the index announced", reason="CHECKSUM_MISMATCH")
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return disk_full(folder)
    if known:
        return NotFound(f"there is no wheel for {requirement}", reason="TAG_NOT_FOUND", offered=known)
    if any(sign in said for sign in UNREACHABLE):
        return Unavailable("the package index does not answer", reason="HUB_UNREACHABLE")
    if "No matching distribution" in said:
        return NotFound(f"the package index has no wheel for {requirement}", reason="REPO_NOT_FOUND")
    lines = [line for line in said.splitlines() if line.startswith(("ERROR", "error", "/"))] or said.splitlines()
    why = ADDRESS.sub("(address)", lines[-1])[:300] if lines else "it said nothing"
    return ExecutionFailed(f"pip could not download {requirement}: {why}", reason="PIP_FAILED")
