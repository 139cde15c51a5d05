"""Downloads one file over HTTP so that a lost connection, a restart or a full disk costs little.

What has arrived lies in `<name>.part`, what the server called it (its ETag) in `<name>.part.tag`; the file's own
name appears only when its digest and size are as expected.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import httpx2

from aima_core.errors import ExecutionFailed, RateLimited, Unavailable
from services.model.files.checksum import file_digest, file_sha256
from services.model.files.disk import check_room, publish, writing
from services.model.files.threads import in_thread
from services.model.sources.hub_http import Policy, refusal, unreachable
from services.model.sources.port import Progress

CONTENT_RANGE = re.compile(r"^bytes (\d+)-\d+/(\d+|\*)$")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a hub; `sha256` (hexadecimal) and `size` (bytes) are None where the hub does not say."""

    url: str
    path: Path
    sha256: str | None = None
    size: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class _Again(Exception):
    """What lies in the part is of no use; begin anew."""


async def download(http: httpx2.AsyncClient, wanted: RemoteFile, progress: Progress, policy: Policy) -> str:
    """Have the file at its path, whole and checked, and return its hexadecimal SHA-256.

    Nothing is fetched when it is there already. Cancelling keeps the part. Raises what `Source.pull` declares;
    after CHECKSUM_MISMATCH nothing is left of the file.
    """
    if wanted.sha256 is not None and wanted.path.is_file():
        there = await in_thread(file_sha256, wanted.path)
        if there == wanted.sha256:
            await progress(wanted.path.stat().st_size, wanted.size)
            return there
    await in_thread(check_room, wanted.path.parent, max(0, (wanted.size or 0) - _Part(wanted).length()))
    failures = 0
    while True:
        part = _Part(wanted)
        before = part.length()
        try:
            digest = await _attempt(http, wanted, part, progress)
        except _Again:
            part.remove()
            failures += 1
            fault: Exception = _Again("the server sends other ranges than asked")
        except (httpx2.TransportError, httpx2.StreamError, Unavailable, RateLimited) as lost:
            failures = failures + 1 if part.length() <= before else 1
            fault = lost
        else:
            await in_thread(publish, part.path, wanted.path)
            part.tag_path.unlink(missing_ok=True)
            return digest
        if failures >= policy.attempts:
            if isinstance(fault, (Unavailable, RateLimited)):
                raise fault
            raise unreachable(fault, httpx2.URL(wanted.url).host) from fault
        await asyncio.sleep(min(policy.backoff * 2 ** (failures - 1), policy.longest_backoff))


async def _attempt(http: httpx2.AsyncClient, wanted: RemoteFile, part: _Part, progress: Progress) -> str:
    """Fetch what is missing of the part and return the digest of the whole."""
    done = part.length()
    headers = {**wanted.headers, "Accept-Encoding": "identity", **part.resume_headers()}
    async with http.stream("GET", wanted.url, headers=headers) as response:
        if response.status_code == 416:
            if wanted.size is None or done != wanted.size:
                raise _Again
            return part.check(await in_thread(file_sha256, part.path), done)
        refused = refusal(response.status_code, wanted.path.name, response.headers.get("Retry-After"))
        if refused is not None:
            raise refused
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise ExecutionFailed(f"{wanted.path.name} comes compressed, unasked", reason="BAD_ANSWER")
        begin, total = _range(response)
        if begin not in (0, done):
            raise _Again
        total = wanted.size if wanted.size is not None else total
        part.note_tag(response.headers.get("ETag"))
        with writing(part.path.parent):
            file = part.path.open("ab" if begin else "wb")
        try:
            digest = await in_thread(part.hashed) if begin else hashlib.sha256()
            done = begin
            await progress(done, total)
            async for chunk in response.aiter_raw():
                await in_thread(_write, file, chunk, digest, part.path.parent)
                done += len(chunk)
                if wanted.size is not None and done > wanted.size:
                    part.check("", done)
                await progress(done, total)
        finally:
            with writing(part.path.parent):
                file.close()
    if total is not None and done < total:
        raise httpx2.RemoteProtocolError("the connection closed early")
    await progress(done, done)
    return part.check(digest.hexdigest(), done)


def _write(file: BinaryIO, chunk: bytes, digest: hashlib._Hash, folder: Path) -> None:
    with writing(folder):
        file.write(chunk)
        file.flush()
    digest.update(chunk)


def _range(response: httpx2.Response) -> tuple[int, int | None]:
    """Return where the body begins, and how long the whole file is when the server says."""
    if response.status_code != 206:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    match = CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if match is None:
        raise _Again
    return int(match[1]), None if match[2] == "*" else int(match[2])


@dataclass(frozen=True)
class _Part:
    """What has arrived of a file."""

    wanted: RemoteFile

    @property
    def path(self) -> Path:
        return self.wanted.path.with_name(self.wanted.path.name + ".part")

    @property
    def tag_path(self) -> Path:
        return self.wanted.path.with_name(self.wanted.path.name + ".part.tag")

    def length(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def hashed(self) -> hashlib._Hash:
        return file_digest(self.path)

    def resume_headers(self) -> dict[str, str]:
        """Ask for the rest, but only of the same file: by its ETag, or by the digest that is checked at the end."""
        tag = self.tag_path.read_text() if self.tag_path.is_file() else None
        if self.length() == 0 or (tag is None and self.wanted.sha256 is None):
            return {}
        return {"Range": f"bytes={self.length()}-"} | ({"If-Range": tag} if tag else {})

    def note_tag(self, tag: str | None) -> None:
        """Keep the server's name for this content; a weak one ("W/...") does not promise the same bytes."""
        with writing(self.path.parent):
            if tag and not tag.startswith("W/"):
                self.tag_path.write_text(tag)
            else:
                self.tag_path.unlink(missing_ok=True)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.tag_path.unlink(missing_ok=True)

    def check(self, digest: str, size: int) -> str:
        """Return the digest when it and the size are as expected; otherwise remove the part and refuse."""
        expected, name = self.wanted, self.wanted.path.name
        if (expected.size in (None, size)) and (expected.sha256 in (None, digest)):
            return digest
        self.remove()
        raise ExecutionFailed(
            f"{name} is not what the hub announced; the download was removed",
            reason="CHECKSUM_MISMATCH",
            file=name,
            expected=f"sha256:{expected.sha256}" if expected.sha256 else None,
            found=f"sha256:{digest}" if digest else None,
        )
