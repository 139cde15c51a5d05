"""Reads the start of a file on a hub by requests for ranges, so that its header is checked before its download."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import httpx2

from aima_core.errors import AimaError, ExecutionFailed, RateLimited, Unavailable
from services.model.files.threads import raise_if_cancelled
from services.model.selection.choice import HeaderTooFar
from services.model.sources.hub_http import (
    FAULTS,
    Policy,
    bad_length,
    content_range,
    refusal,
    stated_length,
    unreachable,
)

BLOCK = 4 << 10  # bytes of the smallest request
MOST = 128 << 20  # bytes that are read of one file at most ...
SHARE = 4  # ... and at most this part of it, but always some MB
FIRST = 4 << 20
LOOK = 0.2  # seconds between two looks whether the work was cancelled

Fetch = Callable[[int, int], Awaitable[tuple[bytes, int | None]]]
"""A function with a position and a number of bytes; returns the bytes, and the size of the whole file if known."""


class RemoteBytes(io.RawIOBase):
    """The bytes of a remote file; used in a thread, while `loop` runs the requests. Keeps the first block."""

    def __init__(self, name: str, size: int, fetch: Fetch, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._name, self._size, self._fetch, self._loop = name, size, fetch, loop
        self._at, self._fetched = 0, 0
        self._start = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position from the start of the file, the only one that readers use."""
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only from the start")
        self._at = offset
        return offset

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; fewer only at the end of the file. Raises AimaError, also HeaderTooFar."""
        end = self._size if size < 0 else min(self._at + size, self._size)
        if end <= self._at:
            return b""
        if end > len(self._start) and self._at == 0:
            self._start = self._request(0, min(max(end, BLOCK), self._size))
        known = end <= len(self._start)
        block = self._start[self._at : end] if known else self._request(self._at, end - self._at)
        self._at += len(block)
        return block

    def _request(self, at: int, count: int) -> bytes:
        self._fetched += count
        if self._fetched > max(FIRST, min(MOST, self._size // SHARE)):
            raise HeaderTooFar(f"the header of {self._name} is too far inside the file", reason="HEADER_TOO_FAR")
        block, _ = waited(self._fetch(at, count), self._loop)
        return block


def waited(work: Awaitable[tuple[bytes, int | None]], loop: asyncio.AbstractEventLoop) -> tuple[bytes, int | None]:
    """Return the result of work on the loop, from a thread. Ends the work if the thread's work is cancelled."""

    async def run() -> tuple[bytes, int | None]:
        return await work

    future = asyncio.run_coroutine_threadsafe(run(), loop)
    try:
        while True:
            raise_if_cancelled()
            try:
                return future.result(LOOK)
            except TimeoutError:
                if future.done():
                    return future.result()
    finally:
        future.cancel()


@dataclass(frozen=True)
class Ranges:
    """Requests for parts of one file."""

    http: httpx2.AsyncClient
    url: str
    name: str
    size: int | None
    headers: Mapping[str, str]
    policy: Policy

    async def fetch(self, at: int, count: int) -> tuple[bytes, int | None]:
        """Return `count` bytes from the position, and the size of the file if the server states it.

        Repeats the request while the server does not answer. Raises the errors of `Source.pull`.
        """
        host, failures = httpx2.URL(self.url).host, 0
        while True:
            try:
                return await self._attempt(at, count, host)
            except (*FAULTS, Unavailable, RateLimited) as lost:
                failures += 1
                error = lost if isinstance(lost, AimaError) else unreachable(lost, self.url)
                if failures >= self.policy.attempts or isinstance(error, ExecutionFailed):
                    raise error from lost
            await asyncio.sleep(min(self.policy.backoff * 2 ** (failures - 1), self.policy.longest_backoff))

    async def _attempt(self, at: int, count: int, host: str) -> tuple[bytes, int | None]:
        headers = {**self.headers, "Accept-Encoding": "identity", "Range": f"bytes={at}-{at + count - 1}"}
        async with self.http.stream("GET", self.url, headers=headers) as response:
            error = refusal(response, self.name, host)
            if error is not None:
                raise error
            begin, whole = 0, stated_length(response)
            if response.status_code == 206:
                place = content_range(response)
                if place is None or place.begin > at:
                    why = f"{host} does not send the requested part of {self.name}"
                    raise ExecutionFailed(why, reason="BAD_ANSWER")
                begin, _, whole = place
            if self.size is not None and whole not in (None, self.size):
                raise bad_length(self.name, host, self.size, whole)
            body = bytearray()
            async for chunk in response.aiter_raw():  # a server that ignores ranges sends the file from its start
                body += chunk
                if begin + len(body) >= at + count:
                    break
                if begin + len(body) < at:
                    begin, body = begin + len(body), bytearray()
        block = bytes(body[at - begin : at - begin + count])
        if len(block) < count and (whole is None or at + len(block) < whole):
            raise httpx2.RemoteProtocolError("the connection closed early")
        return block, whole
