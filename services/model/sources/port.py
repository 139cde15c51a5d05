"""What every source of models does, and the checks that all of them share."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from aima_core.errors import ExecutionFailed, ValidationFailed

Progress = Callable[[int, int | None], Awaitable[None]]
"""Called with the bytes that are there and the bytes that there will be, None while that is not known."""

PACE = 0.25  # seconds between two calls of a Progress
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_])?")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,127}")


@dataclass(frozen=True)
class Pulled:
    """A model that has arrived whole. `size` in bytes; `checksum` is of what lies at `path`."""

    path: Path
    checksum: str
    size: int
    source_digest: str | None
    license: str | None


@dataclass(frozen=True)
class SourceResult:
    """One hit of a search; None where the hub does not say. `size` in bytes."""

    source: str
    repo: str
    name: str
    type: str | None = None
    size: int | None = None
    downloads: int | None = None


class Source(Protocol):
    """A place that models come from."""

    @property
    def parts(self) -> tuple[int, ...]:
        """How many parts the name of a repository may have, divided by slashes."""

    @property
    def searches(self) -> bool:
        """Whether it can be searched."""

    async def pull(self, repo: str, tag: str | None, into: Path, progress: Progress, mirror: str | None) -> Pulled:
        """Fetch a model into `into`, a folder of this pull alone; what an interrupted pull left there is resumed.

        `mirror` is the address of another server of the same protocol. Safe to repeat and to cancel.

        Raises ValidationFailed (BAD_REPO, BAD_TAG, BAD_MIRROR, NOT_A_MODEL), NotFound (REPO_NOT_FOUND,
        TAG_NOT_FOUND), Forbidden (GATED), RateLimited, Unavailable (HUB_UNREACHABLE) and ExecutionFailed
        (CHECKSUM_MISMATCH, DISK_FULL, FOLDER_NOT_WRITABLE, BAD_ANSWER).
        """

    async def search(self, query: str, limit: int) -> list[SourceResult]:
        """Return up to `limit` hits; nothing where the source has no search. Raises as `pull` does."""


def check(source: Source, repo: str, tag: str | None, mirror: str | None) -> None:
    """Refuse what can be no pull, before anything is done. Raises ValidationFailed (BAD_REPO, BAD_TAG, BAD_MIRROR)."""
    check_repo(repo, source.parts)
    check_tag(tag)
    check_mirror(mirror)


def check_repo(repo: str, parts: tuple[int, ...]) -> str:
    """Return the name of a repository that has as many parts as allowed. Raises ValidationFailed (BAD_REPO).

    A part begins with a letter or digit, so that it is no option, no `..` and no absolute path.
    """
    names = repo.split("/")
    if len(names) not in parts or not all(NAME.fullmatch(name) and ".." not in name for name in names):
        raise ValidationFailed(f"{repo[:200]!r} is not the name of a repository", reason="BAD_REPO", field="repo")
    return repo


def check_tag(tag: str | None) -> str | None:
    """Return the tag when it can be one. Raises ValidationFailed (BAD_TAG)."""
    if tag is not None and (not TAG.fullmatch(tag) or ".." in tag):
        raise ValidationFailed(f"{tag[:200]!r} is not a tag", reason="BAD_TAG", field="tag")
    return tag


def check_mirror(mirror: str | None) -> str | None:
    """Return the address without a slash at its end. Raises ValidationFailed (BAD_MIRROR)."""
    if mirror is not None and "@" in mirror.partition("//")[2].partition("/")[0]:
        raise ValidationFailed(
            "the mirror must not hold a password: it is written down", reason="BAD_MIRROR", field="mirror"
        )
    return None if mirror is None else check_address(mirror)


def check_address(address: str) -> str:
    """Return a server's address without a slash at its end. Raises ValidationFailed (BAD_MIRROR)."""
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or not address.isprintable() or " " in address:
        raise ValidationFailed("the mirror is not an http(s) address", reason="BAD_MIRROR", field="mirror")
    return address.rstrip("/")


def within(folder: Path, name: str) -> Path:
    """Return where a file that a hub calls `name` goes. Raises ExecutionFailed when that is outside the folder."""
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise ExecutionFailed(f"the hub names a file {name[:200]!r}", reason="BAD_ANSWER")
    return folder.joinpath(*parts)


def paced(progress: Progress) -> Progress:
    """Return a Progress that passes on one call in a quarter of a second, and the one that completes it."""
    last = 0.0

    async def pace(done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= PACE:
            last = now
            await progress(done, total)

    return pace
