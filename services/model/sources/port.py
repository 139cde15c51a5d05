"""The interface of the sources of models, and their common checks."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from aima_core.errors import ExecutionFailed, ValidationFailed
from services.model.files.checksum import Measured
from services.model.units import ModelType

Progress = Callable[[int, int | None], Awaitable[None]]
"""A function with two arguments: the downloaded bytes, and the total bytes of the download or None if unknown."""

PACE = 0.25  # seconds between two calls of a Progress
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_])?")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,127}")


@dataclass(frozen=True)
class Pulled:
    """A completely downloaded model. `size`: in bytes. `sums`: of the file or folder at `path`."""

    path: Path
    sums: Measured
    size: int
    source_digest: str | None
    license: str | None

    @property
    def checksum(self) -> str:
        """The checksum of the model."""
        return self.sums.checksum


@dataclass(frozen=True)
class SourceResult:
    """One hit of a search; a field is None if the hub does not state it. `size` in bytes."""

    source: str
    repo: str
    name: str
    type: ModelType | None = None
    size: int | None = None
    downloads: int | None = None


class Source(Protocol):
    """A kind of hub that models are pulled from."""

    @property
    def parts(self) -> tuple[int, ...]:
        """Allowed numbers of parts in a repository's name. Slashes separate the parts."""

    @property
    def searches(self) -> bool:
        """Whether the source supports search."""

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that the source offers; empty if it offers any format."""

    async def pull(
        self,
        repo: str,
        tag: str | None,
        into: Path,
        progress: Progress,
        mirror: str | None,
        format_: str | None = None,
    ) -> Pulled:
        """Download a model into the folder `into`, which only this pull uses; resume an interrupted pull.

        `mirror`: the base URL of another server with the same protocol. `format_`: the format of the weights to choose;
        an opaque format chooses all files. A pull may be repeated and cancelled.

        Raises ValidationFailed (BAD_REPO, BAD_TAG, BAD_MIRROR, NOT_A_MODEL), NotFound (REPO_NOT_FOUND,
        TAG_NOT_FOUND), Forbidden (GATED), RateLimited, Unavailable (HUB_UNREACHABLE) and ExecutionFailed
        (CHECKSUM_MISMATCH, DISK_FULL, FOLDER_NOT_WRITABLE, BAD_ANSWER).
        """

    async def search(self, query: str, limit: int) -> list[SourceResult]:
        """Return up to `limit` hits; none if the source does not support search. Raises the errors of `pull`."""


def check(source: Source, repo: str, tag: str | None, mirror: str | None, format_: str | None = None) -> None:
    """Check the arguments of a pull before it starts.

    Raises ValidationFailed (BAD_REPO, BAD_TAG, BAD_MIRROR, BAD_FORMAT).
    """
    check_repo(repo, source.parts)
    check_tag(tag)
    check_mirror(mirror)
    if source.formats and format_ is not None and format_ not in source.formats:
        only = " or ".join(source.formats)
        raise ValidationFailed(
            f"format: expected {only}, since this hub has no {format_}", reason="BAD_FORMAT", field="format"
        )


def check_repo(repo: str, parts: tuple[int, ...]) -> str:
    """Return the name of a repository, if valid. Raises ValidationFailed (BAD_REPO).

    `parts`: the allowed numbers of parts. Every part must start with a letter or digit, so that the name cannot be a
    command line option, `..` or an absolute path.
    """
    names = repo.split("/")
    if len(names) not in parts or not all(NAME.fullmatch(name) and ".." not in name for name in names):
        forms = " or ".join(("name", "owner/name")[count - 1] for count in parts)
        raise ValidationFailed(
            f"{repo[:200]!r} is not the name of a repository; expected {forms}", reason="BAD_REPO", field="repo"
        )
    return repo


def check_tag(tag: str | None) -> str | None:
    """Return the tag, if valid. Raises ValidationFailed (BAD_TAG)."""
    if tag is not None and (not TAG.fullmatch(tag) or ".." in tag):
        raise ValidationFailed(
            f"{tag[:200]!r} is not a tag; expected letters, digits and . _ + ! -", reason="BAD_TAG", field="tag"
        )
    return tag


def check_mirror(mirror: str | None) -> str | None:
    """Return the base URL without a trailing slash; None for None. Raises ValidationFailed (BAD_MIRROR)."""
    if mirror is not None and "@" in mirror.partition("//")[2].partition("/")[0]:
        raise ValidationFailed(
            "the mirror must not contain a user or password, since it is recorded in the log",
            reason="BAD_MIRROR",
            field="mirror",
        )
    return None if mirror is None else check_address(mirror, "the mirror")


def check_address(address: str, origin: str) -> str:
    """Return a base URL without a trailing slash. Raises ValidationFailed (BAD_MIRROR), which names `origin`."""
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or not address.isprintable() or " " in address:
        raise ValidationFailed(
            f"{origin} is not an http(s) URL; expected one such as https://hub.example",
            reason="BAD_MIRROR",
            field="mirror",
        )
    return address.rstrip("/")


def within(folder: Path, name: str) -> Path:
    """Return the local path of a hub's file. Raises ExecutionFailed (BAD_ANSWER) for an unsafe name, such as `../x`."""
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise ExecutionFailed(f"the hub lists a file with the unsafe name {name[:200]!r}", reason="BAD_ANSWER")
    return folder.joinpath(*parts)


def paced(progress: Progress) -> Progress:
    """Return a Progress that passes on at most one call per quarter of a second, and always the last call."""
    last = 0.0

    async def pace(done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= PACE:
            last = now
            await progress(done, total)

    return pace
