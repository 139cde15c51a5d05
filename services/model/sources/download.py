"""Downloads one file over HTTP and resumes it after a lost connection, a restart or a full disk.

The bytes so far are in `<name>.part`, and the server's ETag is in `<name>.part.tag`. The file gets its final name only
if its digest and size are correct.
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
    """One file of a hub; `sha256` (hexadecimal) and `size` (bytes) are None if the hub does not state them."""

    url: str
    path: Path
    sha256: str | None = None
    size: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class _UnusablePart(Exception):
    """The server cannot continue the partial download. The download must start again."""


async def download(http: httpx2.AsyncClient, target: RemoteFile, progress: Progress, policy: Policy) -> str:
    """Download the file to its path, check it, and return its hexadecimal SHA-256.

    Downloads nothing if the file is already present. A cancellation keeps the part. Raises the errors of `Source.pull`;
    CHECKSUM_MISMATCH removes the part.
    """
    if target.sha256 is not None and target.path.is_file():
        present = await in_thread(file_sha256, target.path)
        if present == target.sha256:
            await progress(target.path.stat().st_size, target.size)
            return present
    await in_thread(check_room, target.path.parent, max(0, (target.size or 0) - _Part(target).length()))
    host = httpx2.URL(target.url).host
    failures = 0
    while True:
        part = _Part(target)
        before = part.length()
        try:
            digest = await _attempt(http, target, part, progress)
        except _UnusablePart:
            part.remove()
            failures += 1
            fault: Exception = Unavailable(
                f"{host} does not send the requested part of {target.path.name}; pull it again later",
                reason="HUB_UNREACHABLE",
                host=host,
            )
        except (httpx2.TransportError, httpx2.StreamError, Unavailable, RateLimited) as lost:
            failures = failures + 1 if part.length() <= before else 1
            fault = lost
        else:
            await in_thread(publish, part.path, target.path)
            part.tag_path.unlink(missing_ok=True)
            return digest
        if failures >= policy.attempts:
            if isinstance(fault, (Unavailable, RateLimited)):
                raise fault
            raise unreachable(fault, host) from fault
        await asyncio.sleep(min(policy.backoff * 2 ** (failures - 1), policy.longest_backoff))


async def _attempt(http: httpx2.AsyncClient, target: RemoteFile, part: _Part, progress: Progress) -> str:
    """Download the missing rest of the file and return the digest of the whole file. Raises _UnusablePart."""
    name, host = target.path.name, httpx2.URL(target.url).host
    done = part.length()
    headers = {**target.headers, "Accept-Encoding": "identity", **part.resume_headers()}
    async with http.stream("GET", target.url, headers=headers) as response:
        if response.status_code == 416:
            if target.size is None or done != target.size:
                raise _UnusablePart
            return part.check(await in_thread(file_sha256, part.path), done)
        error = refusal(response.status_code, name, host, response.headers.get("Retry-After"))
        if error is not None:
            raise error
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise ExecutionFailed(f"{host} sends {name} compressed, which was not requested", reason="BAD_ANSWER")
        start, total = _range(response)
        if start not in (0, done):
            raise _UnusablePart
        total = target.size if target.size is not None else total
        part.note_tag(response.headers.get("ETag"))
        with writing(part.path.parent):
            file = part.path.open("ab" if start else "wb")
        try:
            digest = await in_thread(part.hashed) if start else hashlib.sha256()
            done = start
            await progress(done, total)
            async for chunk in response.aiter_raw():
                await in_thread(_write, file, chunk, digest, part.path.parent)
                done += len(chunk)
                if target.size is not None and done > target.size:
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
    """Return the offset of the body and the size of the whole file, if the server states it. Raises _UnusablePart."""
    if response.status_code != 206:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    match = CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if match is None:
        raise _UnusablePart
    return int(match[1]), None if match[2] == "*" else int(match[2])


@dataclass(frozen=True)
class _Part:
    """The downloaded part of a file."""

    target: RemoteFile

    @property
    def path(self) -> Path:
        return self.target.path.with_name(self.target.path.name + ".part")

    @property
    def tag_path(self) -> Path:
        return self.target.path.with_name(self.target.path.name + ".part.tag")

    def length(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def hashed(self) -> hashlib._Hash:
        return file_digest(self.path)

    def resume_headers(self) -> dict[str, str]:
        """Return the headers that request the rest of the file.

        Without an ETag or a known digest, return no headers: the rest could come from another version of the file.
        """
        tag = self.tag_path.read_text() if self.tag_path.is_file() else None
        if self.length() == 0 or (tag is None and self.target.sha256 is None):
            return {}
        return {"Range": f"bytes={self.length()}-"} | ({"If-Range": tag} if tag else {})

    def note_tag(self, tag: str | None) -> None:
        """Store the ETag, except a weak one ("W/<text>"), which does not guarantee the same bytes."""
        with writing(self.path.parent):
            if tag and not tag.startswith("W/"):
                self.tag_path.write_text(tag)
            else:
                self.tag_path.unlink(missing_ok=True)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.tag_path.unlink(missing_ok=True)

    def check(self, digest: str, size: int) -> str:
        """Return the digest if digest and size are correct; else remove the part and raise ExecutionFailed."""
        expected, name = self.target, self.target.path.name
        if (expected.size in (None, size)) and (expected.sha256 in (None, digest)):
            return digest
        self.remove()
        raise ExecutionFailed(
            f"{name} is damaged: its size or checksum is not what the hub announced; it was removed, pull it again",
            reason="CHECKSUM_MISMATCH",
            file=name,
            expected=f"sha256:{expected.sha256}" if expected.sha256 else None,
            found=f"sha256:{digest}" if digest else None,
        )
