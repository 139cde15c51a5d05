"""Downloads one file over HTTP and resumes it after a lost connection, a restart or a full disk.

The bytes so far are in `<name>.part`, and the server's ETag is in `<name>.part.tag`. The file gets its final name only
if its digest and size are correct.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path
from typing import BinaryIO

import httpx2

from aima_core.errors import AimaError, ExecutionFailed, RateLimited, Unavailable
from services.model.files.checksum import file_sha256
from services.model.files.disk import check_room, publish, writing
from services.model.files.threads import in_thread
from services.model.sources.hub_http import (
    FAULTS,
    Policy,
    bad_length,
    content_range,
    refusal,
    stated_length,
    unreachable,
)
from services.model.sources.part import Part, RemoteFile
from services.model.sources.port import Progress

UNSATISFIED = re.compile(r"^bytes \*/(\d{1,18})$", re.ASCII)


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
    await in_thread(check_room, target.path.parent, max(0, (target.size or 0) - Part(target).length()))
    host = httpx2.URL(target.url).host
    failures = 0
    while True:
        part = Part(target)
        before = part.length()
        try:
            digest = await _attempt(http, target, part, progress)
        except _UnusablePart:
            part.remove()
            failures += 1
            fault: AimaError = Unavailable(
                f"{host} does not send the requested part of {target.path.name}; pull it again later",
                reason="HUB_UNREACHABLE",
                host=host,
            )
        except (*FAULTS, Unavailable, RateLimited) as lost:
            failures = failures + 1 if part.length() <= before else 1
            fault = lost if isinstance(lost, AimaError) else unreachable(lost, target.url)
        else:
            await in_thread(publish, part.path, target.path)
            part.tag_path.unlink(missing_ok=True)
            return digest
        if failures >= policy.attempts or isinstance(fault, ExecutionFailed):
            raise fault
        await asyncio.sleep(min(policy.backoff * 2 ** (failures - 1), policy.longest_backoff))


async def _attempt(http: httpx2.AsyncClient, target: RemoteFile, part: Part, progress: Progress) -> str:
    """Download the missing rest of the file and return the digest of the whole file. Raises _UnusablePart."""
    name, host = target.path.name, httpx2.URL(target.url).host
    done = part.length()
    headers = {**target.headers, "Accept-Encoding": "identity", **part.resume_headers()}
    async with http.stream("GET", target.url, headers=headers) as response:
        if response.status_code == 416 and done:
            if not _whole_part(response, part):
                raise _UnusablePart
            return part.check(await in_thread(file_sha256, part.path), done)
        error = refusal(response, name, host)
        if error is not None:
            raise error
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise ExecutionFailed(f"{host} sends {name} compressed, which was not requested", reason="BAD_ANSWER")
        start, end, total = _start(response, part, done)
        with writing(part.path.parent):
            file = part.path.open("ab" if start else "wb")
        try:
            digest = await in_thread(part.hashed) if start else hashlib.sha256()
            done = start
            await progress(done, total)
            async for chunk in response.aiter_raw():
                await in_thread(_write, file, chunk, digest, part.path.parent)
                done += len(chunk)
                if end is not None and done > end:
                    raise _UnusablePart
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


def _start(response: httpx2.Response, part: Part, asked: int) -> tuple[int, int | None, int | None]:
    """Return the offset of the body, the offset after it, and the size of the whole file; None if it is not stated.

    Stores the version of the file. Raises _UnusablePart if the body does not continue the part, and ExecutionFailed
    (CHECKSUM_MISMATCH) if the file does not have the size that the hub has announced.
    """
    target, tag = part.target, response.headers.get("ETag")
    start, end, whole = 0, stated_length(response), stated_length(response)
    if response.status_code == 206:
        place = content_range(response)
        if place is None or place.begin not in (0, asked):
            raise _UnusablePart
        start, end, whole = place
        if start and not part.continues(tag, whole):
            raise _UnusablePart
    if target.size is not None and whole not in (None, target.size):
        part.remove()
        raise bad_length(target.path.name, httpx2.URL(target.url).host, target.size, whole)
    if start == 0:
        part.remove()  # before the version is stored: the old bytes must never lie under the new version
    part.note_version(tag, whole)
    return start, end, whole if target.size is None else target.size


def _whole_part(response: httpx2.Response, part: Part) -> bool:
    """Return whether the part is already the whole file, by the response to a request for bytes after its end."""
    match = UNSATISFIED.match(response.headers.get("Content-Range", ""))
    whole = int(match[1]) if match else part.target.size
    tag = response.headers.get("ETag")
    return part.length() == whole and part.target.size in (None, whole) and part.continues(tag, whole)
