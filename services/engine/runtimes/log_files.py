"""The log files of instances: stdout and stderr of their programs, limited in size.

A program writes directly to its log file, so that it can write while AIMA restarts. A pipe to AIMA would break at
AIMA's end, and the next write would kill the program. A rotation cannot rename the file, because the program would
continue to write to the renamed file. So a rotation copies the file and truncates it. The program appends (O_APPEND),
so its next write goes to the new end. A rotation, every ten megabytes, loses the output of the microseconds between the
last copied byte and the truncation.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from aima_core.call import unix
from services.engine.runtimes import START_LINE

CHUNK = 64 * 1024
TAIL_LIMIT = 8 * 1024 * 1024
"""Bytes that one call of `tail` reads at most. A line may have any length."""
PARTIAL = 20
"""Milliseconds that a rotation waits for the rest of a line. A write across a page boundary becomes visible in two
pieces; a truncation between the pieces would cut the line in two."""
FORGET_AFTER = 7 * 24 * 3600.0
"""Seconds from the last line of a log until the log is removed, if its instance has ended."""
KEPT = 200
"""Number of ended instances whose logs are kept. Each attempt to start a replica makes another instance."""


def of_runs_since(lines: Sequence[str], at: float) -> Sequence[str]:
    """Return the lines of all runs that started at `at` (Unix seconds) or later, and always those of the latest run.

    `at` may come from the clock of another machine, so the latest run may seem to have started before `at`.
    """
    starts = [(number, started_at) for number, line in enumerate(lines) if (started_at := _started_at(line))]
    first = next((number for number, started_at in starts if started_at >= at), starts[-1][0] if starts else 0)
    return lines[first:]


def _started_at(line: str) -> float:
    """Return the start time (Unix seconds) in the start line of a run; 0 for any other line."""
    text = line.rpartition(" at ")[2]
    with contextlib.suppress(ValueError):
        # earlier releases wrote whole seconds: use the end of the second in which the run started
        return (unix(text) + ("." not in text)) if line.startswith(START_LINE) else 0.0
    return 0.0


class LogFiles:
    """The current log `<folder>/<instance>.log` and the rotated ones, `.log.1` (newest) to `.log.<keep>`."""

    def __init__(self, folder: Path, max_bytes: int, keep: int) -> None:
        self._folder, self._max_bytes, self._keep = folder, max_bytes, keep
        self._rotating = threading.Lock()  # readers wait until a rotation is complete

    def open(self, instance: str, header: str) -> int:
        """Write the header line and return a descriptor to append to; the caller closes it. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # Readable by the owner only: an engine may log prompts.
        descriptor = os.open(self._path(instance), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, header.encode() + b"\n")
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def rotate(self) -> None:
        """Rotate each log larger than `max_bytes`. Raises OSError; no lines are lost then."""
        for path in sorted(self._folder.glob("*.log")):
            if path.stat().st_size > self._max_bytes:
                with self._rotating:
                    self._rotate(path)

    def forget(self, living: Collection[str]) -> None:
        """Remove the logs of ended instances: those older than a week, and all but the newest 200. Raises OSError."""
        ended = [(path.stat().st_mtime, path) for path in self._folder.glob("*.log") if path.stem not in living]
        for number, (written, path) in enumerate(sorted(ended, reverse=True)):
            if number >= KEPT or time.time() - written > FORGET_AFTER:
                for old in self._folder.glob(f"{path.name}*"):
                    old.unlink(missing_ok=True)

    def has(self, instance: str) -> bool:
        return self._path(instance).exists()

    def _rotate(self, path: Path) -> None:
        copy = path.with_name(f"{path.name}.new")
        try:
            with path.open("rb") as source, open(copy, "wb", opener=_private) as target:
                last = b"\n"
                while chunk := source.read(CHUNK):  # the loop also reads new output of the program
                    target.write(chunk)
                    last = chunk[-1:]
                target.flush()
                for number in range(self._keep, 1, -1):
                    with contextlib.suppress(FileNotFoundError):
                        self._path(path.stem, number - 1).replace(self._path(path.stem, number))
                copy.replace(self._path(path.stem, 1))
                for _ in range(PARTIAL):
                    while chunk := source.read(CHUNK):
                        target.write(chunk)
                        last = chunk[-1:]
                    if last == b"\n":
                        break
                    time.sleep(0.001)
                target.flush()
                os.truncate(path, 0)
        finally:
            copy.unlink(missing_ok=True)

    def tail(self, instance: str, lines: int) -> list[str]:
        """Return the last lines, oldest first. Reads backwards from the end of the newest file."""
        if lines <= 0:
            return []
        with self._rotating:
            blocks: list[bytes] = []
            read = newlines = 0
            for number in range(self._keep + 1):
                for block in _backwards(self._path(instance, number)):
                    blocks.append(block)
                    read, newlines = read + len(block), newlines + block.count(b"\n")
                    # One newline ends the text, so the first line is complete only with `lines` + 1 newlines.
                    if newlines > lines or read >= TAIL_LIMIT:
                        return _split(blocks, lines)
            return _split(blocks, lines)

    def _path(self, instance: str, number: int = 0) -> Path:
        return self._folder / (f"{instance}.log.{number}" if number else f"{instance}.log")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _backwards(path: Path) -> Iterator[bytes]:
    """Yield the file's blocks, the last one first; none if the file does not exist."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        while position > 0:
            size = min(CHUNK, position)
            position -= size
            file.seek(position)
            yield file.read(size)


def _split(blocks: list[bytes], lines: int) -> list[str]:
    text = b"".join(reversed(blocks)).decode("utf-8", errors="replace")
    return [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")][-lines:] if text else []
