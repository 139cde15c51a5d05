"""The log files of instances: what programs write to stdout and stderr, kept by size.

A program writes to its file descriptor itself, for as long as it lives and while we restart. A pipe through us
would break with us (the next write would kill the program), and a renamed file would keep being written to under
its new name. So the program appends to one file (O_APPEND: each write goes to the present end), and rotation
copies what is there and truncates the file: the next write starts it anew. What arrives between the last copied
byte and the truncation is lost; that is some microseconds once in ten megabytes.
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
"""Bytes that one look at the last lines may read: a program can write lines without end."""
PARTIAL = 20
"""Milliseconds that the rest of a line may take to come: a write over the border of a page is seen in two pieces, and
truncated between them it would be a line cut in two. What ends without a newline is taken as it is after that."""
FORGET_AFTER = 7 * 24 * 3600.0
"""Seconds after its last line until the log of an instance that no longer lives is removed."""
KEPT = 200
"""Instances that no longer live whose logs are kept; each attempt to start a replica is one more."""


def of_runs_since(lines: Sequence[str], at: float) -> Sequence[str]:
    """Return the lines of the runs that began at that time, in Unix seconds, or later, and of the latest in any case.

    The clock that tells the time may be another's than the one that told the begins.
    """
    begins = [(number, begun) for number, line in enumerate(lines) if (begun := _begun(line))]
    first = next((number for number, begun in begins if begun >= at), begins[-1][0] if begins else 0)
    return lines[first:]


def _begun(line: str) -> float:
    """Return when the run began that a line is the begin of; 0 for any other line."""
    text = line.rpartition(" at ")[2]
    with contextlib.suppress(ValueError):
        # earlier releases wrote no fraction: such a run began within that second
        return (unix(text) + ("." not in text)) if line.startswith(START_LINE) else 0.0
    return 0.0


class LogFiles:
    """`<folder>/<instance>.log` and the older `.log.1` (youngest) to `.log.<keep>`."""

    def __init__(self, folder: Path, max_bytes: int, keep: int) -> None:
        self._folder, self._max_bytes, self._keep = folder, max_bytes, keep
        self._moving = threading.Lock()  # a reader must not see the files half moved

    def open(self, instance: str, header: str) -> int:
        """Return a descriptor to append to, after the header line; the caller closes it. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # Nobody else may read it: an engine may write what it was asked.
        descriptor = os.open(self._path(instance), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, header.encode() + b"\n")
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def rotate(self) -> None:
        """Move aside what has grown too large. Raises OSError, with nothing lost."""
        for path in sorted(self._folder.glob("*.log")):
            if path.stat().st_size > self._max_bytes:
                with self._moving:
                    self._rotate(path)

    def forget(self, living: Collection[str]) -> None:
        """Remove the logs of what does not live any more: what is long over, and all but the newest. Raises OSError."""
        ended = [(path.stat().st_mtime, path) for path in self._folder.glob("*.log") if path.stem not in living]
        for number, (written, path) in enumerate(sorted(ended, reverse=True)):
            if number >= KEPT or time.time() - written > FORGET_AFTER:
                for old in self._folder.glob(f"{path.name}*"):
                    old.unlink(missing_ok=True)

    def has(self, instance: str) -> bool:
        """Return whether there is a log of the instance."""
        return self._path(instance).exists()

    def _rotate(self, path: Path) -> None:
        copy = path.with_name(f"{path.name}.new")
        try:
            with path.open("rb") as source, open(copy, "wb", opener=_private) as target:
                last = b"\n"
                while chunk := source.read(CHUNK):  # reads on while the program writes, up to the very last byte
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
        """Return the last lines, oldest first, read from the end backwards through the older files."""
        if lines <= 0:
            return []
        with self._moving:
            blocks: list[bytes] = []
            read = newlines = 0
            for number in range(self._keep + 1):
                for block in _backwards(self._path(instance, number)):
                    blocks.append(block)
                    read, newlines = read + len(block), newlines + block.count(b"\n")
                    # The text ends with a newline of its own, so one more is needed to know a line's beginning.
                    if newlines > lines or read >= TAIL_LIMIT:
                        return _split(blocks, lines)
            return _split(blocks, lines)

    def _path(self, instance: str, number: int = 0) -> Path:
        return self._folder / (f"{instance}.log.{number}" if number else f"{instance}.log")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _backwards(path: Path) -> Iterator[bytes]:
    """Yield the file's blocks, the last one first; none when there is no such file."""
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
