"""Reads a file into a flag whose field holds base64 text: `--audio @talk.wav`. Base64 text never contains `@`."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aima_core.errors import ValidationFailed
from services.cli.units.flags import Flag

_LARGEST = 256 * 1024 * 1024  # bytes; no bus or gateway carries a larger input


def with_files(flags: Iterable[Flag], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the flags, with `@file` replaced by the file's content as base64 text.

    Raises ValidationFailed if a file is unreadable or larger than 256 MiB. The error names the flag.
    """
    return dict(given) | {
        flag.field: _content(flag, value[1:])
        for flag in flags
        if flag.is_base64 and isinstance(value := given.get(flag.field), str) and value.startswith("@")
    }


def _content(flag: Flag, name: str) -> str:
    path = Path(name).expanduser()
    try:
        if path.stat().st_size > _LARGEST:
            raise _refused(flag, f"a file of at most {_LARGEST} bytes", f"{name} is larger")
        return base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise _refused(flag, "a file that can be read", f"{name}: {error.strerror}") from None


def _refused(flag: Flag, expected: str, problem: str) -> ValidationFailed:
    return ValidationFailed(
        f"{flag.name}: expected {expected}; {problem}", fields=[{"field": flag.field, "expected": expected}]
    )
