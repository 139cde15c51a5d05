"""Runs `pip download` for one wheel, with the index in the user's pip settings. Pip checks the wheel's hash.

The package must not be built, imported or run. So pip downloads wheels only, without dependencies.
"""

from __future__ import annotations

import os
import re
from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

from aima_core.errors import AimaError, ExecutionFailed, Forbidden, NotFound, Unavailable
from aima_core.system import pip
from aima_core.system.child_processes import child
from aima_core.system.outside_errors import DISK_FULL, cause_in, error_for
from services.model.files.disk import disk_full, writing
from services.model.sources.port import Progress

PROGRESS = re.compile(r"^Progress (\d+) of (\d+)\s*$")
ADDRESS = re.compile(r"\w+://\S+")
VERSIONS = re.compile(r"\(from versions: (.*?)\)")
TIMEOUT = 15  # seconds without a byte from the index
RETRIES = 2
LONGEST_LINE = 1 << 20  # bytes
LINES_KEPT = 200  # lines at the end of pip's output, which contain the error
STATUS = re.compile(r"\b([45]\d\d) (?:Client Error: |Server Error: |error responses\b)")


async def pip_download(requirement: str, into: Path, progress: Progress, index: str | None) -> Path:
    """Download the wheel of `requirement` ("name" or "name==version") into the folder `into` and return its path.

    A wheel of an earlier run is checked and reused. A cancellation ends pip and its children.

    Raises NotFound (REPO_NOT_FOUND, TAG_NOT_FOUND), Unavailable (HUB_UNREACHABLE) and ExecutionFailed
    (CHECKSUM_MISMATCH, DISK_FULL, PIP_FAILED).
    """
    output: deque[str] = deque(maxlen=LINES_KEPT)
    temporary = into / "tmp"  # pip's temporary files, so that a killed pip leaves none elsewhere
    with writing(into):
        temporary.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    async with child(_command(requirement, into, index), env=env, line_limit=LONGEST_LINE) as process:
        assert process.stdout is not None
        async for line in process.stdout:
            text = line.decode("utf-8", "replace").rstrip()
            if step := PROGRESS.match(text):
                await progress(int(step[1]), int(step[2]))
            else:
                output.append(text)
        code = await process.wait()
    wheels = sorted(into.glob("*.whl"), key=lambda wheel: wheel.stat().st_mtime)
    if code != 0 or not wheels:
        raise fault_of("\n".join(output), requirement, into, index)
    return wheels[-1]


def _command(requirement: str, into: Path, index: str | None) -> list[str]:
    # AIMA does not run the package's code, so the required Python version does not matter.
    wheel_only = ("--no-deps", "--only-binary=:all:", "--ignore-requires-python")
    patience = (f"--timeout={TIMEOUT}", f"--retries={RETRIES}", "--progress-bar=raw")
    detailed = "-vv"  # pip states an HTTP status of the index only as a detail
    where = (f"--dest={into}", *(("-i", index) if index else ()))
    return [*pip.command("download", detailed, *wheel_only, *patience, *where), "--", requirement]


def fault_of(output: str, requirement: str, folder: Path, index: str | None = None) -> AimaError:
    """Return the error for pip's output. The error contains no URL, because a URL may contain a password.

    `index`: the URL of the mirror that pip has asked; None for the index in pip's settings.
    """
    where = f"the package index {urlsplit(index).hostname}" if index else "the package index in pip's settings"
    versions = VERSIONS.search(output)
    known = [] if versions is None or versions[1] == "none" else versions[1].split(", ")
    if "DO NOT MATCH THE HASHES" in output:
        return ExecutionFailed(
            f"{requirement} is damaged: its checksum is not what the package index announced; pull it again",
            reason="CHECKSUM_MISMATCH",
        )
    if known:
        return NotFound(
            f"{where} has no wheel for {requirement}; known versions: {', '.join(known[-10:])}",
            reason="TAG_NOT_FOUND",
            offered=known,
        )
    cause = cause_in(output)
    if cause is not None and cause.name == DISK_FULL.name:
        return disk_full(folder)
    if statuses := sorted(int(status) for status in STATUS.findall(output)):
        return _refused(statuses[0], where, requirement)
    if cause is not None:
        return error_for(cause, where, "HUB_UNREACHABLE")
    if "No matching distribution" in output:
        return NotFound(f"{where} has no wheel for {requirement}; check the name", reason="REPO_NOT_FOUND")
    lines = [line for line in output.splitlines() if line.startswith(("ERROR", "error", "/"))] or output.splitlines()
    why = ADDRESS.sub("(address)", lines[-1])[:300] if lines else "pip printed nothing"
    return ExecutionFailed(f"pip could not download {requirement}: {why}", reason="PIP_FAILED")


def _refused(status: int, where: str, requirement: str) -> AimaError:
    """Return the error for an HTTP status of the package index."""
    if status in (401, 403):
        return Forbidden(
            f"{where} denies access to {requirement} (HTTP {status}); check the user and password in pip's settings",
            reason="GATED",
        )
    if status >= 500 or status == 429:
        return Unavailable(f"{where} fails with HTTP {status}; try again later", reason="HUB_UNREACHABLE")
    return NotFound(
        f"{where} has no {requirement} (HTTP {status}); check the name and the address of the index",
        reason="REPO_NOT_FOUND",
    )
