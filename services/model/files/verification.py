"""Compares the files of a model with their registration. Blocking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aima_core.errors import AimaError, NotFound, ValidationFailed
from services.model import units as u
from services.model.files.checksum import Measured, covered, measured
from services.model.headers.formats import inspect, readable

_MOST = 20  # files that the issues name


@dataclass(frozen=True)
class Registered:
    """The files of a model at their registration. `size` in bytes; `digests` as in `checksum.Measured`."""

    path: Path
    format: str
    size: int
    checksum: str
    digests: Mapping[str, str]


def issues_of(files: Registered, expected: str) -> tuple[tuple[str, ...], bool]:
    """Return the issues of the files, and whether the files match the registration.

    `expected`: the checksum that the caller expects, or "". Each issue names the file and both checksums.
    """
    path = files.path
    try:
        with readable(path):
            actual = measured(path)
    except NotFound:
        return (f"missing: {path}",), False
    except ValidationFailed as refusal:
        issue = {"TRUNCATED": "truncated", "NOT_A_MODEL": "changed"}.get(refusal.reason, "not readable")
        return (f"{issue}: {refusal.message}",), False
    except AimaError as refusal:
        return (f"not readable: {refusal.message}",), False
    intact = actual.checksum == files.checksum
    issues = [] if intact else list(_differences(files, actual))
    if len(issues) > _MOST:
        issues[_MOST:] = [f"and {len(issues) - _MOST} more files"]
    if expected not in ("", actual.checksum):
        issues.append(f"the checksum of {path} is {actual.checksum}, but the request expects {expected}")
    return tuple(issues), intact


def _differences(files: Registered, actual: Measured) -> Iterator[str]:
    if not files.digests or not actual.digests:
        if _truncated(files):
            size = sum(file.stat().st_size for file in covered(files.path))
            yield f"truncated: {files.path} has {size} bytes, but {files.size} bytes are registered"
        else:
            yield _changed(files.path, actual.checksum, files.checksum)
        return
    home = files.path if files.path.is_dir() else files.path.parent
    for name in sorted({*files.digests, *actual.digests}):
        before, now = files.digests.get(name), actual.digests.get(name)
        if before is None:
            yield f"added: {home / name}"
        elif now is None:
            yield f"missing: {home / name}"
        elif before != now:
            yield _changed(home / name, f"sha256:{now}", f"sha256:{before}")


def _changed(path: Path, actual: str, registered: str) -> str:
    return f"changed: the checksum of {path} is {actual}, but {registered} is registered"


def _truncated(files: Registered) -> bool:
    """Return whether the model is one file that lost its end: it is smaller, and its start still has the format."""
    if files.path.is_dir() or sum(file.stat().st_size for file in covered(files.path)) >= files.size:
        return False
    try:
        return u.is_opaque(files.format) or inspect(files.path).format == files.format
    except AimaError as refusal:
        return refusal.reason == "TRUNCATED"
